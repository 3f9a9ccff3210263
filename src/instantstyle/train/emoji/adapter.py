# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The built-in model's IP-Adapter (arXiv 2308.06721): an image projection, and image keys and values at some blocks.

`same`: the reference is the target image, as IP-Adapter was trained.  `paired`: the reference is an image of another
concept in the target's style.  Only the blocks of the plan are trained; the UNet before the first of them runs without
a graph.
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
_DROP_RATE = 0.1
"""Probability of an empty caption, and, independently, of a zero reference embedding."""


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
    """Train an adapter for a frozen UNet (resumable, as stage `name`); returns it with averaged weights."""
    net = TrainableAdapter(unet, plan)
    unet.requires_grad_(False).to(device())
    first_module = next(m for m in unet.config.modules if any(site.module == m for site in net.sites))
    head, tail = unet.split_at(first_module)

    def loss(batch_seed: int) -> Tensor:
        rng = np.random.default_rng([17, batch_seed])
        indices = corpus.sample_indices(batch, rng)
        prompt_embeds, pooled_prompt_embeds = corpus.captions(indices, styled=0.35, dropped=_DROP_RATE, rng=rng)
        reference_mask = torch.from_numpy((rng.random(batch) >= _DROP_RATE).astype(np.float32)).to(device())
        attend = net.attend(
            corpus.image_embeds(indices if reference == "same" else corpus.same_style_rows(indices, rng))
            * reference_mask[:, None]
        )

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            with torch.no_grad():
                state = head(
                    noisy_latents,
                    timesteps.float(),
                    unet.precompute_kv(prompt_embeds),
                    pooled_prompt_embeds,
                    square_time_ids(batch, corpus.side),
                )
            return tail(state, unet.precompute_kv(prompt_embeds), attend=attend)

        return diffusion_loss(predict, corpus.latents[indices], rng)

    weights = train_stage(
        name, net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.998, muon_lr=3 * lr
    )
    net.load_state_dict(weights)
    unet.cpu()
    return net.requires_grad_(False).adapter
