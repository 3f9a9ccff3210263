"""Random adapters, every weight of them with a say."""

import torch
from torch import Tensor, nn

from instantstyle.blocks import Site, UNetConfig
from instantstyle.networks.image_projection import ImageProjection, Resampler
from instantstyle.weights.adapter import Adapter
from oracle.paired_unets import random_weights

EMBED_DIM = 20
"""Width of the image features of the adapters here: no real encoder's."""


def random_adapter(config: UNetConfig, *, embed_dim: int = EMBED_DIM, tokens: int = 4, seed: int = 4) -> Adapter:
    """A base adapter for all sites."""
    return _adapter(config, ImageProjection(embed_dim, config.cross_attention_dim, tokens), embed_dim, tokens, seed)


def random_plus(config: UNetConfig, *, tokens: int = 6, seed: int = 4) -> Adapter:
    """A Plus adapter for all sites, of the published depth."""
    resampler = Resampler(EMBED_DIM, config.cross_attention_dim, tokens, dim=32, depth=4, heads=2)
    return _adapter(config, resampler, EMBED_DIM, tokens, seed)


def _adapter(config: UNetConfig, projection: nn.Module, embed_dim: int, tokens: int, seed: int) -> Adapter:
    projection.load_state_dict(random_weights(projection, seed))
    make = torch.Generator().manual_seed(seed + 1)

    def weights() -> dict[Site, Tensor]:
        widths = {
            site: config.block_out_channels[site.resolution_level(len(config.block_out_channels))]
            for site in config.sites
        }
        return {
            site: torch.randn(width, config.cross_attention_dim, generator=make) / config.cross_attention_dim**0.5
            for site, width in widths.items()
            if site.kind == "cross"
        }

    return Adapter(projection.requires_grad_(False), weights(), weights(), embed_dim, tokens)
