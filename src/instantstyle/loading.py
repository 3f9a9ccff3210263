"""From files to a Model: a folder's, a checkpoint's or a hub id's networks, adapters, and what its index says."""

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from instantstyle.blocks import parse_block_plan
from instantstyle.encoders.clip import (
    ImageEncoder,
    ReloadedModule,
    TextEncoder,
    load_content_text_encoder,
    load_image_encoder,
    load_text_encoder,
)
from instantstyle.errors import InputError, PlanError, WeightsError, abbreviate, did_you_mean
from instantstyle.families import BASE_PRESETS, Family, make_presets
from instantstyle.model import AdapterWithEncoder, Model, OffloadMode
from instantstyle.networks.unet import UNet
from instantstyle.utils import files
from instantstyle.utils.device import limit_threads, pick_device, pick_dtype
from instantstyle.weights.adapter import load_adapter
from instantstyle.weights.control import load_controls
from instantstyle.weights.depth import load_depth
from instantstyle.weights.lora import lora_file, split_blocks, with_loras
from instantstyle.weights.resolve import AdapterSpec, ResolvedModel, resolve_model
from instantstyle.weights.single_file import ComponentName
from instantstyle.weights.strict_load import (
    count_parameters,
    from_pretrained_strict,
    load_state,
    load_unet,
    load_unet_state,
)
from instantstyle.weights.unet_config import MAX_LEVELS, check_scheduler, family_of

MAX_SIZE = 2**14
"""Pixels of a model's own pictures, along a side."""
PRESETS_FILE = "presets.json"
"""A folder's own presets, `{"style": {"up.0.1": 1.0}, "layout": ...}`: written by `instantstyle probe --write`."""


def load(
    model: str | Path = "emoji",
    *,
    adapter: AdapterSpec | None = None,
    image_encoder: str | Path | None = None,
    content_encoder: str | Path | None = None,
    controls: Mapping[str, str | Path] | None = None,
    depth: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: Literal["keep", "free", "offload"] | OffloadMode = "keep",
    tile: bool = False,
) -> Model:
    """Load a model: a built-in's name, "sdxl", "sd15", a folder in diffusers' layout, a checkpoint's file, a hub id.

    `adapter` is an IP-Adapter file, its path on the hub or its name in a model tree, by default the one that comes with
    the model; several are a list, known by their files' names, or a dictionary.  `image_encoder` is needed where none
    lies beside model or adapter, `content_encoder` (a CLIP's folder or hub id) to subtract content in an adapter whose
    CLIP is not the model's.  `memory` is an `OffloadMode`, or keep, free or offload for none, reload and sequential;
    `tile` decodes large pictures in parts.

    `controls` are ControlNets by kind (`controls.KINDS`, or any name for pictures given as they are), beside those that
    come with the model; `depth` is a depth model of transformers for the kind depth.  `loras` are LoRAs, each with how
    much of it: 1 as it was trained; `FILE:style` or `FILE:content` is that part of a B-LoRA.  Both are files, folders,
    names in a model tree or on the hub.

    `device` auto and `dtype` auto are as `instantstyle.utils.device` decides.

    Raises WeightsError when files are missing, damaged or do not fit each other, InputError for an unknown device.
    """
    limit_threads()
    where, found = pick_device(device), resolve_model(model, adapter, image_encoder, content_encoder)
    family = apply_checkpoint_config(family_of(found.config("unet/config.json")), found)
    check_scheduler(found.config("scheduler/scheduler_config.json"))
    kind = pick_dtype(dtype, where, count_parameters(family.unet))
    offload_mode = parse_offload_mode(memory)
    home = where if offload_mode != "sequential" else torch.device("cpu")
    keep = offload_mode != "reload"
    unet = load_denoiser(found, family, kind, home)
    known: tuple[tuple[ComponentName, str], ...] = (("text_encoder", ""), ("text_encoder_2", "_2"))
    towers = tuple(
        load_text_encoder(found, part, f"tokenizer{suffix}", kind, home, keep=keep)
        for part, suffix in known
        if found.has(part)
    )
    wide = sum(int(tower.net.config.hidden_size) for tower in towers)
    if wide != family.unet.cross_attention_dim:
        raise WeightsError(
            f"the text encoders in {found.folder} give {wide} numbers a token, and the UNet reads "
            f"{family.unet.cross_attention_dim}"
        )
    family = dataclasses.replace(family, max_text_tokens=towers[0].max_length)
    files = [(_lora_spec(spec, found.folder), weight) for spec, weight in loras]
    unet, towers = _with_loras(unet, towers, files, family)
    lookers = {path: load_image_encoder(found, path, kind, home, keep=keep) for path in _encoders(found)}
    speakers = {
        name: load_adapter_with_encoder(each.file, lookers[each.encoder] if each.encoder else None, family, kind, where)
        for name, each in found.adapters.items()
    }
    eyes = lookers[found.image_encoder] if found.image_encoder else None
    narrow = load_adapter_with_encoder(found.style_adapter, eyes, family, kind, where) if found.style_adapter else None
    vae = load_vae(found, kind, home)
    if tile:
        vae.enable_tiling()
    loaded = Model(
        family=family,
        unet=unet,
        vae=vae,
        text_encoders=towers,
        image_encoder=eyes,
        adapter=next((speaker.adapter for speaker in speakers.values()), None),
        style_adapter=narrow.adapter if narrow else None,
        adapters=speakers,
        content_text_encoder=load_content_text_encoder(found.content_encoder, kind, home, keep=keep)
        if found.content_encoder
        else None,
        controls=load_controls(controls or {}, found.folder, family, kind, where),
        depth=None if depth is None else load_depth(depth, where),
        scheduler_config=found.config("scheduler/scheduler_config.json"),
        vocabulary=read_vocabulary(found),
        device=where,
        dtype=kind,
        source=found,
        loras=tuple((str(path), float(weight)) for path, weight in loras),
        offload_mode=offload_mode,
    )
    return _offloaded(loaded) if offload_mode == "sequential" else loaded


def parse_offload_mode(text: str) -> OffloadMode:
    """An offload mode by either of its names.  Raises InputError."""
    modes: dict[str, OffloadMode] = {"keep": "none", "free": "reload", "offload": "sequential"}
    modes |= {mode: mode for mode in modes.values()}
    if text not in modes:
        raise InputError(f"there is no memory mode {text!r}: give keep, free or offload{did_you_mean(text, modes)}")
    return modes[text]


def _with_loras(
    unet: UNet, towers: tuple[TextEncoder, ...], loras: Sequence[tuple[str | Path, float]], family: Family
) -> tuple[UNet, tuple[TextEncoder, ...]]:
    """The networks with the changes of LoRAs; a text encoder that is changed is kept, and no more read for each use."""
    if not loras:
        return unet, towers
    nets: dict[str, nn.Module] = {"unet": unet}
    for i, tower in enumerate(towers):
        nets[f"text_encoder{f'_{i + 1}' if i else ''}"] = (
            tower.net.load() if isinstance(tower.net, ReloadedModule) else tower.net
        )
    plans = {"style": family.presets["style"], "content": family.content_blocks}
    changed = with_loras(nets, loras, family.unet, plans)
    pairs = zip(towers, list(nets)[1:], strict=True)
    told = tuple(t if changed[name] is nets[name] else TextEncoder(t.tokenizer, changed[name]) for t, name in pairs)
    return cast("UNet", changed["unet"]), told


def _lora_spec(spec: str | Path, folder: Path) -> str | Path:
    """The same with the file's path found; the blocks of a B-LoRA, `FILE:style`, stay behind it."""
    path, blocks = split_blocks(spec)
    file = lora_file(path, folder)
    return file if blocks is None else f"{file}:{blocks}"


def _offloaded(model: Model) -> Model:
    """The model with every network's layers brought to the device only while they work."""
    offload: Any = importlib.import_module("accelerate").cpu_offload
    _ = model.weights_fingerprint  # of the weights, while they can still be read
    adapters = {id(speaker.adapter.projection) for speaker in model.adapters.values()}
    for net in model.networks.values():
        if id(net) not in adapters:
            offload(net, execution_device=model.device)
    return model


def _encoders(found: ResolvedModel) -> list[Path]:
    """Every image encoder once."""
    named = [found.image_encoder, *(each.encoder for each in found.adapters.values())]
    return list(dict.fromkeys(path for path in named if path is not None))


def load_denoiser(found: ResolvedModel, family: Family, dtype: torch.dtype, device: torch.device) -> UNet:
    """The UNet of a folder or of a single file.  Raises WeightsError naming the key that is missing or misshapen."""
    if found.single is None:
        return load_unet(found.folder / "unet", family.unet, dtype, device)
    with found.single.unet() as file:
        return load_unet_state([file], str(found.single.path), family.unet, dtype, device)


def load_vae(found: ResolvedModel, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' AutoencoderKL of a folder or of a single file.  Raises WeightsError."""
    kind: Any = importlib.import_module("diffusers").AutoencoderKL
    config = found.config("vae/config.json")
    scale: object = config.get("scaling_factor", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise WeightsError(
            f"the VAE in {found.folder} says its scaling_factor is {abbreviate(scale)}, which is no scale"
        )
    # SDXL's VAE overflows in float16 and says so.
    dtype = torch.float32 if dtype == torch.float16 and config.get("force_upcast", True) else dtype
    if (single := found.single) is None:
        return from_pretrained_strict(kind, found.folder / "vae", dtype, device)

    def tensors(net: Any) -> dict[str, Tensor]:
        return single.tensors("vae", net)

    return load_state(lambda: kind.from_config(config), tensors, str(single.path), dtype, device)


def load_adapter_with_encoder(
    file: Path, eyes: ImageEncoder | None, family: Family, dtype: torch.dtype, device: torch.device
) -> AdapterWithEncoder:
    """An adapter, read as plans ask for it.  Raises WeightsError when it is for another UNet or encoder."""
    adapter = load_adapter(file, family.unet, dtype=dtype, device=device, lazy=True)
    if eyes is not None:
        config = eyes.net.config
        adapter.check_encoder(int(config.hidden_size if adapter.is_plus else config.projection_dim))
    return AdapterWithEncoder(adapter, eyes)


def apply_checkpoint_config(family: Family, found: ResolvedModel) -> Family:
    """The family with what this checkpoint's own files say: its size, and what an empty negative prompt is."""
    side = found.config("unet/config.json").get("sample_size")
    widths: object = found.config("vae/config.json").get("block_out_channels") or (1,) * 4
    levels = len(cast("list[object]", widths)) if isinstance(widths, list | tuple) else 0
    if not 0 < levels <= MAX_LEVELS:
        said = abbreviate(cast("object", widths))
        raise WeightsError(f"the VAE in {found.folder} says its channels are {said}, which is no short list")
    index = found.config("model_index.json") if found.has("model_index.json") else {}
    changes: dict[str, Any] = {
        "force_zeros_for_empty_prompt": bool(
            index.get("force_zeros_for_empty_prompt", family.force_zeros_for_empty_prompt)
        )
    }
    if isinstance(side, int):
        size = side * 2 ** (levels - 1)
        if not 0 < size <= MAX_SIZE:
            raise WeightsError(f"the UNet in {found.folder} says its sample_size is {side}: pictures of {size} pixels")
        changes["size"] = (size, size)
    family = dataclasses.replace(family, **changes)
    if found.single is not None or not found.has(PRESETS_FILE):
        return family
    return with_presets(family, found.config(PRESETS_FILE), str(found.folder / PRESETS_FILE))


def with_presets(family: Family, said: Mapping[str, Any], where: str) -> Family:
    """The family with what presets.json says of where style and layout live; what it leaves out is the family's.

    Raises WeightsError when it names blocks that the UNet does not have.
    """
    blocks = {name: said.get(name, dict(family.presets[name].weights)) for name in BASE_PRESETS}
    try:
        for plan in blocks.values():
            if any(isinstance(strength, bool | str) for strength in plan.values()) or any(
                "," in block for block in plan
            ):
                raise PlanError(f"a plan is blocks with a number each, not {abbreviate(plan)}")
            parse_block_plan(",".join(f"{block}={strength}" for block, strength in plan.items()), family.unet, {})
    except (AttributeError, PlanError) as wrong:
        raise WeightsError(f"{where} is not understood: {wrong}") from wrong
    source = said.get("source", where)
    if not isinstance(source, str):
        raise WeightsError(f"{where} says its source is {abbreviate(source)}, which is no text")
    return dataclasses.replace(family, presets=make_presets(**blocks), presets_source=source)


def read_vocabulary(found: ResolvedModel) -> tuple[str, ...]:
    """The words in a folder's vocabulary.json, none where there is no such file.  Raises WeightsError."""
    path = found.folder / "vocabulary.json"
    if found.single is not None or not path.exists():
        return ()
    try:
        words: object = files.read_json(path)
    except ValueError as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(words, list) or not all(isinstance(word, str) for word in cast("list[object]", words)):
        raise WeightsError(f"{path} must be a JSON list of words")
    return tuple(cast("list[str]", words))
