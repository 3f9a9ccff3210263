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
from instantstyle.emoji.splits import CORE
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.evaluate.classifiers import tensor
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Pixels, Style, picture
from instantstyle.evaluate.handcrafted_features import measured
from instantstyle.evaluate.metrics import apart
from instantstyle.evaluate.tasks import Question, restyled
from instantstyle.utils.atomic_files import whole

Numbers = npt.NDArray[np.float32]


def contours(pixels: Pixels) -> Numbers:
    """What things are told apart by, for pictures [n, 64, 64, 3]."""
    return measured(tensor(pixels), "edge")[0].numpy()


def textures(pixels: Pixels) -> Numbers:
    """What looks are told apart by, for pictures [n, 64, 64, 3]."""
    return measured(tensor(pixels), "colour")[1].numpy()


def likest(x: Pixels, candidates: Pixels) -> int:
    """Which of the candidates looks most like x: every number of texture counts by how much it varies among them."""
    heard = textures(np.concatenate([candidates, x[None]]))
    spread = heard[:-1].std(axis=0) + 1e-3
    return int(apart(heard[:-1] / spread, heard[-1] / spread).argmin())


def things(questions: Sequence[Question], drawn: Pixels, labels: Sequence[str] = CORE) -> list[str]:
    """For each picture the thing whose real picture in the question's style is nearest."""
    return [
        labels[int(apart(gallery(tuple(labels), q.style), x).argmin())]
        for q, x in zip(questions, contours(drawn), strict=True)
    ]


def families(questions: Sequence[Question], drawn: Pixels, known: Sequence[str] = TRAINED_FAMILIES) -> list[str]:
    """For each picture the treatment family, among those with the same colours and numbers, in which the prompted
    thing's real picture is nearest."""
    said: list[str] = []
    for q, x in zip(questions, drawn, strict=True):
        candidates = [picture(q.thing, replace(q.style, look=restyled(q.style.look, each))) for each in known]
        said.append(known[likest(x, np.stack(candidates))])
    return said


def drawers(questions: Sequence[Question], drawn: Pixels, known: Sequence[str] = TRAINED_SETS) -> list[str]:
    """For each picture the drawing set whose picture of the prompted thing in the same treatment is nearest."""
    said: list[str] = []
    for q, x in zip(questions, drawn, strict=True):
        candidates = [picture(q.thing, Style(each, q.style.look)) for each in known]
        said.append(known[likest(x, np.stack(candidates))])
    return said


def copied(questions: Sequence[Question], drawn: Pixels) -> npt.NDArray[np.bool_]:
    """Whether a picture is nearer to its reference than to any picture of the prompted thing in the same treatment,
    by whichever hand."""
    found: list[bool] = []
    for q, x in zip(questions, drawn, strict=True):
        far = apart(_prompted(q), contours(x[None])[0])
        found.append(bool(far[-1] < far[:-1].min()))
    return np.array(found, dtype=np.bool_)


@lru_cache(maxsize=1024)
def _prompted(q: Question) -> Numbers:
    """The contours of the prompted thing by every hand, of the truth, and last of the reference."""
    prompted = [picture(q.thing, Style(each, q.style.look)) for each in TRAINED_SETS]
    return contours(np.stack([*prompted, q.truth, q.reference]))


def gallery(labels: tuple[str, ...], style: Style) -> Numbers:
    """The contours of things in one style, [labels, numbers]; kept in the cache, for they take half a second."""
    name = hashlib.sha256(repr((labels, style)).encode()).hexdigest()[:16]
    file = cache_folder() / "judges" / "contours" / f"{name}.npy"
    if not file.exists():
        found = contours(np.stack([picture(label, style) for label in labels])).astype(np.float16)
        with whole(file) as partial, partial.open("wb") as out:
            np.save(out, found)
    return np.load(file).astype(np.float32)
