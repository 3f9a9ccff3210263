# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Distillation of the base for four sampling steps without guidance.

A phased consistency model (Wang et al., arXiv 2405.18407): the timesteps are split into four phases, those of a DDIM
run of four steps with trailing spacing.  From any timestep of a phase the student predicts the latents at the phase's
end on the guided teacher's trajectory: the target is the EMA student's prediction after one teacher step.  It is
sampled by DDIM in four steps without guidance.
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
from instantstyle.train.emoji.staged.sampling import Predict, guided, mix_noise, predict_x0_noise, trailing
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import square_time_ids

STAGE = "distillation"
EVALUATIONS = 4
TEACHER_STEP = 25
"""Timesteps that one step of the teacher covers."""
RATE, BATCH = 2e-4, 24
HUBER = 0.01
"""c of the pseudo-Huber loss sqrt(d^2 + c^2) - c."""
SHARES: Mapping[Column, float] = {
    Column.THING: 0.3,
    Column.THING_AGAIN: 0.2,
    Column.THING_AND_LOOK: 0.35,
    Column.KIND: 0.1,
    Column.KIND_AND_LOOK: 0.05,
}
"""Shares of captions as at inference: none is empty, where guidance has no effect."""
REFERENCED = 0.5
"""Share of steps with a reference, where an adapter is given."""


def phase_end(timesteps: Tensor) -> Tensor:
    """The last timestep of each timestep's phase, -1 for the final one; a boundary belongs to the phase below it."""
    ends = torch.tensor(trailing(EVALUATIONS)[1:], device=timesteps.device)
    return ends[(ends[None] >= timesteps[:, None]).sum(1)]


def step_along(
    noisy_latents: Float[Tensor, "n c h w"], v: Tensor, timesteps: Tensor, next_timesteps: Tensor
) -> Float[Tensor, "n c h w"]:
    """A DDIM step from `timesteps` to `next_timesteps` by predictions of v."""
    x0, noise = predict_x0_noise(noisy_latents, v, timesteps)
    return mix_noise(x0, noise, next_timesteps)


class Student(nn.Module):
    """The trained UNet, and `slow`, its EMA, which gives the targets and is not trained."""

    def __init__(self, unet: UNet, decay: float = 0.98) -> None:
        super().__init__()
        self.unet, self.decay = unet, decay
        slow = UNet(unet.config)
        slow.load_state_dict(unet.state_dict())
        self.slow = slow.requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        """Update the EMA."""
        for mean, p in zip(self.slow.parameters(), self.unet.parameters(), strict=True):
            mean.lerp_(p, 1 - self.decay)


def consistency_loss(
    student: Predict, slow: Predict, teacher: Predict, latents: Float[Tensor, "n c h w"], rng: np.random.Generator
) -> Tensor:
    """Pseudo-Huber distance of the student's phase end from the EMA student's after one teacher step."""
    n = len(latents)
    edges = trailing(EVALUATIONS)
    starts = np.concatenate([np.arange(a, max(b, 0), -TEACHER_STEP) for a, b in pairwise(edges)])
    timesteps = torch.from_numpy(rng.choice(starts, size=n)).to(device())
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
    noisy_latents, end = mix_noise(latents, noise, timesteps), phase_end(timesteps)
    with torch.no_grad():
        next_timesteps = torch.maximum(timesteps - TEACHER_STEP, end)
        latents_next = step_along(noisy_latents, teacher(noisy_latents, timesteps), timesteps, next_timesteps)
        endpoint = step_along(
            latents_next, slow(latents_next, next_timesteps.clamp_min(0)).float(), next_timesteps.clamp_min(0), end
        )
        target = torch.where((next_timesteps == end)[:, None, None, None], latents_next, endpoint)
    prediction = step_along(noisy_latents, student(noisy_latents, timesteps).float(), timesteps, end)
    return ((prediction - target).square() + HUBER**2).sqrt().mean() - HUBER


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

    With an adapter half of the steps have the target as reference, so that the student works with references.
    """
    unet = UNet(teacher.config)
    unet.load_state_dict(teacher.state_dict())
    net, pause = Student(unet), Pause(folder / "PAUSE")
    teacher.requires_grad_(False).eval().to(device())
    if adapter is not None:
        adapter.requires_grad_(False).to(device())

    def loss(batch_seed: int) -> Tensor:
        pause.wait()
        net.follow()
        rng, step = np.random.default_rng([53, batch_seed]), batch_seed // processes
        indices = rng.integers(len(data.bank.concept), size=BATCH)
        text, empty = (
            data.captions.draw(indices, SHARES, rng),
            data.captions.lookup(indices, np.full(BATCH, int(Column.NOTHING))),
        )
        attention: dict[str, Attend] = {}
        if adapter is not None and data.embeds is not None and int((step + 1) * REFERENCED) > int(step * REFERENCED):
            image_embeds = data.embeds[torch.from_numpy(indices)].to(device())
            attention = {
                "attend": adapter.attend(image_embeds),
                "empty_attend": adapter.attend(torch.zeros_like(image_embeds)),
            }

        def unguided(network: UNet) -> Callable[[Tensor, Tensor], Tensor]:
            text_kv, time_ids = network.precompute_kv(text[0]), square_time_ids(BATCH, LARGE)
            attend = attention.get("attend", plain)

            def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
                with autocast_bf16(device()):
                    return network(noisy_latents, timesteps.float(), text_kv, text[1], time_ids, attend=attend)

            return predict

        latents = data.latents[LARGE][torch.from_numpy(indices)].to(device()).float()
        guided_teacher = guided(
            teacher,
            text,
            empty,
            LARGE,
            guidance,
            attend=attention.get("attend", plain),
            empty_attend=attention.get("empty_attend"),
        )
        return consistency_loss(unguided(net.unet), unguided(net.slow), guided_teacher, latents, rng)

    weights = train_stage(STAGE, net, loss, folder=folder, steps=steps, lr=RATE, batch=BATCH, ema_decay=0.995)
    return {name.removeprefix("unet."): weight for name, weight in weights.items()}


def as_lora(base: Mapping[str, Tensor], student: Mapping[str, Tensor], rank: int = 32) -> dict[str, Tensor]:
    """The student as a LoRA on the base, in diffusers' names: each weight's change truncated to rank `rank` by SVD.

    Matrices and convolutions only; biases and norms stay the base's.
    """
    factors: dict[str, Tensor] = {}
    for name, weight in student.items():
        change = weight.float() - base[name].float()
        if change.ndim < 2 or not name.endswith(".weight") or min(change.shape[0], change[0].numel()) <= rank:
            continue
        u, singular_values, vh = torch.linalg.svd(change.flatten(1), full_matrices=False)
        scale, module = singular_values[:rank].sqrt(), f"unet.{name.removesuffix('.weight')}"
        shape = (rank, *change.shape[1:])
        factors[f"{module}.lora_A.weight"] = (scale[:, None] * vh[:rank]).reshape(shape).contiguous()
        up = u[:, :rank] * scale
        factors[f"{module}.lora_B.weight"] = (up if change.ndim == 2 else up[:, :, None, None]).contiguous()
    return factors
