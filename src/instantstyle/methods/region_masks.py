"""Region masks of references: a mask over the picture, on the token grid of every cross-attention.

The reference enters where the mask is white; it is cut at half and resized as diffusers' IPAdapterMaskProcessor does.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.blocks import Site, TransformerConfig
from instantstyle.errors import InputError
from instantstyle.model import Model

RegionMask = Mapping[Site, Float[Tensor, "1 1 _tokens 1"]]
"""How much of the reference's attention each query takes: about 0 to 1, a little over or under at a mask's edge."""


def binary_mask(mask: Image.Image, size: tuple[int, int]) -> Float[Tensor, "1 1 height width"]:
    """A mask stretched over a picture of (width, height) pixels, 0 or 1.  Raises InputError when it is black."""
    grey = mask.convert("RGB").resize(size, Image.Resampling.LANCZOS).convert("L")
    inside = torch.tensor(np.asarray(grey, np.float32) / 255 >= 0.5).float()[None, None]
    if not inside.any():
        raise InputError("the mask of a reference is black everywhere: white is where the reference speaks")
    return inside


def region_mask(model: Model, mask: Image.Image, size: tuple[int, int]) -> RegionMask:
    """A mask over a picture of (width, height) pixels, at every place of the model where an adapter may act.

    Raises InputError for a mask that is black everywhere.
    """
    inside, layout = binary_mask(mask, size), model.family.layout
    if isinstance(layout, TransformerConfig):
        side = model.vae_scale_factor * layout.patch_size
        small = F.interpolate(inside, size=[size[1] // side, size[0] // side], mode="bicubic")
        tokens = small.reshape(1, 1, -1, 1).to(model.device, model.dtype)
        every = (*layout.sites, *(site._replace(kind="cross") for site in layout.sites))
        return dict.fromkeys(every, tokens)
    config = layout
    height, width = size[1] // model.vae_scale_factor, size[0] // model.vae_scale_factor
    levels: list[Tensor] = []
    for _ in config.block_out_channels:
        small = F.interpolate(inside, size=[height, width], mode="bicubic")
        levels.append(small.reshape(1, 1, -1, 1).to(model.device, model.dtype))
        height, width = (height + 1) // 2, (width + 1) // 2
    return {site: levels[site.resolution_level(len(levels))] for site in config.sites if site.kind == "cross"}
