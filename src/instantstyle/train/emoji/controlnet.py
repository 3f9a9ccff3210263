# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The built-in model's ControlNet (arXiv 2302.05543): from the edges of a picture, for the frozen UNet to draw along.

It begins as a copy of the UNet's first half, its say at zero, and learns from text and the Canny edges of the target
picture itself.  So the edges carry the target's texture too, dots and hatching with the outline: what a reference says
of such things competes with the edges, which is what the window and the weight of a control are for.

Pictures in the bank all fill their canvas, so edges would say little that words do not: each is moved, turned over and
scaled first, and half of the captions are empty.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.controlnet import canny
from instantstyle.networks.unet import Residuals, UNet
from instantstyle.train.emoji.dataset import TrainingSet
from instantstyle.train.emoji.export import diffusers_unet
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import diffusion_loss, square_time_ids

CONDITIONING_CHANNELS = (16, 32, 64, 96)
"""Widths in which the edges are read, from 64 x 64 pixels to the latents' 8 x 8; diffusers' own are for larger nets."""
_STYLED, _DROPPED = 0.35, 0.5
"""Shares of captions that speak of the look, and that are empty: without words the edges must say what it is."""


def new_control(unet: UNet) -> ControlNetModel:
    """A ControlNet that begins as a copy of a UNet's first half and says nothing yet."""
    whole = diffusers_unet()
    whole.load_state_dict(unet.state_dict(), strict=True)
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(whole, conditioning_embedding_out_channels=CONDITIONING_CHANNELS)
    # Two layers at zero in a row learn from each other alone; the later ones keep the first step silent.
    nn.init.kaiming_normal_(cast("Any", net.controlnet_cond_embedding).conv_out.weight)
    return net


def edges(pictures: npt.NDArray[np.uint8]) -> Float[Tensor, "rows 3 side side"]:
    """The Canny edges of pictures [rows, side, side, 3], 0 or 1, as inference makes them; on the training device."""
    lines = np.stack([canny(each) for each in pictures])
    return (torch.from_numpy(lines).float() / 255)[:, None].expand(-1, 3, -1, -1).to(device())


def random_affine(picture: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The picture [side, side, 3] scaled by .7 to 1.05, moved by up to an eighth and perhaps mirrored, same ground."""
    side = picture.shape[0]
    scale, (right, down) = rng.uniform(0.7, 1.05), rng.uniform(-side / 8, side / 8, 2)
    across = scale if rng.random() < 0.5 else -scale
    middle = (side - 1) / 2
    turn = np.array([[across, 0, middle * (1 - across) + right], [0, scale, middle * (1 - scale) + down]])
    drawn = cv2.warpAffine(picture, turn, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    return cast("npt.NDArray[np.uint8]", drawn)


Encode = Callable[[npt.NDArray[np.uint8]], Tensor]
"""Latents of pictures."""


def control_loss(
    net: nn.Module, unet: UNet, corpus: TrainingSet, encode: Encode, batch: int, rng: np.random.Generator
) -> Tensor:
    """The UNet's error of v on a batch, steered by the edges of the targets."""
    rows = corpus.rows(batch, rng)
    context, pooled = corpus.captions(rows, _STYLED, _DROPPED, rng)
    pictures = np.stack([random_affine(np.ascontiguousarray(corpus.bank.pictures[row]), rng) for row in rows])
    picture, added = edges(pictures), {"text_embeds": pooled, "time_ids": square_time_ids(batch, corpus.side)}

    def predict(noised: Tensor, time: Tensor) -> Tensor:
        said: Residuals = net(noised, time.float(), context, picture, added_cond_kwargs=added, return_dict=False)
        return unet(
            noised,
            time.float(),
            unet.precompute_kv(context),
            pooled,
            square_time_ids(batch, corpus.side),
            residuals=said,
        )

    return diffusion_loss(predict, encode(pictures), rng, timestep_power=0.6)


def train_control(
    folder: Path, unet: UNet, corpus: TrainingSet, encode: Encode, steps: int, batch: int = 64, lr: float = 5e-4
) -> ControlNetModel:
    """Train a ControlNet for a frozen UNet (resumable, as stage `control`).  Returns it with averaged weights."""
    net = new_control(unet).train()
    unet.requires_grad_(False).to(device())

    def loss(number: int) -> Tensor:
        return control_loss(net, unet, corpus, encode, batch, np.random.default_rng([29, number]))

    weights = train_stage(
        "control", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.998, muon_lr=6 * lr
    )
    net.load_state_dict(weights)
    unet.cpu()
    return net.requires_grad_(False).eval()


@torch.no_grad()
def control_gain(
    net: ControlNetModel, unet: UNet, corpus: TrainingSet, encode: Encode, batch: int = 256
) -> tuple[float, float]:
    """The error of v on one batch of training pictures and noise that no step met: without edges, and with them."""
    unet.to(device())
    silent = new_control(unet).eval().to(device())
    without, given = (
        float(control_loss(each, unet, corpus, encode, batch, np.random.default_rng([31, 0])))
        for each in (silent, net.to(device()))
    )
    net.cpu()
    unet.cpu()
    return without, given
