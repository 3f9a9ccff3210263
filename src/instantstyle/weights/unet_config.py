"""Which family a UNet belongs to: told from its layout and never from a name, since a folder may be called anything."""

import dataclasses
import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from instantstyle.blocks import UNetConfig
from instantstyle.errors import WeightsError
from instantstyle.families import EMOJI, SD15, SDXL, Family
from instantstyle.weights.transformer_config import transformer_family


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a diffusers network's configuration, with its own numbers in place of the family's.

    Raises WeightsError when the network is of a kind that this library does not have.
    """
    if "Transformer" in str(config.get("_class_name")):
        return transformer_family(config)
    unet = unet_config(config)
    if unet.pooled_projection_dim is None:
        family = SD15
    elif len(unet.block_out_channels) == 3 and unet.transformer_layers_per_block[0] == 0:
        family = (
            EMOJI
            if (unet.in_channels, unet.pooled_projection_dim)
            == (EMOJI.unet.in_channels, EMOJI.unet.pooled_projection_dim)
            else SDXL
        )
    else:
        raise WeightsError(
            f"this UNet is conditioned as SDXL's, but has {len(unet.block_out_channels)} resolutions with "
            f"{unet.transformer_layers_per_block} transformer layers where SDXL has three, the first without: "
            "SDXL, SD1.5 and fine-tunings are supported"
        )
    return dataclasses.replace(family, layout=unet)


def unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Read a diffusers `unet/config.json`.  Raises WeightsError for what our UNet cannot do."""
    try:
        read = _unet_config(config)
        _check_numbers(read)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise WeightsError(f"the UNet's configuration is incomplete or not understood: {e!r}") from e
    return read


def _check_numbers(config: UNetConfig) -> None:
    """Raises ValueError unless a network can have these numbers."""
    pooled = () if config.pooled_projection_dim is None else (config.pooled_projection_dim,)
    counts = (
        config.in_channels,
        config.out_channels,
        config.cross_attention_dim,
        config.addition_time_embed_dim,
        config.norm_num_groups,
        config.layers_per_block,
        *config.block_out_channels,
        *config.num_attention_heads,
        *pooled,
    )
    if any(type(count) is not int or count < 1 for count in counts):
        raise ValueError(f"channels, widths, groups, heads and layers are whole numbers from 1, not {counts}")
    if len(config.block_out_channels) > MAX_LEVELS:
        raise ValueError(f"{len(config.block_out_channels)} resolutions, and at most {MAX_LEVELS} are known")
    if any(type(depth) is not int or depth < 0 for depth in config.transformer_layers_per_block):
        raise ValueError(f"{config.transformer_layers_per_block} transformer layers")
    for channels, heads in zip(config.block_out_channels, config.num_attention_heads, strict=True):
        if channels % config.norm_num_groups or channels % heads:
            raise ValueError(
                f"{channels} channels are no multiple of {config.norm_num_groups} groups and {heads} heads"
            )


MAX_LEVELS = 16
_MUST: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu",),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "addition_embed_type": (None, "text_time"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "reverse_transformer_layers_per_block": (None,),
}
"""What a UNet of ours must say about itself, where it says anything."""


def check_scheduler(config: Mapping[str, Any], *, flow: bool = False) -> None:
    """Raises WeightsError for a `scheduler_config.json` whose noise schedule is not Stable Diffusion's.

    `flow`: of a transformer, whose schedule must be flow matching's.

    The sampler relies on `alphas_cumprod`, made of betas: EDM's schedulers (Playground 2.5, CosXL) and those of
    flow matching have none, and another sampler with their settings would draw with a schedule that was never trained.
    """
    name = str(config.get("_class_name", "DDIMScheduler"))
    if flow and name == "FlowMatchEulerDiscreteScheduler":
        return
    kind: Any = getattr(import_module("diffusers"), name, None)
    if kind is None:
        raise WeightsError(f"the model asks for the scheduler {name}, which this version of diffusers does not have")
    if flow:
        raise WeightsError(
            f"the model asks for the scheduler {name}: transformers are sampled by FlowMatchEulerDiscreteScheduler"
        )
    if "beta_start" not in inspect.signature(kind.__init__).parameters:
        whose = " as Playground 2.5 and CosXL do" if name.startswith("EDM") else ""
        raise WeightsError(
            f"the model asks for the scheduler {name}{whose}, whose noise schedule is not supported: SDXL, SD1.5 and "
            "fine-tunings with their betas are"
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise WeightsError(f"the model's scheduler has {config['timestep_type']} time steps, which are not supported")


def _unet_config(config: Mapping[str, Any]) -> UNetConfig:
    for name, allowed in _MUST.items():
        if config.get(name, allowed[0]) not in allowed:
            raise WeightsError(
                f"this UNet has {name} = {config[name]!r}, which is not supported: SDXL, SD1.5 and their "
                "fine-tunings are"
            )
    channels = tuple(cast("list[int]", config["block_out_channels"]))
    kinds = cast("list[str]", config["down_block_types"])
    if unknown := set(kinds) - {"DownBlock2D", "CrossAttnDownBlock2D"}:
        raise WeightsError(f"this UNet has blocks of kind {', '.join(sorted(unknown))}, which are not supported")
    depths = _each(config.get("transformer_layers_per_block") or 1, len(channels))
    # diffusers calls the number of heads attention_head_dim, for reasons of history.
    heads = _each(config.get("num_attention_heads") or config.get("attention_head_dim") or 8, len(channels))
    pooled = None
    size_dim = config.get("addition_time_embed_dim") or 256
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * size_dim
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        block_out_channels=channels,
        transformer_layers_per_block=tuple(
            depth if "Cross" in kind else 0 for depth, kind, _ in zip(depths, kinds, channels, strict=True)
        ),
        num_attention_heads=heads,
        cross_attention_dim=config["cross_attention_dim"],
        pooled_projection_dim=pooled,
        addition_time_embed_dim=size_dim,
        norm_num_groups=config.get("norm_num_groups", 32),
        use_linear_projection=config.get("use_linear_projection", False),
        layers_per_block=config.get("layers_per_block", 2),
    )


def _each(value: int | list[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)
