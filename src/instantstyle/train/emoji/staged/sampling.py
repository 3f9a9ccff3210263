# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""Drawing with a network in training: DDIM on v-prediction, and sheets of samples to look at.

x_0 = sqrt(a) x - sqrt(1 - a) v,      e = sqrt(a) v + sqrt(1 - a) x,      x' = sqrt(a') x_0 + sqrt(1 - a') e
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.methods.cfg_rescale import rescale_noise_cfg
from instantstyle.networks.attention import Attend, plain
from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.dataset import Text
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.training import device
from instantstyle.train.emoji.unet import SCHEDULE, square_time_ids

ALPHAS: Float[Tensor, " 1000"] = cast("Any", DDIMScheduler.from_config(SCHEDULE)).alphas_cumprod
"""The schedule's signal shares by time; 0 at the last time."""
TIMES = len(ALPHAS)

Predict = Callable[[Tensor, Tensor], Tensor]
"""v of noisy latents at times, one a row."""


def split(
    noisy: Float[Tensor, "n c h w"], v: Float[Tensor, "n c h w"], time: Tensor
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """The picture and the noise that a prediction of v takes noisy latents to be made of."""
    kept = alphas_at(time)
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    return signal * noisy - spread * v, signal * v + spread * noisy


def joined(x0: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], time: Tensor) -> Float[Tensor, "n c h w"]:
    """Noisy latents at times, -1 being before the first: the picture itself."""
    kept = alphas_at(time)
    return kept.sqrt() * x0 + (1 - kept).sqrt() * noise


def alphas_at(time: Tensor) -> Float[Tensor, "n 1 1 1"]:
    """Signal shares at times, 1 at -1."""
    alphas = torch.cat([ALPHAS.clamp(0, 1), torch.ones(1)]).to(time.device)
    return alphas[time.long()][:, None, None, None]


def trailing(steps: int) -> list[int]:
    """The times of a DDIM run with trailing spacing, and -1, where it ends."""
    return [round(TIMES * (1 - i / steps)) - 1 for i in range(steps)] + [-1]


@torch.no_grad()
def sample(
    predict: Predict, shape: Sequence[int], seed: int, steps: int = 20, start: Tensor | None = None
) -> Float[Tensor, "n c h w"]:
    """Latents by DDIM without added noise, from noise of this seed or from `start`."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) if start is None else start
    x, times = x.to(device()), trailing(steps)
    for now, after in pairwise(times):
        at = torch.full((len(x),), now, device=x.device)
        x0, noise = split(x, predict(x, at).float(), at)
        x = joined(x0, noise, at - now + after)
    return x


def guided(
    unet: UNet,
    text: Text,
    empty: Text,
    side: int,
    guidance: float = 3.0,
    share: float = 0.7,
    attend: Attend = plain,
    empty_attend: Attend | None = None,
) -> Predict:
    """Predictions pushed away from those of the empty text, rescaled by `share`; both in half precision.

    `attend` hears the reference's tokens, if there is one, and `empty_attend` a reference of zeros.
    """
    read, nothing = unet.precompute_kv(text[0]), unet.precompute_kv(empty[0])

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        size = square_time_ids(len(noisy), side)
        with autocast_bf16(noisy.device):
            told = unet(noisy, time.float(), read, text[1], size, attend=attend).float()
            if guidance == 1:
                return told
            bare = unet(noisy, time.float(), nothing, empty[1], size, attend=empty_attend or attend).float()
        return rescale_noise_cfg(bare + guidance * (told - bare), told, share)

    return predict


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Float[Tensor, "n c h w"]) -> npt.NDArray[np.uint8]:
    """Pictures [n, height, width, 3] of latents of a VAE whose scaling factor is 1."""
    drawn = cast("Any", vae.decode(latents.to(vae.device).float())).sample.clamp(-1, 1).cpu()
    return ((drawn + 1) * 127.5).round().byte().movedim(1, -1).numpy()


def sheet(pictures: npt.NDArray[np.uint8], columns: int, path: Path, zoom: int = 1) -> None:
    """Write pictures [n, side, side, 3] as one picture, row by row, on white."""
    side, gap = pictures.shape[1], 4
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (gap + (side + gap) * i for i in divmod(number, columns))
        canvas[top : top + side, left : left + side] = picture
    image = Image.fromarray(canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
