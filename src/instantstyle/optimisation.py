# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The training loop of the package, as a generator of optimiser steps; whoever trains adds data, files and progress.

A step is: learning rate, forward and backward of its micro-batches, gradient clipping, optimiser step, EMA.  Losses
depend on the number of the step alone, so that a training that was stopped and resumed equals one that was not.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instantstyle.utils.atomic_files import atomic_write


@runtime_checkable
class Optimiser(Protocol):
    """What a step needs of an optimiser; torch's own have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups whose `lr` is set before every step."""
        ...

    def step(self) -> Any:
        """Update the parameters from their gradients."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state."""
        ...


class EMA:
    """An exponential moving average of a network's trainable parameters, kept by name.

    The decay of step n (from 0) is min(decay, (1 + n) / (10 + n)), so that the initial weights do not linger.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._net, self.decay = net, decay
        self.weights = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the present parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in self._net.named_parameters():
            if p.requires_grad:
                self.weights[name].lerp_(p, 1 - decay)


@dataclass(frozen=True)
class OptimiserStep:
    """What one step computed; its numbers stay on the device until they are read."""

    step: int
    """Counted from 1."""
    loss: Tensor
    """The sum over the micro-batches."""
    grad_norm: Tensor
    """L2 norm of the gradient before it was clipped."""
    lr: float


def optimise(
    parameters: Sequence[nn.Parameter],
    losses: Callable[[int], Iterable[Tensor]],
    optimiser: Optimiser,
    steps: range,
    *,
    lr: Callable[[int], float],
    clip: float = 0.0,
    ema: EMA | None = None,
    average_gradients: bool = False,
) -> Generator[OptimiserStep, None, None]:
    """Train, yielding after every step; the caller may save, report, or stop between two of them.

    `losses` gives, for the number of a step (from 0), the losses of its micro-batches, which add up to the step's; each
    is differentiated before the next one is computed.  `lr` is the learning rate of a step.  `clip` is the largest norm
    of the gradient; 0 does not clip.  `average_gradients` averages gradients over the processes of torch.distributed
    before that, for networks that are not wrapped by DDP or FSDP.
    """
    for step in steps:
        rate = lr(step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        values: list[Tensor] = []
        with torch.enable_grad():  # an engine steps without gradients
            for loss in losses(step):
                loss.backward()
                values.append(loss.detach())
        if average_gradients:
            _average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(step)
        yield OptimiserStep(step + 1, torch.stack(values).sum(), norm.detach(), rate)


def _average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def any_process(*flags: bool, device: torch.device) -> list[bool]:
    """For each flag whether it is set in any process of torch.distributed; collective where there are several."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]


def save_checkpoint(file: Path, net: nn.Module, optimiser: Mapping[str, Any], step: int, **more: Any) -> None:
    """Write the state of a training after `step` steps: network, the optimiser's state, and what else it resumes with.

    Raises OutputError; a checkpoint that was there is then still there.
    """
    state = {"net": net.state_dict(), "optimiser": optimiser, "step": step, **more}
    with atomic_write(file) as partial:
        torch.save(state, partial)


def load_checkpoint(
    file: Path, net: nn.Module, optimiser: Optimiser, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Restore network and optimiser from a checkpoint; returns all of it, or `{"step": 0}` where there is no file."""
    if not file.exists():
        return {"step": 0}
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    return state
