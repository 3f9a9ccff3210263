# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The VAE: an encoder that is exactly a linear transform, and a decoder trained to undo it.

The encoder of a diffusers AutoencoderKL can be made to compute the principal components of 8 x 8 patches, so latents
are known before any training, and UNet and decoder can be trained at the same time:

- a stride-2 convolution can move a 2 x 2 patch into channels, and keep only its principal directions;
- a residual block whose last convolution is zero is the identity;
- SiLU(x) - SiLU(-x) = x, so channels carried in pairs of +d and -d pass the last nonlinearity unchanged;
- a pair of constants +K and -K in each group, large beside the data, makes the group norm a fixed scale.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.training import device, train_stage

LATENT_CHANNELS = 32
_WIDTHS = (16, 32, 64, 96)
_GROUPS = 8
_CONSTANT = 64.0
_MAX_LATENT_NOISE = 0.5
"""Most noise (std, for latents of RMS 1) that the decoder is trained to remove: samplers leave some."""
_WHITENING = 0.5
"""Each component is divided by its spread to this power: 0 is plain PCA, 1 gives all components the same weight."""


def make_vae(side: int = 64) -> AutoencoderKL:
    """An untrained VAE of the built-in model: 64 px pictures to 8 x 8 latents of 32 channels, 1.7 M weights.

    `side` is only recorded in the configuration: the weights fit every size.
    """
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=_GROUPS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=side,
        scaling_factor=1.0,
    )


def principal(
    x: Float[Tensor, "n dims"], keep: int
) -> tuple[Float[Tensor, "keep dims"], Float[Tensor, " dims"], Float[Tensor, " keep"]]:
    """The first principal directions of a sample, its mean, and the spread along each direction."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return vectors.flip(1)[:, :keep].T.contiguous(), mean, values.flip(0)[:keep].clamp_min(1e-8).sqrt()


def init_pca_encoder(vae: AutoencoderKL, pictures: Float[Tensor, "n 3 height width"]) -> None:
    """Set the encoder to the partly whitened principal components of the pictures' 8 x 8 patches, latents of RMS 1."""
    encoder = cast("Any", vae.encoder)
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p.zero_()
        for i in range(3):
            encoder.conv_in.weight[i, i, 1, 1] = 1
        x, width = pictures, 3
        for level, block in enumerate(encoder.down_blocks):
            resnet = block.resnets[0]
            if resnet.conv_shortcut is not None and level < 3:
                for i in range(width):
                    resnet.conv_shortcut.weight[i, i, 0, 0] = 1
            if level == 3:
                break
            patches = F.pixel_unshuffle(x, 2)
            keep = min(4 * width, _WIDTHS[level])
            flat = patches.movedim(1, -1).flatten(0, -2)
            basis = torch.eye(4 * width) if keep == 4 * width else principal(flat, keep)[0]
            taps = basis.reshape(keep, width, 2, 2)
            block.downsamplers[0].conv.weight[:keep, :width, :2, :2] = taps
            x, width = torch.einsum("kc,nchw->nkhw", basis, patches), keep
        flat = x.movedim(1, -1).flatten(0, -2)
        basis, mean, spread = principal(flat, LATENT_CHANNELS)
        scale = spread**-_WHITENING
        scale = scale / (scale * spread).square().mean().sqrt()
        directions, offset = basis * scale[:, None], -(basis @ mean) * scale
        shortcut = encoder.down_blocks[3].resnets[0].conv_shortcut
        per_group, channels = LATENT_CHANNELS // _GROUPS, _WIDTHS[3] // _GROUPS
        encoder.conv_norm_out.weight.fill_(_CONSTANT * (2 / channels) ** 0.5)
        for i in range(LATENT_CHANNELS):
            plus = (i // per_group) * channels + 2 * (i % per_group)
            for channel, sign in ((plus, 1.0), (plus + 1, -1.0)):
                shortcut.weight[channel, :width, 0, 0] = sign * directions[i]
                shortcut.bias[channel] = sign * offset[i]
                encoder.conv_out.weight[i, channel, 1, 1] = sign
            encoder.conv_out.bias[LATENT_CHANNELS + i] = -12.0
        for group in range(_GROUPS):
            constant = group * channels + 2 * per_group
            shortcut.bias[constant], shortcut.bias[constant + 1] = _CONSTANT, -_CONSTANT


def to_tensor(pictures: npt.NDArray[np.uint8]) -> Float[Tensor, "n 3 height width"]:
    """Images [n, h, w, 3] uint8 as float32 [n, 3, h, w] from -1 to 1."""
    return torch.from_numpy(np.array(pictures)).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pictures: npt.NDArray[np.uint8]) -> Float[Tensor, "n c h w"]:
    """Latents (the posterior's mean, scaled) of pictures [n, h, w, 3] uint8."""
    latents = cast("Any", vae.encode(to_tensor(pictures))).latent_dist.mean
    return latents * float(cast("Any", vae.config).scaling_factor)


@torch.no_grad()
def encode_many(vae: AutoencoderKL, pictures: npt.NDArray[np.uint8], batch: int = 1024) -> Float[Tensor, "n c h w"]:
    """`encode_pixels` in float16 for many images, as one matrix product (the encoder is linear): 100 times faster.

    The matrix is the encoder's output for the unit vectors of an 8 x 8 patch.
    """
    pixels = torch.cat([torch.zeros(1, 192), torch.eye(192)])
    responses = cast("Any", vae.encode(F.pixel_shuffle(pixels[:, :, None, None], 8))).latent_dist.mean.flatten(1)
    scale = float(cast("Any", vae.config).scaling_factor)
    offset, matrix = responses[0] * scale, (responses[1:] - responses[0]) * scale
    parts = [
        torch.einsum("nphw,pc->nchw", F.pixel_unshuffle(to_tensor(pictures[i : i + batch]), 8), matrix)
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat([(part + offset[:, None, None]).half() for part in parts])


class DecoderOnly(nn.Module):
    """The trained part of the VAE, under the names of the stage's checkpoint."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.decoder = vae.decoder


def train_vae(folder: Path, banks: Sequence[ImageBank], steps: int, batch: int = 32, lr: float = 2e-3) -> AutoencoderKL:
    """Fit the encoder, then train the decoder (resumable, as stage `vae`); returns the VAE with averaged weights."""
    vae, encoder_file = make_vae(int(banks[0].pictures.shape[1])), folder / "vae-linear.pt"
    if encoder_file.exists():
        vae.load_state_dict(torch.load(encoder_file, weights_only=True))
    else:
        indices = np.random.default_rng(0).permutation(len(banks[0].pictures))[:3000]
        init_pca_encoder(vae, to_tensor(banks[0].pictures[np.sort(indices)]))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(vae.state_dict(), encoder_file)
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    net = DecoderOnly(vae)
    vae.encoder.to(device())

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([3, step])
        bank = banks[int(rng.random() < 0.3) if len(banks) > 1 else 0]
        pixels = to_tensor(bank.pictures[np.sort(rng.integers(len(bank.pictures), size=batch))]).to(device())
        with torch.no_grad(), torch.autocast(device().type, enabled=False):
            latents = cast("Any", vae.encode(pixels)).latent_dist.mean
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device())
            spread = torch.from_numpy(_MAX_LATENT_NOISE * rng.random((batch, 1, 1, 1), dtype=np.float32) ** 2).to(
                device()
            )
            latents = latents + spread * noise
        with autocast_bf16(device()):
            decoded = net.decoder(latents)
        error = decoded.float() - pixels
        dx, dy = error.diff(dim=-1), error.diff(dim=-2)
        return error.abs().mean() + 2 * error.square().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean())

    weights = train_stage("vae", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, ema_decay=0.998)
    net.load_state_dict(weights)
    return vae.cpu().eval()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of a round trip, in dB, averaged over pictures [n, h, w, 3] uint8."""
    latents = encode_pixels(vae, pictures).float() / float(cast("Any", vae.config).scaling_factor)
    decoded = cast("Any", vae.decode(latents)).sample.clamp(-1, 1)
    error = ((decoded - to_tensor(pictures)) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())
