"""diffusers' transformers as denoisers: what each wants its latents, times and conditioning to look like.

Outside, latents are pictures, [rows, channels, height, width], and times are training steps from 0 to 1000, as of a
UNet.  A transformer predicts the velocity noise - x0 of latents (1 - sigma) x0 + sigma noise, with sigma = time / 1000.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.networks.attention import Attend, plain
from instantstyle.networks.denoiser import Conditioning, Denoiser
from instantstyle.networks.unet import Residuals


@dataclass(frozen=True)
class FluxDenoiser:
    """Flux: 2 x 2 latents are a token, and a distilled guidance is a number that the network reads."""

    transformer: nn.Module

    def precompute_kv(self, conditioning: Conditioning) -> Conditioning:
        """As it is: in joint attention the text's keys change from block to block and from step to step."""
        return conditioning

    def __call__(
        self,
        latents: Float[Tensor, "rows channels height width"],
        timesteps: Float[Tensor, " rows"],
        conditioning: Conditioning,
        *,
        attend: Attend = plain,
        residuals: Residuals | None = None,
    ) -> Float[Tensor, "rows channels height width"]:
        """The velocity."""
        assert residuals is None
        text = conditioning.prompt_embeds
        velocity: Tensor = self.transformer(
            hidden_states=pack_latents(latents),
            encoder_hidden_states=text,
            pooled_projections=conditioning.pooled_prompt_embeds,
            # In the latents' dtype, as diffusers' pipeline: the network multiplies it by 1000 again.
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=conditioning.guidance,
            img_ids=_grid(*(side // 2 for side in latents.shape[2:])).to(latents),
            txt_ids=torch.zeros(text.shape[1], 3).to(latents),
            joint_attention_kwargs={"attend": attend, "text_seq_len": text.shape[1]},
            return_dict=False,
        )[0]
        return unpack_latents(velocity, latents.shape[2])


@dataclass(frozen=True)
class SD3Denoiser:
    """Stable Diffusion 3 and 3.5, which take pictures of latents and times of 0 to 1000 as they are."""

    transformer: nn.Module

    def precompute_kv(self, conditioning: Conditioning) -> Conditioning:
        """As it is, for Flux' reason."""
        return conditioning

    def __call__(
        self,
        latents: Float[Tensor, "rows channels height width"],
        timesteps: Float[Tensor, " rows"],
        conditioning: Conditioning,
        *,
        attend: Attend = plain,
        residuals: Residuals | None = None,
    ) -> Float[Tensor, "rows channels height width"]:
        """The velocity."""
        assert residuals is None
        return self.transformer(
            hidden_states=latents,
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled_prompt_embeds,
            timestep=timesteps,
            joint_attention_kwargs={"attend": attend},
            return_dict=False,
        )[0]


DENOISERS: Mapping[str, Callable[[Any], Denoiser]] = {
    "FluxTransformer2DModel": FluxDenoiser,
    "SD3Transformer2DModel": SD3Denoiser,
}
"""The denoiser of each of diffusers' classes that is supported."""


def pack_latents(latents: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows tokens packed"]:
    """Each 2 x 2 latents as one token, of four times the channels; heights and widths are even."""
    rows, channels, height, width = latents.shape
    patches = latents.reshape(rows, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, height * width // 4, channels * 4)


def unpack_latents(
    tokens: Float[Tensor, "rows tokens packed"], height: int
) -> Float[Tensor, "rows channels height width"]:
    """The latents of packed tokens, so high."""
    rows, count, packed = tokens.shape
    width = 4 * count // height
    patches = tokens.reshape(rows, height // 2, width // 2, packed // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, packed // 4, height, width)


def _grid(height: int, width: int) -> Float[Tensor, "tokens 3"]:
    """Positions of the picture's tokens: 0, row and column."""
    rows, columns = torch.arange(height)[:, None].expand(-1, width), torch.arange(width).expand(height, -1)
    return torch.stack([torch.zeros(height, width), rows, columns], dim=-1).flatten(0, 1)
