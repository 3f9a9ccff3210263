"""What a picture is drawn with, measured and not learned: which way contours run where, and what texture there is.

Histograms of oriented gradients (Dalal and Triggs 2005) say what is where; how strongly the 5 x 5 patterns of the
cosine transform sound in the whole picture says how it is drawn.
"""

import math
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

View = Literal["colour", "grey", "edge"]
"""What is looked at: everything, lightness alone, or contours alone, every picture's steepest as steep."""


@torch.no_grad()
def handcrafted_features(
    pixels: Float[Tensor, "n 3 h w"], view: View
) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n b"]]:
    """Numbers of layout and of texture for pictures in 0..1.

    In both, colours come first, then lightness, then contours, so that each narrower view is an end of the wider.
    """
    x = pixels * 2 - 1
    grey = x.mean(1, keepdim=True)
    steep, turn = _gradient(grey)
    lines = steep / (steep.amax((2, 3), keepdim=True) + 0.05)
    layout, texture = [_hog(grey, steep, turn)], [_dct_energy(lines, 1), _dct_energy(lines, 2)]
    if view != "edge":
        layout = [_cell_stats(grey), *layout]
        texture = [_intensity_stats(grey), _dct_energy(grey, 1), _dct_energy(grey, 2), *texture]
    if view == "colour":
        layout = [_cell_stats(x), *layout]
        tints = torch.stack([x[:, 0] - x[:, 1], x[:, 1] - x[:, 2]], dim=1)
        texture = [_intensity_stats(x), *(_dct_energy(tints[:, i : i + 1], 1) for i in range(2)), *texture]
    return torch.cat(layout, dim=1), torch.cat(texture, dim=1)


@cache
def feature_dims(view: View) -> tuple[int, int]:
    """How many numbers of layout and of texture a view has."""
    layout, texture = handcrafted_features(torch.zeros(1, 3, 64, 64), view)
    return layout.shape[1], texture.shape[1]


def _gradient(grey: Tensor) -> tuple[Tensor, Tensor]:
    around = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    gx = around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]
    gy = around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]
    return (gx.square() + gy.square() + 1e-8).sqrt(), torch.atan2(gy, gx)


def _hog(grey: Tensor, steep: Tensor, turn: Tensor) -> Tensor:
    """Which way contours run, on 12 x 12 cells, each against its neighbourhood; and how rough it is on 8 x 8."""
    # Unsigned directions in eight soft bins: light on dark and dark on light are the same contour.
    bins = torch.arange(8).view(1, 8, 1, 1) * (math.pi / 8)
    away = (turn - bins + math.pi / 2).remainder(math.pi) - math.pi / 2
    votes = steep * (1 - away.abs() / (math.pi / 8)).clamp(min=0)
    cells, mean = F.adaptive_avg_pool2d(votes, 12), steep.mean((2, 3), keepdim=True)
    nearby = F.avg_pool2d(F.pad(cells.sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), 3, 1)
    smooth = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    rough = F.adaptive_avg_pool2d((grey - smooth).abs() / (mean + 1e-4), 8)
    return torch.cat([(cells / (nearby + 0.05 * mean + 1e-4)).flatten(1), rough.flatten(1)], dim=1)


def _cell_stats(x: Tensor) -> Tensor:
    """How light and how varied it is where, on 8 x 8 cells."""
    mean = F.adaptive_avg_pool2d(x, 8)
    spread = (F.adaptive_avg_pool2d(x.square(), 8) - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean.flatten(1), spread.flatten(1)], dim=1)


def _intensity_stats(x: Tensor) -> Tensor:
    """Deciles of every channel over the whole picture, and the share of pixels like their neighbours."""
    ordered = x.flatten(2).sort(dim=2).values
    places = torch.linspace(0, ordered.shape[2] - 1, 11).long()
    flat = ((x[..., 1:] - x[..., :-1]).abs() < 0.01).float().mean((2, 3))
    return torch.cat([ordered[:, :, places].flatten(1), flat], dim=1)


def _dct_energy(x: Tensor, scale: int) -> Tensor:
    """How strongly each pattern of the cosine transform sounds in the picture: mean, root mean square, loud shares."""
    heard = F.conv2d(F.avg_pool2d(x, scale) if scale > 1 else x, _patterns()).abs().flatten(2)
    loud = [(heard > level).float().mean(2) for level in (0.05, 0.2, 0.6)]
    return torch.cat([heard.mean(2), heard.square().mean(2).sqrt(), *loud], dim=1)


@cache
def _patterns() -> Tensor:
    """The 24 patterns of the 5 x 5 cosine transform that are not flat, [24, 1, 5, 5], each of unit length."""
    n = torch.arange(5.0)
    waves = torch.stack([torch.cos(math.pi * k * (n + 0.5) / 5) for k in range(5)])
    both = torch.einsum("ai,bj->abij", waves, waves).reshape(25, 1, 5, 5)[1:]
    return both / both.square().sum((2, 3), keepdim=True).sqrt()
