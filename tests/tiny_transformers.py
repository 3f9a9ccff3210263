"""Small random transformers of diffusers, every parameter drawn: the scales of norms too, so that none is neutral."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

diffusers: Any = importlib.import_module("diffusers")

HEADS, DIM, JOINT, POOLED = 2, 16, 24, 20
TEXT, SIDE = 5, 4
"""Text tokens, and image tokens along a side."""


@torch.no_grad()
def drawn(net: nn.Module, seed: int = 0) -> Any:
    """A network with every parameter drawn anew: scales of norms about 1, the rest about 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = "norm" in name and parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.3 * values if scale else values * (0.5 / parameter.shape[-1] ** 0.5))
    return net.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Random numbers of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flux(**changes: Any) -> Any:
    """Flux in small: two blocks of each kind; latents of two channels."""
    config: dict[str, Any] = {
        "in_channels": 8,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": DIM,
        "num_attention_heads": HEADS,
        "joint_attention_dim": JOINT,
        "pooled_projection_dim": POOLED,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    return drawn(diffusers.FluxTransformer2DModel(**config | changes))


def schnell_inputs(rows: int = 3) -> dict[str, Tensor]:
    """The same for a network that is not told a guidance."""
    return {name: value for name, value in flux_inputs(rows).items() if name != "guidance"}


def flux_inputs(rows: int = 3) -> dict[str, Tensor]:
    """Rows that differ in everything, their times and guidance too."""
    ids = torch.zeros(SIDE, SIDE, 3)
    ids[..., 1], ids[..., 2] = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None]
    return {
        "hidden_states": noise(rows, SIDE * SIDE, 8, seed=2),
        "encoder_hidden_states": noise(rows, TEXT, JOINT, seed=3),
        "pooled_projections": noise(rows, POOLED, seed=4),
        "timestep": torch.linspace(0.2, 0.9, rows),
        "guidance": torch.linspace(1.0, 4.0, rows),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def sd3(**changes: Any) -> Any:
    """SD3.5 medium in small: three blocks, the first with a second attention of the picture alone."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": DIM,
        "num_attention_heads": HEADS,
        "joint_attention_dim": JOINT,
        "caption_projection_dim": HEADS * DIM,
        "pooled_projection_dim": POOLED,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0,),
    }
    return drawn(diffusers.SD3Transformer2DModel(**config | changes))


def sd3_inputs(rows: int = 3) -> dict[str, Tensor]:
    """Rows that differ in everything."""
    return {
        "hidden_states": noise(rows, 4, 8, 8, seed=2),
        "encoder_hidden_states": noise(rows, TEXT, JOINT, seed=3),
        "pooled_projections": noise(rows, POOLED, seed=4),
        "timestep": torch.linspace(200.0, 900.0, rows),
    }


def qwen() -> Any:
    """Qwen-Image in small."""
    config = {"in_channels": 8, "out_channels": 2, "num_layers": 2, "attention_head_dim": DIM}
    more = {"num_attention_heads": HEADS, "joint_attention_dim": JOINT, "axes_dims_rope": (4, 6, 6)}
    return drawn(diffusers.QwenImageTransformer2DModel(**config, **more))


def qwen_inputs(rows: int = 3) -> dict[str, Any]:
    """Rows that differ in everything, the first with a shorter text."""
    mask = torch.ones(rows, TEXT, dtype=torch.bool)
    mask[0, -2:] = False
    return {
        "hidden_states": noise(rows, SIDE * SIDE, 8, seed=2),
        "encoder_hidden_states": noise(rows, TEXT, JOINT, seed=3),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.linspace(0.2, 0.9, rows),
        "img_shapes": [[(1, SIDE, SIDE)]] * rows,
    }
