"""Rasterisation: each concept's drawing rendered once, box-normalised, cached per icon set."""

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
"""Side in pixels of the rendered drawings."""

_FILL = 0.9
"""Share of the canvas that the drawing's longer side takes."""


def rasterize(icon_set: str, concept: EmojiConcept) -> RgbaArray:
    """One drawing, 128 x 128 RGBA, its longer side nine tenths of the canvas, centred."""
    picture = _decode(artwork(icon_set, concept), 2 * RASTER_SIZE)
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


def _decode(data: bytes, side: int) -> Image.Image:
    if data[:4] == b"RIFF":
        return Image.open(io.BytesIO(data)).convert("RGBA")
    import resvg_py  # an extra: not needed where rendered drawings were unpacked into the cache

    svg_to_bytes = cast("Callable[..., Any]", resvg_py.svg_to_bytes)  # the stub's own types are partly unknown
    png = bytes(svg_to_bytes(svg_string=data.decode(), width=side, height=side))
    return Image.open(io.BytesIO(png)).convert("RGBA")


@cache
def rasters(icon_set: str) -> RgbaArray:
    """All drawings of a set, concepts in the order of `concepts()`: [concepts, 128, 128, 4], memory-mapped.

    Rendered on first use (seconds to a minute a set) and cached; where a set lacks a concept the image is empty
    (alpha 0).  Writing is atomic, so an interrupted rendering starts that set again and loses no other.
    """
    file = cache_folder() / f"masters-{RASTER_SIZE}" / f"{icon_set}.npy"
    if not file.exists():
        pictures = np.zeros((len(concepts()), RASTER_SIZE, RASTER_SIZE, 4), np.uint8)
        for row, concept in enumerate(concepts()):
            if in_set(icon_set, concept):
                pictures[row] = rasterize(icon_set, concept)
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.save(out, pictures)
    return np.load(file, mmap_mode="r")


def build_emoji_world(sets: Sequence[str] | None = None, log: Callable[[str], None] = print) -> Path:
    """Fetch and render sets (by default all), with a line of log a set.  Returns the cache folder.

    What is cached already is left alone.  Raises WeightsError when a package cannot be fetched.
    """
    names = tuple(SETS) if sets is None else sets
    for number, name in enumerate(names, 1):
        drawn = int((rasters(name)[..., 3].max(axis=(1, 2)) > 0).sum())
        log(f"{number}/{len(names)} {name}: {drawn} of {len(concepts())} concepts")
    return cache_folder()
