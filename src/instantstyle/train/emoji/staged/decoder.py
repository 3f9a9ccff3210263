# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The decoder at 128 px: trained to draw crisply what a sampler leaves.

Its input is the true latent with a little noise in half of the steps, and in the others what the base takes the
picture to be, seen through noise, in one prediction: smoother than the truth, as sampled latents are.  Beside the error
stands an adversarial term (hinge, a patch discriminator, weighted as in VQGAN, arXiv 2012.09841, equation 7).
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
from instantstyle.train.emoji.staged.sampling import joined, split
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.unet import square_time_ids
from instantstyle.train.emoji.vae import to_tensor

STAGE = "decoder"
RATE, BATCH = 6e-4, 16
LATEST = 450
"""Times below this are those from which the base's one prediction is decoded."""
ADVERSARIAL = 0.4
"""Length of the adversarial gradient at the last layer, to 1 of the error's."""
BEGIN_ADVERSARIAL = 150
"""Steps before the adversarial term is heard: the discriminator learns first."""
_NOISE = 0.3
"""The most noise in a true latent."""


class Discriminator(nn.Module):
    """Real or drawn, patch by patch: logits for overlapping patches of 30 pixels."""

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
    """Decoder and discriminator, as one network to train with one loss."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.discriminator = Discriminator()

    def judged(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 a b"]:
        """The discriminator's logits, learning nothing itself."""
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, frozen, (pictures,))

    def loss(
        self, drawn: Float[Tensor, "n 3 h w"], real: Float[Tensor, "n 3 h w"], adversarial: float = ADVERSARIAL
    ) -> Tensor:
        """Both networks' losses in one: each sends its gradient to its own weights alone."""
        error = reconstruction(drawn, real)
        told_real, told_drawn = self.discriminator(real), self.discriminator(drawn.detach())
        hinge = F.relu(1 - told_real).mean() + F.relu(1 + told_drawn).mean()
        if not adversarial:
            return error + hinge
        fooled = -self.judged(drawn).mean()
        last = self.decoder.conv_out.weight
        lengths = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (error, fooled)]
        weight = adversarial * (lengths[0] / (lengths[1] + 1e-6)).clamp(max=10).detach()
        return error + weight * fooled + hinge


def reconstruction(drawn: Float[Tensor, "n 3 h w"], real: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Absolute and squared error, and the absolute error of differences between neighbours."""
    error = drawn - real
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    return error.abs().mean() + error.square().mean() + 0.5 * (across.abs().mean() + down.abs().mean())


def one_prediction(unet: UNet, data: TrainingData) -> Callable[[np.ndarray, np.random.Generator], Tensor]:
    """What the base takes pictures to be, seen through noise of random times below `LATEST`: latents by rows."""

    @torch.no_grad()
    def predicted(rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        latents = data.latents[LARGE][torch.from_numpy(rows)].to(device()).float()
        context, pooled = data.captions.of(rows, np.full(len(rows), int(Column.THING_AND_LOOK)))
        time = torch.from_numpy(rng.integers(LATEST, size=len(rows))).to(device())
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
        noisy = joined(latents, noise, time)
        with autocast_bf16(device()):
            v = unet(noisy, time.float(), unet.precompute_kv(context), pooled, square_time_ids(len(rows), LARGE))
        return split(noisy, v.float(), time)[0]

    return predicted


def train_decoder(
    folder: Path, vae: AutoencoderKL, unet: UNet, data: TrainingData, steps: int, processes: int = 1
) -> AutoencoderKL:
    """Train a VAE's decoder (resumable, as stage `decoder`); returns the VAE with its averaged weights."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    net, pause = Adversaries(vae), Pause(folder / "PAUSE")
    predicted = one_prediction(unet.requires_grad_(False).eval().to(device()), data)

    def loss(number: int) -> Tensor:
        pause.wait()
        rng, step = np.random.default_rng([47, number]), number // processes
        rows = np.sort(rng.integers(len(data.bank.concept), size=BATCH))
        real = to_tensor(data.bank.pictures[rows]).to(device())
        if step % 2:
            latents = predicted(rows, rng)
        else:
            latents = data.latents[LARGE][torch.from_numpy(rows)].to(device()).float()
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
            spread = torch.from_numpy(_NOISE * rng.random((BATCH, 1, 1, 1), dtype=np.float32) ** 2).to(device())
            latents = latents + spread * noise
        with autocast_bf16(device()):
            drawn = net.decoder(latents)
            return net.loss(drawn.float(), real, ADVERSARIAL if step >= BEGIN_ADVERSARIAL else 0.0)

    weights = train_stage(STAGE, net, loss, folder=folder, steps=steps, lr=RATE, batch=BATCH, ema_decay=0.995)
    net.load_state_dict({**net.state_dict(), **weights})
    return vae.cpu().requires_grad_(False).eval()
