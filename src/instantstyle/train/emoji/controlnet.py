# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The built-in model's ControlNet (arXiv 2302.05543): Canny edges as a condition of the frozen UNet.

It is initialised with the UNet's encoder and zero output convolutions, and trained on captions and the Canny edges of
the target image.  The edges hold the target's texture (dots, hatching) as well as its outline, which competes with the
style of a reference: a control's start, end and weight limit that.

Images of the bank fill their canvas, so edges would add little to the caption: each image is shifted, mirrored and
scaled at random first, and half of the captions are empty.
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
"""Channels of the conditioning embedding, 64 x 64 pixels to 8 x 8 latents; diffusers' default is for larger nets."""
_STYLED_SHARE, _DROP_RATE = 0.35, 0.5
"""Shares of captions that describe the style, and of empty ones, in which the edges alone determine the content."""


def new_control(unet: UNet) -> ControlNetModel:
    """A ControlNet initialised with a UNet's encoder; its residuals are zero."""
    full_unet = diffusers_unet()
    full_unet.load_state_dict(unet.state_dict(), strict=True)
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(full_unet, conditioning_embedding_out_channels=CONDITIONING_CHANNELS)
    # Two zero layers in a row get no gradient; the output convolutions alone keep the initial residuals at zero.
    nn.init.kaiming_normal_(cast("Any", net.controlnet_cond_embedding).conv_out.weight)
    return net


def edges(pictures: npt.NDArray[np.uint8]) -> Float[Tensor, "rows 3 side side"]:
    """Canny edges of images [rows, side, side, 3] uint8, 0 or 1, as at inference; on the training device."""
    edge_maps = np.stack([canny(each) for each in pictures])
    return (torch.from_numpy(edge_maps).float() / 255)[:, None].expand(-1, 3, -1, -1).to(device())


def random_affine(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The image [side, side, 3] scaled by 0.7 to 1.05, shifted by up to side / 8, mirrored half the time."""
    side = image.shape[0]
    scale, (shift_x, shift_y) = rng.uniform(0.7, 1.05), rng.uniform(-side / 8, side / 8, 2)
    scale_x = scale if rng.random() < 0.5 else -scale
    center = (side - 1) / 2
    matrix = np.array([[scale_x, 0, center * (1 - scale_x) + shift_x], [0, scale, center * (1 - scale) + shift_y]])
    warped = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    return cast("npt.NDArray[np.uint8]", warped)


Encode = Callable[[npt.NDArray[np.uint8]], Tensor]
"""Latents of images [n, h, w, 3] uint8."""


def control_loss(
    net: nn.Module, unet: UNet, corpus: TrainingSet, encode: Encode, batch: int, rng: np.random.Generator
) -> Tensor:
    """`diffusion_loss` of the UNet on a batch, with the ControlNet's residuals for the edges of the targets."""
    indices = corpus.sample_indices(batch, rng)
    prompt_embeds, pooled_prompt_embeds = corpus.captions(indices, _STYLED_SHARE, _DROP_RATE, rng)
    pictures = np.stack([random_affine(np.ascontiguousarray(corpus.bank.pictures[index]), rng) for index in indices])
    image, added_cond_kwargs = (
        edges(pictures),
        {"text_embeds": pooled_prompt_embeds, "time_ids": square_time_ids(batch, corpus.side)},
    )

    def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        residuals: Residuals = net(
            noisy_latents,
            timesteps.float(),
            prompt_embeds,
            image,
            added_cond_kwargs=added_cond_kwargs,
            return_dict=False,
        )
        return unet(
            noisy_latents,
            timesteps.float(),
            unet.precompute_kv(prompt_embeds),
            pooled_prompt_embeds,
            square_time_ids(batch, corpus.side),
            residuals=residuals,
        )

    return diffusion_loss(predict, encode(pictures), rng, timestep_power=0.6)


def train_control(
    folder: Path, unet: UNet, corpus: TrainingSet, encode: Encode, steps: int, batch: int = 64, lr: float = 5e-4
) -> ControlNetModel:
    """Train a ControlNet for a frozen UNet (resumable, as stage `control`).  Returns it with averaged weights."""
    net = new_control(unet).train()
    unet.requires_grad_(False).to(device())

    def loss(batch_seed: int) -> Tensor:
        return control_loss(net, unet, corpus, encode, batch, np.random.default_rng([29, batch_seed]))

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
    """The loss without and with edges, on one batch of training images with noise that training did not draw."""
    unet.to(device())
    untrained = new_control(unet).eval().to(device())
    without_edges, with_edges = (
        float(control_loss(each, unet, corpus, encode, batch, np.random.default_rng([31, 0])))
        for each in (untrained, net.to(device()))
    )
    net.cpu()
    unet.cpu()
    return without_edges, with_edges
