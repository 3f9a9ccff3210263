"""Random LoRAs for the small models, and the spellings in which people publish them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

Spelling = Literal["kohya", "kohya-sgm", "diffusers-old", "diffusers", "diffusers-alpha", "peft"]
Lora = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""By network and module as published: down and up."""
RANK, ALPHA = 3, 2.0
"""Alpha other than rank, where a spelling has one: else forgetting it would go unseen."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OTHERS = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj", "conv_shortcut")
RESIZES = ("downsamplers.0.conv", "upsamplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def random_lora(parts: dict[str, nn.Module], *, attention_only: bool = False, seed: int = 0) -> Lora:
    """Changes of about a third of each weight's size, in every kind of layer that LoRAs are trained for."""
    make = torch.Generator().manual_seed(seed)
    unet = ATTENTION if attention_only else (*ATTENTION, *OTHERS, *RESIZES)
    found: Lora = {}
    for part, net in parts.items():
        for name, module in cast("Iterator[tuple[str, nn.Module]]", net.named_modules()):
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and name.endswith(unet if part == "unet" else TEXT):
                out, into, *kernel = weight.shape
                fan = RANK * into * torch.Size(kernel).numel()
                down = torch.randn(RANK, into, *kernel, generator=make) / fan**0.5
                up = 0.5 * torch.randn(out, RANK, *(1 for _ in kernel), generator=make)
                spelt = f"text_model.{name}" if part != "unet" and not name.startswith("text_model.") else name
                found[part, spelt] = down, up
    return found


def write(path: Path, lora: Lora, spelling: Spelling, *, towers: int) -> Path:
    """A file (for peft: a folder) of the LoRA as published in this spelling."""
    metadata: dict[str, str] = {"format": "pt"}
    tensors: dict[str, Tensor] = {}
    for (part, module), (down, up) in lora.items():
        if spelling in ("kohya", "kohya-sgm"):
            prefix = {"unet": "unet", "text_encoder": "te1" if towers == 2 else "te", "text_encoder_2": "te2"}[part]
            inside = sgm(module) if spelling == "kohya-sgm" and part == "unet" else module
            name = f"lora_{prefix}_{inside.replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        elif spelling == "diffusers-old":
            stem = old(part, module)
            tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
        else:
            prefix = "base_model.model." if spelling == "peft" else f"{part}."
            tensors |= {f"{prefix}{module}.lora_A.weight": down, f"{prefix}{module}.lora_B.weight": up}
    if spelling == "diffusers-alpha":
        parts = {part for part, _ in lora}
        said = {f"{part}.{name}": value for part in parts for name, value in settings(lora, part).items()}
        metadata["lora_adapter_metadata"] = json.dumps(said)
    if spelling == "peft":
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings(lora, "unet")}))
    save_file(tensors, path / "adapter_model.safetensors" if spelling == "peft" else path, metadata=metadata)
    return path


def settings(lora: Lora, part: str) -> dict[str, Any]:
    """What peft says of its adapter: one alpha for all, and another for the queries."""
    modules = [module for p, module in lora if p == part]
    pattern = {"to_q": 5.0} if part == "unet" else {}
    return {"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": pattern, "rank_pattern": {}, "target_modules": modules}


def old(part: str, module: str) -> str:
    """diffusers' first spelling: in attention processors."""
    parent, _, last = module.removesuffix(".0").rpartition(".")
    if part == "unet":
        return f"unet.{parent}.processor.{last}_lora"
    kinds = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
    return f"{part}.{parent}.{kinds[last]}" if last in kinds else f"{part}.{module}.lora_linear_layer"


def sgm(module: str) -> str:
    """A module's name in the UNet that Stability publishes, of three attentions a block as SDXL's."""
    stage, *rest = module.split(".")
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
    inner["conv_shortcut"] = "skip_connection"

    def tail(kind: str, names: list[str]) -> str:
        return ".".join(inner.get(name, name) for name in names) if kind == "resnets" else ".".join(names)

    if stage == "mid_block":
        kind, j, *names = rest
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(j)}.{tail(kind, names)}"
    block, kind, j, *names = rest
    i = int(block)
    if stage == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{3 * (i + 1)}.0.op"
        return f"input_blocks.{3 * i + int(j) + 1}.{int(kind == 'attentions')}.{tail(kind, names)}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.2.conv"
    return f"output_blocks.{3 * i + int(j)}.{int(kind == 'attentions')}.{tail(kind, names)}"
