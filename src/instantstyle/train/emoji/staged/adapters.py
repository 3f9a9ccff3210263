# pyright: reportUnknownMemberType=false

"""Adapters on the frozen base, as three stages.

- `published`: all blocks learn and the reference is the target, as IP-Adapter was trained (arXiv 2308.06721).  Half of
  the captions are empty, so the image's tokens come to carry the thing as well as its look.
- `style`: the same, but only the blocks of a plan (those that a probe of the first one finds) learn.
- `paired`: the blocks of that plan learn, and the reference is another thing in the target's style.
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
"""Share of rows whose reference is blank: guidance's other side."""
BATCH = {SIDE: 64, LARGE: 32}
"""Rows a step and process, by side in pixels."""
LARGE_SHARE = 0.75
"""Share of the steps at 128 px."""


@dataclass(frozen=True)
class AdapterStage:
    """One way to train an adapter; its name is its checkpoint's."""

    name: str
    plan: BlockPlan
    paired: bool
    """Whether the reference is another thing in the target's style, instead of the target."""


PUBLISHED = AdapterStage("adapter-published", ALL, paired=False)


def style_stage(plan: BlockPlan) -> AdapterStage:
    """Only the blocks of a plan learn; the reference is the target."""
    return AdapterStage("adapter-style", plan, paired=False)


def paired_stage(plan: BlockPlan) -> AdapterStage:
    """Only the blocks of a plan learn; the reference is another thing in the target's style."""
    return AdapterStage("adapter-paired", plan, paired=True)


def style_mates(bank: ImageBank, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each row another row of the same style, or itself where a style has no other."""
    mates = np.empty_like(rows)
    for i, row in enumerate(rows):
        others = bank.rows_of_style[int(bank.style[row])]
        pick = others[int(rng.integers(len(others)))]
        mates[i] = pick if pick != row else others[(int(np.flatnonzero(others == row)[0]) + 1) % len(others)]
    return mates


def train_adapter_stage(
    folder: Path,
    unet: UNet,
    data: TrainingData,
    stage: AdapterStage,
    steps: int,
    processes: int = 1,
    lr: float = 1e-3,
    begin: Adapter | None = None,
) -> Adapter:
    """Train an adapter for a frozen base (resumable, as the stage's checkpoint).

    Embeddings of references are read at 64 px, as the image encoder sees every picture.
    """
    assert data.embeds is not None, "adapters need image embeddings: prepare(..., embeds=True)"
    net = TrainableAdapter(unet, stage.plan, init_from=begin)
    unet.requires_grad_(False).eval().to(device())
    first, rest = unet.split_at(net.first_module)
    embeds, pause = data.embeds, Pause(folder / "PAUSE")

    def loss(number: int) -> Tensor:
        pause.wait()
        rng = np.random.default_rng([43, number])
        step = number // processes
        side = LARGE if int((step + 1) * LARGE_SHARE) > int(step * LARGE_SHARE) else SIDE
        rows = rng.integers(len(data.bank.concept), size=BATCH[side])
        context, pooled = data.captions.draw(rows, ADAPTER_SHARES, rng)
        shown = torch.from_numpy((rng.random(len(rows)) >= NO_REFERENCE).astype(np.float32)).to(device())
        references = style_mates(data.bank, rows, rng) if stage.paired else rows
        attend = net.attend(embeds[torch.from_numpy(references)].to(device()) * shown[:, None])

        def predict(noised: Tensor, at: Tensor) -> Tensor:
            with torch.no_grad():
                text = unet.precompute_kv(context)
                state = first(noised, at.float(), text, pooled, square_time_ids(len(rows), side))
            return rest(state, text, attend=attend)

        return diffusion_loss(predict, data.latents[side][torch.from_numpy(rows)], rng, snr_cap=10.0)

    name = stage.name
    batch = round(BATCH[LARGE] * LARGE_SHARE + BATCH[SIDE] * (1 - LARGE_SHARE))
    weights = train_stage(
        name, net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.998, muon_lr=3 * lr
    )
    net.load_state_dict(weights)
    return net.requires_grad_(False).adapter
