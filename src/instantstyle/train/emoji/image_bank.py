"""The bank: treated pictures drawn once, so that training reads them instead of drawing them.

Pictures come in styles: a style is a treatment and a drawing set, and each is given to many concepts, so that a
reference of *another* concept in the same style is at hand for every picture.
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
"""Side in pixels of what the image encoder sees, and of what is drawn unless a larger side is asked for."""

_EACH = 48
"""To how many things a style is given."""


@dataclass(frozen=True)
class ImageBank:
    """Pictures [n, side, side, 3] uint8 with, for each, the row of its concept and its style."""

    pictures: npt.NDArray[np.uint8]
    concept: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    treatments: tuple[StyleTransform, ...]
    sets: tuple[str, ...]
    """The drawing set of each style, in step with `treatments`."""

    def caption(self, row: int, rng: np.random.Generator, styled: float) -> str:
        """A caption for one picture."""
        style = int(self.style[row])
        return make_caption(self.labels[int(self.concept[row])], self.treatments[style], self.sets[style], rng, styled)

    @cached_property
    def rows_of_style(self) -> dict[int, npt.NDArray[np.int64]]:
        """The rows drawn in each style."""
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
    """Draw (or load) a bank: `styles` random looks, each given to `each` concepts among `labels`.

    Only what the splits train on: held-out cells, sets, looks and hues never enter.  The same seed gives the same bank
    at every `side` (the masters' own, 128, at most) and by however many processes.
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
"""A style's first row in the bank, its treatment, its set, and the masters it is given to."""


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
    """What is to be drawn, style by style, and the concept and the style of every row."""
    held_out, known = splits(), {c.label: (row, c) for row, c in enumerate(concepts())}
    trained_sets = [name for name, s in SETS.items() if not s.held_out]
    allowed = {s: [i for i, label in enumerate(labels) if held_out.trains(label, s)] for s in trained_sets}
    drawn = {(s, i): in_set(s, known[label][1]) for s in trained_sets for i, label in enumerate(labels)}
    rng = np.random.default_rng(seed)
    jobs, concept, style = list[_Job](), list[int](), list[int]()
    for number in range(styles):
        treatment, set_name = sample_transform(rng), trained_sets[int(rng.integers(len(trained_sets)))]
        chosen = [int(i) for i in rng.permutation(allowed[set_name]) if drawn[set_name, int(i)]][:each]
        jobs.append((len(concept), treatment, set_name, [known[labels[i]][0] for i in chosen]))
        concept += chosen
        style += [number] * len(chosen)
    return jobs, concept, style


def _draw_styles(file: Path, side: int, jobs: Sequence[_Job]) -> int:
    """Draw some styles into their rows of the bank's file; how many."""
    pictures = np.load(file, mmap_mode="r+")
    for first, treatment, set_name, drawings in jobs:
        for row, drawing in enumerate(drawings, first):
            drawn = apply_transform(treatment, np.asarray(rasters(set_name)[drawing]))
            pictures[row] = cv2.resize(drawn, (side, side), interpolation=cv2.INTER_AREA)
    pictures.flush()
    return len(jobs)


def _count(counts: Iterable[int], name: str, styles: int) -> None:
    done = 0
    for count in counts:
        done += count
        print(f"{name} {done}/{styles} styles", flush=True)


def choose_things(count: int) -> tuple[str, ...]:
    """The first `count` things to learn to draw: `CORE`, then others that may be trained, in an order drawn by hash.

    Raises InputError when there are not so many, or too few are left for the encoders' own pictures (`broad`).
    """
    there = {c.label for c in concepts()}
    known = [label for label in TRAINED_CONCEPTS if label in there]
    others = sorted(broad_labels(tuple(known)), key=lambda label: hashlib.sha256(label.encode()).digest())
    most = len(known) + len(others) - _EACH // 3
    if not 0 < count <= max(most, len(known)):
        raise InputError(f"{count} things cannot be learned: {max(most, len(known))} at most, as the drawings are")
    return (*known, *others)[:count]


def broad_labels(taught: tuple[str, ...]) -> tuple[str, ...]:
    """What may be trained on and is not among the things that are taught to be drawn."""
    held_out = splits().concepts
    return tuple(c.label for c in concepts() if c.label not in held_out and c.label not in taught)


def core_bank(
    folder: Path, styles: int = 1500, labels: tuple[str, ...] = TRAINED_CONCEPTS, side: int = SIDE, processes: int = 1
) -> ImageBank:
    """The things the model learns to draw, each style given to 48 of them."""
    return make_bank(folder, "core", labels, styles, _EACH, 1, side, processes)


def broad_bank(
    folder: Path, styles: int = 500, labels: tuple[str, ...] = TRAINED_CONCEPTS, side: int = SIDE, processes: int = 1
) -> ImageBank:
    """All other training concepts than `labels`: the image encoder must know more than what the UNet can draw."""
    return make_bank(folder, "broad", broad_labels(labels), styles, _EACH, 2, side, processes)
