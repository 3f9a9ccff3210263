# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The base UNet: v-prediction on latents with a zero-terminal-SNR schedule, conditioned on text alone.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,      v = sqrt(a_t) e - sqrt(1 - a_t) x_0
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.families import EMOJI
from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.dataset import TrainingSet
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.training import device, train_stage

SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
"""The scheduler the model is trained for and shipped with (DDIM)."""


def time_ids(rows: int, side: int) -> Float[Tensor, "rows 6"]:
    """SDXL's size conditioning of square pictures: original size, crop corner, target size, each (height, width)."""
    return torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=device()).expand(rows, 6)


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Float[Tensor, "n c h w"],
    rng: np.random.Generator,
    early: float = 1.0,
    cap: float = 5.0,
    judge: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean squared error of v, weighted so that no time counts much more than others.

    (min(snr, cap) + 1) / (snr + 1): after min-SNR (Hang et al., arXiv 2303.09556, section 3.4) with gamma = cap + 1.
    Times are spread evenly and raised to the power `early`: below 1, more of them are noisy ones, where a picture's
    broad colours are settled (an even ground shows through noise almost at once, so late times teach nothing of it);
    above 1, more of them are late ones, where texture is.  The network runs in mixed precision.

    `judge` adds a loss of its own to it, of the latents as the network takes them to be, and of the times.
    """
    at = device()
    alphas, latents = _alphas().to(at), latents.to(at).float()
    share = ((np.arange(len(latents)) + rng.random()) / len(latents)) ** early
    time = torch.from_numpy((share * 1000).astype(np.int64)).to(at)
    kept = alphas[time].clamp(0, 1)
    generator = torch.Generator(at).manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(latents.shape, generator=generator, device=at)
    signal, spread = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
    target = signal * noise - spread * latents
    with autocast_bf16(at):
        predicted = predict(signal * latents + spread * noise, time)
    predicted = predicted.float()
    error = (predicted - target).square().mean(dim=(1, 2, 3))
    snr = kept / (1 - kept).clamp_min(1e-6)
    mean = (error * (snr.clamp(max=cap) + 1) / (snr + 1)).mean()
    if judge is None:
        return mean
    return mean + judge(signal * (signal * latents + spread * noise) - spread * predicted, time)


@cache
def _alphas() -> Tensor:
    return cast("Any", DDIMScheduler.from_config(SCHEDULE)).alphas_cumprod


def train_unet(folder: Path, corpus: TrainingSet, steps: int, batch: int = 64, lr: float = 1e-3) -> UNet:
    """Train the base UNet on text (resumable): a tenth of the captions empty.  Returns it with averaged weights."""
    net = make_unet()

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([13, number])
        rows = corpus.rows(batch, rng)
        context, pooled = corpus.captions(rows, styled=0.35, dropped=0.1, rng=rng)

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            return net(noised, time.float(), net.precompute_kv(context), pooled, time_ids(batch, corpus.side))

        return diffusion_loss(predict, corpus.latents[rows], rng)

    weights = train_stage("unet", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.9995)
    net.load_state_dict({**net.state_dict(), **weights})
    return net.eval()


def make_unet() -> UNet:
    """An untrained UNet of the built-in family; its last layer starts at zero."""
    torch.manual_seed(2)
    net = UNet(EMOJI.unet)
    nn.init.zeros_(net.conv_out.weight)
    if net.conv_out.bias is not None:
        nn.init.zeros_(net.conv_out.bias)
    return net
