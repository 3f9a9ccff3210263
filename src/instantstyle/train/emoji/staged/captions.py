# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Captions of varied detail: the concept, its kind, or neither, each with or without a description of the style.

If every caption described its image completely, an image prompt would have nothing to add.  Here about a third name
the concept, a third its kind, and a third neither (the shares: `SHARES`).
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
"""Nouns for emojibase's groups and subgroups; for one that is not listed it is `object`."""


class Column(IntEnum):
    """The content of a caption, as the columns of `CaptionTable.caption_indices`."""

    THING = 0
    THING_AGAIN = 1
    """The concept in another phrase, drawn independently."""
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
"""Shares of captions for the base: 0.38 name the concept, 0.28 its kind, 0.34 neither; 0.33 describe the style."""

FIRST_SHARES: Mapping[Column, float] = {
    Column.THING: 0.22,
    Column.THING_AGAIN: 0.20,
    Column.THING_AND_LOOK: 0.26,
    Column.KIND: 0.08,
    Column.KIND_AND_LOOK: 0.04,
    Column.LOOK: 0.04,
    Column.NOTHING: 0.16,
}
"""Shares in the first phase, for newly initialised cross-attention: 0.68 name the concept."""

ADAPTER_SHARES: Mapping[Column, float] = {
    Column.THING: 0.10,
    Column.THING_AGAIN: 0.10,
    Column.THING_AND_LOOK: 0.05,
    Column.KIND: 0.22,
    Column.KIND_AND_LOOK: 0.03,
    Column.NOTHING: 0.50,
}
"""Shares of captions for an adapter: half are empty, so that the reference determines the content."""


def kinds(subgroup: str) -> tuple[str, ...]:
    """Nouns for an emojibase subgroup, the broader first: for `animal-bird` (`animal`, `bird`)."""
    broad = subgroup.split("-")[0]
    phrases = [*_KINDS.get(broad, ()), *(_KINDS.get(subgroup, ()) if subgroup != broad else ())]
    return tuple(phrases) or ("object",)


@dataclass(frozen=True)
class CaptionTable:
    """Precomputed embeddings of every caption of a run, and the captions of each image."""

    embeds: CaptionEmbeddings
    """Prompt embeddings; the first text is empty."""
    caption_indices: Int[np.ndarray, "rows columns"]
    """By image and `Column`, an index into `embeds`."""

    def draw(self, indices: npt.NDArray[np.int64], shares: Mapping[Column, float], rng: np.random.Generator) -> Text:
        """One caption for each image, by the shares of columns: embeddings [n, tokens, dim] and pooled [n, dim]."""
        weights = np.array(list(shares.values()))
        columns = rng.choice([int(c) for c in shares], size=len(indices), p=weights / weights.sum())
        return self.lookup(indices, columns)

    def lookup(self, indices: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Text:
        """Embeddings of the captions at these indices and columns, float32 on the training device."""
        selected = torch.from_numpy(self.caption_indices[indices, columns].astype(np.int64))
        prompt_embeds: Float[Tensor, "n tokens dim"] = self.embeds.prompt_embeds[selected].to(device()).float()
        return prompt_embeds, self.embeds.pooled_prompt_embeds[selected].to(device()).float()


def draw_captions(bank: ImageBank, seed: int) -> tuple[list[str], Int[np.ndarray, "rows columns"]]:
    """All captions of a bank: the unique texts, the empty one first, and their indices by row and column.

    Style descriptions are drawn once a style, all else once a row.
    """
    rng = np.random.default_rng(seed)
    subgroup = {c.label: c.subgroup for c in concepts()}
    style_texts = [describe_style(t, s, rng) for t, s in zip(bank.treatments, bank.sets, strict=True)]
    index_of, texts = {"": 0}, [""]

    def intern(text: str) -> int:
        if text not in index_of:
            index_of[text] = len(texts)
            texts.append(text)
        return index_of[text]

    caption_indices = np.zeros((len(bank.concept), len(Column)), np.int32)
    for index, (concept, style) in enumerate(zip(bank.concept.tolist(), bank.style.tolist(), strict=True)):
        label, styled = bank.labels[concept], style_texts[style]
        content = content_phrase(label, rng)
        kind = _with_article(str(rng.choice(kinds(subgroup[label]))))
        columns = (content, content_phrase(label, rng), f"{content}, {styled}", kind, f"{kind}, {styled}", styled, "")
        caption_indices[index] = [intern(text) for text in columns]
    return texts, caption_indices


def _with_article(kind: str) -> str:
    return kind if kind.startswith(("food", "something")) else with_article(kind)
