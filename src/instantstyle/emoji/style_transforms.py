"""Style transforms: random, parametrised renderings of a drawing, independent of its content.

A transform is data (family, colours, amount, seed), so the same style can be applied to every concept: that makes the
ground truth of (this content, in that style) exist.  Held-out families are never trained or tuned on.
"""

import colorsys
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from instantstyle.emoji.rasterize import RgbaArray

RgbArray = npt.NDArray[np.uint8]
"""Height x width x 3."""
FloatPixels = npt.NDArray[np.floating[Any]]
Colour = tuple[int, int, int]

HELD_OUT_FAMILIES = ("sticker", "emboss", "cross-stitch")
HELD_OUT_HUES = (260.0, 300.0)
"""Degrees on the HSV circle: backgrounds of these hues are never trained on."""


@dataclass(frozen=True)
class StyleTransform:
    """One style.  Colours are RGB; what `accent` and `amount` mean depends on the kind, its family."""

    kind: str
    background: Colour
    foreground: Colour
    accent: Colour
    amount: float
    """0 to 1: coarseness, angle or strength, by family."""
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, under the keys of files written by 0.1.0."""
        return {key: getattr(self, name) for key, name in _JSON_KEYS.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "StyleTransform":
        """What `to_dict` gave, colours read back from lists."""
        background, foreground, accent = (tuple(data[key]) for key in ("ground", "ink", "second"))
        return cls(data["family"], background, foreground, accent, data["amount"], data["seed"])


_JSON_KEYS = {
    **{"family": "kind", "ground": "background", "ink": "foreground", "second": "accent"},
    **{"amount": "amount", "seed": "seed"},
}


def sample_transform(
    rng: np.random.Generator, families: Sequence[str] | None = None, held_out_hue: bool = False
) -> StyleTransform:
    """A random transform.  `held_out_hue`: its background is inside the held-out hue band, else outside it."""
    family = str(rng.choice(list(families or TRAINED_FAMILIES)))
    background, foreground, accent = _colours(family, rng, held_out_hue)
    return StyleTransform(family, background, foreground, accent, float(rng.random()), int(rng.integers(2**31)))


def apply_transform(transform: StyleTransform, picture: RgbaArray) -> RgbArray:
    """Render an RGBA drawing in this style: RGB of the same height and width, the background filled."""
    return _FAMILIES[transform.kind](picture, transform, np.random.default_rng(transform.seed))


def _hue(rng: np.random.Generator, held_out: bool) -> float:
    low, high = HELD_OUT_HUES
    if held_out:
        return float(rng.uniform(low, high)) / 360
    return (high + float(rng.uniform(0, 360 - (high - low)))) % 360 / 360


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _colours(family: str, rng: np.random.Generator, held_out: bool) -> tuple[Colour, Colour, Colour]:
    """A background, a foreground that contrasts with it, and an accent; lightness depends on the family."""
    hue = _hue(rng, held_out)
    other = (hue + float(rng.uniform(0.25, 0.75))) % 1
    third = (hue + float(rng.uniform(0, 1))) % 1
    dark_background = {"neon": 1.0, "chalk": 1.0, "pencil": 0.0, "watercolour": 0.0, "hatching": 0.15}.get(family, 0.4)
    if rng.random() < dark_background:
        background = _hsv(hue, float(rng.uniform(0.5, 1)), float(rng.uniform(0.08, 0.38)))
        foreground = _hsv(other, float(rng.uniform(0.05, 0.75)), float(rng.uniform(0.88, 1)))
    else:
        pale = family in ("pencil", "watercolour")
        saturation = float(rng.uniform(0.03, 0.2)) if pale else float(rng.uniform(0.1, 0.75))
        background = _hsv(hue, saturation, float(rng.uniform(0.88, 1)))
        foreground = _hsv(other, float(rng.uniform(0.4, 1)), float(rng.uniform(0.08, 0.45)))
    if not held_out and family in ("plain", "outline") and rng.random() < 0.25:
        background = (255, 255, 255) if rng.random() < 0.7 else (24, 24, 24)
        foreground = (24, 24, 24) if background[0] > 128 else (245, 245, 245)
    return background, foreground, _hsv(third, float(rng.uniform(0.5, 1)), float(rng.uniform(0.5, 1)))


def _rgb(picture: RgbaArray) -> FloatPixels:
    return picture[..., :3].astype(np.float32) / 255


def _alpha(picture: RgbaArray) -> FloatPixels:
    return (picture[..., 3:].astype(np.float32) / 255).astype(np.float32)


def _unit(colour: Colour) -> FloatPixels:
    return np.array(colour, np.float32) / 255


def _finish(x: FloatPixels) -> RgbArray:
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def _mix(under: FloatPixels, over: FloatPixels, alpha: FloatPixels) -> FloatPixels:
    return under + (over - under) * alpha


def _on_white(picture: RgbaArray) -> FloatPixels:
    return _mix(np.ones(3, np.float32), _rgb(picture), _alpha(picture))


def _tone(picture: RgbaArray) -> FloatPixels:
    """Luminance over white, contrast-stretched so that one-colour drawings have shadows too: [h, w] in 0..1."""
    grey = _on_white(picture) @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = float(np.percentile(grey, 2)), 1.0
    return np.clip((grey - low) / max(high - low, 0.15), 0, 1).astype(np.float32)


def _blur(x: FloatPixels, sigma: float) -> FloatPixels:
    return cast("FloatPixels", cv2.GaussianBlur(x, (0, 0), sigma))


def _edges(picture: RgbaArray, width: float) -> FloatPixels:
    """Contours of colour and silhouette as lines `width` pixels wide: [h, w] in 0..1."""
    stack = np.dstack([_on_white(picture), _alpha(picture)]).astype(np.float32)
    stack = _blur(stack, 0.9)
    gx = cast("FloatPixels", cv2.Sobel(stack, cv2.CV_32F, 1, 0))
    gy = cast("FloatPixels", cv2.Sobel(stack, cv2.CV_32F, 0, 1))
    strength = np.sqrt(gx * gx + gy * gy).max(axis=2)
    line = np.clip((strength - 0.45) * 3, 0, 1).astype(np.float32)
    size = max(1, round(width))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return _blur(cast("FloatPixels", cv2.dilate(line, kernel)), 0.6)


def _noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> FloatPixels:
    """Gaussian-smoothed noise of mean 0 and standard deviation 1."""
    field = _blur(rng.standard_normal(shape).astype(np.float32), sigma)
    return field / max(float(field.std()), 1e-6)


def _plain(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    return _finish(_mix(_unit(t.background), _rgb(p), _alpha(p)))


def _palette(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    steps = np.stack(
        [
            _unit(t.foreground),
            0.5 * _unit(t.foreground) + 0.5 * _unit(t.accent),
            _unit(t.accent),
            0.4 * _unit(t.accent) + 0.6,
        ]
    )
    index = np.minimum((_blur(_tone(p), 0.7) * 4).astype(int), 3)
    return _finish(_mix(_unit(t.background), steps[index], (_alpha(p) > 0.5).astype(np.float32)))


def _duotone(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    tone = _tone(p)[..., None]
    return _finish(_mix(_unit(t.foreground), _unit(t.background), tone))


def _pixel(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    side = 16 if t.amount < 0.5 else 21
    flat = _mix(_unit(t.background), _rgb(p), _alpha(p))
    small = cast("FloatPixels", cv2.resize(flat, (side, side), interpolation=cv2.INTER_AREA))
    small = np.round(small * 4) / 4
    return _finish(cast("FloatPixels", cv2.resize(small, p.shape[1::-1], interpolation=cv2.INTER_NEAREST)))


def _hatching(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    height, width = p.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    tone, period = _tone(p), 6.0 + 2.5 * float(rng.random())
    ink = np.zeros((height, width), np.float32)
    for turn, level in ((0.0, 0.86), (0.5, 0.5)):
        angle = np.pi * (t.amount + turn)
        wave = 0.5 + 0.5 * np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
        dark = np.clip((level - tone) / level, 0, 1)
        ink = np.maximum(ink, np.clip((wave - (1 - (0.35 + 0.5 * dark))) * 4, 0, 1) * (dark > 0.02))
    ink = np.maximum(ink, _edges(p, 2.0))
    return _finish(_mix(_unit(t.background), _unit(t.foreground), ink[..., None]))


def _watercolour(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    shape = p.shape[:2]
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    push = 2.2
    dx, dy = _noise(shape, 5.0, rng) * push, _noise(shape, 5.0, rng) * push
    flat = np.dstack([_mix(_unit(t.background), _rgb(p), _alpha(p)), _alpha(p)]).astype(np.float32)
    warped = _blur(cast("FloatPixels", cv2.remap(flat, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=1)), 1.6)
    wash, share = warped[..., :3], warped[..., 3:]
    rim = np.clip(_blur(share[..., 0], 1.0) - _blur(share[..., 0], 4.0), 0, 1)[..., None]
    bloom = _noise(shape, 7.0, rng)[..., None] * 0.09
    paper = _noise(shape, 0.8, rng)[..., None] * 0.015
    washed = _mix(_unit(t.background), wash, np.clip(0.72 * share + bloom * share, 0, 1))
    return _finish(washed * (1 - 0.55 * rim) + paper)


def _neon(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    line = _edges(p, 2.5)
    glow = np.clip(_blur(line, 2.0) * 1.0 + _blur(line, 6.0) * 1.1, 0, 1)
    colour = _unit(t.accent) / max(float(_unit(t.accent).max()), 1e-3)
    ground = _unit(t.background) * 0.6
    lit = ground + colour * glow[..., None] * 0.95
    return _finish(_mix(lit, 0.35 * colour + 0.65, np.clip(line * 1.2 - 0.3, 0, 1)[..., None]))


def _pencil(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    tone = _tone(p)
    grain = _noise(p.shape[:2], 0.7, rng)
    shade = np.clip((1 - tone) * 0.5 + grain * 0.10 * (tone < 0.97), 0, 1)
    line = np.clip(_edges(p, 1.6) * (0.8 + 0.2 * grain), 0, 1)
    graphite = np.full(3, 0.22, np.float32)
    return _finish(_mix(_unit(t.background), graphite, np.clip(np.maximum(shade, line * 0.95), 0, 1)[..., None]))


def _outline(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    return _finish(_mix(_unit(t.background), _unit(t.foreground), _edges(p, 2.5 + 3 * t.amount)[..., None]))


def _papercut(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    """Two layers of coloured paper, light and dark parts, each casting a soft shadow."""
    alpha, tone = _blur(_alpha(p)[..., 0], 1.0), _blur(_tone(p), 1.5)
    canvas = np.broadcast_to(_unit(t.background), (*alpha.shape, 3)).astype(np.float32)
    middle = float(np.median(tone[alpha > 0.5])) if (alpha > 0.5).any() else 0.5
    layers = ((alpha > 0.5, _unit(t.accent)), ((alpha > 0.5) & (tone < middle - 0.02), _unit(t.foreground)))
    for mask, colour in layers:
        sheet = mask.astype(np.float32)
        shadow = np.roll(_blur(sheet, 2.5), (3, 3), (0, 1)) * 0.5
        canvas = canvas * (1 - shadow[..., None] * (1 - sheet[..., None]))
        canvas = _mix(canvas, colour, sheet[..., None])
    return _finish(_blur(canvas, 0.5))


def _halftone(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    """Dots of ink whose size follows the darkness, over a flat tint of the drawing's own shape."""
    height, width = p.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period, angle = 5.5 + 2 * t.amount, np.pi / 4
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = x * cos + y * sin, y * cos - x * sin
    screen = 0.5 + 0.25 * (np.cos(u * 2 * np.pi / period) + np.cos(v * 2 * np.pi / period))
    dark = 1 - _blur(_tone(p), 1.2)
    dots = np.clip((dark * 0.9 + screen - 1.0) * 5, 0, 1)
    tint = _mix(_unit(t.background), _unit(t.accent), 0.45 * _alpha(p))
    ink = np.maximum(dots, _edges(p, 1.5) * 0.9)[..., None]
    return _finish(_mix(tint, _unit(t.foreground), ink.astype(np.float32)))


def _chalk(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    """Soft broken strokes in the drawing's own colours, paled, on a dark board."""
    grain = _noise(p.shape[:2], 0.8, rng)
    rough = np.clip(0.75 + 0.4 * grain, 0, 1)[..., None]
    own = 0.55 * _rgb(p) + 0.45
    fill = _mix(_unit(t.background), own, 0.42 * _alpha(p) * rough)
    return _finish(_mix(fill, 0.3 * own + 0.7, _edges(p, 2.2)[..., None] * rough))


def _sticker(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    alpha = _alpha(p)[..., 0]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
    border = _blur(cast("FloatPixels", cv2.dilate(alpha, kernel)), 0.7)
    shadow = np.roll(_blur(border, 3.0), (3, 2), (0, 1)) * 0.5
    canvas = _unit(t.background) * (1 - shadow[..., None])
    return _finish(_mix(_mix(canvas, np.ones(3, np.float32), border[..., None]), _rgb(p), alpha[..., None]))


def _emboss(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    relief = _blur(0.6 * _alpha(p)[..., 0] + 0.6 * (1 - _tone(p)), 1.2)
    across, down = cv2.Sobel(relief, cv2.CV_32F, 1, 0), cv2.Sobel(relief, cv2.CV_32F, 0, 1)
    slope = cast("FloatPixels", across) + cast("FloatPixels", down)
    return _finish(_unit(t.background) * (0.85 + 0.45 * np.clip(slope, -1.6, 1.6))[..., None])


def _cross_stitch(p: RgbaArray, t: StyleTransform, rng: np.random.Generator) -> RgbArray:
    side, cell = 21, 6
    flat = np.dstack([_rgb(p) * _alpha(p), _alpha(p)]).astype(np.float32)
    small = cast("FloatPixels", cv2.resize(flat, (side, side), interpolation=cv2.INTER_AREA))
    share = small[..., 3:]
    colour = np.round(small[..., :3] / np.maximum(share, 1e-3) * 5) / 5
    y, x = np.mgrid[0:cell, 0:cell].astype(np.float32)
    cross = np.minimum(np.abs(x - y), np.abs(x + y - (cell - 1)))
    stitch = np.tile(np.clip(1.6 - cross, 0.12, 1), (side, side))[..., None].astype(np.float32)
    big = np.kron(colour, np.ones((cell, cell, 1), np.float32))
    on = np.kron((share > 0.5).astype(np.float32), np.ones((cell, cell, 1), np.float32))
    weave = _unit(t.background) * (0.93 + 0.07 * np.tile((x + y) % 2, (side, side))[..., None])
    canvas = np.broadcast_to(_unit(t.background), (*p.shape[:2], 3)).astype(np.float32).copy()
    canvas[: side * cell, : side * cell] = _mix(weave, big, on * stitch)[: p.shape[0], : p.shape[1]]
    return _finish(canvas)


_FAMILIES: Mapping[str, Callable[[RgbaArray, StyleTransform, np.random.Generator], RgbArray]] = {
    "plain": _plain,
    "palette": _palette,
    "duotone": _duotone,
    "pixel": _pixel,
    "hatching": _hatching,
    "watercolour": _watercolour,
    "neon": _neon,
    "pencil": _pencil,
    "outline": _outline,
    "papercut": _papercut,
    "halftone": _halftone,
    "chalk": _chalk,
    "sticker": _sticker,
    "emboss": _emboss,
    "cross-stitch": _cross_stitch,
}

TRAINED_FAMILIES = tuple(name for name in _FAMILIES if name not in HELD_OUT_FAMILIES)
