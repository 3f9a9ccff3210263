"""The judge that needs no training: which real picture is nearest?

For every question the candidates are drawn in the question's own style, so only what is asked about can decide.  Things
are told apart by which way their contours run where, without colour, so that a picture whose ground has another colour
than the truth's may still show the right thing; looks by the texture of the whole picture, in colour.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from instantstyle.emoji.sources import cache_folder
from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.evaluate.classifiers import to_input_tensor
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Pixels, Style, render
from instantstyle.evaluate.handcrafted_features import handcrafted_features
from instantstyle.evaluate.metrics import l1_distance
from instantstyle.evaluate.tasks import Task, with_family
from instantstyle.utils.atomic_files import atomic_write

Numbers = npt.NDArray[np.float32]


def contours(pixels: Pixels) -> Numbers:
    """What things are told apart by, for pictures [n, 64, 64, 3]."""
    return handcrafted_features(to_input_tensor(pixels), "edge")[0].numpy()


def textures(pixels: Pixels) -> Numbers:
    """What looks are told apart by, for pictures [n, 64, 64, 3]."""
    return handcrafted_features(to_input_tensor(pixels), "colour")[1].numpy()


def nearest_indices(x: Pixels, candidates: Pixels) -> int:
    """Which of the candidates looks most like x: every number of texture counts by how much it varies among them."""
    heard = textures(np.concatenate([candidates, x[None]]))
    spread = heard[:-1].std(axis=0) + 1e-3
    return int(l1_distance(heard[:-1] / spread, heard[-1] / spread).argmin())


def nearest_concepts(questions: Sequence[Task], drawn: Pixels, labels: Sequence[str] = TRAINED_CONCEPTS) -> list[str]:
    """For each picture the thing whose real picture in the question's style is nearest."""
    return [
        labels[int(l1_distance(reference_gallery(tuple(labels), q.style), x).argmin())]
        for q, x in zip(questions, contours(drawn), strict=True)
    ]


def nearest_families(questions: Sequence[Task], drawn: Pixels, known: Sequence[str] = TRAINED_FAMILIES) -> list[str]:
    """For each picture the treatment family, among those with the same colours and numbers, in which the prompted
    thing's real picture is nearest."""
    said: list[str] = []
    for q, x in zip(questions, drawn, strict=True):
        candidates = [
            render(q.target, replace(q.style, transform=with_family(q.style.transform, each))) for each in known
        ]
        said.append(known[nearest_indices(x, np.stack(candidates))])
    return said


def nearest_icon_sets(questions: Sequence[Task], drawn: Pixels, known: Sequence[str] = TRAINED_SETS) -> list[str]:
    """For each picture the drawing set whose picture of the prompted thing in the same treatment is nearest."""
    said: list[str] = []
    for q, x in zip(questions, drawn, strict=True):
        candidates = [render(q.target, Style(each, q.style.transform)) for each in known]
        said.append(known[nearest_indices(x, np.stack(candidates))])
    return said


def copied_reference(questions: Sequence[Task], drawn: Pixels) -> npt.NDArray[np.bool_]:
    """Whether a picture is nearer to its reference than to any picture of the prompted thing in the same treatment,
    by whichever hand."""
    found: list[bool] = []
    for q, x in zip(questions, drawn, strict=True):
        far = l1_distance(_prompted(q), contours(x[None])[0])
        found.append(bool(far[-1] < far[:-1].min()))
    return np.array(found, dtype=np.bool_)


@lru_cache(maxsize=1024)
def _prompted(q: Task) -> Numbers:
    """The contours of the prompted thing by every hand, of the truth, and last of the reference."""
    prompted = [render(q.target, Style(each, q.style.transform)) for each in TRAINED_SETS]
    return contours(np.stack([*prompted, q.truth, q.reference]))


def reference_gallery(labels: tuple[str, ...], style: Style) -> Numbers:
    """The contours of things in one style, [labels, numbers]; kept in the cache, for they take half a second."""
    name = hashlib.sha256(repr((labels, style)).encode()).hexdigest()[:16]
    file = cache_folder() / "judges" / "contours" / f"{name}.npy"
    if not file.exists():
        found = contours(np.stack([render(label, style) for label in labels])).astype(np.float16)
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.save(out, found)
    return np.load(file).astype(np.float32)
