"""Texts of a request, all read by one rule: prompt, negative prompt, captions of references, contents.

`Request.reading` is the rule.  "plain": in the words that the model was taught, refused where it is longer than the
encoders read; "long" and "weighted": as they stand, by `encoders.prompt_weighting`.
"""

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from instantstyle.encoders.clip import TextEmbeddings
from instantstyle.encoders.prompt_vocabulary import VOCABULARY_FILE, NormalizedPrompt, PromptVocabulary
from instantstyle.encoders.prompt_weighting import PromptMode
from instantstyle.errors import InputError
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.request import Request

_VOCABULARIES: WeakKeyDictionary[Model, PromptVocabulary | None] = WeakKeyDictionary()


def vocabulary_of(model: Model) -> PromptVocabulary | None:
    """The names of things that a model was taught, None for one that reads whatever is typed."""
    if model not in _VOCABULARIES:
        path = model.source.folder / VOCABULARY_FILE
        _VOCABULARIES[model] = (
            PromptVocabulary.read(path, model.vocabulary) if path.is_file() and model.vocabulary else None
        )
    return _VOCABULARIES[model]


def nearest_words(model: Model, embeds: Float[Tensor, "1 dim"], count: int = 1) -> list[str]:
    """What an image embedding shows: the words of the model's vocabulary by angle, the nearest first.

    Raises InputError for a model without a vocabulary.
    """
    words = F.normalize(model.vocabulary_embeds(embeds.shape[-1]), dim=-1)
    near = (F.normalize(embeds, dim=-1) @ words.T)[0].topk(min(count, len(model.vocabulary))).indices
    return [model.vocabulary[int(i)] for i in near]


def normalize_prompt(model: Model, typed: str) -> NormalizedPrompt:
    """What a model is to read for what was typed: for all but models taught a few things by name, the same."""
    vocabulary = vocabulary_of(model)
    return NormalizedPrompt(typed) if vocabulary is None else vocabulary.normalize(typed)


def prompt_text(model: Model, typed: str, reading: PromptMode) -> str:
    """A text as the encoders are to read it.  Raises InputError for a plain one that is longer than they read."""
    if reading != "plain":
        return typed
    text = normalize_prompt(model, typed).text
    for encoder in model.text_encoders:
        if encoder.truncates:
            continue
        try:
            encoder.tokenize([text])
        except InputError as long:
            if model.family.is_transformer:
                raise
            raise InputError(f"{long}, or give reading='long' (--reading long)") from None
    return text


def encode_prompts(
    model: Model, texts: Sequence[str], reading: PromptMode = "plain", clip_skip: int | None = None
) -> TextEmbeddings:
    """Texts that went through `prompt_text`; an empty one as the family was trained to take none.

    For a family with `force_zeros_for_empty_prompt` (SDXL) that is zeros; an encoded empty string is something else.
    """
    text = with_clip_skip(model, clip_skip).encode_prompt(texts, reading)
    return zero_empty(model, text, [not each for each in texts])


def with_clip_skip(model: Model, clip_skip: int | None) -> Model:
    """The model whose text encoders are read at another hidden state; None: the family's."""
    if clip_skip is None or clip_skip == model.family.clip_skip:
        return model
    return replace(model, family=replace(model.family, clip_skip=clip_skip))


def check_clip_skip(model: Model, request: Request) -> None:
    """Raises InputError for a hidden state that the text encoders do not have, or that is not read in chunks."""
    if request.clip_skip is not None and model.family.is_transformer:
        raise InputError(
            f"clip_skip is for models that read hidden states of CLIP alone, and {model.family.name} reads T5: leave "
            "it out"
        )
    skip, layers = request.clip_skip, min(int(each.net.config.num_hidden_layers) for each in model.text_encoders)
    if skip is None or skip == model.family.clip_skip:
        return
    if skip > layers:
        raise InputError(f"clip_skip {skip} is more than the {layers} layers of this model's text encoders")
    if request.reading != "plain":
        raise InputError(
            f"with reading={request.reading!r} prompts are read from the hidden state of the family, so clip_skip "
            f"{skip} does not go with it: leave one of the two out"
        )


def zero_empty(model: Model, text: TextEmbeddings, empty: Sequence[bool]) -> TextEmbeddings:
    """The embeddings with zeros in these rows, where the model's family takes no text so."""
    if not model.family.force_zeros_for_empty_prompt or not any(empty):
        return text
    kept = torch.tensor([float(not each) for each in empty]).to(text.prompt_embeds)
    pooled = None if text.pooled_prompt_embeds is None else text.pooled_prompt_embeds * kept[:, None]
    return TextEmbeddings(text.prompt_embeds * kept[:, None, None], pooled, text.text_embeds)


def prompt_warnings(model: Model, request: ResolvedRequest) -> tuple[str, ...]:
    """What of the texts that a run reads its model was not taught, a sentence each.

    With a reading other than "plain", words are neither replaced nor left out: one sentence says so.  Contents to be
    subtracted are always read plainly.
    """
    typed = request.request
    texts = [(typed.prompt, "")]
    if request.do_classifier_free_guidance:
        texts.append((typed.negative, "negative prompt: "))
    contents = [each for each in request.references if each.given.content is not None]  # not a card's own
    if "reference-source" in request.options:
        captions = [str(request.options["caption"])] if request.options["caption"] else []
        captions = captions or [", ".join(each.content) for each in contents]
        texts += [(caption, "caption of a reference: ") for caption in captions]
    normalized = [(normalize_prompt(model, text), text, where) for text, where in texts]
    warnings = [f"{where}{each}" for prompt, _, where in normalized for each in prompt.warnings]
    if typed.reading != "plain":
        changed = any(prompt.warnings or prompt.text != text for prompt, text, _ in normalized)
        warnings = [
            f"with reading={typed.reading!r} prompts are read as typed: words that this model was not taught are "
            "neither replaced nor left out"
        ] * changed
    if request.method.needs_adapter:
        phrases = [
            phrase
            for each in contents
            if each.given.content_weight
            for phrase in each.content
            if phrase.strip().lower() != "auto"
        ]
        warnings += [
            f"content of a reference: {each}" for phrase in phrases for each in normalize_prompt(model, phrase).warnings
        ]
    cut = {
        left for text, _ in texts for each in model.text_encoders if each.truncates and (left := each.left_over(text))
    }
    warnings += [f"CLIP does not read {left[:60]!r}, which is beyond its length; T5 reads all of it" for left in cut]
    return tuple(dict.fromkeys(warnings))
