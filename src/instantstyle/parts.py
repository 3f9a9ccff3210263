"""The parts of a model from its files, a folder's or a single one: networks, adapters, and what its index says."""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from instantstyle.blocks import parse_plan
from instantstyle.encoders import Eyes
from instantstyle.errors import PlanError, WeightsError
from instantstyle.families import SAID, Family, presets_of
from instantstyle.nets.unet import UNet
from instantstyle.weights.adapter import Adapter, load_adapter
from instantstyle.weights.find import Found
from instantstyle.weights.networks import fill_part, fill_unet, load_part, load_unet

PRESETS = "presets.json"
"""A folder's own presets, `{"style": {"up.0.1": 1.0}, "layout": ...}`: written by `instantstyle probe --write`."""


@dataclass(frozen=True)
class Speaker:
    """An adapter with the image encoder it was trained with."""

    adapter: Adapter
    eyes: Eyes | None


def load_unet_of(found: Found, family: Family, dtype: torch.dtype, device: torch.device) -> UNet:
    """The UNet of a folder or of a single file.  Raises WeightsError naming the key that is missing or misshapen."""
    if found.single is None:
        return load_unet(found.folder / "unet", family.unet, dtype, device)
    with found.single.unet() as file:
        return fill_unet([file], str(found.single.path), family.unet, dtype, device)


def load_vae(found: Found, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' AutoencoderKL of a folder or of a single file.  Raises WeightsError."""
    kind: Any = importlib.import_module("diffusers").AutoencoderKL
    config = found.config("vae/config.json")
    # SDXL's VAE overflows in float16 and says so.
    dtype = torch.float32 if dtype == torch.float16 and config.get("force_upcast", True) else dtype
    if (single := found.single) is None:
        return load_part(kind, found.folder / "vae", dtype, device)

    def tensors(net: Any) -> dict[str, Tensor]:
        return single.tensors("vae", net)

    return fill_part(lambda: kind.from_config(config), tensors, str(single.path), dtype, device)


def load_speaker(file: Path, eyes: Eyes | None, family: Family, dtype: torch.dtype, device: torch.device) -> Speaker:
    """An adapter, read as plans ask for it.  Raises WeightsError when it is for another UNet or encoder."""
    adapter = load_adapter(file, family.unet, dtype=dtype, device=device, lazy=True)
    if eyes is not None:
        config = eyes.net.config
        adapter.check_encoder(int(config.hidden_size if adapter.plus else config.projection_dim))
    return Speaker(adapter, eyes)


def with_index(family: Family, found: Found) -> Family:
    """The family with what this checkpoint's own files say: its size, and what an empty negative prompt is."""
    side = found.config("unet/config.json").get("sample_size")
    levels = len(found.config("vae/config.json").get("block_out_channels") or (1,) * 4)
    index = found.config("model_index.json") if found.has("model_index.json") else {}
    changes: dict[str, Any] = {"zero_empty": bool(index.get("force_zeros_for_empty_prompt", family.zero_empty))}
    if isinstance(side, int):
        changes["size"] = (side * 2 ** (levels - 1),) * 2
    family = dataclasses.replace(family, **changes)
    if found.single is not None or not found.has(PRESETS):
        return family
    return with_presets(family, found.config(PRESETS), str(found.folder / PRESETS))


def with_presets(family: Family, said: Mapping[str, Any], where: str) -> Family:
    """The family with what presets.json says of where style and layout live; what it leaves out is the family's.

    Raises WeightsError when it names blocks that the UNet does not have.
    """
    blocks = {name: said.get(name, dict(family.presets[name].weights)) for name in SAID}
    try:
        for plan in blocks.values():
            parse_plan(",".join(f"{block}={strength}" for block, strength in plan.items()), family.unet, {})
    except (AttributeError, PlanError) as wrong:
        raise WeightsError(f"{where} is not understood: {wrong}") from wrong
    return dataclasses.replace(family, presets=presets_of(**blocks), presets_source=said.get("source", where))


def read_vocabulary(found: Found) -> tuple[str, ...]:
    """The words in a folder's vocabulary.json, none where there is no such file.  Raises WeightsError."""
    path = found.folder / "vocabulary.json"
    if found.single is not None or not path.is_file():
        return ()
    try:
        words: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(words, list) or not all(isinstance(word, str) for word in cast("list[object]", words)):
        raise WeightsError(f"{path} must be a JSON list of words")
    return tuple(cast("list[str]", words))
