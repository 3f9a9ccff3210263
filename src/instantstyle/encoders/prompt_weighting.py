# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Texts in chunks and with weights of words, encoded by compel.

A text encoder reads a fixed number of tokens.  A longer text is split at its sentences (else at phrases, else at words)
into chunks that are encoded one by one, and their hidden states are concatenated; a shorter text in the same batch is
padded by the embedding of an empty text.
"""

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.encoders.clip import ReloadedModule, TextEncoder
from instantstyle.encoders.prompt_syntax import parse_a1111, to_compel, uses_compel_syntax
from instantstyle.errors import InputError

PromptMode = Literal["plain", "long", "weighted"]
"""plain: as it stands, refused where it is too long.  long: in chunks.  weighted: A1111's syntax, `(word:1.3)`,
`((word))`, `[word]`, `BREAK`; or, in a text that has one of compel's operators, compel's: `(word)1.3`, `word++`,
`word--`, `("one", "other").blend(1, .5)`, `("one", "other").and()`; in chunks where it is long."""


def encode_weighted_prompts(
    text_encoders: Sequence[TextEncoder],
    texts: Sequence[str],
    clip_skip: int,
    mode: PromptMode,
    device: torch.device,
    *,
    final_norm: bool = False,
) -> tuple[Float[Tensor, "n tokens context_dim"], Float[Tensor, "n embed_dim"] | None]:
    """The hidden states of texts, [n, chunks x length, context_dim], and their projected embedding [n, dim], if any.

    The embedding is of the first chunk and knows no weights, as in compel and diffusers.  `clip_skip` and
    `final_norm` as `TextEncoder.encode` takes them; `device` is where the encoders compute.  Raises InputError for what
    cannot be read.
    """
    contexts: list[list[Tensor]] = []
    empty_contexts: list[Tensor] = []
    embeds: Tensor | None = None
    for text_encoder in text_encoders:
        compel = _compel(text_encoder, clip_skip, device, final_norm=final_norm)
        encoded = [_encode_weighted(compel, text) if mode == "weighted" else _encode(compel, text) for text in texts]
        contexts.append([context for context, _ in encoded])
        empty_contexts.append(compel.conditioning_provider.empty_z)
        projected = _projected_embeds(text_encoder, device, [words for _, words in encoded])
        embeds = embeds if projected is None else projected
    num_tokens = max(context.shape[1] for each in contexts for context in each)
    padded = [
        torch.cat([pad_context(context, empty, num_tokens) for context in each])
        for each, empty in zip(contexts, empty_contexts, strict=True)
    ]
    return torch.cat(padded, dim=-1), embeds


def pad_context(
    context: Float[Tensor, "n fewer dim"], empty: Float[Tensor, "1 length dim"], num_tokens: int
) -> Float[Tensor, "n num_tokens dim"]:
    """The context [n, fewer, dim] padded to `num_tokens` with the context of an empty text [1, length, dim]."""
    missing = (num_tokens - context.shape[1]) // empty.shape[1]
    return torch.cat([context, empty.to(context).expand(len(context), -1, -1).repeat(1, missing, 1)], dim=1)


class _EncoderOnDevice:
    """A text encoder that says where it computes: offloaded ones keep their parameters elsewhere, and compel asks."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self.net, self.device = net, device
        self.text_model = getattr(net, "text_model", net)  # transformers 5 has one level less where nothing projects

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)


def _compel(text_encoder: TextEncoder, clip_skip: int, device: torch.device, *, final_norm: bool) -> Any:
    """Compel with the hidden states that the family reads."""
    if clip_skip not in (1, 2):
        raise InputError(
            f"texts in chunks or with weights are read from the last or last-but-one layer, not {clip_skip}"
        )
    compel: Any = import_module("compel")
    net = text_encoder.net.load() if isinstance(text_encoder.net, ReloadedModule) else text_encoder.net
    kinds = compel.ReturnedEmbeddingsType
    penultimate = (
        kinds.PENULTIMATE_HIDDEN_STATES_NORMALIZED if final_norm else kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    )
    return compel.Compel(
        tokenizer=text_encoder.tokenizer,
        text_encoder=_EncoderOnDevice(net, device),
        truncate_long_prompts=False,
        returned_embeddings_type=kinds.LAST_HIDDEN_STATES_NORMALIZED if clip_skip == 1 else penultimate,
        model_max_length=text_encoder.max_length,
        device=device,
    )


def _encode(compel: Any, text: str) -> tuple[Tensor, str]:
    """The context of a text as it stands, and the text."""
    fragments, weights = [[text]], [[1.0]]
    provider = compel.conditioning_provider
    return provider.get_embeddings_for_weighted_prompt_fragments(fragments, weights, device=compel.device), text


def _encode_weighted(compel: Any, text: str) -> tuple[Tensor, str]:
    """The weighted context of a text, and its bare words."""
    conjunction = _parse(compel, text)
    fragments = list(_fragments(conjunction))
    context = compel.build_conditioning_tensor_for_conjunction(conjunction)[0]
    words = " ".join(fragment.text.strip() for fragment in fragments).strip()
    return context if context.ndim == 3 else context[None], words


def _parse(compel: Any, text: str) -> Any:
    """compel's Conjunction of a text in either syntax.  Raises InputError where a word or a number would be lost."""
    parser: Any = import_module("compel.prompt_parser")
    if not uses_compel_syntax(text):
        prompts: list[Any] = []
        for chunk in parse_a1111(text):
            fragments = [parser.Fragment("", piece.weight) for piece in chunk]
            for fragment, piece in zip(fragments, chunk, strict=True):
                fragment.text = piece.text  # not by the constructor, which resolves escapes of its own
            prompts.append(parser.FlattenedPrompt(fragments or [("", 1.0)]))
        return parser.Conjunction(prompts)
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    converted = to_compel(text)
    try:
        conjunction = compel.parse_prompt_string(converted)
    except Exception as e:  # of its parser, and whatever else: none of it is documented
        raise InputError(f"cannot read the weights in the text {shown}: {' '.join(str(e).split())[:200]}") from e
    fragments = list(_fragments(conjunction))
    if any(not hasattr(fragment, "text") for fragment in fragments):
        raise InputError(f"the text {shown} swaps words by .swap(), which is not supported: weights and blends are")
    if conjunction.lora_weights:
        raise InputError(f"the text {shown} names a LoRA, which is no word: give LoRAs as --lora FILE:WEIGHT")
    if any(fragment.weight < 0 for fragment in fragments):
        raise InputError(f"the text {shown} gives a word a weight below 0: 0 leaves it out, 1 is as it stands")
    operators = {"blend", "and", "add", "attend", "no_normalize"}
    kept = re.sub(r"\s", "", "".join(fragment.text for fragment in fragments))
    lost = [word for word in re.findall(r"[^\W\d_]+", converted) if word not in kept and word not in operators]
    if lost or not kept:
        raise InputError(
            f"cannot read the weights in the text {shown}: {', '.join(map(repr, lost)) or 'every word'} would be lost"
        )
    return conjunction


def _fragments(prompt: Any) -> Iterator[Any]:
    """The leaves of what compel's parser makes of a text."""
    children = getattr(prompt, "prompts", None) or getattr(prompt, "children", None)
    if children is None:
        yield prompt
    else:
        for each in children:
            yield from _fragments(each)


def _projected_embeds(text_encoder: TextEncoder, device: torch.device, texts: Sequence[str]) -> Tensor | None:
    """The projected embedding of each text's first tokens."""
    ids = text_encoder.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=text_encoder.max_length, return_tensors="pt"
    ).input_ids
    return getattr(text_encoder.net(ids.to(device)), "text_embeds", None)
