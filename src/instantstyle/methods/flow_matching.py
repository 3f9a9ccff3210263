"""Flow matching's schedule (arXiv 2403.03206): latents are (1 - sigma) x0 + sigma noise, and sigma goes from 1 to 0."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from instantstyle.errors import WeightsError
from instantstyle.model import Model


def flow_scheduler(model: Model) -> Any:
    """diffusers' scheduler with the checkpoint's own numbers.  Raises WeightsError for those it does not take."""
    kind: Any = importlib.import_module("diffusers").FlowMatchEulerDiscreteScheduler
    try:
        scheduler = kind.from_config(dict(model.scheduler_config))
    except Exception as e:  # none of them documented
        raise WeightsError(f"the model's scheduler_config.json is not understood: {str(e)[:200]}") from e
    if scheduler.config.get("invert_sigmas"):
        raise WeightsError("the model's scheduler_config.json asks for inverted sigmas, which are not supported")
    return scheduler


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is flow matching's."""
    return type(scheduler).__name__.startswith("FlowMatch")


def set_flow_timesteps(scheduler: Any, model: Model, steps: int, size: tuple[int, int]) -> None:
    """Lay out the timesteps for pictures of (width, height) pixels, for which they may be shifted towards noise."""
    sigmas = np.linspace(1.0, 1 / steps, steps) if model.family.linear_sigmas else None
    mu = _mu(scheduler.config, model, size) if scheduler.config.use_dynamic_shifting else None
    scheduler.set_timesteps(steps, device=model.device, sigmas=sigmas, mu=mu)


def flow_sigmas(model: Model, steps: int, size: tuple[int, int]) -> list[float]:
    """The sigmas of a model's own schedule, from the noisiest to 0."""
    scheduler = flow_scheduler(model)
    set_flow_timesteps(scheduler, model, steps, size)
    return [float(sigma) for sigma in scheduler.sigmas]


def _mu(config: Mapping[str, Any], model: Model, size: tuple[int, int]) -> float:
    """How far a schedule is shifted: linear in the picture's tokens (diffusers' `calculate_shift`)."""
    side = model.vae_scale_factor * model.family.layout.patch_size
    tokens = (size[0] // side) * (size[1] // side)
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    return tokens * slope + (low - slope * first)
