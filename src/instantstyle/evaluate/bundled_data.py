"""What travels with the package: the questions of the small set, and the drawings that they and their controls need.

So the small set is asked on a machine that has neither the drawings of the emoji world nor npm, and its drawings are to
the last pixel those that would be rendered there.
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
    """The questions of the small set as plain data, in its order."""
    return json.loads(_file(QUESTIONS))["questions"]


@cache
def drawings() -> Mapping[tuple[str, str], RgbaArray]:
    """Drawings [128, 128, 4] by set and thing."""
    found: dict[tuple[str, str], RgbaArray] = {}
    with zipfile.ZipFile(io.BytesIO(_file(DRAWINGS))) as pack:
        listed: Mapping[str, Sequence[str]] = json.loads(pack.read("index.json"))
        for name, things in listed.items():
            column = np.asarray(Image.open(io.BytesIO(pack.read(f"{name}.webp"))).convert("RGBA"))
            for row, thing in enumerate(things):
                found[name, thing] = column[row * RASTER_SIZE : (row + 1) * RASTER_SIZE]
    return found


def bundled(pictures: Mapping[tuple[str, str], RgbaArray]) -> bytes:
    """Such a file of drawings: for each set one lossless WebP, one drawing below the other, and the list of them."""
    listed: dict[str, list[str]] = {}
    for name, thing in sorted(pictures):
        listed.setdefault(name, []).append(thing)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as pack:
        _add(pack, "index.json", json.dumps(listed, ensure_ascii=False).encode())
        for name, things in listed.items():
            column = np.concatenate([pictures[name, thing] for thing in things])
            data = io.BytesIO()
            Image.fromarray(column).save(data, "WEBP", lossless=True, exact=True, method=6, quality=100)
            _add(pack, f"{name}.webp", data.getvalue())
    return buffer.getvalue()


def _add(pack: zipfile.ZipFile, name: str, data: bytes) -> None:
    pack.writestr(zipfile.ZipInfo(name), data)  # of no date, so that the same drawings make the same file


def _file(name: str) -> bytes:
    return files("instantstyle").joinpath(f"{BUNDLE_FOLDER}/{name}").read_bytes()
