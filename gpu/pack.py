"""The drawings of all sets in one file of some 12 MB, for a machine that has no network and no npm.

    python -m gpu.pack                  write out/gpu/drawings.zip, where gpu.train looks for it
    python -m gpu.pack --wheels         and fetch into out/gpu/wheels what such a machine lacks beside torch

The pack holds every concept that eight sets draw, at 128 pixels as WebP in sheets, but for: look-alikes of concepts
that are held out; of concepts that the splits do not know, the one cell in twelve that their rule holds out; and of the
held-out sets all but the shipped model's things.  Nothing of it is to be committed or shipped.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from gpu import ROOT
from instantstyle.emoji import sources
from instantstyle.emoji.procedural import THINGS, thing
from instantstyle.emoji.rasterize import RASTER_SIZE, RgbaArray, rasterize, rasters
from instantstyle.emoji.sources import PACKED, SETS, EmojiConcept, concepts, in_set, sets_drawing, things
from instantstyle.emoji.splits import TRAINED_CONCEPTS, lookalike_group, splits
from instantstyle.errors import InstantStyleError

_T = TypeVar("_T")
FILE = ROOT / "out/gpu/drawings.zip"
_ROW = 8
"""A sheet is so many drawings wide and high."""
_SETS = 8
"""In how many sets a concept must be drawn: fewer than for the shipped model, so that there are more things."""
QUALITY = 60
"""WebP's: 36 dB over all sets; 80 gives 38 in files half as large again."""
WHEELS = (
    *("diffusers", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("importlib_metadata", "jaxtyping"),
)
"""What the library needs of a machine that has torch, transformers, safetensors, NumPy, OpenCV and Pillow."""


def chosen() -> dict[EmojiConcept, list[str]]:
    """What is packed: each concept, those of the splits first, with its sets."""
    known, held_out = concepts(), splits()
    apart = {lookalike_group(concept) for concept in known if concept.label in held_out.concepts}
    more = [c for c in things() if c not in known and sets_drawing(c) >= _SETS and lookalike_group(c) not in apart]

    def packs(concept: EmojiConcept, set_name: str) -> bool:
        if SETS[set_name].held_out:
            return concept.label in TRAINED_CONCEPTS and in_set(set_name, concept)
        unseen = concept not in known and _draw(f"{concept.label}/{set_name}") % 12 == 0
        return in_set(set_name, concept) and not unseen

    return {concept: [name for name in SETS if packs(concept, name)] for concept in (*known, *more)}


def _draw(text: str) -> int:
    """The number by which `splits.propose` holds out cells."""
    return int.from_bytes(hashlib.sha256(f"instantstyle:{text}".encode()).digest()[:4], "big")


def write(
    file: Path,
    pictures: Mapping[tuple[str, str], RgbaArray],
    listed: Mapping[EmojiConcept, Sequence[str]],
    quality: int = QUALITY,
    effort: int = 6,
) -> Path:
    """Write a pack: `pictures` by set and label, each [128, 128, 4]; `effort` is WebP's, from 0 to 6."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    index = [{"concept": dataclasses.asdict(c), "sets": list(sets)} for c, sets in listed.items()]
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as pack:
        text = json.dumps(index, ensure_ascii=False)
        pack.writestr(PACKED, text, compress_type=zipfile.ZIP_DEFLATED)
        for name in SETS:
            rows = [concept.label for concept, sets in listed.items() if name in sets]
            for number, labels in enumerate(_by(rows, _ROW * _ROW)):
                sheet = np.zeros((-(-len(labels) // _ROW) * RASTER_SIZE, _ROW * RASTER_SIZE, 4), np.uint8)
                for at, label in enumerate(labels):
                    _tile(sheet, at)[:] = pictures[name, label]
                data = io.BytesIO()
                Image.fromarray(sheet).save(data, "WEBP", quality=quality, alpha_quality=quality, method=effort)
                pack.writestr(f"{name}/{number:03d}.webp", data.getvalue())
    partial.replace(file)
    return file


def unpack(file: Path, cache: Path) -> None:
    """Fill a cache folder from a pack: the list of concepts, and the rasters of each set."""
    if (cache / PACKED).exists():
        return
    folder = cache / f"masters-{RASTER_SIZE}"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as pack:
        index = json.loads(pack.read(PACKED))
        for name in SETS:
            rows = [row for row, entry in enumerate(index) if name in entry["sets"]]
            drawn = np.zeros((len(index), RASTER_SIZE, RASTER_SIZE, 4), np.uint8)
            for number, some in enumerate(_by(rows, _ROW * _ROW)):
                sheet = np.asarray(Image.open(io.BytesIO(pack.read(f"{name}/{number:03d}.webp"))).convert("RGBA"))
                for at, row in enumerate(some):
                    drawn[row] = _tile(sheet, at)
            np.save(folder / f"{name}.npy", drawn)
        (cache / PACKED).write_bytes(pack.read(PACKED))  # last: a cache with a list is whole


def _by(values: Sequence[_T], count: int) -> Iterable[Sequence[_T]]:
    return (values[i : i + count] for i in range(0, len(values), count))


def _tile(sheet: RgbaArray, at: int) -> RgbaArray:
    y, x = RASTER_SIZE * (at // _ROW), RASTER_SIZE * (at % _ROW)
    return sheet[y : y + RASTER_SIZE, x : x + RASTER_SIZE]


def real(file: Path = FILE, quality: int = QUALITY) -> Path:
    """The pack of all drawings; those that the cache has not are rendered, a minute's work."""
    listed, rows = chosen(), {c.label: row for row, c in enumerate(concepts())}
    pictures = {
        (name, concept.label): np.asarray(rasters(name)[rows[concept.label]])
        if concept.label in rows
        else rasterize(name, concept)
        for concept, sets in listed.items()
        for name in sets
    }
    return write(file, pictures, listed, quality)


def toy(file: Path, known: int = 24, others: int = 8) -> Path:
    """A pack of our own drawings under other names, in other colours for every set: for dry runs."""
    labels = (*TRAINED_CONCEPTS[:known], *(f"toy {number}" for number in range(others)))
    listed = {EmojiConcept(label, f"{n:04X}", label[0], "toy", ()): list(SETS) for n, label in enumerate(labels)}
    shapes, pictures = [thing(name) for name in THINGS], dict[tuple[str, str], RgbaArray]()
    for row, label in enumerate(labels):
        for column, name in enumerate(SETS):
            turned = np.rot90(shapes[row % len(shapes)], row // len(shapes))
            pictures[name, label] = np.dstack([np.roll(turned[..., :3], column, axis=-1), turned[..., 3]])
    return write(file, pictures, listed, effort=0)


def forget() -> None:
    """Drop what was remembered of another cache: the cache folder was changed."""
    for remembered in (sources.bundled_names, sources.concepts, rasters):
        remembered.cache_clear()


def wheels(folder: Path, python: str) -> None:
    """Fetch the wheels that constraints.txt pins, for Linux on x86-64."""
    pins = dict(
        line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    named = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    wanted = [f"{name}=={named[name.lower().replace('_', '-')]}" for name in WHEELS]
    places = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["manylinux2014_x86_64"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    command += ["--implementation", "cp", "--python-version", python, *(f"--platform={place}" for place in places)]
    subprocess.run([*command, *wanted], check=True)


def main(argv: list[str] | None = None) -> None:
    """Write the pack, and fetch the wheels where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--quality", type=int, default=QUALITY, help="WebP's, from 0 to 100")
    parser.add_argument("--toy", action="store_true", help="a small pack of our own drawings")
    parser.add_argument("--wheels", action="store_true", help="fetch what a machine with torch alone lacks")
    parser.add_argument("--python", default="3.12", help="that machine's Python")
    given = parser.parse_args(argv)
    try:
        file = toy(given.out) if given.toy else real(given.out, given.quality)
        print(f"{file.stat().st_size / 1e6:.1f} MB in {file}")
        if given.wheels:
            wheels(given.out.parent / "wheels", given.python)
    except (InstantStyleError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
