"""Procedural images: simple drawings for style transforms, and patterns that are styles themselves.

Drawn by code alone, so images made of them need no attribution: CC0-1.0.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image, ImageDraw

from instantstyle.emoji.rasterize import RASTER_SIZE, RgbaArray
from instantstyle.emoji.style_transforms import Colour, RgbArray

_SUPERSAMPLING = 4
"""Images are drawn this many times larger and downsampled, for smooth edges."""
_SIDE = RASTER_SIZE * _SUPERSAMPLING

Pen = ImageDraw.ImageDraw


def _house(pen: Pen) -> None:
    pen.rectangle((110, 230, 402, 470), fill=(236, 206, 152))
    pen.polygon([(70, 240), (256, 50), (442, 240)], fill=(190, 58, 48))
    pen.rectangle((330, 70, 376, 170), fill=(128, 60, 48))
    pen.rectangle((222, 330, 296, 470), fill=(112, 72, 44))
    for x in (136, 322):
        pen.rectangle((x, 290, x + 58, 350), fill=(120, 190, 226))


def _fish(pen: Pen) -> None:
    pen.polygon([(350, 256), (480, 150), (480, 362)], fill=(226, 110, 30))
    pen.ellipse((30, 140, 400, 372), fill=(246, 150, 46))
    pen.polygon([(190, 150), (270, 60), (310, 170)], fill=(226, 110, 30))
    pen.chord((90, 140, 260, 372), 300, 60, fill=(252, 214, 150))
    pen.ellipse((92, 206, 144, 258), fill=(255, 255, 255))
    pen.ellipse((104, 218, 132, 246), fill=(24, 24, 30))


def _flower(pen: Pen) -> None:
    pen.rectangle((246, 250, 268, 490), fill=(58, 140, 62))
    pen.ellipse((262, 360, 400, 430), fill=(76, 166, 76))
    for i in range(8):
        x, y = 256 + 100 * math.cos(i * math.pi / 4), 180 + 100 * math.sin(i * math.pi / 4)
        pen.ellipse((x - 58, y - 58, x + 58, y + 58), fill=(240, 92, 132))
    pen.ellipse((196, 120, 316, 240), fill=(250, 206, 70))


def _boat(pen: Pen) -> None:
    pen.polygon([(40, 350), (472, 350), (400, 460), (112, 460)], fill=(150, 84, 44))
    pen.rectangle((246, 50, 262, 350), fill=(96, 60, 40))
    pen.polygon([(270, 60), (270, 330), (440, 330)], fill=(250, 246, 236))
    pen.polygon([(238, 90), (238, 330), (90, 330)], fill=(214, 66, 58))


def _mushroom(pen: Pen) -> None:
    pen.rounded_rectangle((190, 260, 322, 480), 50, fill=(246, 234, 212))
    pen.pieslice((40, 50, 472, 490), 180, 360, fill=(206, 40, 44))
    for x, y, r in ((150, 180, 34), (270, 120, 40), (370, 200, 30), (240, 230, 22)):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 244))


def _cup(pen: Pen) -> None:
    pen.ellipse((320, 220, 470, 380), outline=(70, 120, 190), width=34)
    pen.rounded_rectangle((70, 180, 380, 470), 60, fill=(88, 142, 214))
    pen.ellipse((70, 146, 380, 226), fill=(122, 172, 232))
    pen.ellipse((96, 160, 354, 214), fill=(96, 58, 34))


THINGS: Mapping[str, Callable[[Pen], None]] = {
    "house": _house,
    "fish": _fish,
    "flower": _flower,
    "sailboat": _boat,
    "mushroom": _mushroom,
    "cup": _cup,
}
"""The function that draws each, by its label."""


def thing(name: str) -> RgbaArray:
    """One drawing, 128 x 128 RGBA on a transparent background.  Raises KeyError for an unknown name."""
    canvas = Image.new("RGBA", (_SIDE, _SIDE))
    THINGS[name](ImageDraw.Draw(canvas))
    return np.asarray(
        canvas.convert("RGBa").resize((RASTER_SIZE, RASTER_SIZE), Image.Resampling.LANCZOS).convert("RGBA")
    )


def mosaic(seed: int = 0, side: int = RASTER_SIZE) -> RgbArray:
    """Tiles around scattered points, warm and cool, with dark joints."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, side, (side * side // 180, 2))
    y, x = np.mgrid[0:side, 0:side]
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    order = np.argsort(distance, axis=-1)[..., :2]
    first, second = (np.take_along_axis(distance, order[..., i : i + 1], -1)[..., 0] for i in range(2))
    palette = np.array([(208, 92, 48), (240, 182, 70), (34, 110, 120), (18, 62, 86), (232, 224, 200)], np.float64)
    tiles = palette[rng.integers(len(palette), size=len(points))] * rng.uniform(0.85, 1.1, (len(points), 1))
    joint = np.clip((second - first) / 1.6, 0, 1)[..., None]
    return np.clip(tiles[order[..., 0]] * joint + np.array((30, 26, 28)) * (1 - joint), 0, 255).astype(np.uint8)


def brush(seed: int = 0, side: int = RASTER_SIZE) -> RgbArray:
    """Thick strokes along a smooth vector field, in ochre, blue and cream, each with bristles."""
    rng = np.random.default_rng(seed)
    canvas = np.full((side, side, 3), (44, 58, 92), np.uint8)
    palette: list[Colour] = [(36, 74, 134), (70, 116, 176), (224, 176, 72), (242, 214, 140), (238, 232, 214)]
    for _ in range(side * 5):
        x, y = rng.uniform(0, side, 2)
        turn = math.sin(x / side * 5) + math.cos(y / side * 4)
        colour = np.array(palette[int(np.clip(rng.normal(2.2 + 1.6 * math.sin(y / side * 6), 0.8), 0, 4))])
        for bristle in range(-2, 3):
            shade = tuple(int(c) for c in np.clip(colour * rng.uniform(0.86, 1.12), 0, 255))
            bx, by = x - bristle * math.sin(turn), y + bristle * math.cos(turn)
            ends = [
                (bx - 9 * math.cos(turn), by - 9 * math.sin(turn)),
                (bx + 9 * math.cos(turn), by + 9 * math.sin(turn)),
            ]
            start, stop = ((round(each[0]), round(each[1])) for each in ends)
            cv2.line(canvas, start, stop, shade, 1, cv2.LINE_AA)
    return cast("RgbArray", canvas)


def blueprint(seed: int = 0, side: int = RASTER_SIZE) -> RgbArray:
    """Pale lines of a plan on blue paper: a grid, circles, a rectangle with its diagonals."""
    rng = np.random.default_rng(seed)
    sheet = Image.new("RGB", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), (22, 74, 150))
    pen, up = ImageDraw.Draw(sheet), _SUPERSAMPLING
    for at in range(0, side, 16):
        pen.line((at * up, 0, at * up, side * up), (58, 110, 184), up // 2)
        pen.line((0, at * up, side * up, at * up), (58, 110, 184), up // 2)
    for _ in range(3):
        x, y, r = (rng.uniform(0.2, 0.8, 3) * side * up).tolist()
        pen.ellipse((x - r / 3, y - r / 3, x + r / 3, y + r / 3), outline=(232, 240, 250), width=up)
        pen.line((x - r / 2.5, y, x + r / 2.5, y), (190, 212, 240), up // 2)
    x, y = (rng.uniform(0.1, 0.35, 2) * side * up).tolist()
    box = (x, y, x + side * up * 0.55, y + side * up * 0.45)
    pen.rectangle(box, outline=(232, 240, 250), width=up)
    pen.line(box, (190, 212, 240), up // 2)
    return _downsample(sheet, side)


def sunset(seed: int = 0, side: int = RASTER_SIZE) -> RgbArray:
    """Flat bands of a warm sky over dark hills, with a low sun: hard edges, no shading."""
    rng = np.random.default_rng(seed)
    sky = ((252, 196, 92), (248, 148, 74), (232, 98, 76), (178, 58, 84))
    sheet = Image.new("RGB", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), sky[0])
    pen, wide = ImageDraw.Draw(sheet), side * _SUPERSAMPLING
    for i, colour in enumerate(reversed(sky)):
        pen.rectangle((0, i * wide // 5, wide, wide), fill=colour)
    x, r = float(rng.uniform(0.35, 0.65)) * wide, 0.16 * wide
    pen.ellipse((x - r, 0.62 * wide - r, x + r, 0.62 * wide + r), fill=(255, 240, 190))
    for level, colour in ((0.7, (96, 40, 70)), (0.82, (44, 22, 46))):
        shift = float(rng.uniform(0, 6))
        hill = [(px, (level + 0.05 * math.sin(px / wide * 7 + shift)) * wide) for px in range(0, wide + 1, 8)]
        pen.polygon([(0, wide), *hill, (wide, wide)], fill=colour)
    return _downsample(sheet, side)


PATTERNS: Mapping[str, Callable[[int], RgbArray]] = {
    "mosaic": mosaic,
    "brush": brush,
    "blueprint": blueprint,
    "sunset": sunset,
}
"""Patterns without content, each from a seed."""


def _downsample(sheet: Image.Image, side: int) -> RgbArray:
    return np.asarray(sheet.resize((side, side), Image.Resampling.LANCZOS))


def on_white(picture: RgbaArray) -> RgbArray:
    """A drawing over white, RGB."""
    white: Any = Image.new("RGBA", (picture.shape[1], picture.shape[0]), "white")
    return np.asarray(Image.alpha_composite(white, Image.fromarray(picture)).convert("RGB"))
