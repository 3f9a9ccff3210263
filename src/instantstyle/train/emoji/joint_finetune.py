# pyright: reportUnknownMemberType=false, reportArgumentType=false

"""Joint training of the UNet and the style adapter, so that style can be set at the blocks of the plan.

With a frozen UNet these blocks passed on lightness and no colour (benchmarks/LOG.md).  Here most rows have a reference
of another concept in the target's style and a caption of content alone, so that only the style blocks can determine
the style.  The other rows are text alone, half of them with a description of the style, which keeps the base model.
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

_REFERENCE_SHARE, _BLANK_SHARE = 0.85, 0.05
"""Shares of rows with a reference and with a zero one (the unconditional case); the rest have no image tokens."""
_SAMPLING_WEIGHTS = {"neon": 0.4, "pencil": 0.5, "chalk": 0.4, "halftone": 0.7}
"""Sampling weights of style kinds that are reproduced well already (measured on trained cells); others have 1."""


class JointModel(nn.Module):
    """A UNet and an adapter for the blocks of a plan, as one network to train."""

    def __init__(self, unet: UNet, plan: BlockPlan) -> None:
        super().__init__()
        self.unet, self.style = unet, TrainableAdapter(unet, plan)


_STYLE_LOSS_WEIGHT, _STYLE_LOSS_MAX_TIMESTEP = 0.01, 850
"""Weight of the style classifier's loss, and the timestep from which it is not applied."""


def train_joint(
    folder: Path,
    net: JointModel,
    corpus: TrainingSet,
    classifier_loss: StyleLoss | None,
    steps: int,
    batch: int = 128,
    lr: float = 6e-4,
) -> dict[str, Tensor]:
    """Train both (resumable, as stage `joint`); returns the averaged weights, by name, of `unet` and of `style`.

    `classifier_loss` is added for the predicted x0 of rows with a reference.
    """
    unet, bank = net.unet, corpus.bank
    sampling_weights = np.array([_SAMPLING_WEIGHTS.get(treatment.kind, 1.0) for treatment in bank.treatments])[
        bank.style
    ]

    def loss(batch_seed: int) -> Tensor:
        rng = np.random.default_rng([23, batch_seed])
        indices = corpus.sample_indices(batch, rng, sampling_weights)
        draw = rng.random(batch)
        adapter_mask = draw < _REFERENCE_SHARE + _BLANK_SHARE
        prompt_embeds, pooled_prompt_embeds = corpus.captions(
            indices, styled=np.where(adapter_mask, 0.1, 0.5), dropped=0.1, rng=rng
        )
        reference_mask = torch.from_numpy((draw < _REFERENCE_SHARE).astype(np.float32)).to(device())
        image_embeds = corpus.image_embeds(corpus.same_style_rows(indices, rng)) * reference_mask[:, None]
        attend = net.style.attend(image_embeds, torch.from_numpy(adapter_mask.astype(np.float32)).to(device()))

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            return unet(
                noisy_latents,
                timesteps.float(),
                unet.precompute_kv(prompt_embeds),
                pooled_prompt_embeds,
                square_time_ids(batch, corpus.side),
                attend=attend,
            )

        def style_loss(latents: Tensor, timesteps: Tensor) -> Tensor:
            assert classifier_loss is not None
            selected = ((reference_mask > 0) & (timesteps < _STYLE_LOSS_MAX_TIMESTEP)).nonzero().flatten()
            return _STYLE_LOSS_WEIGHT * classifier_loss.loss(latents[selected], indices[selected.cpu().numpy()])

        return diffusion_loss(
            predict, corpus.latents[indices], rng, snr_cap=10.0, x0_loss=style_loss if classifier_loss else None
        )

    return train_stage(
        "joint", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.9985, muon_lr=3e-3
    )
