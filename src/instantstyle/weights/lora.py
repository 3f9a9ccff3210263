# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""LoRA files: low-rank changes of weights.

A layer's change is alpha / rank * up @ down (Hu et al., arXiv 2106.09685, section 4.1).  `lora_names` resolves the
spellings of tensors' names; every one must lead to a weight of the model, or the file is refused.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan, UNetConfig
from instantstyle.errors import InputError, WeightsError, abbreviate, did_you_mean
from instantstyle.families import FAMILIES
from instantstyle.networks.unet import UNet
from instantstyle.networks.weight_deltas import with_weight_deltas
from instantstyle.utils.atomic_files import atomic_write
from instantstyle.utils.files import local_path, parse_json, read_json
from instantstyle.weights import hub, model_folders
from instantstyle.weights.lora_names import LORA_TARGETS, Factor, TensorName, locate, module_table, parse_name
from instantstyle.weights.tensor_files import TensorFile, open_tensors

Lora = tuple[str | Path, float]
"""A file, or `FILE:style` or `FILE:content` for one part of a B-LoRA; and how much of it: 1 is as it was trained."""
B_LORA_BLOCKS = ("style", "content")
MAX_WEIGHT = 10.0
"""The largest weight of a LoRA, either way: a negative one takes away what the file adds."""

_Net = TypeVar("_Net", bound=nn.Module)


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
    """`FILE`, `FILE:WEIGHT`, `FILE:WEIGHT:BLOCKS` or `FILE:BLOCKS`, BLOCKS being style or content.  Raises InputError.

    The blocks stay part of the file's name, `FILE:style`, as `load` takes them.
    """
    rest, blocks = split_blocks(text)
    path, colon, weight = str(rest).rpartition(":")
    if not colon or "/" in weight or "\\" in weight or not re.match(r"[-+\d.]", weight):
        ending = weight.lower() if colon and path and len(path) > 1 else ""
        if blocks is None and (known := did_you_mean(ending, B_LORA_BLOCKS)) and Path(path).suffix:
            raise InputError(f"a LoRA has no part {weight!r}{known}: give FILE:WEIGHT:style or FILE:WEIGHT:content")
        return text, 1.0  # a colon of the path itself
    try:
        return path + (f":{blocks}" if blocks else ""), float(weight)
    except ValueError:
        raise InputError(
            f"a LoRA is FILE, FILE:WEIGHT or FILE:WEIGHT:style with a number such as 0.8, not {text!r}"
        ) from None


def split_blocks(spec: str | Path) -> tuple[str | Path, str | None]:
    """A LoRA's file, and which part of a B-LoRA is meant: style, content, or None for the whole."""
    path, _, blocks = str(spec).rpartition(":")
    return (path, blocks) if path and blocks in B_LORA_BLOCKS else (spec, None)


def with_loras(
    parts: Mapping[str, _Net], loras: Sequence[Lora], config: UNetConfig, plans: Mapping[str, BlockPlan] | None = None
) -> dict[str, _Net]:
    """The networks ("unet", "text_encoder", ...) with each file's changes added, one after the other.

    `plans` says where the style and content blocks of a B-LoRA are, for files given as `FILE:style`.  Tensors that no
    file names are shared with the networks given, which stay as they are.  Raises WeightsError for a file that does
    not fit, InputError for a weight that is no strength.
    """
    changed = dict(parts)
    for spec, weight in loras:
        if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise InputError(f"a LoRA's weight is a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, not {weight:g}")
        if weight == 0:
            continue
        path, blocks = split_blocks(spec)
        read = read_lora(path, parts, config)
        if blocks is not None:
            read = {"unet": _of_blocks(read.get("unet", {}), blocks, (plans or {})[blocks], path)}
        for part, factors in read.items():
            shapes = {name: parameter.shape for name, parameter in parts[part].named_parameters()}
            changed[part] = with_weight_deltas(changed[part], LoRADeltas(factors, shapes, weight))
    return changed


def _of_blocks(
    factors: Mapping[str, LoRAFactors], blocks: str, plan: BlockPlan, path: str | Path
) -> dict[str, LoRAFactors]:
    """The factors in a B-LoRA's style or content blocks.  Raises WeightsError when the file has none there."""
    selected: dict[str, LoRAFactors] = {}
    present: set[str] = set()
    for name, one in factors.items():
        match = re.match(r"(?P<stage>down|up)_blocks\.(?P<rest>\d+\.attentions\.\d+)\.|(?P<mid>mid)_block\.", name)
        block = "mid" if match and match["mid"] else match and f"{match['stage']}.{match['rest']}"
        if block:
            block = block.replace(".attentions", "")
            present.add(block)
            if any(block == address or block.startswith(f"{address}.") for address in plan.weights):
                selected[name] = one
    if not selected:
        raise WeightsError(
            f"the LoRA {path} has no {blocks} part: it changes {', '.join(sorted(present)) or 'no attention block'}, "
            f"and the {blocks} of this model's B-LoRAs is in {', '.join(plan.weights)}"
        )
    return selected


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
        settings = _peft_settings(file, path)
        factors: dict[str, dict[str, LoRAFactors]] = {}
        for (part, module), names in _tensor_names(file, parts, config, path).items():
            if not {"down", "up"} <= names.keys():
                raise WeightsError(f"the LoRA {path} has {next(iter(names.values()))} without its other half")
            one = LoRAFactors(file.read(names["up"]), file.read(names["down"]))
            weight = parts[part].get_parameter(f"{module}.weight")
            _check_shape(one, weight, f"{part}.{module}", path, config)
            scale = _scale(file, names, part, module, settings, path)
            factors.setdefault(part, {})[f"{module}.weight"] = replace(one, scale=scale)
    return factors


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
    path, name = local_path(spec, WeightsError), str(spec)
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


_OTHER_KINDS: Mapping[str, str] = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"hada_w1": "LoHa",
    r"lokr_w": "LoKr",
    r"lora_mid": "a LoCon in Tucker form",
    r"oft_": "OFT",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.on_input$": "IA3",
    r"\.diff(_b)?$": "a full difference of weights (LyCORIS full)",
    r"\.[wb]_norm$": "trained norms (LyCORIS)",
    r"\.lora_embedding_[AB]": "a LoRA of token embeddings",
    r"^(bundle_emb|emb_params|clip_[lg]$)": "a textual inversion",
    r"\.(lora_[AB]|lora_(up|down))(\.\w+)?\.bias$": "a LoRA with biases",
    r"to_k_ip": "IP-Adapter",
}
"""What a tensor's name says the file is, where it is not a plain LoRA."""
_TRANSFORMERS = re.compile(
    r"(transformer|diffusion_model\.(double_blocks|joint_blocks|layers|transformer_blocks))\.|lora_transformer_"
    r"|lora_unet_(double|single|joint)_blocks|double_blocks\.|single_blocks\.|joint_blocks\."
)
_CONTEXT = re.compile(r"attn2[._](?:processor[._])?to_k(?:\.lora_A|\.lora_down|_lora\.down|\.lora\.down)")


def _check_kind(file: TensorFile, path: Path) -> None:
    for pattern, kind in _OTHER_KINDS.items():
        if any(re.search(pattern, name) for name in file.shapes):
            raise WeightsError(f"{path} is no plain LoRA but {kind}, which is not supported: ask for it as LoRA")
    if not any("lora" in name for name in file.shapes):
        some = ", ".join(list(file.shapes)[:3])
        raise WeightsError(f"{path} is no LoRA file: none of its tensors is named as one ({some}, ...)")


def _check_family(file: TensorFile, config: UNetConfig, path: Path) -> None:
    """The width of the text tokens tells families apart; it is checked before any name or shape."""
    if any(_TRANSFORMERS.match(name) for name in file.shapes):
        raise WeightsError(
            f"the LoRA {path} is for a diffusion transformer such as Flux or SD 3, and this model is a UNet: "
            f"{_other_family(config)}"
        )
    given = next((shape[1] for name, shape in file.shapes.items() if _CONTEXT.search(name) and len(shape) > 1), None)
    if given is not None and given != config.cross_attention_dim:
        raise WeightsError(
            f"the LoRA {path} is for a UNet whose text tokens are {_width_in_words(given)}, but this UNet's are "
            f"{_width_in_words(config.cross_attention_dim)}"
        )


def _tensor_names(
    file: TensorFile, parts: Mapping[str, nn.Module], config: UNetConfig, path: Path
) -> dict[tuple[str, str], dict[Factor, str]]:
    """By network and module, the names in the file of its down and up matrices and its alpha.  Raises WeightsError."""
    tables = {part: module_table(part, net) for part, net in parts.items() if part in LORA_TARGETS}
    names: dict[tuple[str, str], dict[Factor, str]] = {}
    for name in file.shapes:
        parsed = parse_name(name)
        if parsed is None:
            raise WeightsError(f"the LoRA {path} holds a tensor named {name}, which is no part of a plain LoRA")
        if parsed.part is not None and parsed.part not in tables:
            raise WeightsError(
                f"the LoRA {path} changes the {parsed.part}, which this model does not have: {_other_family(config)}"
            )
        module = locate(parsed, tables)
        if module is None:
            raise WeightsError(
                f"the LoRA {path} changes {name.removesuffix('.weight')}, which this model does not have"
                f"{_whose(parsed, tables, config)}"
            )
        if parsed.factor in names.setdefault(module, {}):
            raise WeightsError(f"the LoRA {path} says twice what it changes: {names[module][parsed.factor]} and {name}")
        names[module][parsed.factor] = name
    return names


def _whose(name: TensorName, tables: Mapping[str, Mapping[str, str]], config: UNetConfig) -> str:
    """The end of a sentence about a module that the model lacks: whose it is, or the nearest that there is."""
    for family in FAMILIES.values():
        if family.unet.cross_attention_dim != config.cross_attention_dim and name.part in (None, "unet"):
            with torch.device("meta"):
                table = module_table("unet", UNet(family.unet))
            if locate(name, {"unet": table}) is not None:
                return f": it is of a UNet of family {family.name}; {_other_family(config)}"
    modules = dict.fromkeys(module for part in tables if name.part in (None, part) for module in tables[part].values())
    return f"{did_you_mean(name.module, modules)}: neither diffusers' names nor the original ones have such a module"


def _check_shape(one: LoRAFactors, weight: Tensor, where: str, path: Path, config: UNetConfig) -> None:
    out, rest = len(weight), weight[0].numel()
    matrices = one.down.ndim > 1 and one.up.ndim > 1
    fits = matrices and one.rank > 0 and one.up.flatten(1).shape == (out, one.rank)
    if not fits or one.down.flatten(1).shape[1] != rest:
        raise WeightsError(
            f"the LoRA {path} changes {where} by {list(one.up.shape)} times {list(one.down.shape)}, but the weight "
            f"there has shape {list(weight.shape)}: {_other_family(config)}"
        )


def _scale(
    file: TensorFile,
    names: Mapping[Factor, str],
    part: str,
    module: str,
    settings: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> float:
    """alpha / rank, where the file or the settings beside it name an alpha, else 1.  Raises WeightsError."""
    rank, config = file.shapes[names["down"]][0], settings.get(part)
    try:
        if "alpha" in names:
            scale = float(file.read(names["alpha"])) / rank
        elif config is None:
            return 1.0
        else:
            patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
            fitting = next((key for key in patterns if _matches(key, module)), None)
            alpha = float(patterns[fitting] if fitting is not None else config.get("lora_alpha", rank))
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as e:
        raise WeightsError(f"the alpha of {part}.{module} in the LoRA {path} is no number: {e}") from e
    if not math.isfinite(scale):
        raise WeightsError(f"the alpha of {part}.{module} in the LoRA {path} is not finite")
    return scale


def _matches(pattern: str, module: str) -> bool:
    """Whether a module's name ends in a pattern of peft's, at a point; `^` stands for its beginning.

    peft takes a regular expression; a stranger's may take for ever, and what peft and diffusers write is names.
    """
    name = pattern.replace("\\.", ".")
    if not re.fullmatch(r"\^?[\w.]*", name):
        raise ValueError(f"the pattern {abbreviate(pattern)} is a regular expression, and only names are read")
    return module == name.removeprefix("^") or (not name.startswith("^") and module.endswith(f".{name}"))


def _peft_settings(file: TensorFile, path: Path) -> dict[str, dict[str, Any]]:
    """peft's settings of each network: in the file's metadata as diffusers writes them, or in a file beside it."""
    settings: dict[str, dict[str, Any]] = {}
    try:
        if "lora_adapter_metadata" in file.metadata:
            flat: dict[str, Any] = parse_json(file.metadata["lora_adapter_metadata"])
            for key, value in flat.items():
                part, _, name = key.partition(".")
                settings.setdefault(part, {})[name] = value
            return settings
        beside = path.with_name("adapter_config.json")
        if path.name.startswith("adapter_model.") and beside.exists():
            content: object = read_json(beside)
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
            settings = dict.fromkeys(LORA_TARGETS, cast("dict[str, Any]", content))
    except (ValueError, AttributeError) as e:
        raise WeightsError(f"the settings of the LoRA {path} cannot be read: {e}") from e
    return settings


def _width_in_words(width: int) -> str:
    families = {family.unet.cross_attention_dim: f"family {name}" for name, family in FAMILIES.items()}
    return f"{width} wide ({families[width]})" if width in families else f"{width} wide"


def _other_family(config: UNetConfig) -> str:
    return (
        "it is for another family, and this model's UNet reads text tokens "
        f"{_width_in_words(config.cross_attention_dim)}"
    )
