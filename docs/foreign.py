# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false
"""Twenty references unlike anything the built-in model was trained on: photographs, a painting, a screenshot, nothing.

    python docs/foreign.py     # writes docs/foreign.png and docs/foreign.md

The photographs are those that scikit-image carries inside its wheel (extra `sheets`); the rest is drawn here.
"""

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

import instantstyle as ist
from instantstyle.emoji.procedural import blueprint, brush, mosaic, thing
from instantstyle.emoji.style_transforms import StyleTransform, apply_transform
from instantstyle.utils import images
from instantstyle.utils.atomic_files import write_atomic

DOCS = Path(__file__).resolve().parent
PROMPTS = ("a cat", "a house")
SEED, STEPS = 7, 25
ACROSS = 10

Make = Callable[[], Image.Image]


PHOTOGRAPHS: dict[Make, str] = {}


def is_photograph(name: str) -> bool:
    """Whether a reference is one of scikit-image's pictures."""
    return REFERENCES[name] in PHOTOGRAPHS


def _photograph(name: str) -> Make:
    def read() -> Image.Image:
        from skimage import data

        with Image.open(Path(data.__file__).parent / name) as opened:
            opened.load()
            return opened

    PHOTOGRAPHS[read] = name
    return read


def screenshot() -> Image.Image:
    """A window with a title bar, a list, lines of text and a button."""
    sheet = Image.new("RGB", (480, 320), (238, 240, 244))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, 0, 480, 34), fill=(46, 52, 64))
    for i, colour in enumerate(((236, 95, 87), (246, 190, 80), (98, 197, 84))):
        pen.ellipse((12 + 22 * i, 11, 24 + 22 * i, 23), fill=colour)
    pen.rectangle((0, 34, 130, 320), fill=(222, 226, 234))
    for row in range(9):
        pen.rectangle((14, 52 + 28 * row, 60 + (row * 37) % 50, 62 + 28 * row), fill=(120, 128, 144))
        pen.rectangle((150, 56 + 26 * row, 300 + (row * 71) % 150, 64 + 26 * row), fill=(96, 102, 116))
    pen.rounded_rectangle((380, 280, 464, 308), 6, fill=(64, 120, 220))
    return sheet


def transparent() -> Image.Image:
    """A cup on no ground at all, half of it seen through."""
    cup = np.array(thing("cup"))
    cup[..., 3] = (cup[..., 3] * 0.6).astype(np.uint8)
    return Image.fromarray(cup)


def watercolour() -> Image.Image:
    """A boat painted wet."""
    look = StyleTransform("watercolour", (250, 246, 238), (20, 20, 20), (20, 20, 20), 0.5, 5)
    return Image.fromarray(apply_transform(look, thing("sailboat")))


def banner() -> Image.Image:
    """Far wider than high."""
    ramp = np.linspace(0, 255, 640)[None, :, None] * np.array([1.0, 0.6, 0.1]) + np.array([0, 20, 60])
    return Image.fromarray(np.clip(np.broadcast_to(ramp, (40, 640, 3)), 0, 255).astype(np.uint8))


def deep_grey() -> Image.Image:
    """Sixteen bits a pixel, as microscopes and scanners write."""
    y, x = np.mgrid[0:96, 0:96]
    return Image.fromarray((32000 + 30000 * np.sin(x / 9) * np.cos(y / 13)).astype(np.uint16))


REFERENCES: Mapping[str, Make] = {
    "astronaut": _photograph("astronaut.png"),
    "coffee": _photograph("coffee.png"),
    "chelsea": _photograph("chelsea.png"),
    "rocket": _photograph("rocket.jpg"),
    "hubble": _photograph("hubble_deep_field.jpg"),
    "cameraman": _photograph("camera.png"),
    "tissue": _photograph("ihc.png"),
    "grass": _photograph("grass.png"),
    "brick": _photograph("brick.png"),
    "retina": _photograph("retina.jpg"),
    "brush": lambda: Image.fromarray(brush(3)),
    "mosaic": lambda: Image.fromarray(mosaic(3)),
    "blueprint": lambda: Image.fromarray(blueprint(3)),
    "watercolour": watercolour,
    "screenshot": screenshot,
    "black": lambda: Image.new("RGB", (64, 64)),
    "one colour": lambda: Image.new("RGB", (64, 64), (20, 150, 140)),
    "transparent": transparent,
    "banner": banner,
    "16-bit grey": deep_grey,
}
"""Name and picture, in the order of the sheet."""


def reference(name: str) -> ist.StyleReference:
    """One of them as a request takes it, through the bytes of a file: transparency and depth go along."""
    made, buffer = REFERENCES[name](), io.BytesIO()
    made.save(buffer, "PNG")
    return ist.StyleReference(buffer.getvalue())


def lab(colours: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """CIELAB of eight-bit RGB colours [n, 3], lightness 0 to 100."""
    import cv2

    small = np.asarray(colours, np.float32)[None] / 255
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2Lab)[0], np.float64)


def background_colour(picture: Image.Image) -> npt.NDArray[np.float64]:
    """The median colour of a picture's border, eight-bit RGB [3]."""
    x = np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.BOX))
    sides = (x[:3], x[-3:], x[:, :3], x[:, -3:])
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def correlations(expected: Sequence[Any], actual: Sequence[Any]) -> tuple[float, float, float]:
    """Pearson's r of lightness, a and b between colours and colours."""
    one, other = lab(np.stack(expected)), lab(np.stack(actual))
    lightness, a, b = (float(np.corrcoef(one[:, i], other[:, i])[0, 1]) for i in range(3))
    return lightness, a, b


def draw(
    model: ist.Model, names: Sequence[str], steps: int = STEPS, prompts: Sequence[str] = PROMPTS
) -> dict[str, list[Image.Image]]:
    """The prompts' pictures, and before them the reference as the model is given it."""
    sheet: dict[str, list[Image.Image]] = {}
    for name in names:
        given, engine = reference(name), ist.Engine(model)
        for prompt in prompts:
            engine.submit(ist.Request(prompt, references=[given], seed=SEED, steps=steps))
        sheet[name] = [given.image.open(), *(result.images[0] for result in engine.run())]
        print(f"drew {name}", file=sys.stderr)
    return sheet


def grid(sheet: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """The sheet as one picture: ten references to a band, the prompts' pictures below them."""
    names = list(sheet)
    bands: list[Image.Image] = []
    for start in range(0, len(names), ACROSS):
        part = names[start : start + ACROSS]
        rows = [[sheet[name][i] for name in part] for i in range(1 + len(PROMPTS))]
        bands.append(images.image_grid(rows, rows=["reference", *PROMPTS], columns=part, cell=96))
    sheet_image = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), "white")
    top = 0
    for band in bands:
        sheet_image.paste(band, (0, top))
        top += band.height
    return sheet_image


def page(sheet: Mapping[str, Sequence[Image.Image]], model: ist.Model) -> str:
    """The page: what was drawn with what, and what was measured.  Judging the pictures is left to people."""
    results = [drawn for _, *drawn in sheet.values()]
    expected = [background_colour(shown) for shown, *_ in sheet.values() for _ in PROMPTS]
    r = correlations(expected, [background_colour(picture) for several in results for picture in several])
    rows = "\n".join(
        f"| {name} | {background_colour(shown).astype(int).tolist()} | "
        + " | ".join(str(background_colour(picture).astype(int).tolist()) for picture in drawn)
        + " |"
        for name, (shown, *drawn) in sheet.items()
    )
    heads = " | ".join(f"ground, {prompt}" for prompt in PROMPTS)
    return f"""# Foreign references

Written by `python docs/foreign.py` (or `make foreign`); do not edit.  Model {model.source.spec}, weights
{model.weights_fingerprint[:12]}, {STEPS} steps, seed {SEED}, plan `style`, nothing subtracted.

![Twenty references unlike the training data, and what two prompts become with each](foreign.png)

Correlation of the ground's colour with the reference's border over these {len(expected)} pictures: lightness
r = {r[0]:.2f}, Lab a {r[1]:.2f}, Lab b {r[2]:.2f}.  Ground is the median colour of the border, eight-bit RGB.

| reference | its border | {heads} |
|---|---|{"---|" * len(PROMPTS)}
{rows}

The ten photographs are carried by scikit-image and free to use (see [NOTICE](../NOTICE)); the rest is drawn by code,
CC0-1.0.
"""


def main() -> None:
    """Write the sheet and its page."""
    model = ist.load()
    sheet = draw(model, list(REFERENCES))
    images.write_png(grid(sheet), DOCS / "foreign.png")
    print(DOCS / "foreign.png")
    print(write_atomic(DOCS / "foreign.md", page(sheet, model).encode()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
