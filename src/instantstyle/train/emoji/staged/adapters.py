# pyright: reportUnknownMemberType=false

"""Adapters on the frozen base, as three stages.

- `published`: all blocks are trained and the reference is the target, as for IP-Adapter (arXiv 2308.06721).  Half of
  the captions are empty, so the image tokens represent content as well as style.
- `style`: the same, but only the blocks of a plan (found by a probe of the first one) are trained.
- `paired`: the blocks of that plan are trained, and the reference is another concept in the target's style.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instantstyle.blocks import BlockPlan
from instantstyle.networks.unet import UNet
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.image_bank import SIDE, ImageBank
from instantstyle.train.emoji.staged.base import Pause
from instantstyle.train.emoji.staged.captions import ADAPTER_SHARES
from instantstyle.train.emoji.staged.data import LARGE, TrainingData
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import diffusion_loss, square_time_ids
from instantstyle.weights.adapter import Adapter

ALL = BlockPlan({"all": 1.0})
NO_REFERENCE = 0.1
"""Share of rows with a zero reference embedding: the unconditional case of guidance."""
BATCH = {SIDE: 64, LARGE: 32}
"""Rows a step and process, by side in pixels."""
LARGE_SHARE = 0.75
"""Share of the steps at 128 px."""


@dataclass(frozen=True)
class AdapterStage:
    """Configuration of an adapter stage; `name` is its checkpoint's."""

    name: str
    plan: BlockPlan
    paired: bool
    """Whether the reference is another concept in the target's style, instead of the target."""


PUBLISHED = AdapterStage("adapter-published", ALL, paired=False)


def style_stage(plan: BlockPlan) -> AdapterStage:
    """The stage that trains only the blocks of a plan, with the target as reference."""
    return AdapterStage("adapter-style", plan, paired=False)


def paired_stage(plan: BlockPlan) -> AdapterStage:
    """The stage that trains only the blocks of a plan, with another concept in the target's style as reference."""
    return AdapterStage("adapter-paired", plan, paired=True)


def style_mates(bank: ImageBank, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each image the index of another one of the same style, or its own where the style has no other."""
    references = np.empty_like(indices)
    for i, index in enumerate(indices):
        candidates = bank.rows_of_style[int(bank.style[index])]
        pick = candidates[int(rng.integers(len(candidates)))]
        references[i] = (
            pick if pick != index else candidates[(int(np.flatnonzero(candidates == index)[0]) + 1) % len(candidates)]
        )
    return references


def train_adapter_stage(
    folder: Path,
    unet: UNet,
    data: TrainingData,
    stage: AdapterStage,
    steps: int,
    processes: int = 1,
    lr: float = 1e-3,
    init_from: Adapter | None = None,
) -> Adapter:
    """Train an adapter for a frozen base (resumable, as the stage's checkpoint).

    Reference embeddings are of images at 64 px, the image encoder's resolution, at both training sizes.
    """
    assert data.embeds is not None, "adapters need image embeddings: prepare(..., embeds=True)"
    net = TrainableAdapter(unet, stage.plan, init_from=init_from)
    unet.requires_grad_(False).eval().to(device())
    head, tail = unet.split_at(net.first_module)
    embeds, pause = data.embeds, Pause(folder / "PAUSE")

    def loss(batch_seed: int) -> Tensor:
        pause.wait()
        rng = np.random.default_rng([43, batch_seed])
        step = batch_seed // processes
        side = LARGE if int((step + 1) * LARGE_SHARE) > int(step * LARGE_SHARE) else SIDE
        indices = rng.integers(len(data.bank.concept), size=BATCH[side])
        prompt_embeds, pooled_prompt_embeds = data.captions.draw(indices, ADAPTER_SHARES, rng)
        reference_mask = torch.from_numpy((rng.random(len(indices)) >= NO_REFERENCE).astype(np.float32)).to(device())
        references = style_mates(data.bank, indices, rng) if stage.paired else indices
        attend = net.attend(embeds[torch.from_numpy(references)].to(device()) * reference_mask[:, None])

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            with torch.no_grad():
                text_kv = unet.precompute_kv(prompt_embeds)
                state = head(
                    noisy_latents, timesteps.float(), text_kv, pooled_prompt_embeds, square_time_ids(len(indices), side)
                )
            return tail(state, text_kv, attend=attend)

        return diffusion_loss(predict, data.latents[side][torch.from_numpy(indices)], rng, snr_cap=10.0)

    name = stage.name
    batch = round(BATCH[LARGE] * LARGE_SHARE + BATCH[SIDE] * (1 - LARGE_SHARE))
    weights = train_stage(
        name, net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.998, muon_lr=3 * lr
    )
    net.load_state_dict(weights)
    return net.requires_grad_(False).adapter
