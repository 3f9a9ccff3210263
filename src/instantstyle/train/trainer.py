# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A trainer by accelerate: one process or many, checkpoints that resume to the bit, stopped by SIGINT and SIGTERM.

The loss is a function of a micro-batch, that is of rows of a step, and of nothing else (no clock, no running random
generator), so a run that was killed and resumed equals one that was not, and two processes equal one at twice the batch
size.  Launched by `accelerate launch` or torchrun, the network is wrapped accordingly (DDP, FSDP2); the checkpoint is
the same file whatever the wrapping.
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
    """Micro-batch size of a process."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of a process and optimiser step."""
    lr: float = 1e-4
    warmup: int = 0
    """Steps of linear warm-up of the learning rate."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up; cosine ends at 0 with the last step."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    """The largest gradient norm; 0 does not clip."""
    ema_decay: float = 0.999
    """Decay of the EMA of the weights, in [0, 1)."""
    bf16: bool = False
    """Whether the network runs in bfloat16; the trained weights stay in float32."""
    save_seconds: float = 300.0
    log_every: int = 10
    """Steps between two progress reports, at which signals and `save_seconds` are checked."""

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
    """A micro-batch: consecutive rows of one step."""

    step: int
    offset: int
    """The number of its first row among the step's rows."""
    size: int
    global_size: int
    """Rows of the step, over all processes and accumulation."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step."""

    step: int
    """Counted from 1."""
    loss: float
    """The mean over all rows of all processes."""
    grad_norm: float
    """Of the gradient, before it was clipped."""
    lr: float


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run, every `log_every` steps."""

    step: int
    """Steps done."""
    steps: int
    metrics: tuple[StepMetrics, ...]
    """Of the steps since the last report."""
    seconds: float
    """Of training so far, before resuming included."""
    samples_per_second: float
    """Since the last report, over all processes."""
    global_batch_size: int
    """Rows of a step, over all processes and accumulation."""
    warnings: tuple[str, ...] = ()
    stopped: bool = False
    """Whether a signal ends the run; this is then the last report, and the run is saved after it."""

    @property
    def seconds_left(self) -> float:
        """Remaining time at the present speed."""
        return (self.steps - self.step) * self.global_batch_size / self.samples_per_second


MicroBatchLoss = Callable[[nn.Module, MicroBatch], Tensor]
"""The mean loss over a micro-batch; the network is the wrapped one."""


def make_accelerator(device: str = "auto") -> Accelerator:
    """The accelerator of this process, as its launcher says, on this device."""
    # Processes wait for one another's features and for the first one's sheets, which take their time.
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))])


class Trainer:
    """A run of training, made anew or resumed from `folder/state.pt`."""

    def __init__(
        self,
        net: nn.Module,
        loss: MicroBatchLoss,
        config: TrainingConfig,
        folder: Path,
        *,
        run_config: Mapping[str, Any] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        """`run_config` names what else the run depends on (data, model): it is resumed with the same or not at all.

        Raises InputError when the folder holds a run begun otherwise, WeightsError when its checkpoint is damaged.
        """
        self.accelerator, self.config, self.folder, self.loss = accelerator or make_accelerator(), config, folder, loss
        self.file = folder / "state.pt"
        self.global_batch_size = config.batch * config.gradient_accumulation_steps * self.accelerator.num_processes
        fixed = {name: value for name, value in asdict(config).items() if name not in _FREE}
        self.run_config = {
            **fixed,
            "betas": list(config.betas),
            "rows a step": self.global_batch_size,
            **(run_config or {}),
        }
        if config.lr_schedule != "constant":
            self.run_config["steps"] = config.steps  # where the rate ends changes it all the way
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise InputError("only FSDP2 keeps weights apart as they are averaged here: launch with --fsdp_version 2")
        parameters = [p for p in net.parameters() if p.requires_grad]
        fused = self.accelerator.device.type == "cuda"
        optimiser = torch.optim.AdamW(
            parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused
        )
        prepared = cast("Any", self.accelerator.prepare(net, optimiser))
        self.net: nn.Module = prepared[0]
        self.unwrapped: nn.Module = self.accelerator.unwrap_model(self.net)
        self.optimiser: torch.optim.Optimizer = getattr(prepared[1], "optimizer", prepared[1])
        self._average = EMA(self.unwrapped, config.ema_decay)
        self.start_step, self._spent = 0, 0.0
        self._resume()

    def run(self) -> Generator[TrainingProgress, None, None]:
        """Train, with a report every `log_every` steps; checkpoints are written between two reports and at the end.

        SIGINT and SIGTERM finish the step, and the last progress says that the run was stopped.  Raises
        InstantStyleError when the loss is no longer a number, OutputError when the last checkpoint cannot be written.
        """
        config, accelerator = self.config, self.accelerator
        pending: list[OptimiserStep] = []
        started = reported = saved = time.monotonic()
        spent, warnings = self._spent, list[str]()
        training = optimise(
            [p for p in self.unwrapped.parameters() if p.requires_grad],
            self._losses,
            self.optimiser,
            range(self.start_step, config.steps),
            lr=config.rate,
            clip=config.clip,
            ema=self._average,
        )
        with DeferredSignals() as signals:
            for done in training:
                pending.append(done)
                step, last = done.step, done.step == config.steps
                stop_now = signals.received and accelerator.num_processes == 1
                if not (last or step % config.log_every == 0 or stop_now):
                    continue
                now = time.monotonic()
                due = accelerator.is_main_process and now - saved > config.save_seconds
                stop, due = any_process(signals.received, due, device=accelerator.device)
                metrics = self._read(pending)
                self.start_step, self._spent = step, spent + now - started
                samples_per_second = len(metrics) * self.global_batch_size / max(now - reported, 1e-9)
                pending, leaving = [], stop and not last
                yield TrainingProgress(
                    step,
                    config.steps,
                    metrics,
                    self._spent,
                    samples_per_second,
                    self.global_batch_size,
                    tuple(warnings),
                    stopped=leaving,
                )
                warnings = []
                if last or stop or due:
                    warnings += self._save(must=last or stop)
                    saved = time.monotonic()
                reported = time.monotonic()  # what the caller did meanwhile, and the saving, are no training
                if leaving:
                    return

    def ema_weights(self) -> dict[str, Tensor]:
        """The EMA by parameter name, unsharded, on the CPU.  Collective: every process calls it."""
        return {name: _full_tensor(weight).detach().cpu().clone() for name, weight in self._average.weights.items()}

    def _losses(self, step: int) -> Iterator[Tensor]:
        """The losses of this process's micro-batches, each divided by their number."""
        config, accelerator = self.config, self.accelerator
        count = config.gradient_accumulation_steps
        for micro in range(count):
            offset = (micro * accelerator.num_processes + accelerator.process_index) * config.batch
            # Gradients are averaged over the processes once a step, in the backward pass of its last micro-batch.
            with nullcontext() if micro + 1 == count else accelerator.no_sync(self.net):
                yield self.loss(self.net, MicroBatch(step, offset, config.batch, self.global_batch_size)) / count

    def _read(self, pending: list[OptimiserStep]) -> tuple[StepMetrics, ...]:
        """The steps' numbers, the only time that they leave the device."""
        values = torch.stack([torch.stack([each.loss.float(), _full_tensor(each.grad_norm)]) for each in pending])
        numbers = cast("Tensor", self.accelerator.reduce(values, "mean")).tolist()
        metrics = tuple(
            StepMetrics(each.step, loss, norm, each.lr) for each, (loss, norm) in zip(pending, numbers, strict=True)
        )
        diverged = next(
            (row for row in metrics if not (math.isfinite(row.loss) and math.isfinite(row.grad_norm))), None
        )
        if diverged is not None:
            raise InstantStyleError(
                f"at step {diverged.step} the loss is {diverged.loss:g} and the gradient's norm {diverged.grad_norm:g}:"
                f" the run is not saved; the last checkpoint is {self.file}, go on from it with a lower learning rate "
                "in a new folder"
            )
        return metrics

    def _save(self, *, must: bool) -> list[str]:
        """Write the checkpoint; returns a warning when the disk refuses, or raises where it `must` be written."""
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
            states: list[Any] = [state]
            broadcast_object_list(states)
            state = states[0]
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
        """The checkpoint, None, or the error to raise: every process raises it, so that none waits for the others."""
        remove_stale_temp_files(self.folder)
        if not self.file.exists():
            return None
        try:
            state = torch.load(self.file, weights_only=True, map_location="cpu")
            saved_config = state["begun"]
        except Exception as e:  # a damaged pickle may fail in any way
            return WeightsError(f"the checkpoint {self.file} is damaged ({type(e).__name__}): remove it to begin anew")
        changed = sorted(k for k in {*saved_config, *self.run_config} if saved_config.get(k) != self.run_config.get(k))
        if changed:
            differences = ", ".join(
                f"{name} {saved_config.get(name)!r} (now {self.run_config.get(name)!r})" for name in changed
            )
            return InputError(
                f"the run in {self.folder} was begun with {differences}: resume it with the same, or give "
                "another folder"
            )
        return state


_FREE = {"steps", "batch", "gradient_accumulation_steps", "save_seconds", "log_every"}
"""Settings that may differ when a run is resumed: they do not change what a step computes."""


def _full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
