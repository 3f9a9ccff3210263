"""The bank: treated pictures drawn once, so that training reads them instead of drawing them.

Pictures come in styles: a style is a treatment and a drawing set, and each is given to many concepts, so that a
reference of *another* concept in the same style is at hand for every picture.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from instantstyle.world.captions import caption
from instantstyle.world.draw import masters
from instantstyle.world.sources import SETS, concepts
from instantstyle.world.splits import CORE, splits
from instantstyle.world.treatments import Treatment, apply, sample

SIDE = 64
"""Side of the pictures in pixels."""


@dataclass(frozen=True)
class Bank:
    """Pictures [n, 64, 64, 3] uint8 with, for each, the row of its concept and its style."""

    pictures: npt.NDArray[np.uint8]
    concept: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    treatments: tuple[Treatment, ...]
    sets: tuple[str, ...]
    """The drawing set of each style, in step with `treatments`."""

    def caption(self, row: int, rng: np.random.Generator, styled: float) -> str:
        """A caption for one picture."""
        style = int(self.style[row])
        return caption(self.labels[int(self.concept[row])], self.treatments[style], self.sets[style], rng, styled)

    @cached_property
    def rows_of_style(self) -> dict[int, npt.NDArray[np.int64]]:
        """The rows drawn in each style."""
        order = np.argsort(self.style, kind="stable")
        cuts = (np.flatnonzero(np.diff(self.style[order])) + 1).tolist()
        return {int(self.style[rows[0]]): rows for rows in np.split(order, cuts)}


def make(folder: Path, name: str, labels: tuple[str, ...], styles: int, each: int, seed: int) -> Bank:
    """Draw (or load) a bank: `styles` random looks, each given to `each` concepts among `labels`.

    Only what the splits train on: held-out cells, sets, looks and hues never enter.
    """
    pictures_file, index_file = folder / f"{name}.npy", folder / f"{name}.json"
    if not index_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _draw(pictures_file, index_file, labels, styles, each, seed)
    index: dict[str, Any] = json.loads(index_file.read_text("utf-8"))
    return Bank(
        np.load(pictures_file, mmap_mode="r"),
        np.array(index["concept"], np.int64),
        np.array(index["style"], np.int64),
        tuple(index["labels"]),
        tuple(_treatment(t) for t in index["treatments"]),
        tuple(index["sets"]),
    )


def _treatment(data: dict[str, Any]) -> Treatment:
    colours: dict[str, Any] = {key: tuple(data[key]) for key in ("ground", "ink", "second")}
    return Treatment(**{**data, **colours})


def _draw(pictures_file: Path, index_file: Path, labels: tuple[str, ...], styles: int, each: int, seed: int) -> None:
    held_out, rows = splits(), {c.label: row for row, c in enumerate(concepts())}
    trained_sets = [name for name, s in SETS.items() if not s.held_out]
    rng = np.random.default_rng(seed)
    treatments, sets, concept, style = list[Treatment](), list[str](), list[int](), list[int]()
    partial = pictures_file.with_suffix(f".{os.getpid()}.npy")
    pictures = np.lib.format.open_memmap(partial, "w+", np.uint8, (styles * each, SIDE, SIDE, 3))
    for number in range(styles):
        treatment, set_name = sample(rng), trained_sets[int(rng.integers(len(trained_sets)))]
        allowed = [i for i, label in enumerate(labels) if held_out.trains(label, set_name)]
        for i in rng.permutation(allowed)[:each]:
            drawing = np.asarray(masters(set_name)[rows[labels[i]]])
            drawn = apply(treatment, drawing)
            pictures[len(concept)] = cv2.resize(drawn, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            concept.append(int(i))
            style.append(number)
        treatments.append(treatment)
        sets.append(set_name)
        if number % 100 == 99:
            print(f"{index_file.stem} {number + 1}/{styles} styles", flush=True)
    pictures.flush()
    partial.replace(pictures_file)
    index = {
        "labels": labels,
        "treatments": [t.to_dict() for t in treatments],
        "sets": sets,
        "concept": concept,
        "style": style,
    }
    index_file.write_text(json.dumps(index, ensure_ascii=False), "utf-8")


def core(folder: Path, styles: int = 1500) -> Bank:
    """The things the model learns to draw, each style given to 48 of them."""
    return make(folder, "core", CORE, styles, 48, seed=1)


def broad(folder: Path, styles: int = 500) -> Bank:
    """All other training concepts: the image encoder must know more than what the UNet can draw."""
    held_out = splits().concepts
    others = tuple(c.label for c in concepts() if c.label not in held_out and c.label not in CORE)
    return make(folder, "broad", others, styles, 48, seed=2)
