"""Samplers by name, as diffusers' schedulers with a checkpoint's own numbers, and what a scheduler knows of a step."""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from instantstyle.errors import InputError, WeightsError, did_you_mean
from instantstyle.model import Model

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
"""Names of samplers, and diffusers' classes for them."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ddim-trailing": {"timestep_spacing": "trailing"},
    "euler-trailing": {"timestep_spacing": "trailing"},
    "dmd2": {"original_inference_steps": 1000},
}
"""What a sampler sets besides: few-step models begin at the noisiest time, and were distilled at times of their own."""


def make_scheduler(model: Model, sampler: str | None) -> Any:
    """A fresh diffusers scheduler with the checkpoint's own numbers; of the checkpoint's own class unless named.

    Raises InputError for an unknown sampler, WeightsError when the checkpoint names a scheduler diffusers lacks.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise InputError(
            f"there is no sampler {sampler!r}: give one of {', '.join(SAMPLERS)}{did_you_mean(sampler, SAMPLERS)}"
        )
    name = SAMPLERS[sampler] if sampler is not None else str(model.scheduler_config.get("_class_name", "DDIMScheduler"))
    kind: Any = getattr(importlib.import_module("diffusers"), name, None)
    if kind is None:
        raise WeightsError(f"the model asks for the scheduler {name}, which this version of diffusers does not have")
    return kind.from_config({**model.scheduler_config, **SETTINGS.get(sampler or "", {})})


def set_timesteps(scheduler: Any, sampler: str | None, steps: int, device: torch.device) -> None:
    """Lay out the times of a run.  Raises InputError for more steps than the sampler has.

    DMD2 (arXiv 2405.14867) takes equal steps from 999, in four 999, 749, 499 and 249.
    """
    try:
        if sampler == "dmd2":
            scheduler.set_timesteps(timesteps=[999 - 1000 * i // steps for i in range(steps)], device=device)
        else:
            scheduler.set_timesteps(steps, device=device)
    except ValueError as e:
        raise InputError(f"the sampler {sampler!r} cannot take {steps} steps: {' '.join(str(e).split())[:200]}") from e


def scheduler_name(scheduler: Any) -> str | None:
    """What a scheduler is called here; None for those that only a checkpoint can name."""
    return next((name for name, kind in SAMPLERS.items() if kind == type(scheduler).__name__), None)


def alpha_sigma(scheduler: Any, index: int) -> tuple[float, float]:
    """How much picture and how much noise the UNet sees at a position of the schedule; their squares sum to 1."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        sigma = float(sigmas[index])
        signal = 1 / math.sqrt(1 + sigma * sigma)
        return signal, signal * sigma
    kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
    return math.sqrt(kept), math.sqrt(1 - kept)


def x0_coefficient(scheduler: Any, index: int) -> float:
    """How much of the expected picture a scheduler's latents hold at a position of its schedule; 1 behind the last."""
    if index >= len(scheduler.timesteps):
        return 1.0
    scaled = scheduler.scale_model_input(torch.ones(()), scheduler.timesteps[index])  # Euler's hold all of it
    return alpha_sigma(scheduler, index)[0] / float(scaled)


def pred_original_sample(scheduler: Any, prediction: Tensor, when: Tensor, noisy: Tensor) -> Tensor:
    """The expected picture, for schedulers that keep it to themselves; all of those preserve variance."""
    signal = scheduler.alphas_cumprod.to(noisy.device)[int(when)].clamp(min=1e-4)
    mean, spread = signal.sqrt().to(noisy.dtype), (1 - signal).sqrt().to(noisy.dtype)
    match scheduler.config.prediction_type:
        case "v_prediction":
            return mean * noisy - spread * prediction
        case "sample":
            return prediction
        case _:
            return (noisy - spread * prediction) / mean
