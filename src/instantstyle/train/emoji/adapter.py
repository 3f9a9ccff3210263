# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The built-in model's IP-Adapter: a projection, and keys and values for the image's tokens at chosen blocks.

Two ways to train it.  *Same picture*, as IP-Adapter is published: the reference is the target, and all blocks learn
(InstantStyle mutes most of them later).  *Paired*: the reference is another thing in the target's style, and only the
blocks of a plan learn; everything upstream of them runs without a graph.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from instantstyle.blocks import BlockPlan
from instantstyle.networks.unet import UNet
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.dataset import TrainingSet
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import diffusion_loss, square_time_ids
from instantstyle.weights.adapter import Adapter

Reference = Literal["same", "paired"]
_DROPPED = 0.1
"""How often the text is left out, and how often the reference is, each on its own."""


def train_adapter(
    folder: Path,
    name: str,
    unet: UNet,
    plan: BlockPlan,
    reference: Reference,
    corpus: TrainingSet,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
) -> Adapter:
    """Train an adapter for a frozen UNet (resumable)."""
    net = TrainableAdapter(unet, plan)
    unet.requires_grad_(False).to(device())
    first_module = next(m for m in unet.config.modules if any(site.module == m for site in net.sites))
    first, rest = unet.split_at(first_module)

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([17, number])
        rows = corpus.rows(batch, rng)
        context, pooled = corpus.captions(rows, styled=0.35, dropped=_DROPPED, rng=rng)
        shown = torch.from_numpy((rng.random(batch) >= _DROPPED).astype(np.float32)).to(device())
        attend = net.attend(
            corpus.image_embeds(rows if reference == "same" else corpus.same_style_rows(rows, rng)) * shown[:, None]
        )

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            with torch.no_grad():
                state = first(
                    noised, time.float(), unet.precompute_kv(context), pooled, square_time_ids(batch, corpus.side)
                )
            return rest(state, unet.precompute_kv(context), attend=attend)

        return diffusion_loss(predict, corpus.latents[rows], rng)

    weights = train_stage(
        name, net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.998, muon_lr=3 * lr
    )
    net.load_state_dict(weights)
    unet.cpu()
    return net.requires_grad_(False).adapter
