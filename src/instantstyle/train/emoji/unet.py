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
from instantstyle.networks.denoiser import make_time_ids
from instantstyle.networks.prediction import predict_x0_eps, prediction_target
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


def square_time_ids(batch_size: int, side: int) -> Float[Tensor, "rows 6"]:
    """SDXL's size conditioning of pictures of side x side pixels, on the training device."""
    return make_time_ids((side, side), batch_size, device())


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Float[Tensor, "n c h w"],
    rng: np.random.Generator,
    timestep_power: float = 1.0,
    snr_cap: float = 5.0,
    x0_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean squared error of v, weighted so that no timestep dominates.

    (min(snr, snr_cap) + 1) / (snr + 1): min-SNR (Hang et al., arXiv 2303.09556, section 3.4) with gamma = snr_cap + 1.
    Timesteps are spread evenly over [0, 1), raised to `timestep_power` and scaled to 1000: below 1 there are more noisy
    ones, at which broad colours are determined (a uniform background is visible through noise almost at once, so steps
    of little noise teach nothing of it); above 1 there are more of little noise, at which texture is determined.
    `predict` gives v of noisy latents at timesteps, and runs in mixed precision.

    `x0_loss` is added to it: a loss of the predicted x0 and the timesteps.
    """
    target_device = device()
    alphas_cumprod, latents = _alphas_cumprod().to(target_device), latents.to(target_device).float()
    fractions = ((np.arange(len(latents)) + rng.random()) / len(latents)) ** timestep_power
    timesteps = torch.from_numpy((fractions * 1000).astype(np.int64)).to(target_device)
    alpha_squared = alphas_cumprod[timesteps].clamp(0, 1)
    generator = torch.Generator(target_device).manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(latents.shape, generator=generator, device=target_device)
    alpha, sigma = (x.sqrt()[:, None, None, None] for x in (alpha_squared, 1 - alpha_squared))
    noisy = alpha * latents + sigma * noise
    target = prediction_target(latents, noise, alpha, sigma, "v_prediction")
    with autocast_bf16(target_device):
        predicted = predict(noisy, timesteps)
    predicted = predicted.float()
    error = (predicted - target).square().mean(dim=(1, 2, 3))
    snr = alpha_squared / (1 - alpha_squared).clamp_min(1e-6)
    mean = (error * (snr.clamp(max=snr_cap) + 1) / (snr + 1)).mean()
    if x0_loss is None:
        return mean
    return mean + x0_loss(predict_x0_eps(predicted, noisy, alpha, sigma, "v_prediction")[0], timesteps)


@cache
def _alphas_cumprod() -> Tensor:
    return cast("Any", DDIMScheduler.from_config(SCHEDULE)).alphas_cumprod


def train_unet(folder: Path, corpus: TrainingSet, steps: int, batch: int = 64, lr: float = 1e-3) -> UNet:
    """Train the base UNet on text (resumable): a tenth of the captions empty.  Returns it with averaged weights."""
    net = make_unet()

    def loss(batch_seed: int) -> Tensor:
        rng = np.random.default_rng([13, batch_seed])
        indices = corpus.sample_indices(batch, rng)
        prompt_embeds, pooled_prompt_embeds = corpus.captions(indices, styled=0.35, dropped=0.1, rng=rng)

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            return net(
                noisy_latents,
                timesteps.float(),
                net.precompute_kv(prompt_embeds),
                pooled_prompt_embeds,
                square_time_ids(batch, corpus.side),
            )

        return diffusion_loss(predict, corpus.latents[indices], rng)

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
