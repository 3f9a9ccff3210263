"""The layers of a UNet that have nothing to do with attention; parameters are named as diffusers publishes them."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them, added to what came in."""

    def __init__(self, width_in: int, width_out: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, width_out)
        self.norm2 = nn.GroupNorm(groups, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(
        self, x: Float[Tensor, "rows width_in height width"], time_emb: Float[Tensor, "rows time_dim"]
    ) -> Float[Tensor, "rows width_out height width"]:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time_emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """A convolution to half the resolution, rounded up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "rows c height width"]) -> Float[Tensor, "rows c half_height half_width"]:
        return self.conv(x)


class Upsample(nn.Module):
    """To a higher resolution, by nearest neighbours and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "rows c height width"], size: torch.Size) -> Float[Tensor, "rows c _ _"]:
        return self.conv(F.interpolate(x, size=list(size), mode="nearest"))


class MLP(nn.Module):
    """Two linear layers with a SiLU between."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width_in, width_out), nn.Linear(width_out, width_out)

    def forward(self, x: Float[Tensor, "rows width_in"]) -> Float[Tensor, "rows width_out"]:
        return self.linear_2(F.silu(self.linear_1(x)))


def sinusoidal_embedding(t: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n dim"]:
    """Cosines and sines of t at `dim / 2` frequencies from 1 down to 1/10000, in float32."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
