# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The VAE decoder at 128 px, trained for sharp images from sampled latents.

Its input is the encoded latent with a little noise in half of the steps, and in the others the base's x0 prediction
from a noisy latent, which is smoother, as sampled latents are.  The loss is a reconstruction error and an adversarial
term (hinge, a patch discriminator, weighted as in VQGAN, arXiv 2012.09841, equation 7).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.staged.base import Pause
from instantstyle.train.emoji.staged.captions import Column
from instantstyle.train.emoji.staged.data import LARGE, TrainingData
from instantstyle.train.emoji.staged.sampling import mix_noise, predict_x0_noise
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import square_time_ids
from instantstyle.train.emoji.vae import to_tensor

STAGE = "decoder"
RATE, BATCH = 6e-4, 16
MAX_TIMESTEP = 450
"""Timesteps of the decoded x0 predictions are below this."""
ADVERSARIAL = 0.4
"""Norm of the adversarial gradient at the last layer, relative to the reconstruction error's."""
BEGIN_ADVERSARIAL = 150
"""Steps in which only the discriminator is trained adversarially, before the decoder is."""
_NOISE = 0.3
"""Most noise (std) added to an encoded latent."""


class Discriminator(nn.Module):
    """A patch discriminator: logits, positive for real, of overlapping patches of 30 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(6)
        layers: list[nn.Module] = []
        for into, out, stride in ((3, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 1)):
            layers += [spectral_norm(nn.Conv2d(into, out, 4, stride, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 a b"]:
        """Logits, positive for real."""
        return self.layers(pictures)


class Adversaries(nn.Module):
    """Decoder and discriminator as one module with one loss."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.discriminator = Discriminator()

    def frozen_logits(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 a b"]:
        """The discriminator's logits with its weights detached: gradients reach `pictures` alone."""
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, frozen, (pictures,))

    def loss(
        self, decoded: Float[Tensor, "n 3 h w"], real: Float[Tensor, "n 3 h w"], adversarial: float = ADVERSARIAL
    ) -> Tensor:
        """The sum of both networks' losses; each has gradients for its own network's weights alone."""
        error = reconstruction(decoded, real)
        real_logits, decoded_logits = self.discriminator(real), self.discriminator(decoded.detach())
        discriminator_loss = F.relu(1 - real_logits).mean() + F.relu(1 + decoded_logits).mean()
        if not adversarial:
            return error + discriminator_loss
        generator_loss = -self.frozen_logits(decoded).mean()
        last_weight = self.decoder.conv_out.weight
        gradient_norms = [
            torch.autograd.grad(term, last_weight, retain_graph=True)[0].norm() for term in (error, generator_loss)
        ]
        weight = adversarial * (gradient_norms[0] / (gradient_norms[1] + 1e-6)).clamp(max=10).detach()
        return error + weight * generator_loss + discriminator_loss


def reconstruction(decoded: Float[Tensor, "n 3 h w"], real: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Absolute and squared error, and the absolute error of horizontal and vertical image gradients."""
    error = decoded - real
    dx, dy = error.diff(dim=-1), error.diff(dim=-2)
    return error.abs().mean() + error.square().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean())


def x0_predictor(unet: UNet, data: TrainingData) -> Callable[[np.ndarray, np.random.Generator], Tensor]:
    """A function from image indices to the base's x0 predictions, at random timesteps below `MAX_TIMESTEP`."""

    @torch.no_grad()
    def predict_x0(indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        latents = data.latents[LARGE][torch.from_numpy(indices)].to(device()).float()
        prompt_embeds, pooled_prompt_embeds = data.captions.lookup(
            indices, np.full(len(indices), int(Column.THING_AND_LOOK))
        )
        timesteps = torch.from_numpy(rng.integers(MAX_TIMESTEP, size=len(indices))).to(device())
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
        noisy_latents = mix_noise(latents, noise, timesteps)
        with autocast_bf16(device()):
            v = unet(
                noisy_latents,
                timesteps.float(),
                unet.precompute_kv(prompt_embeds),
                pooled_prompt_embeds,
                square_time_ids(len(indices), LARGE),
            )
        return predict_x0_noise(noisy_latents, v.float(), timesteps)[0]

    return predict_x0


def train_decoder(
    folder: Path, vae: AutoencoderKL, unet: UNet, data: TrainingData, steps: int, processes: int = 1
) -> AutoencoderKL:
    """Train a VAE's decoder (resumable, as stage `decoder`); returns the VAE with its averaged weights."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    net, pause = Adversaries(vae), Pause(folder / "PAUSE")
    predict_x0 = x0_predictor(unet.requires_grad_(False).eval().to(device()), data)

    def loss(batch_seed: int) -> Tensor:
        pause.wait()
        rng, step = np.random.default_rng([47, batch_seed]), batch_seed // processes
        indices = np.sort(rng.integers(len(data.bank.concept), size=BATCH))
        real = to_tensor(data.bank.pictures[indices]).to(device())
        if step % 2:
            latents = predict_x0(indices, rng)
        else:
            latents = data.latents[LARGE][torch.from_numpy(indices)].to(device()).float()
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
            noise_level = torch.from_numpy(_NOISE * rng.random((BATCH, 1, 1, 1), dtype=np.float32) ** 2).to(device())
            latents = latents + noise_level * noise
        with autocast_bf16(device()):
            decoded = net.decoder(latents)
            return net.loss(decoded.float(), real, ADVERSARIAL if step >= BEGIN_ADVERSARIAL else 0.0)

    weights = train_stage(STAGE, net, loss, folder=folder, steps=steps, lr=RATE, batch=BATCH, ema_decay=0.995)
    net.load_state_dict({**net.state_dict(), **weights})
    return vae.cpu().requires_grad_(False).eval()
