# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

"""The base stage: the UNet trained on text alone, at 64 px first and then mostly at 128 px.

It is initialised with the shipped UNet's weights, except for the cross-attention, which is newly initialised, so that
nothing remains of the blocks where that UNet was trained to take a style.  SDXL's time ids condition on the size.
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
"""`timestep_power` of `diffusion_loss`: below 1, more timesteps are noisy."""
DECAY = 0.9985
"""EMA decay of the weights, a step."""
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
"""Captions that name the concept come first, at 64 px."""
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
    """Number of training samples of the first `steps` steps, by side in pixels."""
    counts = dict.fromkeys(BATCH, 0)
    for step in range(steps):
        side = side_of(step, phases)
        counts[side] += BATCH[side] * processes
    return counts


class Base(nn.Module):
    """The UNet as submodule `unet`, the prefix by which AdamW's layers are told from Muon's."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet


Renew = Literal["cross-attention", "deep-levels"]
"""Which shipped weights are newly initialised: all cross-attention, or all below the highest resolution."""
DEEP = ("down_blocks.1.", "down_blocks.2.", "mid_block.", "up_blocks.0.", "up_blocks.1.")
"""Name prefixes of the weights of the two lower resolutions, which hold all attention."""


def begin(shipped: Path = SHIPPED, renew: Renew = "cross-attention") -> Base:
    """The shipped UNet with a part newly initialised, and the output of every cross-attention at zero.

    With `deep-levels` only the highest resolution is kept.  The lower levels of the shipped UNet have little influence
    on its output (`reach`), which a base that is initialised with them retains: benchmarks/LOG.md.
    """
    unet = make_unet()
    new_weights = {name: weight for name, weight in unet.state_dict().items() if name.startswith(DEEP)}
    shipped_weights = load_file(shipped / "unet" / "diffusion_pytorch_model.safetensors")
    unet.load_state_dict({**shipped_weights, **new_weights} if renew == "deep-levels" else shipped_weights)
    renew_cross_attention(unet)
    return Base(unet)


def unet_of(weights: Mapping[str, Tensor]) -> UNet:
    """The frozen UNet with the weights of a checkpoint of this stage."""
    unet = UNet(EMOJI.unet)
    unet.load_state_dict({name.removeprefix("unet."): weight for name, weight in weights.items()})
    return unet.requires_grad_(False).eval()


def renew_cross_attention(unet: UNet, seed: int = 5) -> None:
    """Reinitialise every cross-attention: queries, keys and values by torch's default, the output at zero."""
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
    """Blocks training while a file exists, so that other work on the machine can be measured."""

    def __init__(self, file: Path, seconds: float = 5.0) -> None:
        self.file, self.seconds = file, seconds

    def wait(self) -> None:
        """Return once the file is gone."""
        while self.file.exists():
            time.sleep(self.seconds)


def mask_middle_skips(state: UNetState, skip_mask: Float[Tensor, " rows"]) -> UNetState:
    """The state before `up.0.0` with the middle level's three skips at zero in rows where `skip_mask` is 0.

    In these rows the lowest level alone can determine the image, so it is trained to.
    """
    levels = range(3, 6)  # later ones are the lowest level's, earlier ones the highest's
    skips = (s * skip_mask[:, None, None, None] if i in levels else s for i, s in enumerate(state.skips))
    return replace(state, skips=tuple(skips))


def with_empty_caption(
    text: CrossAttentionKV, empty: Mapping[Site, tuple[Tensor, Tensor]], masked: Mapping[str, Bool[Tensor, " rows"]]
) -> CrossAttentionKV:
    """Keys and values by site, with those of the empty caption (one row) where `masked` of the site's module is set."""

    def mixed(site: Site) -> tuple[Tensor, Tensor]:
        where = masked[site.module]
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

    Timesteps are 1000 u^0.8: more of them are noisy, where the content is determined; textures come with the initial
    convolutions.  The error of v is weighted as in `diffusion_loss`, with gamma 11.
    `dropped_skips` is a share of rows, see `mask_middle_skips`.  In a share `dropped_pooled` of them the pooled
    embedding is the empty caption's, so that the caption must come in by cross-attention: the pooled embedding
    holds nearly all of a short caption, and a UNet that has it ignores the tokens.  Each cross-attention module reads
    the empty caption in a share `dropped_modules` of the rows, drawn independently, so that none can rely on another.
    """
    net = begin(renew=renew)
    unet = net.unet
    head, tail = unet.split_at("up.0.0")
    pause = Pause(folder / "PAUSE")

    def loss(batch_seed: int) -> Tensor:
        pause.wait()
        rng = np.random.default_rng([41, batch_seed])
        phase, side = phase_of(batch_seed // processes), side_of(batch_seed // processes)
        indices = rng.integers(len(data.bank.concept), size=BATCH[side])
        prompt_embeds, pooled_prompt_embeds = data.captions.draw(indices, phase.shares, rng)

        pooled_dropped = torch.from_numpy(rng.random(len(indices)) < dropped_pooled).to(device())
        pooled_prompt_embeds = torch.where(
            pooled_dropped[:, None],
            data.captions.embeds.pooled_prompt_embeds[0].to(pooled_prompt_embeds),
            pooled_prompt_embeds,
        )
        dropped = rng.random((len(unet.config.modules), len(indices))) < dropped_modules
        masked = dict(zip(unet.config.modules, torch.from_numpy(dropped).to(device()), strict=True))
        skip_mask = torch.from_numpy((rng.random(len(indices)) >= dropped_skips).astype(np.float32)).to(device())

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            text = unet.precompute_kv(prompt_embeds)
            if dropped_modules:
                text = with_empty_caption(
                    text, unet.precompute_kv(data.captions.embeds.prompt_embeds[:1].to(prompt_embeds)), masked
                )
            state = head(
                noisy_latents, timesteps.float(), text, pooled_prompt_embeds, square_time_ids(len(indices), side)
            )
            if dropped_skips:
                state = mask_middle_skips(state, skip_mask)
            return tail(state, text)

        latents = data.latents[side][torch.from_numpy(indices)]
        return diffusion_loss(predict, latents, rng, timestep_power=EARLY, snr_cap=10.0)

    return train_stage(
        STAGE, net, loss, folder=folder, steps=steps, lr=RATE, batch=BATCH[SIDE], ema_decay=DECAY, muon_lr=MUON_RATE
    )
