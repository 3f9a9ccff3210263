"""Checkpoints in one file with the original names of Stability's and Runway's, small or as shapes of the full size.

Made the other way about: diffusers' and transformers' own networks, their tensors renamed by the tables of the
community's `convert_diffusers_to_original_*` scripts, so that diffusers' conversion is not what it is tested with.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

SMALL: Mapping[str, Mapping[str, Any]] = {
    "sdxl": {"channels": (32, 64, 64), "depths": [1, 1, 2], "width": 64, "pooled": 128, "layers": 2, "vae": (32,) * 4},
    "sd15": {"channels": (32, 32, 32, 32), "depths": 1, "width": 64, "pooled": None, "layers": 2, "vae": (32,) * 4},
}
"""Of SDXL the towers differ in width, as the published do: diffusers tells them apart by it."""
FULL: Mapping[str, Mapping[str, Any]] = {
    "sdxl": {
        "channels": (320, 640, 1280),
        "depths": [1, 2, 10],
        "width": 768,
        "pooled": 1280,
        "layers": 12,
        "vae": (128, 256, 512, 512),
    },
    "sd15": {
        "channels": (320, 640, 1280, 1280),
        "depths": 1,
        "width": 768,
        "pooled": None,
        "layers": 12,
        "vae": (128, 256, 512, 512),
    },
}


def networks(family: str, sizes: Mapping[str, Any], *, inputs: int = 4) -> dict[str, Any]:
    """The networks of a checkpoint by part, of random weights; as shapes alone under `torch.device("meta")`."""
    xl, width, pooled = family == "sdxl", sizes["width"], sizes["pooled"]
    cross, down = "CrossAttnDownBlock2D", "DownBlock2D"
    layout: dict[str, Any] = {
        "in_channels": inputs,
        "block_out_channels": sizes["channels"],
        "transformer_layers_per_block": sizes["depths"],
        "cross_attention_dim": width + (pooled or 0),
        "attention_head_dim": [max(1, c // 64) for c in sizes["channels"]] if xl else 8,
    }
    if xl:
        layout |= {
            "down_block_types": (down, cross, cross),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": pooled + 6 * 256,
        }
    nets: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(**layout),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=sizes["vae"],
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            scaling_factor=0.13025 if xl else 0.18215,
            sample_size=1024 if xl else 512,
        ),
        "text_encoder": transformers.CLIPTextModel(_text(width, sizes["layers"], "quick_gelu")),
    }
    if xl:
        layers = 32 if pooled == 1280 else sizes["layers"]
        nets["text_encoder_2"] = transformers.CLIPTextModelWithProjection(_text(pooled, layers, "gelu"))
    return nets


def _text(width: int, layers: int, act: str) -> Any:
    return transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        initializer_factor=2.0,
    )


def original(nets: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a checkpoint by their original names."""
    xl = "text_encoder_2" in nets
    tensors = {
        f"model.diffusion_model.{unet_name(n, len(nets['unet'].down_blocks))}": t for n, t in _state(nets["unet"])
    }
    tensors |= {f"first_stage_model.{_vae(n)}": _square(n, t) for n, t in _state(nets["vae"])}
    clip = "conditioner.embedders.0.transformer" if xl else "cond_stage_model.transformer"
    for name, tensor in _state(nets["text_encoder"]):
        tensors[f"{clip}.text_model.{name.removeprefix('text_model.')}"] = tensor
    # Published files carry them, and nothing must stumble over them.
    tensors[f"{clip}.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if xl:
        tensors |= _open_clip(dict(_state(nets["text_encoder_2"])))
    return tensors


def write(path: Path, family: str, *, seed: int = 0, inputs: int = 4, extra: Mapping[str, Tensor] | None = None) -> Any:
    """A small checkpoint's file in half precision; returns its networks in that precision's numbers."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    nets = {name: net.half().float().eval() for name, net in networks(family, SMALL[family], inputs=inputs).items()}
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in original(nets).items()}
    save_file({name: t.clone().contiguous() for name, t in {**tensors, **(extra or {})}.items()}, path)
    return nets


def _state(net: Any) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in net.state_dict().items() if not name.endswith("position_ids")]


def unet_name(name: str, levels: int) -> str:
    """By scripts/convert_diffusers_to_original_sdxl.py and its elder brother, whose rules these are."""
    plain = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    stem, _, kind = name.rpartition(".")
    if stem in plain:
        return f"{plain[stem]}.{kind}"
    for theirs, new in (
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("emb_layers.1", "time_emb_proj"),
        ("skip_connection", "conv_shortcut"),
    ):
        if ".resnets." in name:
            name = name.replace(new, theirs)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        return f"middle_block.{2 * int(match[2]) if match[1] == 'resnets' else 1}.{match[3]}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert match is not None, name
    block, j, inside = int(match[2]), int(match[4]), match[5]
    if match[1] == "down":
        at = 3 * block + j + 1
        return {
            "resnets": f"input_blocks.{at}.0.{inside}",
            "attentions": f"input_blocks.{at}.1.{inside}",
            "downsamplers": f"input_blocks.{3 * (block + 1)}.0.op.{inside.removeprefix('conv.')}",
        }[match[3]]
    at = 3 * block + j
    attends = (levels == 3 and block < 2) or (levels == 4 and block > 0)
    return {
        "resnets": f"output_blocks.{at}.0.{inside}",
        "attentions": f"output_blocks.{at}.1.{inside}",
        "upsamplers": f"output_blocks.{3 * block + 2}.{2 if attends else 1}.{inside}",
    }[match[3]]


def _vae(name: str) -> str:
    """By the same scripts' VAE tables."""
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out")
    for theirs, new in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        name = name.replace(f"attn_1.{new}.", f"attn_1.{theirs}.")
    return name


def _square(name: str, tensor: Tensor) -> Tensor:
    """The VAE's attention was made of 1x1 convolutions."""
    return tensor[:, :, None, None] if re.search(r"attentions.*to_.*weight", name) else tensor


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names: one matrix for queries, keys and values; the projection the other way about."""
    prefix, made = "conditioner.embedders.1.model.", dict[str, Tensor]()
    made[f"{prefix}text_projection"] = state["text_projection.weight"].T
    made[f"{prefix}logit_scale"] = torch.zeros(())
    plain = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, tensor in state.items():
        if name in plain:
            made[prefix + plain[name]] = tensor
        elif match := re.match(r"text_model\.encoder\.layers\.(\d+)\.(.*)", name):
            layer, inside = f"{prefix}transformer.resblocks.{match[1]}.", match[2]
            if fused := re.match(r"self_attn\.q_proj\.(weight|bias)", inside):
                each = (state[name.replace("q_proj", kind)] for kind in ("q_proj", "k_proj", "v_proj"))
                made[f"{layer}attn.in_proj_{fused[1]}"] = torch.cat(list(each))
            elif "_proj" not in inside or "out_proj" in inside:
                table = (
                    ("self_attn", "attn"),
                    ("layer_norm", "ln_"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                )
                for new, theirs in table:
                    inside = inside.replace(new, theirs)
                made[layer + inside] = tensor
    return made
