"""Names in LoRA files: every spelling that people publish, resolved to a module of the model at hand.

Spellings differ in three ways, in any combination: the network's prefix (`lora_unet_`, `lora_te1_`, `lycoris_`,
`unet.`, `unet.base_model.model.`, `base_model.model.`, `diffusion_model.`, or none), the UNet's block names (diffusers'
`down_blocks` or the original `input_blocks`), and dots or underscores between parts.  Names are therefore compared
without dots, with a table made of the network's own modules.  The tensors' suffixes are kohya's, peft's, or those of
diffusers' attention processors.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

LORA_TARGETS = ("unet", "text_encoder", "text_encoder_2")
Factor = Literal["down", "up", "alpha"]

_PREFIX = re.compile(
    r"(?:base_model\.model\.)?(?:(?:lora|lycoris)_(?P<kohya>unet|te1|te2|te)_|(?P<part>unet|text_encoder_2|text_encoder)\."
    r"|(?P<ldm>(?:model\.)?diffusion_model\.)|lycoris_)?(?:base_model\.model\.)?"
)
_KOHYA = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
_SUFFIX = re.compile(
    r"(?P<module>.+?)(?:(?:\.lora_(?P<peft>[AB])(?:\.\w+)?|\.lora_(?P<kohya>down|up)"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<old>down|up))\.weight|(?:_lora|\.lora|\.lora_linear_layer)?(?P<alpha>\.alpha))"
)
_RESNET: Mapping[str, str] = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""What diffusers' first LoRAs called the projections of a text encoder."""


@dataclass(frozen=True)
class TensorName:
    """The name of a tensor in a LoRA file, taken apart."""

    part: str | None
    """The network; None where the file does not say."""
    module: str
    factor: Factor


def parse_name(name: str) -> TensorName | None:
    """A tensor's name taken apart; None where it is no factor of a plain LoRA."""
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return None
    factor: Factor = "alpha" if match["alpha"] else "down" if "A" in (match["peft"] or "") else "up"
    if match["kohya"] or match["old"]:
        factor = "down" if "down" in (match["kohya"], match["old"]) else "up"
    prefix = _PREFIX.match(match["module"])
    assert prefix is not None  # it may be empty
    part = _KOHYA[prefix["kohya"]] if prefix["kohya"] else prefix["part"] or ("unet" if prefix["ldm"] else None)
    return TensorName(part, match["module"][prefix.end() :], factor)


def module_table(part: str, net: nn.Module) -> dict[str, str]:
    """Every module of a network that has a weight, by each of its spellings without dots."""
    named = cast("Iterator[tuple[str, nn.Module]]", net.named_modules())
    modules = {name for name, module in named if isinstance(getattr(module, "weight", None), Tensor)}
    spellings = _unet_spellings(modules) if part == "unet" else _text_spellings(modules)
    return {_flat(spelling): module for spelling, module in spellings}


def locate(name: TensorName, tables: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """The network and the module that a name stands for; None where the model has no such module."""
    flat = _flat(name.module).replace("_processor_", "_")
    for part in LORA_TARGETS if name.part is None else (name.part,):
        if (module := tables.get(part, {}).get(flat)) is not None:
            return part, module
    return None


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _unet_spellings(modules: set[str]) -> Iterator[tuple[str, str]]:
    resnets = [int(match[1]) for name in modules if (match := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))]
    for module in modules:
        for spelling in (module, _original_name(module, max(resnets, default=0) + 1, modules)):
            yield spelling, module
            yield spelling.removesuffix(".to_out.0") + ".to_out" * spelling.endswith(".to_out.0"), module


def _text_spellings(modules: set[str]) -> Iterator[tuple[str, str]]:
    """Libraries have written text encoders with and without `text_model.`."""
    for module in modules:
        parent, _, last = module.rpartition(".")
        for spelling in {module, f"{parent}.{_OLD_TEXT.get(last, last)}".removeprefix(".")}:
            bare = spelling.removeprefix("text_model.")
            yield from ((bare, module), (f"text_model.{bare}", module))


def _original_name(module: str, layers: int, modules: set[str]) -> str:
    """A module's name in the UNet as CompVis publishes it, for blocks of so many resnets on the way down."""
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    stage, *rest = module.split(".")
    if stage == "mid_block":
        kind, j, *inner = rest
        block = f"middle_block.{1 if kind == 'attentions' else 2 * int(j)}"
    else:
        i, kind, j, *inner = rest
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (int(i) + 1)}.0.op"
        if kind == "upsamplers":
            attends = any(name.startswith(f"up_blocks.{i}.attentions.") for name in modules)
            return f"output_blocks.{(layers + 1) * int(i) + layers}.{1 + attends}.conv"
        number = (layers + 1) * int(i) + int(j) + (stage == "down_blocks")
        block = f"{'input' if stage == 'down_blocks' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
    return ".".join([block, *(_RESNET.get(name, name) if kind == "resnets" else name for name in inner)])
