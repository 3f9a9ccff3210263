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
    Latents,
    Level,
    Predict,
    Trajectory,
    generate,
    invert,
    kind_of,
    levels,
    predictor,
    read,
)
from instantstyle.methods.injection import Moment, Pinned, ReferenceRows
from instantstyle.methods.options import Option, Value
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.utils.images import fit_to

OPTIONS = {
    "rows": Option("renoised", "where the reference row comes from", choices=("renoised", "inverted", "alongside")),
    "caption": Option("", "what the reference shows, for its own row; unless given, its content"),
    "inversion-guidance": Option(2.0, "guidance of the inversion", 0.0, 50.0),
    "offset": Option(0.1, "the noisiest part of an inversion that is left out, as a share of its steps", 0.0, 0.9),
}
"""Knobs of every method that looks at reference rows."""


def renoised(latents: Latents, seed: int) -> Pinned:
    """The picture under fresh noise at every step, as in training; no call of the network, no inversion to go wrong."""
    return lambda moment: moment.signal * latents + moment.noise * _noise(latents, f"renoised {moment.step}", seed)


def along(way: Trajectory, offset: float = 0.0) -> Pinned:
    """A way between picture and noise; while the run is noisier than all but `offset` of it, it waits there."""
    first = way.levels[max(1, round((1 - offset) * (len(way.levels) - 1)))]

    def pinned(moment: Moment) -> Tensor:
        now = Level(moment.time, moment.signal, moment.noise)
        return way.at(first if now.time > first.time else now)

    return pinned


def inverted(
    model: Model, request: Request, latents: Latents, captions: Sequence[str], guidance: float, offset: float
) -> Pinned:
    """The pictures' ways to noise by DDIM inversion, each with its own caption and no negative prompt."""
    ways = [
        invert(predict, each[None], levels(model, request.steps), kind_of(model))
        for each, predict in zip(latents, _predictors(model, request, captions, guidance, ""), strict=True)
    ]
    each = [along(way, offset) for way in ways]
    return lambda moment: torch.cat([pinned(moment) for pinned in each])


def alongside(model: Model, request: Request, caption: str) -> Trajectory:
    """A picture of the caption, drawn by the run's own steps and guidance before the run: no style but the model's.

    Nothing that looks at it changes it, so that drawn before and drawn beside the run are the same.
    """
    assert request.size is not None
    assert request.guidance is not None
    assert request.guidance_rescale is not None
    width, height = request.size
    like = torch.empty(
        1, model.unet.config.in_channels, height // model.scale, width // model.scale, dtype=model.dtype
    ).to(model.device)
    asked = (request.guidance, request.negative, request.guidance_rescale)
    (predict,) = _predictors(model, request, [caption], *asked)
    noise = _noise(like, "alongside", request.seed or 0)
    return generate(predict, noise, levels(model, request.steps), kind_of(model))


def rows(
    model: Model, request: Request, references: Sequence[StyleReference], knobs: Mapping[str, Value]
) -> ReferenceRows:
    """The rows of these references, in their order and for each [unconditional, conditional] as the run has them.

    The request's size, seed and guidance are settled.  Raises InputError when a caption is missing, or too long.
    """
    how, said = knobs["rows"], str(knobs["caption"])
    captions = [said or ", ".join(each.contents) for each in references] or [said]
    branches = 2 if request.guided else 1
    texts = [text for caption in captions for text in ([request.negative] * (branches - 1) + [caption])]
    if how == "alongside":
        if references:
            raise InputError(
                "with rows=alongside the reference is drawn from its caption, so a picture does not go with it: leave "
                "the picture out, or give rows=renoised or rows=inverted"
            )
        if not said.strip():
            raise InputError("with rows=alongside the reference is drawn from its caption: give the option caption")
        way = alongside(model, request, said)
        pinned, latents = along(way), way.at(way.levels[0])
    else:
        assert request.size is not None
        size = request.size
        latents = torch.cat([model.encode(fit_to(each.image.open(), request.fit, size)) for each in references])
        if how == "inverted":
            guidance, offset = float(knobs["inversion-guidance"]), float(knobs["offset"])
            pinned = inverted(model, request, latents, captions, guidance, offset)
        else:
            pinned = renoised(latents, request.seed or 0)

    def rowed(moment: Moment) -> Tensor:
        return pinned(moment).repeat_interleave(branches, dim=0)

    return ReferenceRows(read(model, texts), rowed, shown=latents)


def looked(request: Request, references: int, device: torch.device, negatives: int = 0) -> Tensor:
    """For each of the run's rows and the reference rows after them the reference rows that it looks at.

    [rows, references]; a row looks at the references' rows of its own branch, and reference rows at themselves.
    """
    branches = 2 if request.guided else 1
    own = (branches + negatives) * request.count
    beside = [min(row // request.count, branches - 1) for row in range(own)]
    there = [[own + each * branches + branch for each in range(references)] for branch in beside]
    return torch.tensor(
        [*there, *([row] * references for row in range(own, own + references * branches))], device=device
    )


def _predictors(
    model: Model, request: Request, captions: Sequence[str], guidance: float, negative: str, rescale: float = 0.0
) -> list[Predict]:
    assert request.size is not None
    unconditional = [negative] if guidance > 1 else []
    said = [read(model, [*unconditional, each]) for each in captions]
    return [predictor(model, each, request.size, guidance, rescale) for each in said]


def _noise(like: Latents, what: str, seed: int) -> Float[Tensor, "n channels height width"]:
    """Noise that depends on the request's seed and on what it is for, drawn on the CPU whatever the device."""
    drawn = int.from_bytes(hashlib.blake2b(f"{what} {seed}".encode(), digest_size=7).digest())
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(drawn)).to(like)
