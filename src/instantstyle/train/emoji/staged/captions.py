# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Captions that leave things unsaid: the thing, its kind, or nothing, each with or without words for the look.

A text-to-image model whose captions say everything leaves nothing for an image prompt to say.  Real captions do not,
so here about a third name the thing, a third its kind, and a third are empty (the shares: `SHARES`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from instantstyle.emoji.captions import content_phrase, describe_style, with_article
from instantstyle.emoji.sources import concepts
from instantstyle.train.emoji.dataset import CaptionEmbeddings, Text
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.training import device

_KINDS: Mapping[str, Sequence[str]] = {
    "animal": ("animal",),
    "animal-bird": ("bird",),
    "animal-bug": ("small animal",),
    "animal-marine": ("sea animal",),
    "plant": ("plant",),
    "plant-flower": ("flower",),
    "food": ("food",),
    "food-fruit": ("fruit",),
    "food-vegetable": ("vegetable",),
    "food-sweet": ("something sweet",),
    "drink": ("drink",),
    "place": ("place",),
    "place-building": ("building",),
    "transport": ("vehicle",),
    "transport-ground": ("road vehicle",),
    "transport-water": ("something at sea",),
    "transport-air": ("something that flies",),
    "sky": ("something in the sky",),
    "time": ("instrument",),
    "sport": ("ball",),
    "clothing": ("something to wear",),
    "musical": ("musical instrument",),
    "light": ("device",),
}
"""Words for emojibase's groups and subgroups; a subgroup that is not listed is `an object`."""


class Column(IntEnum):
    """What a caption says, as the columns of `CaptionTable.numbers`."""

    THING = 0
    THING_AGAIN = 1
    """The thing in other words, drawn independently."""
    THING_AND_LOOK = 2
    KIND = 3
    KIND_AND_LOOK = 4
    LOOK = 5
    NOTHING = 6


SHARES: Mapping[Column, float] = {
    Column.THING: 0.10,
    Column.THING_AGAIN: 0.10,
    Column.THING_AND_LOOK: 0.18,
    Column.KIND: 0.19,
    Column.KIND_AND_LOOK: 0.09,
    Column.LOOK: 0.06,
    Column.NOTHING: 0.28,
}
"""Shares of captions for the base: .38 name the thing, .28 its kind, .34 neither; .33 have words for the look."""

FIRST_SHARES: Mapping[Column, float] = {
    Column.THING: 0.22,
    Column.THING_AGAIN: 0.20,
    Column.THING_AND_LOOK: 0.26,
    Column.KIND: 0.08,
    Column.KIND_AND_LOOK: 0.04,
    Column.LOOK: 0.04,
    Column.NOTHING: 0.16,
}
"""Shares while the words for things are learned anew: .68 name the thing."""

ADAPTER_SHARES: Mapping[Column, float] = {
    Column.THING: 0.10,
    Column.THING_AGAIN: 0.10,
    Column.THING_AND_LOOK: 0.05,
    Column.KIND: 0.22,
    Column.KIND_AND_LOOK: 0.03,
    Column.NOTHING: 0.50,
}
"""Shares of captions for an adapter: half are empty, so that the reference has the thing to tell."""


def kinds(subgroup: str) -> tuple[str, ...]:
    """What things of an emojibase subgroup are called, the broad word first: `animal-bird` is (`animal`, `bird`)."""
    broad = subgroup.split("-")[0]
    found = [*_KINDS.get(broad, ()), *(_KINDS.get(subgroup, ()) if subgroup != broad else ())]
    return tuple(found) or ("object",)


@dataclass(frozen=True)
class CaptionTable:
    """Every caption a run may meet, read ahead, and which of them are each row's."""

    words: CaptionEmbeddings
    """Text embeddings; the first text is the empty one."""
    numbers: Int[np.ndarray, "rows columns"]
    """By row and `Column`, the number of a text in `words`."""

    def draw(self, rows: npt.NDArray[np.int64], shares: Mapping[Column, float], rng: np.random.Generator) -> Text:
        """One caption for each row, columns drawn by their shares: context [n, tokens, dim] and pooled [n, dim]."""
        p = np.array(list(shares.values()))
        columns = rng.choice([int(c) for c in shares], size=len(rows), p=p / p.sum())
        return self.of(rows, columns)

    def of(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Text:
        """The captions of these rows and columns, float32 on the training device."""
        number = torch.from_numpy(self.numbers[rows, columns].astype(np.int64))
        context: Float[Tensor, "n tokens dim"] = self.words.context[number].to(device()).float()
        return context, self.words.pooled[number].to(device()).float()


def draw_captions(bank: ImageBank, seed: int) -> tuple[list[str], Int[np.ndarray, "rows columns"]]:
    """All captions of a bank: the texts without repetition, the empty one first, and their numbers by row and column.

    Words for looks are drawn once a style, all else once a row.
    """
    rng = np.random.default_rng(seed)
    subgroup = {c.label: c.subgroup for c in concepts()}
    looks = [describe_style(t, s, rng) for t, s in zip(bank.treatments, bank.sets, strict=True)]
    number, texts = {"": 0}, [""]

    def numbered(text: str) -> int:
        if text not in number:
            number[text] = len(texts)
            texts.append(text)
        return number[text]

    numbers = np.zeros((len(bank.concept), len(Column)), np.int32)
    for row, (concept, style) in enumerate(zip(bank.concept.tolist(), bank.style.tolist(), strict=True)):
        label, styled = bank.labels[concept], looks[style]
        said = content_phrase(label, rng)
        kind = _with_article(str(rng.choice(kinds(subgroup[label]))))
        columns = (said, content_phrase(label, rng), f"{said}, {styled}", kind, f"{kind}, {styled}", styled, "")
        numbers[row] = [numbered(text) for text in columns]
    return texts, numbers


def _with_article(kind: str) -> str:
    return kind if kind.startswith(("food", "something")) else with_article(kind)
