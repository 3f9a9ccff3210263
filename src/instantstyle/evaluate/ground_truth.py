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

from instantstyle.emoji.rasterize import masters
from instantstyle.emoji.sources import SETS, cache_folder, concepts
from instantstyle.emoji.splits import CORE, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, Treatment, apply, sample
from instantstyle.evaluate.bundled_data import drawings
from instantstyle.utils.atomic_files import whole

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

    set_name: str
    look: Treatment


def picture(label: str, style: Style, side: int = SIDE) -> Pixels:
    """The thing in this style, [side, side, 3] uint8: the truth where that is the question."""
    carried = drawings().get((style.set_name, label))
    drawn = apply(style.look, np.asarray(masters(style.set_name)[_rows()[label]]) if carried is None else carried)
    return cv2.resize(drawn, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


@lru_cache(maxsize=64)
def gallery(labels: tuple[str, ...], style: Style) -> Pixels:
    """Each of these things in one style, [labels, 64, 64, 3]."""
    return np.stack([picture(label, style) for label in labels])


@cache
def _rows() -> dict[str, int]:
    return {concept.label: row for row, concept in enumerate(concepts())}


@dataclass(frozen=True)
class Stock:
    """Real pictures to learn from, with what they are: rows of CORE, TRAINED_FAMILIES and TRAINED_SETS."""

    pictures: Pixels
    concept: npt.NDArray[np.int64]
    family: npt.NDArray[np.int64]
    drawer: npt.NDArray[np.int64]


def stock(count: int, seed: int = 31, held_out_cells: bool = False) -> Stock:
    """Draw, or load from the cache, `count` pictures, each of its own look.

    Nothing that the splits hold out enters, unless `held_out_cells` asks for the unseen (concept, set) cells alone:
    these measure what the judges are worth.  Drawn and kept by the chunk: an interruption loses one chunk at most.
    """
    parts = [_chunk(number, seed, held_out_cells) for number in range(-(-count // CHUNK))]
    return Stock(
        np.concatenate([part.pictures for part in parts])[:count],
        np.concatenate([part.concept for part in parts])[:count],
        np.concatenate([part.family for part in parts])[:count],
        np.concatenate([part.drawer for part in parts])[:count],
    )


def _chunk(number: int, seed: int, held_out_cells: bool) -> Stock:
    what = hashlib.sha256(repr((splits().sha256, CORE, TRAINED_FAMILIES, held_out_cells, seed)).encode()).hexdigest()
    file = cache_folder() / "judges" / f"stock-{what[:12]}-{number}.npz"
    if not file.exists():
        _draw(file, np.random.default_rng((seed, number)), held_out_cells)
    with np.load(file) as kept:
        return Stock(kept["pictures"], kept["concept"], kept["family"], kept["drawer"])


def _draw(file: Path, rng: np.random.Generator, held_out_cells: bool) -> None:
    held_out = splits()
    cells = [(label, s) for label in CORE for s in TRAINED_SETS if held_out.trains(label, s) != held_out_cells]
    rows = rng.integers(len(cells), size=CHUNK)
    pictures, family = np.empty((CHUNK, SIDE, SIDE, 3), np.uint8), np.empty(CHUNK, np.int64)
    for i, row in enumerate(rows):
        label, set_name = cells[int(row)]
        look = sample(rng)
        pictures[i] = picture(label, Style(set_name, look))
        family[i] = TRAINED_FAMILIES.index(look.family)
    concept = np.array([CORE.index(cells[int(row)][0]) for row in rows], np.int64)
    drawer = np.array([TRAINED_SETS.index(cells[int(row)][1]) for row in rows], np.int64)
    with whole(file) as partial, partial.open("wb") as out:
        np.savez(out, pictures=pictures, concept=concept, family=family, drawer=drawer)
