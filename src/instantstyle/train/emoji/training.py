# pyright: reportUnknownMemberType=false

"""Training of one stage of the built-in model: checkpoint `NAME.pt`, log `NAME.csv`, and a progress line.

A stage resumes from its checkpoint, whose keys are net, optimiser, average (the EMA by parameter name), step and
seconds.  Started by torchrun, every process takes its own batches and the first one saves.
"""

import csv
import math
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instantstyle.optimisation import EMA, Optimiser, any_process, load_checkpoint, optimise, save_checkpoint
from instantstyle.train.muon import MuonAdamW
from instantstyle.utils.signals import DeferredSignals

LossFn = Callable[[int], Tensor]
"""The loss of a batch, given its seed: step x processes + rank."""
ADAMW_ONLY_PREFIXES = ("unet.conv_in", "unet.conv_out", "unet.time_embedding", "unet.add_embedding")
"""Input and output layers of the UNet, which Muon does not train."""
PROGRESS_SECONDS = 10.0
"""Seconds between two progress lines."""


@cache
def device() -> torch.device:
    """The device this process trains on: its own GPU if there is one, else the CPU."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, tail: float = 0.3) -> float:
    """Linear warm-up, a plateau, and over the last `tail` of the run a cosine down to a hundredth of the peak.

    The warm-up is a tenth of the run, at most `warmup` and at least 20 steps.
    """
    if step < (warmup := min(warmup, max(steps // 10, 20))):
        return peak * (step + 1) / warmup
    decay_progress = (step / max(steps, 1) - (1 - tail)) / tail
    return (
        peak if decay_progress <= 0 else peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(decay_progress, 1.0))))
    )


def make_optimiser(net: nn.Module, lr: float, muon_lr: float | None, weight_decay: float = 0.01) -> Optimiser:
    """AdamW, or with `muon_lr` Muon for hidden matrices and AdamW for the other parameters."""
    if muon_lr is not None:
        return MuonAdamW(net, lr, muon_lr, ADAMW_ONLY_PREFIXES, weight_decay)
    trainable = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))


def train_stage(
    name: str,
    net: nn.Module,
    loss: LossFn,
    *,
    folder: Path,
    steps: int,
    lr: float,
    batch: int,
    weight_decay: float = 0.01,
    ema_decay: float = 0.999,
    save_seconds: float = 180.0,
    clip: float = 1.0,
    muon_lr: float | None = None,
) -> dict[str, Tensor]:
    """Train to `steps`, resuming from `folder/name.pt`; returns the EMA of the trainable parameters, on the CPU.

    The network is moved to `device()` meanwhile; the loss puts its batch there.  `batch` is the batch size of one
    process and only scales the samples/s that are shown.

    SIGINT and SIGTERM finish the step, save, and leave with KeyboardInterrupt.  Every ten seconds a line goes to stdout
    and a row to `folder/name.csv`: step, mean loss, learning rate, samples/s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.pt"
    net.to(device())
    optimiser, ema = make_optimiser(net, lr, muon_lr, weight_decay), EMA(net, ema_decay)
    saved = load_checkpoint(file, net, optimiser, device())
    ema.weights, start, previous_seconds = (
        saved.get("average", ema.weights),
        int(saved["step"]),
        float(saved.get("seconds", 0)),
    )
    processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    training = optimise(
        [p for p in net.parameters() if p.requires_grad],
        lambda step: (loss(step * processes + rank),),
        optimiser,
        range(start, steps),
        lr=lambda step: learning_rate(step, steps, lr),
        clip=clip,
        ema=ema,
        average_gradients=True,
    )
    started_at = logged_at = saved_at = time.monotonic()
    logged_step, losses = start, list[float]()
    with DeferredSignals() as signals, (folder / f"{name}.csv").open("a", newline="") as log:
        writer = csv.writer(log)
        for result in training:
            step, now = result.step, time.monotonic()
            losses.append(result.loss.item())
            if rank == 0 and (now - logged_at > PROGRESS_SECONDS or step == steps):
                speed = (step - logged_step) * batch * processes / (now - logged_at)
                mean, remaining = sum(losses) / len(losses), (steps - step) * batch * processes / max(speed, 1e-9)
                print(
                    f"{name} {step}/{steps} loss {mean:.4f} {speed:.0f} samples/s {remaining / 60:.0f} min", flush=True
                )
                writer.writerow([step, f"{mean:.5f}", f"{result.lr:.2e}", f"{speed:.1f}"])
                log.flush()
                logged_at, logged_step, losses = now, step, []
            (stop,) = any_process(signals.received, device=device())
            if rank == 0 and (stop or step == steps or now - saved_at > save_seconds):
                save_checkpoint(
                    file,
                    net,
                    optimiser.state_dict(),
                    step,
                    average=ema.weights,
                    seconds=previous_seconds + now - started_at,
                )
                saved_at = now
            if stop:
                raise KeyboardInterrupt(f"{name} stopped at step {step}, saved in {file}")
    net.cpu()
    return {key: weight.cpu() for key, weight in ema.weights.items()}
