# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""LoRA files: low-rank changes of weights, in the three spellings people have (kohya, diffusers, peft).

A layer's change is alpha / rank * up @ down (Hu et al., arXiv 2106.09685, section 4.1).  Keys are converted by
diffusers; every key of a file must end at a weight of the model, or the file is for another family.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from instantstyle.blocks import UNetConfig
from instantstyle.errors import InputError, WeightsError, did_you_mean
from instantstyle.families import FAMILIES
from instantstyle.networks.weight_deltas import with_weight_deltas
from instantstyle.utils.atomic_files import atomic_write
from instantstyle.weights import hub, model_folders
from instantstyle.weights.tensor_files import TensorFile, open_tensors

Lora = tuple[str | Path, float]
"""A file, and how much of it: 1 is what it was trained to be."""
MAX_WEIGHT = 10.0
"""The largest weight of a LoRA, either way: a negative one takes away what the file adds."""

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class LoRAFactors:
    """One layer's change: scale * up @ down."""

    up: Tensor
    """[out, rank], of a convolution [out, rank, 1, 1]."""
    down: Tensor
    """[rank, in], of a convolution [rank, in, height, width]."""
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """How many directions it changes."""
        return len(self.down)


class LoRADeltas(Mapping[str, Tensor]):
    """The change of each weight, by its parameter's name, multiplied out in float32 when it is asked for.

    A large model's changes at once would be as large as the model.
    """

    def __init__(self, factors: Mapping[str, LoRAFactors], shapes: Mapping[str, Sequence[int]], weight: float) -> None:
        """`factors` by parameter; `weight` is how much of them, the one place where a strength enters."""
        self.factors, self.shapes, self.weight = factors, shapes, weight

    def __getitem__(self, name: str) -> Tensor:
        one = self.factors[name]
        product = one.up.float().flatten(1) @ one.down.float().flatten(1)
        return (self.weight * one.scale * product).reshape(tuple(self.shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.factors)

    def __len__(self) -> int:
        return len(self.factors)


def parse_lora(text: str) -> Lora:
    """`FILE` or `FILE:WEIGHT`, as the command line takes it.  Raises InputError."""
    path, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight or not re.match(r"[-+\d.]", weight):
        return text, 1.0  # a colon of the path itself
    try:
        return path, float(weight)
    except ValueError:
        raise InputError(f"a LoRA is FILE or FILE:WEIGHT with a number such as 0.8, not {text!r}") from None


def with_loras(parts: Mapping[str, Net], loras: Sequence[Lora], config: UNetConfig) -> dict[str, Net]:
    """The networks ("unet", "text_encoder", ...) with each file's changes added, one after the other.

    Tensors that no file names are shared with the networks given, which stay as they are.  Raises WeightsError for a
    file that does not fit, InputError for a weight that is no strength.
    """
    changed = dict(parts)
    for path, weight in loras:
        if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise InputError(f"a LoRA's weight is a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, not {weight:g}")
        if weight == 0:
            continue
        for part, factors in read_lora(path, parts, config).items():
            shapes = {name: parameter.shape for name, parameter in parts[part].named_parameters()}
            changed[part] = with_weight_deltas(changed[part], LoRADeltas(factors, shapes, weight))
    return changed


def read_lora(
    path: str | Path, parts: Mapping[str, nn.Module], config: UNetConfig
) -> dict[str, dict[str, LoRAFactors]]:
    """A LoRA's factors, by network ("unet", "text_encoder", "text_encoder_2") and parameter.

    Raises WeightsError, naming what was found and what is needed, when the file is missing, damaged, no plain LoRA, or
    for another family.
    """
    path = lora_file(path)
    with open_tensors(path) as file:
        _check_kind(file, path)
        _check_family(file, config, path)
        pairs = _pairs(file, config, path)
        said = _said(file, path)
        found: dict[str, dict[str, LoRAFactors]] = {}
        for part, modules in pairs.items():
            if part not in parts:
                raise WeightsError(
                    f"the LoRA {path} changes the {part}, which this model does not have: {_other(config)}"
                )
            names = dict(parts[part].named_modules())
            for module, (down, up) in modules.items():
                owner = _owner(module, names)
                weight = getattr(names.get(owner), "weight", None)
                if not isinstance(weight, Tensor):
                    raise WeightsError(
                        f"the LoRA {path} changes {part}.{module}, which this model does not have"
                        f"{did_you_mean(module, names)}: {_other(config)}"
                    )
                factors = LoRAFactors(file.read(up), file.read(down), _scale(file, down, part, module, said))
                _check_shape(factors, weight, f"{part}.{module}", path, config)
                found.setdefault(part, {})[f"{owner}.weight"] = factors
    return found


def load_factors(path: str | Path, unet: nn.Module, config: UNetConfig) -> dict[str, LoRAFactors]:
    """A LoRA's factors for a UNet, by parameter.  Raises WeightsError as `read_lora` does."""
    return read_lora(path, {"unet": unet}, config).get("unet", {})


def save_lora(path: str | Path, factors: Mapping[str, LoRAFactors], metadata: Mapping[str, str] | None = None) -> None:
    """Write a UNet's factors, by parameter, in diffusers' keys, whole or not at all.  Raises OutputError.

    Scales are multiplied into the up matrices: a file without alpha is read with scale 1 everywhere.
    """
    path, tensors = Path(path), dict[str, Tensor]()
    for name, one in factors.items():
        module = name.removesuffix(".weight")
        tensors[f"unet.{module}.lora_A.weight"] = one.down.detach().cpu().clone().contiguous()
        tensors[f"unet.{module}.lora_B.weight"] = (one.scale * one.up).detach().cpu().clone().contiguous()
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", **(metadata or {})})


def lora_file(spec: str | Path, near: Path | None = None) -> Path:
    """A LoRA's file: a path, a folder as peft writes it, a name in a model tree, or `owner/name/path/in/it` on the hub.

    `near` is a file or folder whose own tree is looked through too.  Raises WeightsError.
    """
    path, name = Path(spec).expanduser(), str(spec)
    if path.is_dir():
        known = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")
        inside = next((path / each for each in known if (path / each).is_file()), None)
        if inside is None:
            raise WeightsError(f"there is no LoRA in the folder {name!r}: it has none of {', '.join(known)}")
        return inside
    if path.exists() or isinstance(spec, Path):
        return path
    if (inside := model_folders.find_file("loras", name, near)) is not None:
        return inside
    if hub.is_hub_path(name, 1):
        return hub.fetch_file(name)
    raise WeightsError(
        f"there is no LoRA at {name!r}: give a file, a folder as peft writes it, its name in a tree that "
        f"{model_folders.VARIABLE} names, or its path on the hub{model_folders.suggest_file('loras', name)}"
    )


_PARTS = ("unet", "text_encoder", "text_encoder_2")
_OTHER_KINDS: Mapping[str, str] = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w1": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "a LoCon in Tucker form",
    "oft_": "OFT",
    "to_k_ip": "IP-Adapter",
}
"""What a part of a tensor's name says the file is, where it is not a plain LoRA."""
_TRANSFORMERS = ("transformer.", "lora_unet_double_blocks", "lora_unet_joint_blocks", "lora_transformer_", "diffusion_")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])(?:\.\w+)?\.weight")
_CONTEXT = re.compile(r"attn2[._](?:processor\.)?to_k(?:\.lora_A|\.lora_down|_lora\.down|\.lora\.down)")
_STEM = re.compile(r"\.lora_(?:A|down)\b|_lora\.down\b|\.lora(?:_linear_layer)?\.down\b")


def _check_kind(file: TensorFile, path: Path) -> None:
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in name for name in file.shapes):
            raise WeightsError(f"{path} is no plain LoRA but {kind}, which is not supported: ask for it as LoRA")
    if not any("lora" in name for name in file.shapes):
        some = ", ".join(list(file.shapes)[:3])
        raise WeightsError(f"{path} is no LoRA file: none of its tensors is named as one ({some}, ...)")


def _check_family(file: TensorFile, config: UNetConfig, path: Path) -> None:
    """The width of the text tokens tells families apart; say so before any name or shape is complained about."""
    if any(name.startswith(_TRANSFORMERS) for name in file.shapes):
        raise WeightsError(
            f"the LoRA {path} is for a diffusion transformer such as Flux or SD 3, and this model is a UNet: "
            f"{_other(config)}"
        )
    given = next((shape[1] for name, shape in file.shapes.items() if _CONTEXT.search(name) and len(shape) > 1), None)
    if given is not None and given != config.cross_attention_dim:
        raise WeightsError(
            f"the LoRA {path} is for a UNet whose text tokens are {_named(given)}, but this UNet's are "
            f"{_named(config.cross_attention_dim)}"
        )


def _pairs(file: TensorFile, config: UNetConfig, path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """By network and module, the names in the file of its down and up matrices."""
    names = [name for name in file.shapes if not name.endswith(".alpha")]
    # diffusers renames tensors; these hold nothing but the number of the name they came from.
    marked = {name: torch.tensor(float(i)) for i, name in enumerate(names)}
    try:
        converted = _converted(marked, config)
    except (ValueError, KeyError, IndexError) as e:
        line = " ".join(str(e).split())[:200]
        raise WeightsError(f"the LoRA {path} has keys that are not understood: {line}; {_other(config)}") from e
    found: dict[str, dict[str, dict[str, str]]] = {}
    for key, mark in converted.items():
        match, original = _FACTOR.fullmatch(key), names[int(mark)]
        if match is None:
            raise WeightsError(f"the LoRA {path} holds a tensor named {original}, which is no part of a plain LoRA")
        part, module = _part(match["module"], original, path)
        found.setdefault(part, {}).setdefault(module, {})[match["which"]] = original
    pairs: dict[str, dict[str, tuple[str, str]]] = {}
    for part, modules in found.items():
        for module, both in modules.items():
            if set(both) != {"A", "B"}:
                raise WeightsError(f"the LoRA {path} has {next(iter(both.values()))} without its other half")
            pairs.setdefault(part, {})[module] = both["A"], both["B"]
    return pairs


def _converted(marked: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The same under peft's names, `part.module.lora_A.weight`, by diffusers' own conversions."""
    loaders: Any = import_module("diffusers.loaders.lora_pipeline").StableDiffusionXLLoraLoaderMixin
    names: Any = import_module("diffusers.utils.state_dict_utils")
    levels = SimpleNamespace(layers_per_block=config.layers_per_block)
    bare = {name.removeprefix("base_model.model."): mark for name, mark in marked.items()}
    spelt: dict[str, Tensor] = loaders.lora_state_dict(bare, unet_config=levels)[0]
    texts = {name: mark for name, mark in spelt.items() if name.startswith(("text_", "encoder."))}
    unet = {name: mark for name, mark in spelt.items() if name not in texts}
    for mapping in (names.DIFFUSERS_OLD_TO_PEFT, names.DIFFUSERS_TO_PEFT):
        texts = names.convert_state_dict(texts, mapping)
    return {**names.convert_unet_state_dict_to_peft(unet), **texts}


def _part(module: str, original: str, path: Path) -> tuple[str, str]:
    part, _, rest = module.partition(".")
    if part in _PARTS:
        return part, rest
    if part in ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding"):
        return "unet", module
    if part in ("text_model", "encoder", "text_projection"):
        return "text_encoder", module
    raise WeightsError(f"the LoRA {path} holds a tensor named {original}, which belongs to no network that is known")


def _owner(module: str, names: Mapping[str, nn.Module]) -> str:
    """The module's name in this network: libraries have written text encoders with and without `text_model.`."""
    spellings = (module, module.removeprefix("text_model."), f"text_model.{module}")
    return next((name for name in spellings if name in names), module)


def _check_shape(one: LoRAFactors, weight: Tensor, where: str, path: Path, config: UNetConfig) -> None:
    out, rest = len(weight), weight[0].numel()
    fits = one.down.ndim > 1 and one.up.ndim > 1 and one.up.flatten(1).shape == (out, one.rank)
    if not fits or one.down.flatten(1).shape[1] != rest:
        raise WeightsError(
            f"the LoRA {path} changes {where} by {list(one.up.shape)} times {list(one.down.shape)}, but the weight "
            f"there has shape {list(weight.shape)}: {_other(config)}"
        )


def _scale(file: TensorFile, down: str, part: str, module: str, said: Mapping[str, Mapping[str, Any]]) -> float:
    """alpha / rank, where the file or what is beside it says an alpha, else 1."""
    rank, alpha_name = file.shapes[down][0], f"{_STEM.split(down)[0]}.alpha"
    if alpha_name in file.shapes:
        return float(file.read(alpha_name)) / rank
    config = said.get(part)
    if config is None:
        return 1.0
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    fitting = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)  # as peft matches them
    alpha = float(patterns[fitting] if fitting is not None else config.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _said(file: TensorFile, path: Path) -> dict[str, dict[str, Any]]:
    """peft's settings of each network: in the file's metadata as diffusers writes them, or in a file beside it."""
    said: dict[str, dict[str, Any]] = {}
    try:
        if "lora_adapter_metadata" in file.metadata:
            flat: dict[str, Any] = json.loads(file.metadata["lora_adapter_metadata"])
            for key, value in flat.items():
                part, _, name = key.partition(".")
                said.setdefault(part, {})[name] = value
            return said
        beside = path.with_name("adapter_config.json")
        if path.name.startswith("adapter_model.") and beside.is_file():
            settings: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
            said = dict.fromkeys(_PARTS, settings)
    except (OSError, ValueError, AttributeError) as e:
        raise WeightsError(f"the settings of the LoRA {path} cannot be read: {e}") from e
    return said


@cache
def _widths() -> Mapping[int, str]:
    return {family.unet.cross_attention_dim: f"family {name}" for name, family in FAMILIES.items()}


def _named(width: int) -> str:
    return f"{width} wide ({_widths()[width]})" if width in _widths() else f"{width} wide"


def _other(config: UNetConfig) -> str:
    return f"it is for another family, and this model's UNet reads text tokens {_named(config.cross_attention_dim)}"
