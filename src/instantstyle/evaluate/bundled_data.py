"""Data bundled with the package: the small suite's tasks, and the drawings that they and their controls need.

So the small suite runs on a machine that has neither the emoji world's drawings nor npm, and its drawings are to the
last pixel those that would be rendered there.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from instantstyle.emoji.rasterize import RASTER_SIZE, RgbaArray

BUNDLE_FOLDER = "assets/referee"
QUESTIONS, DRAWINGS = "questions.json", "drawings.zip"


@cache
def questions() -> Sequence[Mapping[str, Any]]:
    """The small suite's tasks as plain data, in its order."""
    return json.loads(_read(QUESTIONS))["questions"]


@cache
def drawings() -> Mapping[tuple[str, str], RgbaArray]:
    """Drawings [128, 128, 4] by icon set and concept."""
    loaded: dict[tuple[str, str], RgbaArray] = {}
    with zipfile.ZipFile(io.BytesIO(_read(DRAWINGS))) as archive:
        index: Mapping[str, Sequence[str]] = json.loads(archive.read("index.json"))
        for icon_set, labels in index.items():
            column = np.asarray(Image.open(io.BytesIO(archive.read(f"{icon_set}.webp"))).convert("RGBA"))
            for row, label in enumerate(labels):
                loaded[icon_set, label] = column[row * RASTER_SIZE : (row + 1) * RASTER_SIZE]
    return loaded


def bundle_drawings(images: Mapping[tuple[str, str], RgbaArray]) -> bytes:
    """The file that `drawings` reads: per icon set a lossless WebP of its drawings below each other, and an index."""
    index: dict[str, list[str]] = {}
    for icon_set, label in sorted(images):
        index.setdefault(icon_set, []).append(label)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "index.json", json.dumps(index, ensure_ascii=False).encode())
        for icon_set, labels in index.items():
            column = np.concatenate([images[icon_set, label] for label in labels])
            webp = io.BytesIO()
            Image.fromarray(column).save(webp, "WEBP", lossless=True, exact=True, method=6, quality=100)
            _add(archive, f"{icon_set}.webp", webp.getvalue())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # without a date, so that the same drawings make the same file


def _read(name: str) -> bytes:
    return files("instantstyle").joinpath(f"{BUNDLE_FOLDER}/{name}").read_bytes()
