"""Fixed image features: of layout, the orientation of contours by cell, and of texture, over the whole image.

Layout: histograms of oriented gradients (Dalal and Triggs 2005).  Texture: statistics of the responses to the 5 x 5
basis of the discrete cosine transform.
"""

import math
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

View = Literal["colour", "grey", "edge"]
"""What the features see: colour, lightness, or contours normalised to the image's steepest gradient."""


@torch.no_grad()
def handcrafted_features(
    pixels: Float[Tensor, "n 3 h w"], view: View
) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n b"]]:
    """Layout [n, a] and texture [n, b] features of images in 0..1.

    In both, colour comes first, then lightness, then contours: each narrower view is the end of the wider one.
    """
    x = pixels * 2 - 1
    grey = x.mean(1, keepdim=True)
    magnitude, angle = _gradient(grey)
    contours = magnitude / (magnitude.amax((2, 3), keepdim=True) + 0.05)
    layout, texture = [_hog(grey, magnitude, angle)], [_dct_energy(contours, 1), _dct_energy(contours, 2)]
    if view != "edge":
        layout = [_cell_stats(grey), *layout]
        texture = [_intensity_stats(grey), _dct_energy(grey, 1), _dct_energy(grey, 2), *texture]
    if view == "colour":
        layout = [_cell_stats(x), *layout]
        opponent = torch.stack([x[:, 0] - x[:, 1], x[:, 1] - x[:, 2]], dim=1)
        texture = [_intensity_stats(x), *(_dct_energy(opponent[:, i : i + 1], 1) for i in range(2)), *texture]
    return torch.cat(layout, dim=1), torch.cat(texture, dim=1)


@cache
def feature_dims(view: View) -> tuple[int, int]:
    """Dimensions of a view's layout and texture features."""
    layout, texture = handcrafted_features(torch.zeros(1, 3, 64, 64), view)
    return layout.shape[1], texture.shape[1]


def _gradient(grey: Tensor) -> tuple[Tensor, Tensor]:
    around = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    gx = around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]
    gy = around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]
    return (gx.square() + gy.square() + 1e-8).sqrt(), torch.atan2(gy, gx)


def _hog(grey: Tensor, magnitude: Tensor, angle: Tensor) -> Tensor:
    """Orientation histograms on 12 x 12 cells, each normalised by its neighbourhood, and roughness on 8 x 8 cells."""
    # Unsigned orientations in eight soft bins: light on dark and dark on light are the same contour.
    bins = torch.arange(8).view(1, 8, 1, 1) * (math.pi / 8)
    offset = (angle - bins + math.pi / 2).remainder(math.pi) - math.pi / 2
    votes = magnitude * (1 - offset.abs() / (math.pi / 8)).clamp(min=0)
    cells, mean = F.adaptive_avg_pool2d(votes, 12), magnitude.mean((2, 3), keepdim=True)
    nearby = F.avg_pool2d(F.pad(cells.sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), 3, 1)
    smooth = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    roughness = F.adaptive_avg_pool2d((grey - smooth).abs() / (mean + 1e-4), 8)
    return torch.cat([(cells / (nearby + 0.05 * mean + 1e-4)).flatten(1), roughness.flatten(1)], dim=1)


def _cell_stats(x: Tensor) -> Tensor:
    """Mean and standard deviation on 8 x 8 cells."""
    mean = F.adaptive_avg_pool2d(x, 8)
    spread = (F.adaptive_avg_pool2d(x.square(), 8) - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean.flatten(1), spread.flatten(1)], dim=1)


def _intensity_stats(x: Tensor) -> Tensor:
    """Deciles of every channel over the whole image, and the share of pixels equal to their right neighbour."""
    ordered = x.flatten(2).sort(dim=2).values
    places = torch.linspace(0, ordered.shape[2] - 1, 11).long()
    flat = ((x[..., 1:] - x[..., :-1]).abs() < 0.01).float().mean((2, 3))
    return torch.cat([ordered[:, :, places].flatten(1), flat], dim=1)


def _dct_energy(x: Tensor, scale: int) -> Tensor:
    """Responses to each DCT pattern over the image: mean, root mean square, and shares above three levels."""
    response = F.conv2d(F.avg_pool2d(x, scale) if scale > 1 else x, _patterns()).abs().flatten(2)
    above = [(response > level).float().mean(2) for level in (0.05, 0.2, 0.6)]
    return torch.cat([response.mean(2), response.square().mean(2).sqrt(), *above], dim=1)


@cache
def _patterns() -> Tensor:
    """The 24 non-constant patterns of the 5 x 5 DCT basis, [24, 1, 5, 5], each of unit length."""
    n = torch.arange(5.0)
    cosines = torch.stack([torch.cos(math.pi * k * (n + 0.5) / 5) for k in range(5)])
    basis = torch.einsum("ai,bj->abij", cosines, cosines).reshape(25, 1, 5, 5)[1:]
    return basis / basis.square().sum((2, 3), keepdim=True).sqrt()
