"""Ground-truth images: any concept in any style, rendered on demand, and labelled sets of them for training.

In the emoji world the right answer to (this content, in that style) exists; this module renders it.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import SETS, cache_folder, concepts
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, StyleTransform, apply_transform, sample_transform
from instantstyle.evaluate.bundled_data import drawings
from instantstyle.evaluate.metrics import Pixels
from instantstyle.utils.atomic_files import atomic_write

TRUTH_SIDE = 64
"""Side in pixels at which images are evaluated, whatever size a model generates."""
TRAINED_SETS = tuple(name for name, icon_set in SETS.items() if not icon_set.held_out)
CHUNK = 3000
"""Labelled images that are rendered and cached together."""


@dataclass(frozen=True)
class Style:
    """An icon set, and a transform of its drawings."""

    icon_set: str
    transform: StyleTransform


def render(label: str, style: Style, side: int = TRUTH_SIDE) -> Pixels:
    """The concept in this style, [side, side, 3] uint8."""
    bundled = drawings().get((style.icon_set, label))
    drawing = np.asarray(rasters(style.icon_set)[_concept_rows()[label]]) if bundled is None else bundled
    pixels = apply_transform(style.transform, drawing)
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


@cache
def _concept_rows() -> dict[str, int]:
    return {concept.label: index for index, concept in enumerate(concepts())}


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels, as indices into TRAINED_CONCEPTS, TRAINED_FAMILIES and TRAINED_SETS."""

    pictures: Pixels
    """[n, 64, 64, 3]."""
    concept: npt.NDArray[np.int64]
    family: npt.NDArray[np.int64]
    icon_set: npt.NDArray[np.int64]


def load_labelled_images(count: int, seed: int = 31, held_out_cells: bool = False) -> LabelledImages:
    """Render, or load from the cache, `count` images, each with a random transform.

    Nothing that the splits hold out is among them, unless `held_out_cells` asks for the unseen (concept, icon set)
    cells alone, to test classifiers.  Cached by the chunk: an interruption loses one chunk at most.
    """
    chunks = [_load_chunk(number, seed, held_out_cells) for number in range(-(-count // CHUNK))]
    return LabelledImages(
        np.concatenate([chunk.pictures for chunk in chunks])[:count],
        np.concatenate([chunk.concept for chunk in chunks])[:count],
        np.concatenate([chunk.family for chunk in chunks])[:count],
        np.concatenate([chunk.icon_set for chunk in chunks])[:count],
    )


def _load_chunk(number: int, seed: int, held_out_cells: bool) -> LabelledImages:
    key = repr((splits().sha256, TRAINED_CONCEPTS, TRAINED_FAMILIES, held_out_cells, seed))
    digest = hashlib.sha256(key.encode()).hexdigest()
    file = cache_folder() / "judges" / f"stock-{digest[:12]}-{number}.npz"
    if not file.exists():
        _render_chunk(file, np.random.default_rng((seed, number)), held_out_cells)
    with np.load(file) as arrays:
        return LabelledImages(arrays["pictures"], arrays["concept"], arrays["family"], arrays["drawer"])


def _render_chunk(file: Path, rng: np.random.Generator, held_out_cells: bool) -> None:
    held_out = splits()
    cells = [
        (label, s) for label in TRAINED_CONCEPTS for s in TRAINED_SETS if held_out.trains(label, s) != held_out_cells
    ]
    chosen_cells = rng.integers(len(cells), size=CHUNK)
    pictures, family = np.empty((CHUNK, TRUTH_SIDE, TRUTH_SIDE, 3), np.uint8), np.empty(CHUNK, np.int64)
    for i, cell in enumerate(chosen_cells):
        label, icon_set = cells[int(cell)]
        transform = sample_transform(rng)
        pictures[i] = render(label, Style(icon_set, transform))
        family[i] = TRAINED_FAMILIES.index(transform.kind)
    concept = np.array([TRAINED_CONCEPTS.index(cells[int(cell)][0]) for cell in chosen_cells], np.int64)
    drawer = np.array([TRAINED_SETS.index(cells[int(cell)][1]) for cell in chosen_cells], np.int64)
    with atomic_write(file) as partial, partial.open("wb") as out:
        np.savez(out, pictures=pictures, concept=concept, family=family, drawer=drawer)
