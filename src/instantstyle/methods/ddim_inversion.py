"""DDIM inversion: the sampler walked with its noise levels reversed, from a picture to the noise that would make it.

Going down the levels, a network's prediction splits what it sees into a picture and noise, and the two are mixed anew
in the next level's parts.  Going up, the same, with the prediction made as if one were at the next level already: the
approximation that DDIM inversion is, and the reason that it drifts.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.errors import InstantStyleError
from instantstyle.methods.cfg_rescale import rescaled
from instantstyle.model import Model, Text

Latents = Float[Tensor, "n channels height width"]


class Level(NamedTuple):
    """How much picture and how much noise there is at a time; the squares of the two sum to 1."""

    time: float
    """In training steps, 0 to 999; -1 where the walk ends, which no network is asked about."""
    signal: float
    noise: float


Predict = Callable[[Latents, Level], Latents]
"""What the network says of latents at a level: noise or velocity, as it was trained."""


@dataclass(frozen=True)
class Trajectory:
    """A way between picture and noise; between two levels it is a straight mix of one picture and one noise."""

    levels: Sequence[Level]
    """From the clean one to the noisiest."""
    pictures: Sequence[Latents]
    """The picture that is mixed between each two neighbouring levels."""
    noises: Sequence[Latents]

    def at(self, level: Level) -> Latents:
        """The latents at a level; at one of its own exactly those that the walk went through."""
        times = [each.time for each in self.levels[1:-1]]
        piece = sum(time < level.time for time in times)
        return level.signal * self.pictures[piece] + level.noise * self.noises[piece]

    @property
    def end(self) -> Latents:
        """The latents at the noisiest level."""
        return self.at(self.levels[-1])


def levels(model: Model, steps: int) -> tuple[Level, ...]:
    """The levels of the model's own DDIM schedule in so many steps, from the clean one to the noisiest.

    Where the steps do not divide 1000, diffusers' scheduler goes to a level a training step beside the one it asks the
    network about next; here the two are one.
    """
    diffusers: Any = importlib.import_module("diffusers")
    schedule = diffusers.DDIMScheduler.from_config(dict(model.scheduler_config))
    schedule.set_timesteps(steps)
    times = sorted({int(time) for time in schedule.timesteps})
    kept = [float(schedule.final_alpha_cumprod), *(float(schedule.alphas_cumprod[time]) for time in times)]
    return tuple(Level(float(t), k**0.5, (1 - k) ** 0.5) for t, k in zip([-1, *times], kept, strict=True))


def split(prediction: Latents, x: Latents, level: Level, kind: str) -> tuple[Latents, Latents]:
    """The picture and the noise that `x` is a mix of at a level, by what the network said of it.

    `kind` is diffusers' `prediction_type`.
    """
    match kind:
        case "v_prediction":
            return level.signal * x - level.noise * prediction, level.signal * prediction + level.noise * x
        case "sample":
            return prediction, (x - level.signal * prediction) / level.noise
        case _:
            return (x - level.noise * prediction) / level.signal, prediction


@torch.no_grad()
def invert(predict: Predict, picture: Latents, levels: Sequence[Level], kind: str, *, refine: int = 0) -> Trajectory:
    """From a picture up to noise.

    `refine` repeats each step so many times from where it led, which makes it nearer to the true inverse of the step
    down (the fixed-point iteration of ReNoise, arXiv 2403.14602) for as many more calls.
    """
    x, pictures, noises = picture, list[Latents](), list[Latents]()
    for here, there in pairwise(levels):
        guess = clean = noise = x
        for _ in range(1 + refine):
            noise = split(predict(guess, there), guess, there, kind)[1]
            clean = (x - here.noise * noise) / here.signal
            guess = there.signal * clean + there.noise * noise
        x, pictures, noises = guess, [*pictures, clean], [*noises, noise]
    return _finite(Trajectory(levels, pictures, noises))


@torch.no_grad()
def generate(predict: Predict, noise: Latents, levels: Sequence[Level], kind: str) -> Trajectory:
    """From noise down to a picture, by DDIM without fresh noise; the picture is `at(levels[0])` of what comes back."""
    x, pictures, noises = noise, list[Latents](), list[Latents]()
    for here, there in pairwise(reversed(levels)):
        clean, left = split(predict(x, here), x, here, kind)
        x = there.signal * clean + there.noise * left
        pictures, noises = [clean, *pictures], [left, *noises]
    return _finite(Trajectory(levels, pictures, noises))


def predictor(model: Model, text: Text, size: tuple[int, int], guidance: float, rescale: float = 0.0) -> Predict:
    """The model's prediction with guidance for pictures that are each described by a text.

    `text` has two rows where guidance is above 1, the unconditional and the conditional one, else the latter alone;
    `size` is (width, height) in pixels; `rescale` is how far guidance is brought back, as in requests.
    """
    read, rows = model.unet.read(text.context), len(text.context)
    sizes = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]], device=model.device, dtype=torch.float32)

    def predict(x: Latents, level: Level) -> Latents:
        pictures, batch = len(x), len(x) * rows
        said = {
            site: (k.repeat_interleave(pictures, 0), v.repeat_interleave(pictures, 0)) for site, (k, v) in read.items()
        }
        pooled = None if text.pooled is None else text.pooled.repeat_interleave(pictures, 0)
        time = torch.full((batch,), level.time, device=x.device)
        out = model.unet(torch.cat([x] * rows), time, said, pooled, sizes.repeat(batch, 1))
        if rows == 1:
            return out
        without, given = out.chunk(2)
        return rescaled(without + guidance * (given - without), given, rescale)

    return predict


def _finite(found: Trajectory) -> Trajectory:
    if not all(part.isfinite().all() for part in (*found.pictures, *found.noises)):
        raise InstantStyleError(
            "the way between picture and noise ran away to NaN or infinity: lower its guidance, or load the model with "
            "dtype float32"
        )
    return found


@torch.no_grad()
def reconstruct(
    model: Model, latents: Latents, caption: str, steps: int, guidance: float, *, refine: int = 0
) -> Latents:
    """The latents of a picture inverted and generated again, with the same caption and guidance both ways.

    Raises InstantStyleError when the numbers run away.
    """
    text = read(model, ["", caption] if guidance > 1 else [caption])
    size = (latents.shape[-1] * model.scale, latents.shape[-2] * model.scale)
    predict, marks, kind = predictor(model, text, size, guidance), levels(model, steps), kind_of(model)
    way = invert(predict, latents, marks, kind, refine=refine)
    return generate(predict, way.end, marks, kind).at(marks[0])


def read(model: Model, texts: Sequence[str]) -> Text:
    """Texts as the encoders read them, an empty one as the family was trained to take none."""
    text = model.say(texts)
    if not model.family.zero_empty:
        return text
    mask = torch.tensor([float(bool(each)) for each in texts]).to(text.context)
    pooled = None if text.pooled is None else text.pooled * mask[:, None]
    return Text(text.context * mask[:, None, None], pooled, text.embeds)


def kind_of(model: Model) -> str:
    """What the model's network predicts, as diffusers names it."""
    return str(model.scheduler_config.get("prediction_type", "epsilon"))
