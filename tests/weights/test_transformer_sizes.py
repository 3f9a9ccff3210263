"""Full-size transformers on the meta device: names, shapes and the documented sizes; no numbers."""

import importlib
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from instantstyle.blocks import TransformerConfig
from instantstyle.families import TRANSFORMER_FAMILIES
from instantstyle.networks.transformer import install_processors
from instantstyle.weights.strict_load import count_transformer_parameters
from instantstyle.weights.transformer_config import transformer_class, transformer_family

PAGE = Path(__file__).resolve().parents[2] / "docs/transformers.md"


def published(name: str) -> dict[str, Any]:
    """A configuration of the published size, as its config.json has it."""
    layout = cast("TransformerConfig", TRANSFORMER_FAMILIES[name].layout)
    config: dict[str, Any] = {
        "_class_name": layout.class_name,
        "num_layers": layout.num_layers,
        "num_attention_heads": layout.num_attention_heads,
        "attention_head_dim": layout.attention_head_dim,
        "joint_attention_dim": layout.joint_attention_dim,
        "pooled_projection_dim": layout.pooled_projection_dim,
    }
    if layout.num_single_layers:
        more: dict[str, Any] = {"in_channels": 64, "num_single_layers": 38, "guidance_embeds": layout.guidance_embeds}
        return config | more
    more = {"in_channels": 16, "out_channels": 16, "caption_projection_dim": 64 * layout.num_attention_heads}
    more |= {"dual_attention_layers": layout.dual_attention_layers, "pos_embed_max_size": layout.max_patches}
    return config | more | {"qk_norm": None if name == "sd3-medium" else "rms_norm"}


@pytest.mark.parametrize("name", TRANSFORMER_FAMILIES)
def test_a_published_configuration_is_its_family_and_has_its_sites(name: str) -> None:
    family = transformer_family(published(name))
    assert family == TRANSFORMER_FAMILIES[name]
    layout = cast("TransformerConfig", family.layout)
    with torch.device("meta"):
        net = transformer_class(layout).from_config(published(name))
    assert install_processors(net) == layout.sites


def billions(row: str) -> float:
    match = re.search(rf"^\| {re.escape(row)} \| ([\d.]+) billion \|", PAGE.read_text(), re.MULTILINE)
    assert match, row
    return float(match[1])


@pytest.mark.parametrize("name", [name for name in TRANSFORMER_FAMILIES if name != "sd3-medium"])
def test_the_documented_sizes_are_counted(name: str) -> None:
    layout = cast("TransformerConfig", TRANSFORMER_FAMILIES[name].layout)
    assert billions(name) == round(count_transformer_parameters(layout, published(name)) / 1e9, 2)


def test_so_is_that_of_t5() -> None:
    transformers: Any = importlib.import_module("transformers")
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with torch.device("meta"):
        net = transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **sizes))
    assert billions("T5-XXL's encoder") == round(sum(each.numel() for each in net.parameters()) / 1e9, 2)
