"""CSD (arXiv 2404.01292) from its published checkpoint: CLIP's vision encoder with a style head and a content head.

The file has OpenAI's parameter names, and often the optimiser and the script's arguments; the encoder is transformers'.
"""

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instantstyle.errors import WeightsError
from instantstyle.evaluate.similarity_metrics import FeatureExtractor
from instantstyle.weights.strict_load import check_state_dict, load_state
from instantstyle.weights.tensor_files import TensorFile, open_tensors

HEADS = ("style", "content")
_RENAMED = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""OpenAI's parameter names of CLIP's vision encoder, and transformers'."""


def load_csd(path: str | Path, device: torch.device) -> FeatureExtractor:
    """CSD from a checkpoint's `model_state_dict`, or from .safetensors of the same names.  Raises WeightsError.

    Sizes are inferred from shapes; an attention head has 64 dimensions, as in every CLIP by OpenAI.
    """
    path = Path(path).expanduser()
    transformers: Any = importlib.import_module("transformers")
    with open_tensors(path, inside="model_state_dict") as file:
        tensors = _tensors(path, file)
    heads = {name: tensors.pop(f"last_layer_{name}") for name in HEADS}
    width, _, patch, _ = tensors["conv1.weight"].shape
    check_state_dict(
        dict.fromkeys(HEADS, (width, heads["style"].shape[-1])),
        {name: tuple(head.shape) for name, head in heads.items()},
        str(path),
    )
    side = math.isqrt(len(tensors["positional_embedding"]) - 1) * patch
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len({name.split(".")[2] for name in tensors if name.startswith("transformer.")}),
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=patch,
        hidden_act="quick_gelu",  # what OpenAI trained with; GELU gives other embeddings
    )

    def make() -> Any:
        return transformers.CLIPVisionModel(config)

    net = load_state(make, lambda net: _renamed(tensors, net), str(path), torch.float32, device)
    heads = {name: head.to(device, torch.float32) for name, head in heads.items()}
    square = {"height": side, "width": side}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)

    def embed(pixels: Tensor) -> Mapping[str, Tensor]:
        embeds = net(pixels.to(device)).pooler_output
        return {f"CSD {name}": embeds @ head for name, head in heads.items()}

    return FeatureExtractor(
        path, lambda images: processor(images=list(images), return_tensors="pt")["pixel_values"], embed
    )


def _tensors(path: Path, file: TensorFile) -> dict[str, Tensor]:
    """The tensors by their names without `module.` (of several GPUs) and `backbone.`.  Raises WeightsError."""
    names = {re.sub(r"^(module\.)?(backbone\.)?", "", name): name for name in file.shapes}
    needed = {"conv1.weight": 4, "positional_embedding": 2, **{f"last_layer_{name}": 2 for name in HEADS}}
    lacking = [name for name, axes in needed.items() if len(file.shapes.get(names.get(name, ""), ())) != axes]
    if lacking or file.shapes[names["conv1.weight"]][0] % 64:
        lacks = f"lacks {', '.join(lacking)}" if lacking else "is not as wide as any CLIP of OpenAI's"
        raise WeightsError(f"{path} is no CSD: it {lacks}; give the checkpoint of CSD ViT-L that its authors publish")
    return {name: file.read(stored) for name, stored in names.items()}


def _renamed(tensors: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Tensors under transformers' names, which prefix with `vision_model.` in some releases and not in others."""
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in net.state_dict()) else ""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        if ".in_proj_" in name:
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[prefix + name.replace("in_proj_", f"{which}_proj.")] = part
        else:
            renamed[prefix + name] = tensor
    return renamed
