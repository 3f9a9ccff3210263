"""The image bank: training images that are rendered once and read from a memory-mapped file.

A style is a style transform and a drawing set.  Each style is applied to many concepts, so that every image has
references of *another* concept in the same style.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from instantstyle.emoji.captions import make_caption
from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import SETS, concepts, in_set
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import StyleTransform, apply_transform, sample_transform
from instantstyle.errors import InputError
from instantstyle.utils.atomic_files import atomic_write, write_atomic

SIDE = 64
"""Input side of the image encoder in pixels, and the default side of the images."""

_CONCEPTS_PER_STYLE = 48
"""Number of concepts that a style is applied to."""


@dataclass(frozen=True)
class ImageBank:
    """Images [n, side, side, 3] uint8, with the index of the concept (in `labels`) and of the style of each."""

    pictures: npt.NDArray[np.uint8]
    concept: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    treatments: tuple[StyleTransform, ...]
    sets: tuple[str, ...]
    """The drawing set of each style, aligned with `treatments`."""

    def caption(self, row: int, rng: np.random.Generator, styled: float) -> str:
        """A random caption for one image; `styled` is the probability that it describes the style."""
        style = int(self.style[row])
        return make_caption(self.labels[int(self.concept[row])], self.treatments[style], self.sets[style], rng, styled)

    @cached_property
    def rows_of_style(self) -> dict[int, npt.NDArray[np.int64]]:
        """Indices of the images of each style."""
        order = np.argsort(self.style, kind="stable")
        cuts = (np.flatnonzero(np.diff(self.style[order])) + 1).tolist()
        return {int(self.style[rows[0]]): rows for rows in np.split(order, cuts)}


def make_bank(
    folder: Path,
    name: str,
    labels: tuple[str, ...],
    styles: int,
    each: int,
    seed: int,
    side: int = SIDE,
    processes: int = 1,
) -> ImageBank:
    """Render (or load) a bank: `styles` random styles, each applied to `each` concepts among `labels`.

    Held-out cells, sets, styles and hues of the splits are excluded.  The same seed gives the same bank
    at every `side` (at most 128, that of the source rasters) and for any number of processes.
    """
    stem = name if side == SIDE else f"{name}-{side}"
    pictures_file, index_file = folder / f"{stem}.npy", folder / f"{stem}.json"
    if not index_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _draw(pictures_file, index_file, labels, styles, each, seed, side, processes)
    index: dict[str, Any] = json.loads(index_file.read_text("utf-8"))
    return ImageBank(
        np.load(pictures_file, mmap_mode="r"),
        np.array(index["concept"], np.int64),
        np.array(index["style"], np.int64),
        tuple(index["labels"]),
        tuple(StyleTransform.from_dict(t) for t in index["treatments"]),
        tuple(index["sets"]),
    )


_Job = tuple[int, StyleTransform, str, list[int]]
"""A style's first row in the bank, its transform, its drawing set, and the indices of its source rasters."""


def _draw(
    pictures_file: Path,
    index_file: Path,
    labels: tuple[str, ...],
    styles: int,
    each: int,
    seed: int,
    side: int,
    processes: int,
) -> None:
    jobs, concept, style = _plan(labels, styles, each, seed)
    with atomic_write(pictures_file) as unfinished:
        np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(concept), side, side, 3)).flush()
        chunks = [jobs[i : i + 100] for i in range(0, styles, 100)]
        draw = partial(_draw_styles, unfinished, side)
        if processes > 1:
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                _count(pool.map(draw, chunks), index_file.stem, styles)
        else:
            _count(map(draw, chunks), index_file.stem, styles)
    index = {
        "labels": labels,
        "treatments": [treatment.to_dict() for _, treatment, _, _ in jobs],
        "sets": [set_name for _, _, set_name, _ in jobs],
        "concept": concept,
        "style": style,
    }
    write_atomic(index_file, json.dumps(index, ensure_ascii=False).encode())


def _plan(labels: tuple[str, ...], styles: int, each: int, seed: int) -> tuple[list[_Job], list[int], list[int]]:
    """The jobs, one a style, and the concept and the style of every row."""
    held_out, concept_rows = splits(), {c.label: (row, c) for row, c in enumerate(concepts())}
    trained_sets = [name for name, s in SETS.items() if not s.held_out]
    allowed = {s: [i for i, label in enumerate(labels) if held_out.trains(label, s)] for s in trained_sets}
    available = {(s, i): in_set(s, concept_rows[label][1]) for s in trained_sets for i, label in enumerate(labels)}
    rng = np.random.default_rng(seed)
    jobs, concept, style = list[_Job](), list[int](), list[int]()
    for number in range(styles):
        treatment, set_name = sample_transform(rng), trained_sets[int(rng.integers(len(trained_sets)))]
        chosen = [int(i) for i in rng.permutation(allowed[set_name]) if available[set_name, int(i)]][:each]
        jobs.append((len(concept), treatment, set_name, [concept_rows[labels[i]][0] for i in chosen]))
        concept += chosen
        style += [number] * len(chosen)
    return jobs, concept, style


def _draw_styles(file: Path, side: int, jobs: Sequence[_Job]) -> int:
    """Render some styles into their rows of the bank's file; returns the number of styles."""
    pictures = np.load(file, mmap_mode="r+")
    for first_row, treatment, set_name, drawings in jobs:
        for row, drawing in enumerate(drawings, first_row):
            image = apply_transform(treatment, np.asarray(rasters(set_name)[drawing]))
            pictures[row] = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    pictures.flush()
    return len(jobs)


def _count(counts: Iterable[int], name: str, styles: int) -> None:
    completed = 0
    for count in counts:
        completed += count
        print(f"{name} {completed}/{styles} styles", flush=True)


def choose_things(count: int) -> tuple[str, ...]:
    """The first `count` concepts of `TRAINED_CONCEPTS` and then of the other trainable ones, ordered by hash.

    Raises InputError when there are fewer, or too few remain for the encoders' `broad` bank.
    """
    labels = {c.label for c in concepts()}
    core = [label for label in TRAINED_CONCEPTS if label in labels]
    additional = sorted(broad_labels(tuple(core)), key=lambda label: hashlib.sha256(label.encode()).digest())
    maximum = len(core) + len(additional) - _CONCEPTS_PER_STYLE // 3
    if not 0 < count <= max(maximum, len(core)):
        raise InputError(f"{count} things cannot be learned: {max(maximum, len(core))} at most, as the drawings are")
    return (*core, *additional)[:count]


def broad_labels(trained: tuple[str, ...]) -> tuple[str, ...]:
    """Labels of the concepts that are neither held out nor in `trained`."""
    held_out = splits().concepts
    return tuple(c.label for c in concepts() if c.label not in held_out and c.label not in trained)


def core_bank(
    folder: Path, styles: int = 1500, labels: tuple[str, ...] = TRAINED_CONCEPTS, side: int = SIDE, processes: int = 1
) -> ImageBank:
    """Images of the concepts that the UNet is trained on, 48 a style."""
    return make_bank(folder, "core", labels, styles, _CONCEPTS_PER_STYLE, 1, side, processes)


def broad_bank(
    folder: Path, styles: int = 500, labels: tuple[str, ...] = TRAINED_CONCEPTS, side: int = SIDE, processes: int = 1
) -> ImageBank:
    """Images of all trainable concepts but `labels`, which only the encoders are trained on."""
    return make_bank(folder, "broad", broad_labels(labels), styles, _CONCEPTS_PER_STYLE, 2, side, processes)
