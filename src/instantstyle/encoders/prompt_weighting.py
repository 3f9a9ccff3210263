# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Texts read in other ways than plainly: long ones in chunks, and words that weigh more or less, both by compel.

A text encoder reads a fixed number of tokens.  A longer text is split at its sentences (else at phrases, else at words)
into chunks that it reads one by one, and their hidden states stand one after the other; a shorter text that goes with
it is filled up by what the encoder makes of nothing.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Literal, cast

import torch
from torch import Tensor

from instantstyle.encoders.clip import ReloadedModule, TextEncoder
from instantstyle.errors import InputError

PromptMode = Literal["plain", "long", "weighted"]
"""plain: as it stands, refused where it is too long.  long: in chunks.  weighted: compel's syntax, `(word)1.3`,
`word++`, `word--`, `("one", "other").blend(1, .5)`, `("one", "other").and()`, also A1111's
`(word:1.3)`; in chunks where it is long."""


_A1111 = re.compile(r"\(([^():]*):\s*(\d*\.?\d+)\)", re.ASCII)
"""`(words:1.3)`, which compel would take for words and numbers; it writes `(words)1.3`."""


def encode_weighted_prompts(
    towers: Sequence[TextEncoder], texts: Sequence[str], skip: int, reading: PromptMode
) -> tuple[Tensor, Tensor | None]:
    """The context of the texts, [n, chunks x length, context_dim], and their embedding [n, dim] where a tower projects.

    The embedding is of the first chunk and knows no weights, as everywhere.  `skip` as `Tower.say` takes it.  Raises
    InputError for what compel cannot read.
    """
    sides: list[list[Tensor]] = []
    empties: list[Tensor] = []
    embeds: Tensor | None = None
    for tower in towers:
        compel = _compel(tower, skip)
        said = [_parsed(compel, text) if reading == "weighted" else _plainly(compel, text) for text in texts]
        sides.append([context for context, _ in said])
        empties.append(compel.conditioning_provider.empty_z)
        if (projected := _embeds(tower, compel.device, [words for _, words in said])) is not None:
            embeds = projected
    tokens = max(context.shape[1] for side in sides for context in side)
    filled = [
        torch.cat([pad_context(context, empty, tokens) for context in side])
        for side, empty in zip(sides, empties, strict=True)
    ]
    return torch.cat(filled, dim=-1), embeds


def pad_context(context: Tensor, empty: Tensor, tokens: int) -> Tensor:
    """The context [n, fewer, dim] made `tokens` long by what an empty text [1, length, dim] is read as."""
    missing = (tokens - context.shape[1]) // empty.shape[1]
    return torch.cat([context, empty.to(context).expand(len(context), -1, -1).repeat(1, missing, 1)], dim=1)


def _compel(tower: TextEncoder, skip: int) -> Any:
    """Compel with the hidden states that the family reads."""
    if skip not in (1, 2):
        raise InputError(f"texts in chunks or with weights are read from the last or last-but-one layer, not {skip}")
    compel: Any = import_module("compel")
    net = tower.net.load() if isinstance(tower.net, ReloadedModule) else tower.net
    kinds = compel.ReturnedEmbeddingsType
    return compel.Compel(
        tokenizer=tower.tokenizer,
        text_encoder=net,
        truncate_long_prompts=False,
        returned_embeddings_type=(
            kinds.LAST_HIDDEN_STATES_NORMALIZED if skip == 1 else kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        ),
        model_max_length=tower.max_length,
        device=net.device,
    )


def _plainly(compel: Any, text: str) -> tuple[Tensor, str]:
    fragments, weights = [[text]], [[1.0]]
    provider = compel.conditioning_provider
    return provider.get_embeddings_for_weighted_prompt_fragments(fragments, weights, device=compel.device), text


def _parsed(compel: Any, text: str) -> tuple[Tensor, str]:
    """The weighted context of a text in compel's syntax, and its bare words."""
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    text = _A1111.sub(r"(\1)\2", text)
    try:
        conjunction = compel.parse_prompt_string(text)
        fragments = list(_fragments(conjunction))
        if any(not hasattr(fragment, "text") for fragment in fragments):
            raise InputError(f"the text {shown} swaps words by .swap(), which is not supported: weights and blends are")
        if any(fragment.weight < 0 for fragment in fragments):
            raise InputError(f"the text {shown} gives a word a weight below 0: 0 leaves it out, 1 is as it stands")
        context = cast("Callable[..., Any]", compel.build_conditioning_tensor_for_conjunction)(conjunction)[0]
    except InputError:
        raise
    except Exception as e:  # of its parser, and whatever else: none of it is documented
        raise InputError(f"cannot read the weights in the text {shown}: {' '.join(str(e).split())[:200]}") from e
    return context if context.ndim == 3 else context[None], " ".join(str(f.text) for f in fragments).strip()


def _fragments(prompt: Any) -> Iterator[Any]:
    """The leaves of what compel's parser makes of a text."""
    inside = getattr(prompt, "prompts", None) or getattr(prompt, "children", None)
    if inside is None:
        yield prompt
    else:
        for each in inside:
            yield from _fragments(each)


def _embeds(tower: TextEncoder, device: Any, texts: Sequence[str]) -> Tensor | None:
    """The projected embedding of each text's first tokens."""
    ids = tower.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=tower.max_length, return_tensors="pt"
    ).input_ids
    return getattr(tower.net(ids.to(device)), "text_embeds", None)
