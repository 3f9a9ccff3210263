"""From files to a Model: a folder's, a checkpoint's or a hub id's networks, adapters, and what its index says."""

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from instantstyle.blocks import TransformerConfig, parse_block_plan
from instantstyle.encoders.clip import (
    ImageEncoder,
    ReloadedModule,
    TextEncoder,
    load_content_text_encoder,
    load_image_encoder,
    load_text_encoder,
)
from instantstyle.encoders.t5 import load_t5_encoder
from instantstyle.errors import InputError, PlanError, WeightsError, abbreviate, did_you_mean
from instantstyle.families import BASE_PRESETS, Family, make_presets
from instantstyle.model import AdapterWithEncoder, Model, OffloadMode
from instantstyle.networks.transformer import install_processors
from instantstyle.utils import files
from instantstyle.utils.device import limit_threads, pick_device, pick_dtype
from instantstyle.weights.adapter import load_adapter
from instantstyle.weights.control import load_controls
from instantstyle.weights.depth import load_depth
from instantstyle.weights.lora import lora_file, split_blocks, with_loras
from instantstyle.weights.resolve import AdapterSpec, ResolvedModel, encoder_width, resolve_model
from instantstyle.weights.single_file import ComponentName
from instantstyle.weights.strict_load import (
    count_parameters,
    count_transformer_parameters,
    from_pretrained_strict,
    load_state,
    load_unet,
    load_unet_state,
)
from instantstyle.weights.transformer_config import transformer_class
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
    where, source = pick_device(device), resolve_model(model, adapter, image_encoder, content_encoder)
    family = apply_checkpoint_config(family_of(source.network_config), source)
    if family.is_transformer:
        _refuse_for_transformers(family, controls, loras)
    check_scheduler(source.config("scheduler/scheduler_config.json"), flow=family.is_transformer)
    layout = family.layout
    transformer = isinstance(layout, TransformerConfig)
    size = count_transformer_parameters(layout, source.network_config) if transformer else count_parameters(layout)
    kind = pick_dtype(dtype, where, size)
    offload_mode = parse_offload_mode(memory)
    home = where if offload_mode != "sequential" else torch.device("cpu")
    keep = offload_mode != "reload"
    network = load_denoiser(source, family, kind, home)
    text_encoders = _load_text_encoders(source, family, kind, home, keep=keep)
    family = dataclasses.replace(family, max_text_tokens=text_encoders[-1 if family.is_transformer else 0].max_length)
    files = [(_lora_spec(spec, source.folder), weight) for spec, weight in loras]
    network, text_encoders = _with_loras(network, text_encoders, files, family)
    image_encoders = {path: load_image_encoder(source, path, kind, home, keep=keep) for path in _encoders(source)}
    speakers = {
        name: load_adapter_with_encoder(
            each.file, image_encoders[each.encoder] if each.encoder else None, family, kind, where
        )
        for name, each in source.adapters.items()
    }
    own_encoder = image_encoders[source.image_encoder] if source.image_encoder else None
    style_adapter = (
        load_adapter_with_encoder(source.style_adapter, own_encoder, family, kind, where)
        if source.style_adapter
        else None
    )
    vae = load_vae(source, kind, home)
    if tile:
        vae.enable_tiling()
    loaded = Model(
        family=family,
        network=network,
        vae=vae,
        text_encoders=text_encoders,
        image_encoder=own_encoder,
        adapter=next((speaker.adapter for speaker in speakers.values()), None),
        style_adapter=style_adapter.adapter if style_adapter else None,
        adapters=speakers,
        content_text_encoder=load_content_text_encoder(source.content_encoder, kind, home, keep=keep)
        if source.content_encoder
        else None,
        controls=load_controls(controls or {}, source.folder, family, kind, where),
        depth=None if depth is None else load_depth(depth, where),
        scheduler_config=source.config("scheduler/scheduler_config.json"),
        vocabulary=read_vocabulary(source),
        device=where,
        dtype=kind,
        source=source,
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


def _refuse_for_transformers(
    family: Family, controls: Mapping[str, str | Path] | None, loras: Sequence[tuple[str | Path, float]]
) -> None:
    """Raises InputError for what is read for UNets alone."""
    for what, given in (("ControlNets", controls), ("LoRAs", loras)):
        if given:
            raise InputError(
                f"{what} are for models with a UNet here, and {family.name} is a transformer: leave them out"
            )


def _load_text_encoders(
    source: ResolvedModel, family: Family, dtype: torch.dtype, device: torch.device, *, keep: bool
) -> tuple[TextEncoder, ...]:
    """The text encoders of a model.  Raises WeightsError, also when they are not as wide as the network reads."""
    known: tuple[tuple[ComponentName, str], ...] = (("text_encoder", ""), ("text_encoder_2", "_2"))
    layout = family.layout
    if isinstance(layout, TransformerConfig):
        clips, suffix = (known[:1], "_2") if layout.class_name == "FluxTransformer2DModel" else (known, "_3")
        text_encoders = tuple(
            load_text_encoder(source, part, f"tokenizer{each}", dtype, device, keep=keep, truncates=True)
            for part, each in clips
        )
        t5 = load_t5_encoder(source, suffix, family.max_text_tokens, dtype, device, keep=keep)
        one = len(text_encoders) == 1
        pooled = sum(int(getattr(t.net.config, "hidden_size" if one else "projection_dim")) for t in text_encoders)
        given, wanted = (int(t5.net.config.d_model), pooled), (layout.joint_attention_dim, layout.pooled_projection_dim)
        if given != wanted:
            raise WeightsError(
                f"the text encoders in {source.folder} give {given[0]} numbers a token and {given[1]} pooled, and the "
                f"transformer reads {wanted[0]} and {wanted[1]}"
            )
        return (*text_encoders, t5)
    text_encoders = tuple(
        load_text_encoder(source, part, f"tokenizer{suffix}", dtype, device, keep=keep)
        for part, suffix in known
        if source.has(part)
    )
    wide = sum(int(tower.net.config.hidden_size) for tower in text_encoders)
    if wide != layout.cross_attention_dim:
        raise WeightsError(
            f"the text encoders in {source.folder} give {wide} numbers a token, and the UNet reads "
            f"{layout.cross_attention_dim}"
        )
    return text_encoders


def _with_loras(
    unet: nn.Module, text_encoders: tuple[TextEncoder, ...], loras: Sequence[tuple[str | Path, float]], family: Family
) -> tuple[nn.Module, tuple[TextEncoder, ...]]:
    """The networks with the changes of LoRAs; a text encoder that is changed is kept, and no more read for each use."""
    if not loras:
        return unet, text_encoders
    nets: dict[str, nn.Module] = {"unet": unet}
    for i, tower in enumerate(text_encoders):
        nets[f"text_encoder{f'_{i + 1}' if i else ''}"] = (
            tower.net.load() if isinstance(tower.net, ReloadedModule) else tower.net
        )
    plans = {"style": family.presets["style"], "content": family.content_blocks}
    changed = with_loras(nets, loras, family.unet, plans)
    pairs = zip(text_encoders, list(nets)[1:], strict=True)
    encoders = tuple(t if changed[name] is nets[name] else TextEncoder(t.tokenizer, changed[name]) for t, name in pairs)
    return changed["unet"], encoders


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


def _encoders(source: ResolvedModel) -> list[Path]:
    """Every image encoder once."""
    named = [source.image_encoder, *(each.encoder for each in source.adapters.values())]
    return list(dict.fromkeys(path for path in named if path is not None))


def load_denoiser(source: ResolvedModel, family: Family, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The UNet of a folder or of a single file, or a folder's transformer with our attention processors.

    Raises WeightsError naming the key that is missing or misshapen.
    """
    if isinstance(family.layout, TransformerConfig):
        kind = transformer_class(family.layout)
        transformer = from_pretrained_strict(kind, source.folder / "transformer", dtype, device)
        assert install_processors(transformer) == family.layout.sites
        return transformer
    if source.single is None:
        return load_unet(source.folder / "unet", family.unet, dtype, device)
    with source.single.unet() as file:
        return load_unet_state([file], str(source.single.path), family.unet, dtype, device)


def load_vae(source: ResolvedModel, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' AutoencoderKL of a folder or of a single file.  Raises WeightsError."""
    kind: Any = importlib.import_module("diffusers").AutoencoderKL
    config = source.config("vae/config.json")
    scale: object = config.get("scaling_factor", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise WeightsError(
            f"the VAE in {source.folder} says its scaling_factor is {abbreviate(scale)}, which is no scale"
        )
    # SDXL's VAE overflows in float16 and says so.
    dtype = torch.float32 if dtype == torch.float16 and config.get("force_upcast", True) else dtype
    if (single := source.single) is None:
        return from_pretrained_strict(kind, source.folder / "vae", dtype, device)

    def tensors(net: Any) -> dict[str, Tensor]:
        return single.tensors("vae", net)

    return load_state(lambda: kind.from_config(config), tensors, str(single.path), dtype, device)


def load_adapter_with_encoder(
    file: Path, image_encoder: ImageEncoder | None, family: Family, dtype: torch.dtype, device: torch.device
) -> AdapterWithEncoder:
    """An adapter, read as plans ask for it.  Raises WeightsError when it is for another UNet or encoder."""
    adapter = load_adapter(file, family.layout, dtype=dtype, device=device, lazy=True)
    if image_encoder is not None:
        adapter.check_encoder(encoder_width(image_encoder.net.config.to_dict(), plus=adapter.is_plus))
    return AdapterWithEncoder(adapter, image_encoder)


def apply_checkpoint_config(family: Family, source: ResolvedModel) -> Family:
    """The family with what this checkpoint's own files say: its size, and what an empty negative prompt is."""
    side = source.network_config.get("sample_size")
    widths: object = source.config("vae/config.json").get("block_out_channels") or (1,) * 4
    levels = len(cast("list[object]", widths)) if isinstance(widths, list | tuple) else 0
    if not 0 < levels <= MAX_LEVELS:
        channels = abbreviate(cast("object", widths))
        raise WeightsError(f"the VAE in {source.folder} says its channels are {channels}, which is no short list")
    index = source.config("model_index.json") if source.has("model_index.json") else {}
    changes: dict[str, Any] = {
        "force_zeros_for_empty_prompt": bool(
            index.get("force_zeros_for_empty_prompt", family.force_zeros_for_empty_prompt)
        )
    }
    if isinstance(side, int):
        size = side * 2 ** (levels - 1)
        if not 0 < size <= MAX_SIZE:
            raise WeightsError(
                f"the network in {source.folder} says its sample_size is {side}: pictures of {size} pixels"
            )
        changes["size"] = (size, size)
    family = dataclasses.replace(family, **changes)
    if source.single is not None or not source.has(PRESETS_FILE):
        return family
    return with_presets(family, source.config(PRESETS_FILE), str(source.folder / PRESETS_FILE))


def with_presets(family: Family, presets: Mapping[str, Any], where: str) -> Family:
    """The family with what presets.json says of where style and layout live; what it leaves out is the family's.

    Raises WeightsError when it names blocks that the UNet does not have.
    """
    known = {name: dict(plan.weights) for name, plan in family.presets.items() if name in BASE_PRESETS}
    blocks = {name: presets.get(name, known.get(name, {})) for name in BASE_PRESETS}
    try:
        for name, plan in blocks.items():
            if not plan and name not in presets:
                continue
            if any(isinstance(strength, bool | str) for strength in plan.values()) or any(
                "," in block for block in plan
            ):
                raise PlanError(f"a plan is blocks with a number each, not {abbreviate(plan)}")
            parse_block_plan(",".join(f"{block}={strength}" for block, strength in plan.items()), family.layout, {})
    except (AttributeError, PlanError) as wrong:
        raise WeightsError(f"{where} is not understood: {wrong}") from wrong
    source = presets.get("source", where)
    if not isinstance(source, str):
        raise WeightsError(f"{where} says its source is {abbreviate(source)}, which is no text")
    return dataclasses.replace(family, presets=make_presets(**blocks), presets_source=source)


def read_vocabulary(source: ResolvedModel) -> tuple[str, ...]:
    """The words in a folder's vocabulary.json, none where there is no such file.  Raises WeightsError."""
    path = source.folder / "vocabulary.json"
    if source.single is not None or not path.exists():
        return ()
    try:
        words: object = files.read_json(path)
    except ValueError as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(words, list) or not all(isinstance(word, str) for word in cast("list[object]", words)):
        raise WeightsError(f"{path} must be a JSON list of words")
    return tuple(cast("list[str]", words))
