# pyright: reportUnknownMemberType=false, reportArgumentType=false

"""The UNet and the style adapter learn together, so that style gets a way in at the blocks that the plan names.

A frozen UNet let lightness through these blocks and no colour (benchmarks/LOG.md).  Here most rows have a reference of
another thing in the target's style and a caption of content alone, so that only the style blocks can tell the look; the
others are text alone, half of them with words for the look, so that the base model remains one.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan
from instantstyle.networks.unet import UNet
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.dataset import TrainingSet
from instantstyle.train.emoji.style_classifier import StyleLoss
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import diffusion_loss, square_time_ids

_REFERENCE, _BLANK = 0.85, 0.05
"""Shares of rows with a reference and with a blank one (guidance's other side); the rest have none."""
_RARER = {"neon": 0.4, "pencil": 0.5, "chalk": 0.4, "halftone": 0.7}
"""How often looks that follow well already are drawn, to 1 of every other (judged on trained cells)."""


class JointModel(nn.Module):
    """A UNet and an adapter for the blocks of a plan, as one network to train."""

    def __init__(self, unet: UNet, plan: BlockPlan) -> None:
        super().__init__()
        self.unet, self.style = unet, TrainableAdapter(unet, plan)


_LOOK, _LOOKED_AT = 0.01, 850
"""Weight of how wrongly a row with a reference looks, and the time above which a row has no look yet."""


def train_joint(
    folder: Path,
    net: JointModel,
    corpus: TrainingSet,
    looks: StyleLoss | None,
    steps: int,
    batch: int = 128,
    lr: float = 6e-4,
) -> dict[str, Tensor]:
    """Train both (resumable, as stage `joint`); returns the averaged weights, by name, of `unet` and of `style`.

    `looks` lends a second loss, where there is a reader of looks.
    """
    unet, bank = net.unet, corpus.bank
    often = np.array([_RARER.get(treatment.kind, 1.0) for treatment in bank.treatments])[bank.style]

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([23, number])
        rows = corpus.rows(batch, rng, often)
        kind = rng.random(batch)
        heard = kind < _REFERENCE + _BLANK
        context, pooled = corpus.captions(rows, styled=np.where(heard, 0.1, 0.5), dropped=0.1, rng=rng)
        shown = torch.from_numpy((kind < _REFERENCE).astype(np.float32)).to(device())
        seen = corpus.image_embeds(corpus.same_style_rows(rows, rng)) * shown[:, None]
        attend = net.style.attend(seen, torch.from_numpy(heard.astype(np.float32)).to(device()))

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            return unet(
                noised,
                time.float(),
                unet.precompute_kv(context),
                pooled,
                square_time_ids(batch, corpus.side),
                attend=attend,
            )

        def style_loss(latents: Tensor, time: Tensor) -> Tensor:
            assert looks is not None
            looked_at = ((shown > 0) & (time < _LOOKED_AT)).nonzero().flatten()
            return _LOOK * looks.loss(latents[looked_at], rows[looked_at.cpu().numpy()])

        return diffusion_loss(predict, corpus.latents[rows], rng, snr_cap=10.0, x0_loss=style_loss if looks else None)

    return train_stage(
        "joint", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.9985, muon_lr=3e-3
    )
