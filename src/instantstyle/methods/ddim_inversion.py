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
from instantstyle.methods.cfg_rescale import rescale_noise_cfg
from instantstyle.model import Model, TextEmbeddings

Latents = Float[Tensor, "n channels height width"]


class NoiseLevel(NamedTuple):
    """How much picture and how much noise there is at a time; the squares of the two sum to 1."""

    timestep: float
    """In training steps, 0 to 999; -1 where the walk ends, which no network is asked about."""
    alpha: float
    sigma: float


Denoise = Callable[[Latents, NoiseLevel], Latents]
"""What the network says of latents at a level: noise or velocity, as it was trained."""


@dataclass(frozen=True)
class Trajectory:
    """A way between picture and noise; between two levels it is a straight mix of one picture and one noise."""

    noise_levels: Sequence[NoiseLevel]
    """From the clean one to the noisiest."""
    latents: Sequence[Latents]
    """The picture that is mixed between each two neighbouring levels."""
    noises: Sequence[Latents]

    def at(self, level: NoiseLevel) -> Latents:
        """The latents at a level; at one of its own exactly those that the walk went through."""
        times = [each.timestep for each in self.noise_levels[1:-1]]
        piece = sum(time < level.timestep for time in times)
        return level.alpha * self.latents[piece] + level.sigma * self.noises[piece]

    @property
    def terminal(self) -> Latents:
        """The latents at the noisiest level."""
        return self.at(self.noise_levels[-1])


def noise_levels(model: Model, steps: int) -> tuple[NoiseLevel, ...]:
    """The levels of the model's own DDIM schedule in so many steps, from the clean one to the noisiest.

    Where the steps do not divide 1000, diffusers' scheduler goes to a level a training step beside the one it asks the
    network about next; here the two are one.
    """
    diffusers: Any = importlib.import_module("diffusers")
    schedule = diffusers.DDIMScheduler.from_config(dict(model.scheduler_config))
    schedule.set_timesteps(steps)
    times = sorted({int(time) for time in schedule.timesteps})
    kept = [float(schedule.final_alpha_cumprod), *(float(schedule.alphas_cumprod[time]) for time in times)]
    return tuple(NoiseLevel(float(t), k**0.5, (1 - k) ** 0.5) for t, k in zip([-1, *times], kept, strict=True))


def predict_x0_eps(prediction: Latents, x: Latents, level: NoiseLevel, kind: str) -> tuple[Latents, Latents]:
    """The picture and the noise that `x` is a mix of at a level, by what the network said of it.

    `kind` is diffusers' `prediction_type`.
    """
    match kind:
        case "v_prediction":
            return level.alpha * x - level.sigma * prediction, level.alpha * prediction + level.sigma * x
        case "sample":
            return prediction, (x - level.alpha * prediction) / level.sigma
        case _:
            return (x - level.sigma * prediction) / level.alpha, prediction


@torch.no_grad()
def ddim_invert(
    predict: Denoise, picture: Latents, levels: Sequence[NoiseLevel], kind: str, *, refine: int = 0
) -> Trajectory:
    """From a picture up to noise.

    `refine` repeats each step so many times from where it led, which makes it nearer to the true inverse of the step
    down (the fixed-point iteration of ReNoise, arXiv 2403.14602) for as many more calls.
    """
    x, pictures, noises = picture, list[Latents](), list[Latents]()
    for here, there in pairwise(levels):
        guess = clean = noise = x
        for _ in range(1 + refine):
            noise = predict_x0_eps(predict(guess, there), guess, there, kind)[1]
            clean = (x - here.sigma * noise) / here.alpha
            guess = there.alpha * clean + there.sigma * noise
        x, pictures, noises = guess, [*pictures, clean], [*noises, noise]
    return _finite(Trajectory(levels, pictures, noises))


@torch.no_grad()
def ddim_sample(predict: Denoise, noise: Latents, levels: Sequence[NoiseLevel], kind: str) -> Trajectory:
    """From noise down to a picture, by DDIM without fresh noise; the picture is `at(levels[0])` of what comes back."""
    x, pictures, noises = noise, list[Latents](), list[Latents]()
    for here, there in pairwise(reversed(levels)):
        clean, left = predict_x0_eps(predict(x, here), x, here, kind)
        x = there.alpha * clean + there.sigma * left
        pictures, noises = [clean, *pictures], [left, *noises]
    return _finite(Trajectory(levels, pictures, noises))


def cfg_denoiser(
    model: Model, text: TextEmbeddings, size: tuple[int, int], guidance: float, rescale: float = 0.0
) -> Denoise:
    """The model's prediction with guidance for pictures that are each described by a text.

    `text` has two rows where guidance is above 1, the unconditional and the conditional one, else the latter alone;
    `size` is (width, height) in pixels; `rescale` is how far guidance is brought back, as in requests.
    """
    read, rows = model.unet.precompute_kv(text.prompt_embeds), len(text.prompt_embeds)
    sizes = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]], device=model.device, dtype=torch.float32)

    def predict(x: Latents, level: NoiseLevel) -> Latents:
        pictures, batch = len(x), len(x) * rows
        said = {
            site: (k.repeat_interleave(pictures, 0), v.repeat_interleave(pictures, 0)) for site, (k, v) in read.items()
        }
        pooled = None if text.pooled_prompt_embeds is None else text.pooled_prompt_embeds.repeat_interleave(pictures, 0)
        time = torch.full((batch,), level.timestep, device=x.device)
        out = model.unet(torch.cat([x] * rows), time, said, pooled, sizes.repeat(batch, 1))
        if rows == 1:
            return out
        without, given = out.chunk(2)
        return rescale_noise_cfg(without + guidance * (given - without), given, rescale)

    return predict


def _finite(found: Trajectory) -> Trajectory:
    if not all(part.isfinite().all() for part in (*found.latents, *found.noises)):
        raise InstantStyleError(
            "the way between picture and noise ran away to NaN or infinity: lower its guidance, or load the model with "
            "dtype float32"
        )
    return found


@torch.no_grad()
def ddim_round_trip(
    model: Model, latents: Latents, caption: str, steps: int, guidance: float, *, refine: int = 0
) -> Latents:
    """The latents of a picture inverted and generated again, with the same caption and guidance both ways.

    Raises InstantStyleError when the numbers run away.
    """
    text = encode_captions(model, ["", caption] if guidance > 1 else [caption])
    size = (latents.shape[-1] * model.vae_scale_factor, latents.shape[-2] * model.vae_scale_factor)
    predict, marks, kind = cfg_denoiser(model, text, size, guidance), noise_levels(model, steps), prediction_type(model)
    way = ddim_invert(predict, latents, marks, kind, refine=refine)
    return ddim_sample(predict, way.terminal, marks, kind).at(marks[0])


def encode_captions(model: Model, texts: Sequence[str]) -> TextEmbeddings:
    """Texts as the encoders read them, an empty one as the family was trained to take none."""
    text = model.encode_prompt(texts)
    if not model.family.force_zeros_for_empty_prompt:
        return text
    mask = torch.tensor([float(bool(each)) for each in texts]).to(text.prompt_embeds)
    pooled = None if text.pooled_prompt_embeds is None else text.pooled_prompt_embeds * mask[:, None]
    return TextEmbeddings(text.prompt_embeds * mask[:, None, None], pooled, text.text_embeds)


def prediction_type(model: Model) -> str:
    """What the model's network predicts, as diffusers names it."""
    return str(model.scheduler_config.get("prediction_type", "epsilon"))
