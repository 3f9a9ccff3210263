"""Where reference rows come from: a picture re-noised at every step, a picture inverted, or one drawn alongside.

Each is a function from a moment of the run to the latents that the network is to see there.  A reference has a row for
each branch of guidance, and all rows of a branch read the same negative prompt or the reference's own caption.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.errors import InputError
from instantstyle.methods.ddim_inversion import (
    Denoise,
    Latents,
    NoiseLevel,
    Trajectory,
    cfg_denoiser,
    ddim_invert,
    ddim_sample,
    encode_captions,
    noise_levels,
    prediction_type,
)
from instantstyle.methods.injection import ReferenceBatch, ReferenceLatents, StepContext
from instantstyle.methods.options import Option, Value
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.utils.images import resize_to

REFERENCE_OPTIONS = {
    "rows": Option("renoised", "where the reference row comes from", choices=("renoised", "inverted", "alongside")),
    "caption": Option("", "what the reference shows, for its own row; unless given, its content"),
    "inversion-guidance": Option(2.0, "guidance of the inversion", 0.0, 50.0),
    "offset": Option(0.1, "the noisiest part of an inversion that is left out, as a share of its steps", 0.0, 0.9),
}
"""Knobs of every method that looks at reference rows."""


def renoise(latents: Latents, seed: int) -> ReferenceLatents:
    """The picture under fresh noise at every step, as in training; no call of the network, no inversion to go wrong."""
    return lambda moment: moment.alpha * latents + moment.sigma * _noise(latents, f"renoised {moment.step}", seed)


def follow_trajectory(way: Trajectory, offset: float = 0.0) -> ReferenceLatents:
    """A way between picture and noise; while the run is noisier than all but `offset` of it, it waits there."""
    first = way.noise_levels[max(1, round((1 - offset) * (len(way.noise_levels) - 1)))]

    def pinned(moment: StepContext) -> Tensor:
        now = NoiseLevel(moment.timestep, moment.alpha, moment.sigma)
        return way.at(first if now.timestep > first.timestep else now)

    return pinned


def invert_references(
    model: Model, request: Request, latents: Latents, captions: Sequence[str], guidance: float, offset: float
) -> ReferenceLatents:
    """The pictures' ways to noise by DDIM inversion, each with its own caption and no negative prompt."""
    ways = [
        ddim_invert(predict, each[None], noise_levels(model, request.steps), prediction_type(model))
        for each, predict in zip(latents, _predictors(model, request, captions, guidance, ""), strict=True)
    ]
    each = [follow_trajectory(way, offset) for way in ways]
    return lambda moment: torch.cat([pinned(moment) for pinned in each])


def sample_reference(model: Model, request: Request, caption: str) -> Trajectory:
    """A picture of the caption, drawn by the run's own steps and guidance before the run: no style but the model's.

    Nothing that looks at it changes it, so that drawn before and drawn beside the run are the same.
    """
    assert request.size is not None
    assert request.guidance is not None
    assert request.guidance_rescale is not None
    width, height = request.size
    like = torch.empty(
        1,
        model.unet.config.in_channels,
        height // model.vae_scale_factor,
        width // model.vae_scale_factor,
        dtype=model.dtype,
    ).to(model.device)
    asked = (request.guidance, request.negative, request.guidance_rescale)
    (predict,) = _predictors(model, request, [caption], *asked)
    noise = _noise(like, "alongside", request.seed or 0)
    return ddim_sample(predict, noise, noise_levels(model, request.steps), prediction_type(model))


def reference_batch(
    model: Model, request: Request, references: Sequence[StyleReference], knobs: Mapping[str, Value]
) -> ReferenceBatch:
    """The rows of these references, in their order and for each [unconditional, conditional] as the run has them.

    The request's size, seed and guidance are settled.  Raises InputError when a caption is missing, or too long.
    """
    how, said = knobs["rows"], str(knobs["caption"])
    captions = [said or ", ".join(each.content_phrases) for each in references] or [said]
    branches = 2 if request.do_classifier_free_guidance else 1
    texts = [text for caption in captions for text in ([request.negative] * (branches - 1) + [caption])]
    if how == "alongside":
        if references:
            raise InputError(
                "with rows=alongside the reference is drawn from its caption, so a picture does not go with it: leave "
                "the picture out, or give rows=renoised or rows=inverted"
            )
        if not said.strip():
            raise InputError("with rows=alongside the reference is drawn from its caption: give the option caption")
        way = sample_reference(model, request, said)
        pinned, latents = follow_trajectory(way), way.at(way.noise_levels[0])
    else:
        assert request.size is not None
        size = request.size
        latents = torch.cat(
            [model.encode_latents(resize_to(each.image.open(), request.fit, size)) for each in references]
        )
        if how == "inverted":
            guidance, offset = float(knobs["inversion-guidance"]), float(knobs["offset"])
            pinned = invert_references(model, request, latents, captions, guidance, offset)
        else:
            pinned = renoise(latents, request.seed or 0)

    def rowed(moment: StepContext) -> Tensor:
        return pinned(moment).repeat_interleave(branches, dim=0)

    return ReferenceBatch(encode_captions(model, texts), rowed, clean_latents=latents)


def reference_index(request: Request, references: int, device: torch.device, negatives: int = 0) -> Tensor:
    """For each of the run's rows and the reference rows after them the reference rows that it looks at.

    [rows, references]; a row looks at the references' rows of its own branch, and reference rows at themselves.
    """
    branches = 2 if request.do_classifier_free_guidance else 1
    own = (branches + negatives) * request.count
    beside = [min(row // request.count, branches - 1) for row in range(own)]
    there = [[own + each * branches + branch for each in range(references)] for branch in beside]
    return torch.tensor(
        [*there, *([row] * references for row in range(own, own + references * branches))], device=device
    )


def _predictors(
    model: Model, request: Request, captions: Sequence[str], guidance: float, negative: str, rescale: float = 0.0
) -> list[Denoise]:
    assert request.size is not None
    unconditional = [negative] if guidance > 1 else []
    said = [encode_captions(model, [*unconditional, each]) for each in captions]
    return [cfg_denoiser(model, each, request.size, guidance, rescale) for each in said]


def _noise(like: Latents, what: str, seed: int) -> Float[Tensor, "n channels height width"]:
    """Noise that depends on the request's seed and on what it is for, drawn on the CPU whatever the device."""
    drawn = int.from_bytes(hashlib.blake2b(f"{what} {seed}".encode(), digest_size=7).digest())
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(drawn)).to(like)
