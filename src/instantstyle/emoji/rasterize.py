"""A drawing as pixels: each concept's art rendered once, box-normalised, kept per set in the cache."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from instantstyle.emoji.sources import SETS, EmojiConcept, artwork, cache_folder, concepts, in_set
from instantstyle.utils.atomic_files import atomic_write

RgbaArray = npt.NDArray[np.uint8]
"""Height x width x 4, alpha not premultiplied."""

RASTER_SIZE = 128
"""Side in pixels of the rendered masters."""

_FILL = 0.9
"""Share of the canvas the drawing's longer side takes."""


def render(set_name: str, concept: EmojiConcept) -> RgbaArray:
    """One drawing, 128 x 128 RGBA, its longer side nine tenths of the canvas, centred."""
    picture = _raster(artwork(set_name, concept), 2 * RASTER_SIZE)
    box = picture.getchannel("A").point(_opaque).getbbox()
    if box is not None:
        picture = picture.crop(box)
    scale = _FILL * RASTER_SIZE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    premultiplied = picture.convert("RGBa").resize((size[0], size[1]), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (RASTER_SIZE, RASTER_SIZE))
    canvas.paste(premultiplied.convert("RGBA"), ((RASTER_SIZE - size[0]) // 2, (RASTER_SIZE - size[1]) // 2))
    return np.asarray(canvas)


def _opaque(alpha: int) -> int:
    return 255 if alpha > 8 else 0


def _raster(data: bytes, side: int) -> Image.Image:
    if data[:4] == b"RIFF":
        return Image.open(io.BytesIO(data)).convert("RGBA")
    import resvg_py  # needed where drawings are rendered, and not where they came packed

    svg_to_bytes = cast("Callable[..., Any]", resvg_py.svg_to_bytes)  # the stub's own types are partly unknown
    png = bytes(svg_to_bytes(svg_string=data.decode(), width=side, height=side))
    return Image.open(io.BytesIO(png)).convert("RGBA")


@cache
def rasters(set_name: str) -> RgbaArray:
    """All drawings of a set, concepts in the order of `concepts()`: [concepts, 128, 128, 4], memory-mapped.

    Rendered on first use (seconds to a minute a set) and cached; where a set does not draw a concept the picture is
    empty (alpha 0).  Writing is atomic, so an interrupted rendering starts that set again and loses no other.
    """
    file = cache_folder() / f"masters-{RASTER_SIZE}" / f"{set_name}.npy"
    if not file.exists():
        pictures = np.zeros((len(concepts()), RASTER_SIZE, RASTER_SIZE, 4), np.uint8)
        for row, concept in enumerate(concepts()):
            if in_set(set_name, concept):
                pictures[row] = render(set_name, concept)
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.save(out, pictures)
    return np.load(file, mmap_mode="r")


def build(sets: Sequence[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Fetch and render sets (all of them when none are named), a line of report a set.  Returns the cache folder.

    What is cached already is left alone.  Raises WeightsError when a package cannot be fetched.
    """
    names = tuple(SETS) if sets is None else sets
    for number, name in enumerate(names, 1):
        drawn = int((rasters(name)[..., 3].max(axis=(1, 2)) > 0).sum())
        report(f"{number}/{len(names)} {name}: {drawn} of {len(concepts())} concepts")
    return cache_folder()
