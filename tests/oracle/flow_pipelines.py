"""diffusers' pipelines of transformers beside ours: the same folder, the same request, the latents of both."""

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tiny_models
from instantstyle.request import Request
from instantstyle.sampling import Engine

diffusers: Any = importlib.import_module("diffusers")
TOLERANCE = 2e-5
"""Of latents whose spread is about 1, after all steps: rounding, since rows are stacked."""


@cache
def pipeline(name: str, kind: str) -> Any:
    """diffusers' pipeline of a tiny model, loaded once."""
    pipe = getattr(diffusers, kind).from_pretrained(tiny_models.folder(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_theirs(name: str, kind: str, seed: int, **arguments: Any) -> tuple[Tensor, list[Image.Image]]:
    """The last latents, as pictures [rows, channels, height, width] where they are not packed, and the pictures."""
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        seen.append(tensors["latents"])
        return tensors

    generator = torch.Generator("cpu").manual_seed(seed)
    pictures = pipeline(name, kind)(**arguments, generator=generator, callback_on_step_end=keep).images
    return seen[-1], pictures


def run_ours(name: str, request: Request) -> tuple[Tensor, list[Image.Image]]:
    """The last latents and the pictures."""
    run = Engine(tiny_models.model(name)).submit(request)
    for _ in run:
        pass
    return run.latents, list(run.result().images)


def assert_equal_runs(ours: tuple[Tensor, list[Image.Image]], theirs: tuple[Tensor, list[Image.Image]]) -> None:
    """Latents alike to rounding, pictures to one of 255."""
    assert ours[0].shape == theirs[0].shape
    assert float(theirs[0].std()) > 0.1
    torch.testing.assert_close(ours[0], theirs[0], atol=TOLERANCE * float(theirs[0].abs().max()), rtol=0)
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert one.size == other.size
        assert int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max()) <= 1
