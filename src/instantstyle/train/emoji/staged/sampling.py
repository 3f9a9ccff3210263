# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""Sampling from a network in training: DDIM on v-prediction, and grids of samples.

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

ALPHAS_CUMPROD: Float[Tensor, " 1000"] = cast("Any", DDIMScheduler.from_config(SCHEDULE)).alphas_cumprod
"""The schedule's cumulative alphas by timestep; 0 at the last."""
NUM_TRAIN_TIMESTEPS = len(ALPHAS_CUMPROD)

Predict = Callable[[Tensor, Tensor], Tensor]
"""v of noisy latents at timesteps, one a row."""


def predict_x0_noise(
    noisy_latents: Float[Tensor, "n c h w"], v: Float[Tensor, "n c h w"], timesteps: Tensor
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """x0 and noise of noisy latents, by a prediction of v."""
    alphas_cumprod = alphas_cumprod_at(timesteps)
    alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    return alpha * noisy_latents - sigma * v, alpha * v + sigma * noisy_latents


def mix_noise(
    x0: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], timesteps: Tensor
) -> Float[Tensor, "n c h w"]:
    """Noisy latents at timesteps from -1 (x0 itself) to 999."""
    alphas_cumprod = alphas_cumprod_at(timesteps)
    return alphas_cumprod.sqrt() * x0 + (1 - alphas_cumprod).sqrt() * noise


def alphas_cumprod_at(timesteps: Tensor) -> Float[Tensor, "n 1 1 1"]:
    """Cumulative alphas at timesteps, 1 at -1."""
    alphas = torch.cat([ALPHAS_CUMPROD.clamp(0, 1), torch.ones(1)]).to(timesteps.device)
    return alphas[timesteps.long()][:, None, None, None]


def trailing(steps: int) -> list[int]:
    """The timesteps of a DDIM run with trailing spacing, and a final -1."""
    return [round(NUM_TRAIN_TIMESTEPS * (1 - i / steps)) - 1 for i in range(steps)] + [-1]


@torch.no_grad()
def sample(
    predict: Predict, shape: Sequence[int], seed: int, steps: int = 20, initial: Tensor | None = None
) -> Float[Tensor, "n c h w"]:
    """Latents by DDIM without added noise, from noise of this seed or from `initial`."""
    latents = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) if initial is None else initial
    latents, schedule = latents.to(device()), trailing(steps)
    for timestep, next_timestep in pairwise(schedule):
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        x0, noise = predict_x0_noise(latents, predict(latents, timesteps).float(), timesteps)
        latents = mix_noise(x0, noise, timesteps - timestep + next_timestep)
    return latents


def guided(
    unet: UNet,
    text: Text,
    empty: Text,
    side: int,
    guidance: float = 3.0,
    guidance_rescale: float = 0.7,
    attend: Attend = plain,
    empty_attend: Attend | None = None,
) -> Predict:
    """Classifier-free guidance in bfloat16, rescaled by `guidance_rescale` (`rescale_noise_cfg`).

    `attend` reads the reference's image tokens, if there is one, and `empty_attend` those of a zero embedding.
    """
    text_kv, empty_kv = unet.precompute_kv(text[0]), unet.precompute_kv(empty[0])

    def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        time_ids = square_time_ids(len(noisy_latents), side)
        with autocast_bf16(noisy_latents.device):
            conditional = unet(noisy_latents, timesteps.float(), text_kv, text[1], time_ids, attend=attend).float()
            if guidance == 1:
                return conditional
            unconditional = unet(
                noisy_latents, timesteps.float(), empty_kv, empty[1], time_ids, attend=empty_attend or attend
            ).float()
        return rescale_noise_cfg(
            unconditional + guidance * (conditional - unconditional), conditional, guidance_rescale
        )

    return predict


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Float[Tensor, "n c h w"]) -> npt.NDArray[np.uint8]:
    """Images [n, height, width, 3] uint8 of latents, for a VAE with scaling factor 1."""
    decoded = cast("Any", vae.decode(latents.to(vae.device).float())).sample.clamp(-1, 1).cpu()
    return ((decoded + 1) * 127.5).round().byte().movedim(1, -1).numpy()


def sheet(pictures: npt.NDArray[np.uint8], columns: int, path: Path, zoom: int = 1) -> None:
    """Write images [n, side, side, 3] as one grid with `columns` columns on white, enlarged `zoom` times."""
    side, gap = pictures.shape[1], 4
    grid_rows = -(-len(pictures) // columns)
    canvas = np.full((grid_rows * (side + gap) + gap, columns * (side + gap) + gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (gap + (side + gap) * i for i in divmod(number, columns))
        canvas[top : top + side, left : left + side] = picture
    image = Image.fromarray(canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
