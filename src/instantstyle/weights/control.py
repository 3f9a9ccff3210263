"""ControlNet files: half a UNet that reads a picture and steers the whole one; which family it is for, shapes tell.

The network is diffusers' `ControlNetModel`.  Files are read as people have them: a diffusers folder, a hub id, or one
file with diffusers' names or those of the first ControlNets (`control_model.input_blocks...`), whose conversion is
diffusers' too.  What the file has decides the network's layout, so the smaller SDXL ControlNets load as the large ones.
"""

import importlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from instantstyle.blocks import UNetConfig
from instantstyle.errors import WeightsError
from instantstyle.families import FAMILIES, Family
from instantstyle.utils.files import local_path
from instantstyle.weights import hub, model_folders
from instantstyle.weights.resolve import read_config
from instantstyle.weights.strict_load import check_state_dict, silence_progress, weight_files
from instantstyle.weights.tensor_files import Shapes, TensorFile, open_tensors

PUBLISHED_CONTROLNETS: Mapping[str, Mapping[str, str]] = {
    "sdxl": {
        "canny": "diffusers/controlnet-canny-sdxl-1.0",
        "depth": "diffusers/controlnet-depth-sdxl-1.0",
    },
    "sd15": {
        "canny": "lllyasviel/control_v11p_sd15_canny",
        "soft-edge": "lllyasviel/control_v11p_sd15_softedge",
        "lineart": "lllyasviel/control_v11p_sd15_lineart",
        "depth": "lllyasviel/control_v11f1p_sd15_depth",
    },
}
"""Hub ids of ControlNets by family and kind, for sentences that say what to load."""


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A loaded ControlNet."""

    net: Any
    """diffusers' `ControlNetModel`."""
    spec: str | None
    """What was asked for; asking for it again finds the same.  None for one that comes with its model."""


def load_controls(
    given: Mapping[str, str | Path], beside: Path, family: Family, dtype: torch.dtype, device: torch.device
) -> Mapping[str, ControlNet]:
    """The ControlNets asked for, by kind, and those of a model's folder (`controlnet_canny/`) for other kinds.

    Raises WeightsError as `load_control` does.
    """
    own = {
        folder.name.removeprefix("controlnet_").replace("_", "-"): folder
        for folder in sorted(beside.glob("controlnet_*"))
        if (folder / "config.json").is_file()
    }
    nets = {
        kind: load_control(spec, family, dtype=dtype, device=device, near=beside)
        for kind, spec in {**own, **given}.items()
    }
    return {kind: net if kind in given else ControlNet(net.net, None) for kind, net in nets.items()}


def load_control(
    spec: str | Path,
    family: Family,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    near: Path | None = None,
) -> ControlNet:
    """A ControlNet for a family's UNet: a folder, a weight file, a name in a model tree, a hub id or a path on the hub.

    `near` is a file or folder whose own tree is looked through too.

    Raises WeightsError, naming what was found and what is needed, when it is missing, damaged, holds NaN, is of another
    kind, or is for another family.
    """
    kind: Any = importlib.import_module("diffusers").ControlNetModel
    path = _find(str(spec), near)
    config = read_config(path / "config.json") if path.is_dir() else None
    with ExitStack() as stack, silence_progress():
        files = [stack.enter_context(open_tensors(each)) for each in (weight_files(path) if path.is_dir() else [path])]
        names = _diffusers_names(files, spec)
        shapes = {name: files[number].shapes[stored] for name, (number, stored) in names.items()}
        try:
            check_family(shapes, family, spec)
            with torch.device("meta"):
                net = kind.from_config(control_layout(shapes, family.unet) if config is None else config)
        except WeightsError:
            raise
        except Exception as e:  # a dozen kinds, none of them documented
            raise WeightsError(f"the ControlNet {spec} is of a kind that is not supported: {_line(e)}") from e
        check_state_dict({name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}, shapes, str(spec))
        tensors = {name: files[number].read(stored).to(device, dtype) for name, (number, stored) in names.items()}
        net.load_state_dict(tensors, strict=True, assign=True)
    return ControlNet(net.requires_grad_(False).eval(), str(spec))


def control_layout(shapes: Shapes, config: UNetConfig) -> dict[str, Any]:
    """The configuration of a `ControlNetModel` with tensors of these names and shapes.

    Attention heads and groups leave no trace in shapes: they are those of the UNet to be steered.
    """
    levels = _count(shapes, "down_blocks")
    crossed = [f"down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(levels)]
    depths = [_count(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks") for i in range(levels)]
    middle = "mid_block.attentions.0.norm.weight" in shapes
    if not crossed[-1] and middle:  # the last number is the middle's too
        depths[-1] = _count(shapes, "mid_block.attentions.0.transformer_blocks")
    eyes = "controlnet_cond_embedding"
    widths = [shapes[f"{eyes}.blocks.{i}.weight"][0] for i in range(1, _count(shapes, f"{eyes}.blocks"), 2)]
    projections = [shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    added = _width(shapes, "add_embedding.linear_1.weight")
    config_fields: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1],
        "conditioning_channels": shapes[f"{eyes}.conv_in.weight"][1],
        "conditioning_embedding_out_channels": (shapes[f"{eyes}.conv_in.weight"][0], *widths),
        "block_out_channels": _widths(shapes),
        "layers_per_block": _count(shapes, "down_blocks.0.resnets"),
        "down_block_types": tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossed),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "transformer_layers_per_block": depths,
        "attention_head_dim": config.num_attention_heads,
        "norm_num_groups": config.norm_num_groups,
        "cross_attention_dim": _context(shapes) or config.cross_attention_dim,
        "use_linear_projection": all(len(shape) == 2 for shape in projections)
        if projections
        else config.use_linear_projection,
    }
    if added is not None:
        config_fields |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": added,
        }
    return config_fields


def check_family(shapes: Shapes, family: Family, spec: object) -> None:
    """Raises WeightsError, saying what was found and what is needed, for a ControlNet of another family's UNet."""
    traits, needed = _traits(shapes), _needed(family.unet)
    # The smallest SDXL ControlNets have no attention, and so no width of text.
    apart = next((what for what in needed if traits[what] not in (None, needed[what])), None)
    if apart is None:
        return
    name = next(
        (f.name for f in FAMILIES.values() if all(traits[w] in (None, n) for w, n in _needed(f.unet).items())), None
    )
    raise WeightsError(
        f"the ControlNet {spec} is for {f'family {name}' if name else 'another UNet'}: it has {apart} "
        f"{_shown(traits[apart])} where this model, of family {family.name}, needs {_shown(needed[apart])}; give a "
        f"ControlNet made for {family.name}"
    )


def _traits(shapes: Shapes) -> dict[str, object]:
    added = _width(shapes, "add_embedding.linear_1.weight")
    return {
        "text tokens of width": _context(shapes),
        "channels": _widths(shapes),
        "latent channels": shapes["conv_in.weight"][1],
        "pooled text and sizes of width": added or 0,
    }


def _needed(config: UNetConfig) -> dict[str, object]:
    return {
        "text tokens of width": config.cross_attention_dim,
        "channels": config.block_out_channels,
        "latent channels": config.out_channels,  # an inpainting UNet's other inputs are not for a ControlNet
        "pooled text and sizes of width": 0
        if config.pooled_projection_dim is None
        else config.pooled_projection_dim + 6 * config.addition_time_embed_dim,
    }


def _shown(fact: object) -> str:
    return "/".join(map(str, cast("tuple[int, ...]", fact))) if isinstance(fact, tuple) else str(fact or "none")


def _context(shapes: Shapes) -> int | None:
    return next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)


def _width(shapes: Shapes, name: str) -> int | None:
    return shapes[name][1] if name in shapes else None


def _widths(shapes: Shapes) -> tuple[int, ...]:
    return tuple(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(_count(shapes, "down_blocks")))


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts there are under a name, counted from 0 up to the first that is not there."""
    start = f"{prefix}."
    numbers = {name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)}
    return next(i for i in itertools.count() if str(i) not in numbers)


_MUST = ("conv_in.weight", "controlnet_cond_embedding.conv_in.weight", "controlnet_mid_block.weight")
_OTHERS: Mapping[str, str] = {
    "task_embedding": "a ControlNet-Union, which is not supported: give a ControlNet of one kind",
    "lora_controlnet": "a Control-LoRA, which is not supported: give a whole ControlNet",
    "lllite_unet": "a ControlLLLite, which is not supported: give a whole ControlNet",
    "body.0.": "a T2I-Adapter, which is not supported: give a ControlNet",
    "adapter.body": "a T2I-Adapter, which is not supported: give a ControlNet",
    "controlnet_x_embedder": "a ControlNet of a transformer (Flux), which is not supported: give one of SDXL or SD1.5",
    "pos_embed_input": "a ControlNet of a transformer (SD3), which is not supported: give one of SDXL or SD1.5",
    "image_proj": "an IP-Adapter: give it as adapter",
    "lora_": "a LoRA",
    "first_stage_model": "a whole checkpoint: give it as model",
    "up_blocks": "a UNet",
}
"""What else people have in such files, by a part of its tensors' names."""


def _diffusers_names(files: Sequence[TensorFile], spec: object) -> dict[str, tuple[int, str]]:
    """For each tensor by diffusers' name: the number of the file that has it, and its name there."""
    stored = {name: (number, name) for number, file in enumerate(files) for name in file.shapes}
    old = any(name.removeprefix("control_model.") == "input_hint_block.0.weight" for name in stored)
    names = _converted(stored) if old else stored
    if missing := [name for name in _MUST if name not in names]:
        other = next((what for part, what in _OTHERS.items() if any(part in name for name in stored)), None)
        raise WeightsError(f"{spec} is {other}" if other else f"{spec} is no ControlNet: it has no {missing[0]}")
    if "task_embedding" in names:
        raise WeightsError(f"{spec} is {_OTHERS['task_embedding']}")
    return names


def _converted(stored: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """diffusers' conversion of names; it moves values about without looking at them, so places in files will do."""
    convert: Any = importlib.import_module("diffusers.loaders.single_file_utils").convert_controlnet_checkpoint
    try:
        names: dict[str, Any] = convert(dict(stored), {"layers_per_block": 2})
    except Exception as e:  # of names that are not there, and of numbers that are none
        raise WeightsError(f"the ControlNet has names that are not understood: {_line(e)}") from e
    return {name: place for name, place in names.items() if place is not None}


def _find(spec: str, near: Path | None) -> Path:
    """The file or folder, by its path, by its name in a model tree, or from the hub.  Raises WeightsError."""
    path = local_path(spec, WeightsError)
    if path.exists():
        return path
    if (known := model_folders.find_file("controlnet", spec, near)) is not None:
        return known
    if not hub.is_hub_path(spec, 0) and not hub.is_hub_path(spec, 1):
        raise WeightsError(
            f"there is no ControlNet at {spec!r}: give a folder in diffusers' layout, a .safetensors file, its name in "
            f"a tree that {model_folders.VARIABLE} names, or a hub id such as diffusers/controlnet-canny-sdxl-1.0"
            f"{model_folders.suggest_file('controlnet', spec)}"
        )
    return hub.fetch_file(spec) if path.suffix in model_folders.SUFFIXES else hub.fetch_folder(spec)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
