# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A training loop as a generator: one process or many, resumed to the bit, stopped by a signal and not by a kill.

It knows nothing of what is trained.  The loss is asked for *these rows of this step* and is to depend on nothing else
(no clock, no generator that runs on), so a run that was killed and resumed sees what an undisturbed one sees, and two
processes see between them what one sees at twice the batch.  Launched by `accelerate launch` or torchrun, the network
is wrapped as they say (DDP, FSDP2); the checkpoint is the same file whatever the wrapping.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from instantstyle.errors import InputError, InstantStyleError, OutputError, WeightsError
from instantstyle.optimisation import EMA, OptimiserStep, any_process, optimise
from instantstyle.utils.atomic_files import atomic_write, remove_stale_temp_files
from instantstyle.utils.signals import DeferredSignals

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; defaults are those of IP-Adapter's published script where it has any."""

    steps: int
    """Optimiser steps in all."""
    batch: int = 8
    """Rows a process takes at a time."""
    gradient_accumulation_steps: int = 1
    """How many times it does so before an optimiser step."""
    lr: float = 1e-4
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does afterwards; the cosine ends at 0 with the last step."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    """The norm that gradients are brought down to; 0 leaves them."""
    ema_decay: float = 0.999
    """How slowly the average of the weights moves, from 0 (it is the weights) to below 1."""
    bf16: bool = False
    """Whether the network runs in bfloat16; its weights stay in float32."""
    save_seconds: float = 300.0
    log_every: int = 10
    """Steps between two looks at the losses, at the clock and for signals."""

    def __post_init__(self) -> None:
        at_least = {
            "steps": 1,
            "batch": 1,
            "gradient_accumulation_steps": 1,
            "log_every": 1,
            "warmup": 0,
            "lr": 0,
            "clip": 0,
        }
        for name, least in {**at_least, "weight_decay": 0, "ema_decay": 0}.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise InputError(f"{name} is {value}: give a number of at least {least}")
        if self.ema_decay >= 1:
            raise InputError(
                f"ema_decay is {self.ema_decay:g}, and an average that never moves learns nothing: give .999"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.lr_schedule == "constant":
            return self.lr
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one step that are asked for now."""

    step: int
    offset: int
    """The number of the first of them among the step's rows."""
    size: int
    global_size: int
    """How many rows the step has, over all processes and accumulation."""


@dataclass(frozen=True)
class StepMetrics:
    """What is known of one step."""

    step: int
    """Counted from 1."""
    loss: float
    """The mean over all rows of all processes."""
    grad_norm: float
    """Of the gradient, before it was clipped."""
    lr: float


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands, every few steps."""

    step: int
    """Steps done."""
    steps: int
    rows: tuple[StepMetrics, ...]
    """The steps since the last time."""
    seconds: float
    """Spent on the run so far, earlier processes' included."""
    speed: float
    """Rows a second since the last time, over all processes."""
    of: int
    """Rows a step has, over all processes and accumulation."""
    warnings: tuple[str, ...] = ()
    stopped: bool = False
    """Whether a signal asked for an end; this is then the last, and the run is saved once it has been taken in."""

    @property
    def left(self) -> float:
        """Seconds to go at the present speed."""
        return (self.steps - self.step) * self.of / self.speed


MicroBatchLoss = Callable[[nn.Module, MicroBatch], Tensor]
"""The mean loss of a part's rows; the network is given as it is wrapped."""


def make_accelerator(device: str = "auto") -> Accelerator:
    """This process's place among those that train: what launched it, and its device."""
    # Processes wait for one another's features and for the first one's sheets, which take their time.
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))])


class Trainer:
    """A run of training, made anew or resumed from `folder/state.pt`."""

    def __init__(
        self,
        net: nn.Module,
        loss: MicroBatchLoss,
        settings: TrainingConfig,
        folder: Path,
        *,
        begun: Mapping[str, Any] | None = None,
        place: Accelerator | None = None,
    ) -> None:
        """`begun` names what else the run is made of (data, model): a run is resumed with the same or not at all.

        Raises InputError when the folder holds a run begun otherwise, WeightsError when its checkpoint is damaged.
        """
        self.accelerator, self.settings, self.folder, self.loss = place or make_accelerator(), settings, folder, loss
        self.file = folder / "state.pt"
        self.global_batch_size = settings.batch * settings.gradient_accumulation_steps * self.accelerator.num_processes
        same = {name: value for name, value in asdict(settings).items() if name not in _FREE}
        self.run_config = {
            **same,
            "betas": list(settings.betas),
            "rows a step": self.global_batch_size,
            **(begun or {}),
        }
        if settings.lr_schedule != "constant":
            self.run_config["steps"] = settings.steps  # where the rate ends changes it all the way
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise InputError("only FSDP2 keeps weights apart as they are averaged here: launch with --fsdp_version 2")
        parameters = [p for p in net.parameters() if p.requires_grad]
        fused = self.accelerator.device.type == "cuda"
        optimiser = torch.optim.AdamW(
            parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=fused
        )
        prepared = cast("Any", self.accelerator.prepare(net, optimiser))
        self.net: nn.Module = prepared[0]
        self.unwrapped: nn.Module = self.accelerator.unwrap_model(self.net)
        self.optimiser: torch.optim.Optimizer = getattr(prepared[1], "optimizer", prepared[1])
        self._average = EMA(self.unwrapped, settings.ema_decay)
        self.start_step, self._spent = 0, 0.0
        self._resume()

    def run(self) -> Generator[TrainingProgress, None, None]:
        """Train, saying every few steps where the run stands; it is saved between two of them and at the end.

        SIGINT and SIGTERM finish the step, and the last progress says that the run was stopped.  Raises
        InstantStyleError when the loss is no longer a number, OutputError when the last checkpoint cannot be written.
        """
        settings, accelerator = self.settings, self.accelerator
        pending: list[OptimiserStep] = []
        began = shown = saved = time.monotonic()
        spent, warnings = self._spent, list[str]()
        training = optimise(
            [p for p in self.unwrapped.parameters() if p.requires_grad],
            self._losses,
            self.optimiser,
            range(self.start_step, settings.steps),
            lr=settings.rate,
            clip=settings.clip,
            ema=self._average,
        )
        with DeferredSignals() as signals:
            for done in training:
                pending.append(done)
                step, last = done.step, done.step == settings.steps
                stop_now = signals.received and accelerator.num_processes == 1
                if not (last or step % settings.log_every == 0 or stop_now):
                    continue
                now = time.monotonic()
                due = accelerator.is_main_process and now - saved > settings.save_seconds
                asked, due = any_process(signals.received, due, device=accelerator.device)
                rows = self._read(pending)
                self.start_step, self._spent = step, spent + now - began
                speed = len(rows) * self.global_batch_size / max(now - shown, 1e-9)
                pending, leaving = [], asked and not last
                yield TrainingProgress(
                    step,
                    settings.steps,
                    rows,
                    self._spent,
                    speed,
                    self.global_batch_size,
                    tuple(warnings),
                    stopped=leaving,
                )
                warnings = []
                if last or asked or due:
                    warnings += self._save(must=last or asked)
                    saved = time.monotonic()
                shown = time.monotonic()  # what the caller did meanwhile, and the saving, are no training
                if leaving:
                    return

    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, whole and on the CPU.  Every process is to ask at the same time."""
        return {name: _whole(weight).detach().cpu().clone() for name, weight in self._average.weights.items()}

    def _losses(self, step: int) -> Iterator[Tensor]:
        """The losses of this process's micro-batches, each divided by their number."""
        settings, accelerator = self.settings, self.accelerator
        count = settings.gradient_accumulation_steps
        for micro in range(count):
            offset = (micro * accelerator.num_processes + accelerator.process_index) * settings.batch
            # Gradients are averaged over the processes once a step, in the backward pass of its last micro-batch.
            with nullcontext() if micro + 1 == count else accelerator.no_sync(self.net):
                yield self.loss(self.net, MicroBatch(step, offset, settings.batch, self.global_batch_size)) / count

    def _read(self, pending: list[OptimiserStep]) -> tuple[StepMetrics, ...]:
        """The steps' numbers, the only time that they leave the device."""
        both = torch.stack([torch.stack([each.loss.float(), _whole(each.grad_norm)]) for each in pending])
        numbers = cast("Tensor", self.accelerator.reduce(both, "mean")).tolist()
        rows = tuple(
            StepMetrics(each.step, loss, norm, each.lr) for each, (loss, norm) in zip(pending, numbers, strict=True)
        )
        wild = next((row for row in rows if not (math.isfinite(row.loss) and math.isfinite(row.grad_norm))), None)
        if wild is not None:
            raise InstantStyleError(
                f"at step {wild.step} the loss is {wild.loss:g} and the gradient's norm {wild.grad_norm:g}: the run is "
                f"not saved; the last checkpoint is {self.file}, go on from it with a lower learning rate in a new "
                "folder"
            )
        return rows

    def _save(self, *, must: bool) -> list[str]:
        """Write the checkpoint; when it cannot be written the old one stays, and training goes on unless it `must`."""
        state = {
            "net": get_model_state_dict(self.unwrapped, options=_FULL),
            "optimiser": get_optimizer_state_dict(self.unwrapped, self.optimiser, options=_FULL),
            "average": self.ema_weights(),
            "step": self.start_step,
            "seconds": self._spent,
            "begun": self.run_config,
        }
        if not self.accelerator.is_main_process:
            return []
        try:
            with atomic_write(self.file) as partial:
                torch.save(state, partial)
        except OutputError as refused:
            if must:
                raise
            return [f"no checkpoint at step {self.start_step}: {refused}"]
        return []

    def _resume(self) -> None:
        state = self._load() if self.accelerator.is_main_process else None
        if self.accelerator.num_processes > 1:
            said: list[Any] = [state]
            broadcast_object_list(said)
            state = said[0]
        if isinstance(state, InstantStyleError):
            raise state
        if state is None:
            return
        set_model_state_dict(self.unwrapped, state["net"], options=StateDictOptions(full_state_dict=True))
        set_optimizer_state_dict(
            self.unwrapped, self.optimiser, state["optimiser"], options=StateDictOptions(full_state_dict=True)
        )
        for name, weight in self._average.weights.items():
            saved = state["average"][name].to(weight.device)
            if isinstance(weight, DTensor):
                saved = distribute_tensor(saved, weight.device_mesh, weight.placements)
            weight.copy_(saved)
        self.start_step, self._spent = state["step"], state["seconds"]

    def _load(self) -> dict[str, Any] | InstantStyleError | None:
        """The checkpoint, none, or what is wrong with it: said by all processes alike, so that none waits in vain."""
        remove_stale_temp_files(self.folder)
        if not self.file.exists():
            return None
        try:
            state = torch.load(self.file, weights_only=True, map_location="cpu")
            then = state["begun"]
        except Exception as e:  # a damaged pickle may fail in any way
            return WeightsError(f"the checkpoint {self.file} is damaged ({type(e).__name__}): remove it to begin anew")
        names = sorted(k for k in {*then, *self.run_config} if then.get(k) != self.run_config.get(k))
        if names:
            how = ", ".join(f"{name} {then.get(name)!r} (now {self.run_config.get(name)!r})" for name in names)
            return InputError(
                f"the run in {self.folder} was begun with {how}: resume it with the same, or give another folder"
            )
        return state


_FREE = {"steps", "batch", "gradient_accumulation_steps", "save_seconds", "log_every"}
"""Settings that may differ when a run is resumed: they do not change what a step computes."""


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
