"""DDIM inversion: the sampler walked with its noise levels reversed, from a picture to the noise that would make it.

Going down the levels, a prediction splits the latents into x0 and eps, and the two are mixed anew at the next level.
Going up, the same, with the prediction made as if the latents were at the next level already: the approximation that
DDIM inversion is, and the reason that it drifts (arXiv 2010.02502, section 4.3).
"""

import importlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from instantstyle.blocks import TransformerConfig
from instantstyle.encoders.clip import TextEmbeddings
from instantstyle.errors import InstantStyleError
from instantstyle.methods.cfg_rescale import classifier_free_guidance
from instantstyle.methods.flow_matching import flow_sigmas
from instantstyle.methods.injection import run_to_end
from instantstyle.methods.prompts import encode_prompts
from instantstyle.model import Model
from instantstyle.networks.denoiser import Conditioning, make_time_ids
from instantstyle.networks.prediction import Latents, predict_x0_eps, prediction_type


class NoiseLevel(NamedTuple):
    """How much picture and how much noise there is at a timestep: alpha^2 + sigma^2 = 1, or alpha + sigma = 1."""

    timestep: float
    """In training steps, 0 to 999; -1 where the walk ends, at which no network is called."""
    alpha: float
    sigma: float


PredictFn = Callable[[Latents, NoiseLevel], Latents]
"""The network's prediction for latents at a level, guided: epsilon, v or x0, as it was trained."""


@dataclass(frozen=True)
class Trajectory:
    """The latents between a picture and noise; between two levels they are a mix of one x0 and one eps."""

    noise_levels: Sequence[NoiseLevel]
    """From the clean one to the noisiest."""
    latents: Sequence[Latents]
    """The x0 between each two neighbouring levels."""
    noises: Sequence[Latents]
    """The eps likewise."""

    def at(self, level: NoiseLevel) -> Latents:
        """The latents at a level; at one of its own exactly those that the walk went through."""
        times = [each.timestep for each in self.noise_levels[1:-1]]
        piece = sum(time < level.timestep for time in times)
        return level.alpha * self.latents[piece] + level.sigma * self.noises[piece]

    @property
    def terminal(self) -> Latents:
        """The latents at the noisiest level."""
        return self.at(self.noise_levels[-1])


Walk = Generator[int, None, Trajectory]
"""A trajectory computed level by level; yields the levels done."""


def noise_levels(model: Model, steps: int, size: tuple[int, int] | None = None) -> tuple[NoiseLevel, ...]:
    """The levels of the model's own DDIM schedule in so many steps, from the clean one to the noisiest.

    Of flow matching those of its own schedule for pictures of a size, by default the family's: there DDIM, which mixes
    a prediction's x0 and noise anew at the next level, is Euler's step along the velocity.

    Where the steps do not divide 1000, diffusers' scheduler goes to a level a training step beside the one at which it
    calls the network next; here the two are one.
    """
    if model.family.is_transformer:
        sigmas = sorted(flow_sigmas(model, steps, size or model.family.size))
        return tuple(NoiseLevel(1000 * sigma, 1 - sigma, sigma) for sigma in sigmas)
    diffusers: Any = importlib.import_module("diffusers")
    schedule = diffusers.DDIMScheduler.from_config(dict(model.scheduler_config))
    schedule.set_timesteps(steps)
    times = sorted({int(time) for time in schedule.timesteps})
    alphas = [float(schedule.final_alpha_cumprod), *(float(schedule.alphas_cumprod[time]) for time in times)]
    return tuple(NoiseLevel(float(t), a**0.5, (1 - a) ** 0.5) for t, a in zip([-1, *times], alphas, strict=True))


def walk_up(predict: PredictFn, picture: Latents, levels: Sequence[NoiseLevel], kind: str, *, refine: int = 0) -> Walk:
    """DDIM inversion, level by level; see `ddim_invert`."""
    x, pictures, noises = picture, list[Latents](), list[Latents]()
    for number, (here, there) in enumerate(pairwise(levels)):
        guess = clean = noise = x
        for _ in range(1 + refine):
            prediction = predict(guess, there)
            if kind == "flow_prediction":  # at pure noise, eps says nothing of the way that the velocity leads
                clean, noise = predict_x0_eps(prediction, x, here.alpha, here.sigma, kind)
            else:
                noise = predict_x0_eps(prediction, guess, there.alpha, there.sigma, kind)[1]
                clean = (x - here.sigma * noise) / here.alpha
            guess = there.alpha * clean + there.sigma * noise
        x, pictures, noises = guess, [*pictures, clean], [*noises, noise]
        yield number + 1
    return _require_finite(Trajectory(levels, pictures, noises))


def walk_down(predict: PredictFn, noise: Latents, levels: Sequence[NoiseLevel], kind: str) -> Walk:
    """DDIM sampling, level by level; see `ddim_sample`."""
    x, pictures, noises = noise, list[Latents](), list[Latents]()
    for number, (here, there) in enumerate(pairwise(reversed(levels))):
        clean, left = predict_x0_eps(predict(x, here), x, here.alpha, here.sigma, kind)
        x = there.alpha * clean + there.sigma * left
        pictures, noises = [clean, *pictures], [left, *noises]
        yield number + 1
    return _require_finite(Trajectory(levels, pictures, noises))


def ddim_invert(
    predict: PredictFn, picture: Latents, levels: Sequence[NoiseLevel], kind: str, *, refine: int = 0
) -> Trajectory:
    """From a picture up to noise.

    `refine` repeats each step so many times from where it led, which makes it nearer to the true inverse of the step
    down (the fixed-point iteration of ReNoise, arXiv 2403.14602) for as many more calls.  `kind` is the prediction
    type.  Raises InstantStyleError when the numbers run away.
    """
    return run_to_end(walk_up(predict, picture, levels, kind, refine=refine))


def ddim_sample(predict: PredictFn, noise: Latents, levels: Sequence[NoiseLevel], kind: str) -> Trajectory:
    """From noise down to a picture, by DDIM without fresh noise; the picture is `at(levels[0])` of what comes back."""
    return run_to_end(walk_down(predict, noise, levels, kind))


def cfg_denoiser(
    model: Model,
    text: TextEmbeddings,
    size: tuple[int, int],
    guidance: float,
    rescale: float = 0.0,
    distilled: float | None = None,
) -> PredictFn:
    """The model's guided prediction for pictures that are each described by the same text.

    `text` has two rows where guidance is above 1, the unconditional and the conditional one, else the latter alone;
    `size` is (width, height) in pixels; `rescale` as in requests; `distilled` is what a network with distilled guidance
    is told.
    """
    denoiser, branches = model.denoiser, len(text.prompt_embeds)
    time_ids = None if model.family.is_transformer else make_time_ids(size, branches, model.device)
    told = None if distilled is None else torch.full((branches,), distilled, device=model.device)
    once = denoiser.precompute_kv(Conditioning(text.prompt_embeds, text.pooled_prompt_embeds, time_ids, guidance=told))

    @torch.no_grad()
    def predict(x: Latents, level: NoiseLevel) -> Latents:
        timesteps = torch.full((len(x) * branches,), float(level.timestep), device=x.device)
        out = denoiser(torch.cat([x] * branches), timesteps, once.repeat_interleave(len(x)))
        unconditional, conditional = (None, out) if branches == 1 else out.chunk(2)
        return classifier_free_guidance(unconditional, conditional, guidance, rescale)

    return predict


def ddim_round_trip(
    model: Model, latents: Latents, caption: str, steps: int, guidance: float, *, refine: int = 0
) -> Latents:
    """The latents of a picture inverted and sampled again, with the same caption and guidance both ways.

    Of a network with distilled guidance, `guidance` is what it is told.

    Raises InstantStyleError when the numbers run away.
    """
    layout, distilled = model.family.layout, None
    if isinstance(layout, TransformerConfig) and layout.guidance_embeds:
        guidance, distilled = 1.0, guidance
    text = encode_prompts(model, ["", caption] if guidance > 1 else [caption])
    size = (latents.shape[-1] * model.vae_scale_factor, latents.shape[-2] * model.vae_scale_factor)
    predict = cfg_denoiser(model, text, size, guidance, distilled=distilled)
    levels = noise_levels(model, steps, size)
    kind = prediction_type(model.scheduler_config)
    inverted = ddim_invert(predict, latents, levels, kind, refine=refine)
    return ddim_sample(predict, inverted.terminal, levels, kind).at(levels[0])


def _require_finite(trajectory: Trajectory) -> Trajectory:
    if not all(part.isfinite().all() for part in (*trajectory.latents, *trajectory.noises)):
        raise InstantStyleError(
            "the way between picture and noise ran away to NaN or infinity: lower its guidance, or load the model with "
            "dtype float32"
        )
    return trajectory
