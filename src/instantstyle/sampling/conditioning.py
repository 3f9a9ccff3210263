"""What a run's rows are conditioned on: the request's texts and those of its reference rows, encoded once."""

import torch

from instantstyle.encoders.prompt_weighting import pad_context
from instantstyle.errors import InputError
from instantstyle.methods.injection import Injection
from instantstyle.methods.prompts import with_clip_skip, zero_empty
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.denoiser import Conditioning, Denoiser, make_time_ids


def encode_conditioning(
    model: Model, request: ResolvedRequest, injection: Injection, denoiser: Denoiser
) -> Conditioning:
    """A row for each of the run's while the injection holds, its text projected for a denoiser.

    Raises InputError when reference rows do not fit the model.
    """
    roles = ["prompt", *(term.text for term in injection.extra_guidance)]
    if request.do_classifier_free_guidance:
        roles.insert(0, injection.uncond_text)
    texts = [request.prompt if role == "prompt" else request.negative for role in roles]
    text = with_clip_skip(model, request.request.clip_skip).encode_prompt(texts, request.request.reading)
    # An empty prompt is read as an empty string, as in diffusers; an empty negative prompt may be zeros.
    text = zero_empty(model, text, [role == "negative" and not request.negative for role in roles])
    embeds, pooled = text.prompt_embeds, text.pooled_prompt_embeds
    if request.count > 1:
        embeds = embeds.repeat_interleave(request.count, dim=0)
        pooled = None if pooled is None else pooled.repeat_interleave(request.count, dim=0)
    rows = injection.reference_batch
    if rows is not None:
        embeds, reference_embeds = _same_length(model, embeds, rows.text.prompt_embeds)
        embeds = torch.cat([embeds, reference_embeds.to(embeds)])
        if pooled is not None:
            if rows.text.pooled_prompt_embeds is None:
                raise InputError("reference rows of this model need pooled text, as `Model.encode_prompt` gives it")
            pooled = torch.cat([pooled, rows.text.pooled_prompt_embeds.to(pooled)])
    if model.family.is_transformer:
        told, scale = request.distilled_guidance, None
        if told is not None:
            scale = torch.full((len(embeds),), told, dtype=torch.float32, device=model.device)
        return denoiser.precompute_kv(Conditioning(embeds, pooled, guidance=scale))
    if pooled is None or model.family.unet.pooled_projection_dim is None:
        return denoiser.precompute_kv(Conditioning(embeds))
    time_ids = make_time_ids(request.size, len(embeds), model.device)
    if rows is not None and rows.time_ids is not None:
        time_ids[-len(rows) :] = rows.time_ids
    return denoiser.precompute_kv(Conditioning(embeds, pooled, time_ids))


def _same_length(model: Model, own: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts of a run and of its reference rows, the shorter filled up by what the encoders make of no text."""
    length = max(own.shape[1], reference.shape[1])
    if own.shape[2] != reference.shape[2] or any(length % each.shape[1] for each in (own, reference)):
        raise InputError(
            f"the texts of reference rows are {reference.shape[1]} tokens of {reference.shape[2]} numbers, and the "
            f"run's own {own.shape[1]} of {own.shape[2]}: rows that go together read texts of one length"
        )
    if own.shape[1] == reference.shape[1]:
        return own, reference
    empty = model.encode_prompt([""]).prompt_embeds  # of the family: long texts are read so
    return pad_context(own, empty, length), pad_context(reference, empty, length)
