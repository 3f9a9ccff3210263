# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Few steps: a student of the base that draws in four evaluations, guidance folded in.

A phased consistency model (Wang et al., arXiv 2405.18407): the times are cut into four phases, those of a DDIM run of
four steps with trailing spacing.  From any time in a phase the student is to land at the phase's end where the guided
teacher's trajectory lands: its jump from x_t is drawn to the average student's jump from one teacher step further.
Sampling it is plain DDIM of four steps without guidance.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.networks.attention import Attend, plain
from instantstyle.networks.unet import UNet
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.staged.base import Pause
from instantstyle.train.emoji.staged.captions import Column
from instantstyle.train.emoji.staged.data import LARGE, TrainingData
from instantstyle.train.emoji.staged.sampling import Predict, guided, joined, split, trailing
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import square_time_ids

STAGE = "distillation"
EVALUATIONS = 4
TEACHER_STEP = 25
"""Times that one step of the teacher covers."""
RATE, BATCH = 2e-4, 24
HUBER = 0.01
"""Where the error turns from squared to absolute: sqrt(d^2 + c^2) - c."""
SHARES: Mapping[Column, float] = {
    Column.THING: 0.3,
    Column.THING_AGAIN: 0.2,
    Column.THING_AND_LOOK: 0.35,
    Column.KIND: 0.1,
    Column.KIND_AND_LOOK: 0.05,
}
"""Captions that people ask by: none is empty, for guidance has nothing to follow there."""
REFERENCED = 0.5
"""Share of steps with a reference, where an adapter is given."""


def phase_end(time: Tensor) -> Tensor:
    """The end of the phase that a time lies in, -1 for the last; a time on an edge belongs to the phase below it."""
    ends = torch.tensor(trailing(EVALUATIONS)[1:], device=time.device)
    return ends[(ends[None] >= time[:, None]).sum(1)]


def step_along(noisy: Float[Tensor, "n c h w"], v: Tensor, time: Tensor, to: Tensor) -> Float[Tensor, "n c h w"]:
    """DDIM from times to earlier ones by predictions of v."""
    x0, noise = split(noisy, v, time)
    return joined(x0, noise, to)


class Student(nn.Module):
    """The network that learns; its slow average, of which it learns, is no parameter and begins as a copy."""

    def __init__(self, unet: UNet, decay: float = 0.98) -> None:
        super().__init__()
        self.unet, self.decay = unet, decay
        slow = UNet(unet.config)
        slow.load_state_dict(unet.state_dict())
        self.slow = slow.requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the network."""
        for mean, p in zip(self.slow.parameters(), self.unet.parameters(), strict=True):
            mean.lerp_(p, 1 - self.decay)


def consistency_loss(
    student: Predict, slow: Predict, teacher: Predict, latents: Float[Tensor, "n c h w"], rng: np.random.Generator
) -> Tensor:
    """The distance of where the student lands from where its average lands, one teacher step further on."""
    n = len(latents)
    edges = trailing(EVALUATIONS)
    starts = np.concatenate([np.arange(a, max(b, 0), -TEACHER_STEP) for a, b in pairwise(edges)])
    time = torch.from_numpy(rng.choice(starts, size=n)).to(device())
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
    noisy, end = joined(latents, noise, time), phase_end(time)
    with torch.no_grad():
        nearer = torch.maximum(time - TEACHER_STEP, end)
        x = step_along(noisy, teacher(noisy, time), time, nearer)
        landed = step_along(x, slow(x, nearer.clamp_min(0)).float(), nearer.clamp_min(0), end)
        target = torch.where((nearer == end)[:, None, None, None], x, landed)
    drawn = step_along(noisy, student(noisy, time).float(), time, end)
    return ((drawn - target).square() + HUBER**2).sqrt().mean() - HUBER


def train_student(
    folder: Path,
    teacher: UNet,
    data: TrainingData,
    steps: int,
    processes: int = 1,
    adapter: TrainableAdapter | None = None,
    guidance: float = 3.0,
) -> dict[str, Tensor]:
    """Distil the base (resumable, as stage `distillation`); returns the student's averaged weights by name.

    With an adapter half of the steps have a reference, the target itself, so that references are heard in few steps.
    """
    unet = UNet(teacher.config)
    unet.load_state_dict(teacher.state_dict())
    net, pause = Student(unet), Pause(folder / "PAUSE")
    teacher.requires_grad_(False).eval().to(device())
    if adapter is not None:
        adapter.requires_grad_(False).to(device())

    def loss(number: int) -> Tensor:
        pause.wait()
        net.follow()
        rng, step = np.random.default_rng([53, number]), number // processes
        rows = rng.integers(len(data.bank.concept), size=BATCH)
        text, empty = data.captions.draw(rows, SHARES, rng), data.captions.of(rows, np.full(BATCH, int(Column.NOTHING)))
        heard: dict[str, Attend] = {}
        if adapter is not None and data.embeds is not None and int((step + 1) * REFERENCED) > int(step * REFERENCED):
            seen = data.embeds[torch.from_numpy(rows)].to(device())
            heard = {"attend": adapter.attend(seen), "empty_attend": adapter.attend(torch.zeros_like(seen))}

        def alone(network: UNet) -> Callable[[Tensor, Tensor], Tensor]:
            read, size = network.precompute_kv(text[0]), square_time_ids(BATCH, LARGE)
            attend = heard.get("attend", plain)

            def predict(noisy: Tensor, at: Tensor) -> Tensor:
                with autocast_bf16(device()):
                    return network(noisy, at.float(), read, text[1], size, attend=attend)

            return predict

        latents = data.latents[LARGE][torch.from_numpy(rows)].to(device()).float()
        told = guided(
            teacher,
            text,
            empty,
            LARGE,
            guidance,
            attend=heard.get("attend", plain),
            empty_attend=heard.get("empty_attend"),
        )
        return consistency_loss(alone(net.unet), alone(net.slow), told, latents, rng)

    weights = train_stage(STAGE, net, loss, folder=folder, steps=steps, lr=RATE, batch=BATCH, ema_decay=0.995)
    return {name.removeprefix("unet."): weight for name, weight in weights.items()}


def as_lora(base: Mapping[str, Tensor], student: Mapping[str, Tensor], rank: int = 32) -> dict[str, Tensor]:
    """The student as a LoRA on the base, in diffusers' names: each weight's change cut to its first `rank` directions.

    Matrices and convolutions only; biases and norms stay the base's.
    """
    factors: dict[str, Tensor] = {}
    for name, weight in student.items():
        change = weight.float() - base[name].float()
        if change.ndim < 2 or not name.endswith(".weight") or min(change.shape[0], change[0].numel()) <= rank:
            continue
        left, spread, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
        root, module = spread[:rank].sqrt(), f"unet.{name.removesuffix('.weight')}"
        shape = (rank, *change.shape[1:])
        factors[f"{module}.lora_A.weight"] = (root[:, None] * right[:rank]).reshape(shape).contiguous()
        up = left[:, :rank] * root
        factors[f"{module}.lora_B.weight"] = (up if change.ndim == 2 else up[:, :, None, None]).contiguous()
    return factors
