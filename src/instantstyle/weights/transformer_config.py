"""Which family a diffusion transformer belongs to: told from its class and layout, never from a folder's name."""

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from instantstyle.blocks import TransformerConfig
from instantstyle.errors import WeightsError, abbreviate
from instantstyle.families import TRANSFORMER_FAMILIES, Family

MAX_BLOCKS = 1000


def transformer_family(config: Mapping[str, Any]) -> Family:
    """The family of a diffusers `transformer/config.json`, with the network's own numbers in place of the family's.

    Raises WeightsError when it is of a kind that this library does not have, or its numbers are of no network.
    """
    match str(config.get("_class_name")):
        case "FluxTransformer2DModel":
            name = "flux-dev" if config.get("guidance_embeds") else "flux-schnell"
        case "SD3Transformer2DModel" if config.get("qk_norm") is None:
            name = "sd3-medium"
        case "SD3Transformer2DModel":
            name = "sd35-medium" if config.get("dual_attention_layers") else "sd35-large"
        case other:
            known = sorted({_layout(family).class_name for family in TRANSFORMER_FAMILIES.values()})
            raise WeightsError(f"the model is a {other}, and of transformers {' and '.join(known)} are supported")
    family = TRANSFORMER_FAMILIES[name]
    try:
        layout = _read(_layout(family), config)
    except (KeyError, TypeError, ValueError) as e:
        raise WeightsError(f"the transformer's configuration is incomplete or not understood: {e!r}") from e
    return dataclasses.replace(family, layout=layout)


def transformer_class(layout: TransformerConfig) -> Any:
    """diffusers' class of a layout."""
    return getattr(import_module("diffusers"), layout.class_name)


def _layout(family: Family) -> TransformerConfig:
    return cast("TransformerConfig", family.layout)


def _read(known: TransformerConfig, config: Mapping[str, Any]) -> TransformerConfig:
    """A family's layout with the numbers of a configuration, diffusers' defaults where it says nothing."""
    flux = known.class_name == "FluxTransformer2DModel"
    defaults = {"in_channels": 64, "num_layers": 19} if flux else {"in_channels": 16, "num_layers": 18}
    defaults |= {"num_attention_heads": 24, "attention_head_dim": 128} if flux else {"num_attention_heads": 18}
    given = {"attention_head_dim": 64, "joint_attention_dim": 4096, "patch_size": 1 if flux else 2, **defaults}
    given |= {"pooled_projection_dim": 768 if flux else 2048, "num_single_layers": 38 if flux else 0}
    given |= {name: value for name, value in config.items() if name in given}
    for name, value in given.items():
        if type(value) is not int or not 0 <= value < 2**20 or (value > MAX_BLOCKS and "layers" in name):
            raise ValueError(f"{name} is {abbreviate(value)}")
    # Flux is handed 2 x 2 latents as one token's channels; others take pictures of latents and cut them themselves.
    patch, channels = (2, given["in_channels"] // 4) if flux else (given["patch_size"], given["in_channels"])
    out = config.get("out_channels")
    if (flux and given["in_channels"] % 4) or out not in (None, given["in_channels"]):
        raise WeightsError(
            f"the transformer reads {given['in_channels']} channels and predicts {out}: those that read a mask or "
            "another picture beside the latents (Flux Fill, Depth, Canny) are not supported"
        )
    counts = (channels, patch, given["num_layers"], given["num_attention_heads"], given["attention_head_dim"])
    if min(*counts, given["joint_attention_dim"], given["pooled_projection_dim"]) < 1:
        raise ValueError("channels, layers, heads and widths are whole numbers from 1")
    dual: object = config.get("dual_attention_layers") or ()
    positions: object = None if flux else config.get("pos_embed_max_size", 96)
    return dataclasses.replace(
        known,
        latent_channels=channels,
        patch_size=patch,
        num_layers=given["num_layers"],
        num_single_layers=given["num_single_layers"],
        dual_attention_layers=tuple(int(block) for block in cast("list[int]", dual)),
        num_attention_heads=given["num_attention_heads"],
        attention_head_dim=given["attention_head_dim"],
        joint_attention_dim=given["joint_attention_dim"],
        pooled_projection_dim=given["pooled_projection_dim"],
        max_patches=None if positions is None else int(cast("int", positions)),
    )
