"""Real pictures: any thing in any look, drawn when asked for, and the stock of them that judges learn from.

In the emoji world the right answer to (this, in that style) exists; this module is where the referee gets it.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import SETS, cache_folder, concepts
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, StyleTransform, apply_transform, sample_transform
from instantstyle.evaluate.bundled_data import drawings
from instantstyle.utils.atomic_files import atomic_write

Pixels = npt.NDArray[np.uint8]
"""[side, side, 3], or several of them stacked in front."""

SIDE = 64
"""Side in pixels at which pictures are judged, whatever side a model draws."""
TRAINED_SETS = tuple(name for name, each in SETS.items() if not each.held_out)
CHUNK = 3000
"""Pictures of the stock that are drawn and kept together."""


@dataclass(frozen=True)
class Style:
    """How a picture looks: who drew it, and what was done to the drawing."""

    icon_set: str
    transform: StyleTransform


def render(label: str, style: Style, side: int = SIDE) -> Pixels:
    """The thing in this style, [side, side, 3] uint8: the truth where that is the question."""
    carried = drawings().get((style.icon_set, label))
    drawn = apply_transform(
        style.transform, np.asarray(rasters(style.icon_set)[_rows()[label]]) if carried is None else carried
    )
    return cv2.resize(drawn, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


@lru_cache(maxsize=64)
def gallery(labels: tuple[str, ...], style: Style) -> Pixels:
    """Each of these things in one style, [labels, 64, 64, 3]."""
    return np.stack([render(label, style) for label in labels])


@cache
def _rows() -> dict[str, int]:
    return {concept.label: row for row, concept in enumerate(concepts())}


@dataclass(frozen=True)
class LabelledImages:
    """Real pictures to learn from, with what they are: rows of CORE, TRAINED_FAMILIES and TRAINED_SETS."""

    pictures: Pixels
    concept: npt.NDArray[np.int64]
    family: npt.NDArray[np.int64]
    icon_set: npt.NDArray[np.int64]


def load_labelled_images(count: int, seed: int = 31, held_out_cells: bool = False) -> LabelledImages:
    """Draw, or load from the cache, `count` pictures, each of its own look.

    Nothing that the splits hold out enters, unless `held_out_cells` asks for the unseen (concept, set) cells alone:
    these measure what the judges are worth.  Drawn and kept by the chunk: an interruption loses one chunk at most.
    """
    parts = [_chunk(number, seed, held_out_cells) for number in range(-(-count // CHUNK))]
    return LabelledImages(
        np.concatenate([part.pictures for part in parts])[:count],
        np.concatenate([part.concept for part in parts])[:count],
        np.concatenate([part.family for part in parts])[:count],
        np.concatenate([part.icon_set for part in parts])[:count],
    )


def _chunk(number: int, seed: int, held_out_cells: bool) -> LabelledImages:
    what = hashlib.sha256(
        repr((splits().sha256, TRAINED_CONCEPTS, TRAINED_FAMILIES, held_out_cells, seed)).encode()
    ).hexdigest()
    file = cache_folder() / "judges" / f"stock-{what[:12]}-{number}.npz"
    if not file.exists():
        _draw(file, np.random.default_rng((seed, number)), held_out_cells)
    with np.load(file) as kept:
        return LabelledImages(kept["pictures"], kept["concept"], kept["family"], kept["drawer"])


def _draw(file: Path, rng: np.random.Generator, held_out_cells: bool) -> None:
    held_out = splits()
    cells = [
        (label, s) for label in TRAINED_CONCEPTS for s in TRAINED_SETS if held_out.trains(label, s) != held_out_cells
    ]
    rows = rng.integers(len(cells), size=CHUNK)
    pictures, family = np.empty((CHUNK, SIDE, SIDE, 3), np.uint8), np.empty(CHUNK, np.int64)
    for i, row in enumerate(rows):
        label, set_name = cells[int(row)]
        look = sample_transform(rng)
        pictures[i] = render(label, Style(set_name, look))
        family[i] = TRAINED_FAMILIES.index(look.kind)
    concept = np.array([TRAINED_CONCEPTS.index(cells[int(row)][0]) for row in rows], np.int64)
    drawer = np.array([TRAINED_SETS.index(cells[int(row)][1]) for row in rows], np.int64)
    with atomic_write(file) as partial, partial.open("wb") as out:
        np.savez(out, pictures=pictures, concept=concept, family=family, drawer=drawer)
