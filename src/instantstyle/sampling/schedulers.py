"""Samplers by name: diffusers' schedulers with a checkpoint's own numbers; alpha, sigma and x0 at their steps."""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from instantstyle.errors import InputError, WeightsError, abbreviate, did_you_mean
from instantstyle.methods.flow_matching import flow_scheduler, is_flow, set_flow_timesteps
from instantstyle.model import Model
from instantstyle.networks.prediction import PREDICTION_TYPES, Latents, predict_x0_eps

SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddim-trailing": "DDIMScheduler",
    "euler-trailing": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "dmd2": "LCMScheduler",
}
"""Names of samplers of UNets, and diffusers' classes for them."""
FLOW_SAMPLERS: Mapping[str, str] = {"flow-euler": "FlowMatchEulerDiscreteScheduler"}
"""The same of transformers, which were trained by flow matching."""
UNET_PREDICTION_TYPES = PREDICTION_TYPES[:3]
"""What a UNet may have been trained to predict, in diffusers' words."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ddim-trailing": {"timestep_spacing": "trailing"},
    "euler-trailing": {"timestep_spacing": "trailing"},
    "dmd2": {"original_inference_steps": 1000},
}
"""What a sampler sets besides: few-step models begin at the noisiest time, and were distilled at times of their own."""


def find_sampler(name: str) -> str:
    """The name, if there is such a sampler.  Raises InputError, naming those that exist."""
    known = {**SAMPLERS, **FLOW_SAMPLERS}
    if name not in known:
        raise InputError(f"there is no sampler {name!r}: give one of {', '.join(known)}{did_you_mean(name, known)}")
    return name


def default_sampler(model: Model) -> str | None:
    """What the checkpoint's own scheduler is called here; None for those that only a checkpoint can name."""
    own = _scheduler_class_name(model)
    return next((name for name, class_name in {**SAMPLERS, **FLOW_SAMPLERS}.items() if class_name == own), None)


def make_scheduler(model: Model, sampler: str | None) -> Any:
    """A fresh diffusers scheduler with the checkpoint's own numbers; of the checkpoint's own class unless named.

    Raises InputError for an unknown sampler, WeightsError when the checkpoint names a scheduler diffusers lacks.
    """
    name = _scheduler_class_name(model) if sampler is None else {**SAMPLERS, **FLOW_SAMPLERS}[find_sampler(sampler)]
    kind: Any = getattr(importlib.import_module("diffusers"), name, None)
    if not hasattr(kind, "set_timesteps"):
        raise WeightsError(f"the model asks for the scheduler {name}, which this version of diffusers does not have")
    fitting = FLOW_SAMPLERS if model.family.is_transformer else SAMPLERS
    if sampler is not None and sampler not in fitting:
        raise InputError(
            f"the sampler {sampler!r} is for models with another schedule of noise than {model.family.name}'s: give "
            f"one of {', '.join(fitting)}"
        )
    if model.family.is_transformer:
        return flow_scheduler(model)
    try:
        scheduler = kind.from_config({**model.scheduler_config, **SETTINGS.get(sampler or "", {})})
        finite = bool(torch.isfinite(scheduler.alphas_cumprod).all())
    except Exception as e:  # a dozen kinds, none of them documented
        said = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise WeightsError(f"the model's scheduler_config.json is not understood by {name}: {said}") from e
    if (predicted := scheduler.config.get("prediction_type", "epsilon")) not in UNET_PREDICTION_TYPES:
        raise WeightsError(
            f"the model's scheduler_config.json says its prediction_type is {abbreviate(predicted)}: it must be one of "
            f"{', '.join(UNET_PREDICTION_TYPES)}"
        )
    if not finite:
        raise WeightsError(f"the model's scheduler_config.json makes of {name} a schedule of noise that is not finite")
    return scheduler


def _scheduler_class_name(model: Model) -> str:
    return str(model.scheduler_config.get("_class_name", "DDIMScheduler"))


def set_timesteps(scheduler: Any, model: Model, sampler: str | None, steps: int, size: tuple[int, int]) -> None:
    """Lay out the timesteps of a run for pictures of (width, height) pixels.

    DMD2 (arXiv 2405.14867) takes equal steps from 999, in four 999, 749, 499 and 249.  Flow matching's may be shifted
    towards noise by the size of the picture.  Raises InputError for more steps than the sampler has.
    """
    device = model.device
    try:
        if is_flow(scheduler):
            set_flow_timesteps(scheduler, model, steps, size)
        elif sampler == "dmd2":
            scheduler.set_timesteps(timesteps=[999 - 1000 * i // steps for i in range(steps)], device=device)
        else:
            scheduler.set_timesteps(steps, device=device)
    except ValueError as e:
        named = f"the sampler {sampler!r}" if sampler else "the model's own sampler"
        raise InputError(f"{named} cannot take {steps} steps: {' '.join(str(e).split())[:200]}") from e


def scale_model_input(scheduler: Any, latents: Latents, timestep: Num[Tensor, ""]) -> Latents:
    """Latents as the denoiser is to see them; flow matching's are so."""
    return latents if is_flow(scheduler) else scheduler.scale_model_input(latents, timestep)


def init_noise_sigma(scheduler: Any) -> Any:
    """What the first noise is multiplied by."""
    return 1.0 if is_flow(scheduler) else scheduler.init_noise_sigma


def add_noise(scheduler: Any, latents: Latents, noise: Latents, timesteps: Num[Tensor, " times"]) -> Latents:
    """Latents as noisy as at timesteps of the schedule, one for each row or one for all."""
    if not is_flow(scheduler):
        return scheduler.add_noise(latents, noise, timesteps)
    at = [int((scheduler.timesteps == each).nonzero()[0]) for each in timesteps.to(scheduler.timesteps)]
    sigma = scheduler.sigmas[at].to(latents)[:, None, None, None]
    return sigma * noise + (1.0 - sigma) * latents


def alpha_sigma(scheduler: Any, index: int) -> tuple[float, float]:
    """Alpha and sigma of the denoiser's input at a position of the schedule.

    alpha^2 + sigma^2 = 1, or alpha + sigma = 1 in flow matching.
    """
    if is_flow(scheduler):
        sigma = float(scheduler.sigmas[index])
        return 1 - sigma, sigma
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        sigma = float(sigmas[index])
        alpha = 1 / math.sqrt(1 + sigma * sigma)
        return alpha, alpha * sigma
    kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
    return math.sqrt(kept), math.sqrt(1 - kept)


def x0_coefficient(scheduler: Any, index: int) -> float:
    """The factor of x0 in a scheduler's latents at a position of its schedule; 1 behind the last."""
    if index >= len(scheduler.timesteps):
        return 1.0
    if is_flow(scheduler):
        return alpha_sigma(scheduler, index)[0]
    scaled = scheduler.scale_model_input(torch.ones(()), scheduler.timesteps[index])  # Euler's hold all of it
    return alpha_sigma(scheduler, index)[0] / float(scaled)


def pred_original_sample(scheduler: Any, index: int, prediction: Latents, latents: Latents) -> Latents:
    """The x0 predicted at a position of the schedule, for schedulers that keep it to themselves.

    They preserve variance, or are flow matching's.
    """
    if is_flow(scheduler):
        return predict_x0_eps(prediction, latents, *alpha_sigma(scheduler, index), "flow_prediction")[0]
    kept = scheduler.alphas_cumprod.to(latents.device)[int(scheduler.timesteps[index])].clamp(min=1e-4)
    alpha, sigma = kept.sqrt().to(latents.dtype), (1 - kept).sqrt().to(latents.dtype)
    return predict_x0_eps(prediction, latents, alpha, sigma, scheduler.config.prediction_type)[0]
