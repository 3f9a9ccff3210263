# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""One training loop: resumable, with an average of the weights, a progress line and a log.

A batch depends on the step's number alone, so a run that was killed and resumed sees the data an undisturbed one sees.
Started by torchrun, every process takes its own batches and the gradients are averaged; the first one saves.
"""

import csv
import math
import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instantstyle.train.muon import MuonAdamW
from instantstyle.utils.atomic_files import atomic_write

LossFn = Callable[[int], Tensor]
"""The loss of a batch, given the number that seeds it: step x processes + rank."""


@cache
def device() -> torch.device:
    """Where this process trains: its own GPU if there is one, else the processor."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


ADAMW_ONLY_PREFIXES = ("unet.conv_in", "unet.conv_out", "unet.time_embedding", "unet.add_embedding")
"""What stands where numbers become features or features numbers: not Muon's business."""


class EMA:
    """An exponential moving average of a network's trainable weights, warmed up so that early steps do not linger."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}

    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the network's present weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in net.named_parameters():
                if p.requires_grad:
                    self.weights[name].lerp_(p, 1 - decay)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, tail: float = 0.3) -> float:
    """Linear warm-up, a plateau, and over the last `tail` of the run a cosine down to a hundredth of the peak.

    A tenth of the run warms up, of long ones `warmup` steps, of short ones 20.
    """
    if step < (warmup := min(warmup, max(steps // 10, 20))):
        return peak * (step + 1) / warmup
    into = (step / max(steps, 1) - (1 - tail)) / tail
    return peak if into <= 0 else peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(into, 1.0))))


def train(
    name: str,
    net: nn.Module,
    loss: LossFn,
    *,
    folder: Path,
    steps: int,
    lr: float,
    batch: int,
    weight_decay: float = 0.01,
    decay: float = 0.999,
    save_every: float = 180.0,
    clip: float = 1.0,
    muon: float | None = None,
) -> dict[str, Tensor]:
    """Train to `steps`, resuming from `folder/name.pt`; returns the averaged trainable weights by name, on the CPU.

    The network is moved to `device()` meanwhile; the loss puts its batch there.

    `batch` is one process's, and only scales the samples/s that are shown.  `muon` is the learning rate of hidden
    matrices by Muon; None trains all weights by AdamW.

    SIGINT and SIGTERM finish the step, save, and leave with KeyboardInterrupt.  A line goes to stdout every ten
    seconds and a row to `folder/name.csv`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.pt"
    net.to(device())
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimiser = (
        torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
        if muon is None
        else MuonAdamW(net, lr, muon, ADAMW_ONLY_PREFIXES, weight_decay)
    )
    average, first, spent = EMA(net, decay), 0, 0.0
    if file.exists():
        saved = torch.load(file, weights_only=True, map_location=device())
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        average.weights, first, spent = saved["average"], saved["step"], saved["seconds"]
    stop, processes, rank = _Stop(), *_place()
    began = shown = saved_at = time.monotonic()
    recent: list[float] = []
    shown_step = first

    def save(step: int) -> None:
        state = {
            "net": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.weights,
            "step": step,
            "seconds": spent + time.monotonic() - began,
        }
        with atomic_write(file) as partial:
            torch.save(state, partial)

    with stop, (folder / f"{name}.csv").open("a", newline="") as log:
        rows = csv.writer(log)
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, lr)
            value = loss(step * processes + rank)
            value.backward()
            if processes > 1:
                _average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(net, step)
            recent.append(value.detach().item())
            now = time.monotonic()
            if rank == 0 and (now - shown > 10 or step + 1 == steps):
                speed = (step + 1 - shown_step) * batch * processes / (now - shown)
                mean, left = sum(recent) / len(recent), (steps - step - 1) * batch * processes / max(speed, 1e-9)
                print(
                    f"{name} {step + 1}/{steps} loss {mean:.4f} {speed:.0f} samples/s {left / 60:.0f} min", flush=True
                )
                rows.writerow([step + 1, f"{mean:.5f}", f"{learning_rate(step, steps, lr):.2e}", f"{speed:.1f}"])
                log.flush()
                shown, shown_step, recent = now, step + 1, []
            asked = _any(stop.asked) if processes > 1 else stop.asked
            if rank == 0 and (asked or step + 1 == steps or now - saved_at > save_every):
                save(step + 1)
                saved_at = now
            if asked:
                raise KeyboardInterrupt(f"{name} stopped at step {step + 1}, saved in {file}")
    net.cpu()
    return {key: weight.cpu() for key, weight in average.weights.items()}


def _place() -> tuple[int, int]:
    """How many processes train together, and which one this is."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _any(asked: bool) -> bool:
    """Whether any process was asked to stop: all must leave at the same step."""
    flag = torch.tensor(float(asked), device=device())
    dist.all_reduce(flag)
    return bool(flag > 0)


class _Stop:
    """While entered, SIGINT and SIGTERM only ask for a stop at the next step."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> None:
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
