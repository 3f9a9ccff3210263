# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

"""The base: a UNet that learns from text alone, at 64 px first, then at both sizes, at 128 px in the end.

It begins with the shipped UNet's weights except for every cross-attention, which begins anew, so that nothing is left
of where that UNet was taught to take a style.  SDXL's size conditioning tells it how large to draw.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor, nn

from instantstyle.blocks import Site
from instantstyle.families import EMOJI
from instantstyle.networks.attention import Attention, CrossAttentionKV
from instantstyle.networks.unet import UNet, UNetState
from instantstyle.train.emoji.image_bank import SIDE
from instantstyle.train.emoji.staged.captions import FIRST_SHARES, SHARES, Column
from instantstyle.train.emoji.staged.data import LARGE, SHIPPED, TrainingData
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import diffusion_loss, make_unet, square_time_ids

STAGE = "base"
RATE, MUON_RATE = 1e-3, 1e-2
"""Peak learning rates of AdamW and, for hidden matrices, of Muon."""
EARLY = 0.8
"""Power of the even spread of times: below 1, more of them are noisy."""
DECAY = 0.9985
"""Of the exponential moving average of the weights, a step."""
BATCH = {SIDE: 128, LARGE: 48}
"""Rows a step and process, by side in pixels."""


@dataclass(frozen=True)
class Phase:
    """A part of the stage: until optimiser step `until`, a share `large` of the steps is at 128 px."""

    until: int
    large: float
    shares: Mapping[Column, float] = field(default_factory=lambda: SHARES)
    """Shares of captions."""


PHASES = (
    Phase(2400, 0.0, shares=FIRST_SHARES),
    Phase(16_000, 0.9),
)
"""What words mean is learned first, at 64 px."""
STEPS = PHASES[-1].until


def phase_of(step: int, phases: Sequence[Phase] | None = None) -> Phase:
    """The phase that a step lies in; the last has no end."""
    phases = PHASES if phases is None else phases
    return next((p for p in phases if step < p.until), phases[-1])


def side_of(step: int, phases: Sequence[Phase] | None = None) -> int:
    """The side in pixels of a step's batch; large ones are spread evenly over a phase."""
    large = phase_of(step, phases).large
    return LARGE if int((step + 1) * large) > int(step * large) else SIDE


def samples(steps: int, processes: int = 2, phases: Sequence[Phase] | None = None) -> dict[int, int]:
    """Pictures seen in the first `steps` steps, by side in pixels."""
    seen = dict.fromkeys(BATCH, 0)
    for step in range(steps):
        side = side_of(step, phases)
        seen[side] += BATCH[side] * processes
    return seen


class Base(nn.Module):
    """The UNet under the name by which the training loop knows its first and last layers, which are not Muon's."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet


Renew = Literal["cross-attention", "deep-levels"]
"""What of the shipped UNet begins anew: every cross-attention, or all that is below the highest resolution."""
DEEP = ("down_blocks.1.", "down_blocks.2.", "mid_block.", "up_blocks.0.", "up_blocks.1.")
"""Where the names of the two lower resolutions' weights begin; attention is there alone."""


def begin(shipped: Path = SHIPPED, renew: Renew = "cross-attention") -> Base:
    """The shipped UNet with a part of it begun anew, and every cross-attention's answers at zero.

    With `deep-levels` only the highest resolution is kept, where textures are drawn.  In the shipped UNet the lower
    levels have hardly a say (`reach`), and a base that begins with them keeps that: benchmarks/LOG.md.
    """
    unet = make_unet()
    fresh = {name: weight for name, weight in unet.state_dict().items() if name.startswith(DEEP)}
    kept = load_file(shipped / "unet" / "diffusion_pytorch_model.safetensors")
    unet.load_state_dict({**kept, **fresh} if renew == "deep-levels" else kept)
    renew_cross_attention(unet)
    return Base(unet)


def unet_of(weights: Mapping[str, Tensor]) -> UNet:
    """The frozen UNet with the weights of a checkpoint of this stage."""
    unet = UNet(EMOJI.unet)
    unet.load_state_dict({name.removeprefix("unet."): weight for name, weight in weights.items()})
    return unet.requires_grad_(False).eval()


def renew_cross_attention(unet: UNet, seed: int = 5) -> None:
    """Begin every cross-attention anew: queries, keys and values as torch begins a linear layer, answers at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for site in unet.config.sites:
            if site.kind != "cross":
                continue
            attention: Attention = unet.attention(site)
            for module in attention.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
            for p in attention.to_out.parameters():
                nn.init.zeros_(p)


class Pause:
    """Holds a loss back while a file is there, so that other work on the machine can be measured."""

    def __init__(self, file: Path, seconds: float = 5.0) -> None:
        self.file, self.seconds = file, seconds

    def wait(self) -> None:
        """Return once the file is gone."""
        while self.file.exists():
            time.sleep(self.seconds)


def without_middle_skips(state: UNetState, heard: Float[Tensor, " rows"]) -> UNetState:
    """The state before `up.0.0` with the middle level's three skips at zero in rows where `heard` is 0.

    What these rows are to show can come from the lowest level alone, which learns to speak so.
    """
    levels = range(3, 6)  # behind them the lowest level's skips are left, before them the highest's
    skips = (s * heard[:, None, None, None] if i in levels else s for i, s in enumerate(state.skips))
    return replace(state, skips=tuple(skips))


def without_words(
    text: CrossAttentionKV, empty: Mapping[Site, tuple[Tensor, Tensor]], silent: Mapping[str, Bool[Tensor, " rows"]]
) -> CrossAttentionKV:
    """Keys and values by site, with those of the empty caption (one row) where the site's module is silent."""

    def mixed(site: Site) -> tuple[Tensor, Tensor]:
        where = silent[site.module]
        (k, v), (k0, v0) = text[site], empty[site]
        return (
            torch.where(where.view(-1, *[1] * (k.ndim - 1)), k0, k),
            torch.where(where.view(-1, *[1] * (v.ndim - 1)), v0, v),
        )

    return {site: mixed(site) for site in text}


def train_base(
    folder: Path,
    data: TrainingData,
    steps: int = STEPS,
    processes: int = 1,
    renew: Renew = "cross-attention",
    dropped_skips: float = 0.0,
    dropped_pooled: float = 0.0,
    dropped_modules: float = 0.0,
) -> dict[str, Tensor]:
    """Train the base (resumable, as stage `base`); returns its averaged weights by name (`unet_of`).

    Times of the noise are u^.8: more of them are early ones, where the thing is settled, for textures are there from
    the start (they live in the convolutions).  v's error is weighted as `diffusion_loss` says, with gamma 11.
    `dropped_skips` is a share of rows, see `without_middle_skips`.  In a share `dropped_pooled` of them the pooled
    embedding is the empty caption's, so that words must come in by cross-attention: the text encoder's pooled
    embedding says nearly all that a short caption says, and a UNet that reads it leaves the rest unheard.  Each module
    reads the empty caption in a share `dropped_modules` of the rows, drawn for each module by itself, so that none of
    them can leave the words to another.
    """
    net = begin(renew=renew)
    unet = net.unet
    first, rest = unet.split_at("up.0.0")
    pause = Pause(folder / "PAUSE")

    def loss(number: int) -> Tensor:
        pause.wait()
        rng = np.random.default_rng([41, number])
        phase, side = phase_of(number // processes), side_of(number // processes)
        rows = rng.integers(len(data.bank.concept), size=BATCH[side])
        context, pooled = data.captions.draw(rows, phase.shares, rng)

        unpooled = torch.from_numpy(rng.random(len(rows)) < dropped_pooled).to(device())
        pooled = torch.where(unpooled[:, None], data.captions.words.pooled[0].to(pooled), pooled)
        drawn = rng.random((len(unet.config.modules), len(rows))) < dropped_modules
        silent = dict(zip(unet.config.modules, torch.from_numpy(drawn).to(device()), strict=True))
        heard = torch.from_numpy((rng.random(len(rows)) >= dropped_skips).astype(np.float32)).to(device())

        def predict(noised: Tensor, at: Tensor) -> Tensor:
            text = unet.precompute_kv(context)
            if dropped_modules:
                text = without_words(text, unet.precompute_kv(data.captions.words.context[:1].to(context)), silent)
            state = first(noised, at.float(), text, pooled, square_time_ids(len(rows), side))
            if dropped_skips:
                state = without_middle_skips(state, heard)
            return rest(state, text)

        latents = data.latents[side][torch.from_numpy(rows)]
        return diffusion_loss(predict, latents, rng, timestep_power=EARLY, snr_cap=10.0)

    return train_stage(
        STAGE, net, loss, folder=folder, steps=steps, lr=RATE, batch=BATCH[SIDE], ema_decay=DECAY, muon_lr=MUON_RATE
    )
