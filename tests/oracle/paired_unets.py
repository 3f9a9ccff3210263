"""The same random network twice: as ours, and as diffusers' with the same weights."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from instantstyle.blocks import UNetConfig
from instantstyle.networks.unet import CrossAttentionKV, UNet

TINY_SDXL = UNetConfig(
    block_out_channels=(32, 64, 96),
    num_attention_heads=(1, 2, 3),
    cross_attention_dim=48,
    pooled_projection_dim=24,
    addition_time_embed_dim=8,
)
"""SDXL's block layout and depths, so the published numbers of its attention layers too."""
TINY_SD15 = UNetConfig(
    block_out_channels=(32, 64, 96, 96),
    transformer_layers_per_block=(1, 1, 1, 0),
    num_attention_heads=(4, 4, 4, 4),
    cross_attention_dim=40,
    pooled_projection_dim=None,
    use_linear_projection=False,
)
"""SD1.5's block layout and depths."""
TINY_WIDE = UNetConfig(
    in_channels=7,
    out_channels=5,
    block_out_channels=(32, 64),
    transformer_layers_per_block=(0, 2),
    num_attention_heads=(2, 2),
    cross_attention_dim=24,
    pooled_projection_dim=16,
    addition_time_embed_dim=4,
)
"""Other latent widths than four, another number of resolutions."""
TINY = {"sdxl": TINY_SDXL, "sd15": TINY_SD15, "wide": TINY_WIDE}


def diffusers_config(config: UNetConfig) -> dict[str, Any]:
    """A layout as diffusers writes it in unet/config.json."""
    cross = [depth > 0 for depth in config.transformer_layers_per_block]
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": config.addition_time_embed_dim,
        "projection_class_embeddings_input_dim": (config.pooled_projection_dim or 0)
        + 6 * config.addition_time_embed_dim,
    }
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross),
        "up_block_types": tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)),
        "transformer_layers_per_block": [depth or 1 for depth in config.transformer_layers_per_block],
        "attention_head_dim": config.num_attention_heads,
        "cross_attention_dim": config.cross_attention_dim,
        "norm_num_groups": config.norm_num_groups,
        "use_linear_projection": config.use_linear_projection,
        "layers_per_block": config.layers_per_block,
        **(added if config.pooled_projection_dim is not None else {}),
    }


@dataclass(frozen=True)
class Inputs:
    """One call's arguments."""

    latents: Tensor
    time: Tensor
    context: Tensor
    pooled: Tensor | None
    sizes: Tensor | None

    @classmethod
    def random(cls, config: UNetConfig, *, rows: int = 2, size: tuple[int, int] = (8, 8), seed: int = 1) -> "Inputs":
        """Every row at its own time and with its own text."""
        make = torch.Generator().manual_seed(seed)
        pooled = (
            None
            if config.pooled_projection_dim is None
            else torch.randn(rows, config.pooled_projection_dim, generator=make)
        )
        return cls(
            torch.randn(rows, config.in_channels, *size, generator=make),
            torch.randint(1000, (rows,), generator=make).float(),
            torch.randn(rows, 6, config.cross_attention_dim, generator=make),
            pooled,
            None if pooled is None else torch.randint(1024, (rows, 6), generator=make).float(),
        )

    @property
    def ours(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What both calls of ours need beside the text read."""
        return self.latents, self.time, self.pooled, self.sizes


def random_weights(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A random state dict of tame outputs; norms and biases random too, so that none can be mistaken for another."""
    make = torch.Generator().manual_seed(seed)

    def weight(name: str, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, generator=make)
        if len(shape) > 1:
            return noise / shape[1:].numel() ** 0.5
        return 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise

    return {name: weight(name, tensor.shape) for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class PairedUNets:
    """Two networks with the same weights."""

    config: UNetConfig
    ours: UNet
    theirs: Any

    @classmethod
    def random(cls, config: UNetConfig, seed: int = 0) -> "PairedUNets":
        """Random weights, read strictly by both."""
        with torch.device("meta"):
            ours, theirs = UNet(config), UNet2DConditionModel(**diffusers_config(config))
        for network in (ours, theirs):
            network.load_state_dict(random_weights(ours, seed), strict=True, assign=True)
            network.eval().requires_grad_(False)
        return cls(config, ours, theirs)

    def predict(self, inputs: Inputs, text: CrossAttentionKV | None = None, **extra: Any) -> Tensor:
        """Our prediction; `extra` are `attend` and `residuals`."""
        latents, time, pooled, sizes = inputs.ours
        return self.ours(latents, time, text or self.ours.precompute_kv(inputs.context), pooled, sizes, **extra)

    def expect(self, inputs: Inputs, *, image_embeds: Tensor | None = None, **extra: Any) -> Tensor:
        """Diffusers' prediction; `image_embeds` [rows, pictures, embed_dim] are for a loaded IP-Adapter."""
        added: dict[str, Any] = {}
        if inputs.pooled is not None:
            added |= {"text_embeds": inputs.pooled, "time_ids": inputs.sizes}
        if image_embeds is not None:
            added["image_embeds"] = [image_embeds]
        return self.theirs(inputs.latents, inputs.time, inputs.context, added_cond_kwargs=added, **extra).sample
