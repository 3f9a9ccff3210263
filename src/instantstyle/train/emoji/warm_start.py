# pyright: reportUnknownMemberType=false

"""Checkpoints at step 0 from the weights of a finished model, so that its training can be continued.

A model in diffusers' layout holds no optimiser state and not the heads of the encoders' training: both are newly
initialised, so train `text` before `clip`.
"""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ControlNetModel  # pyright: ignore[reportPrivateImportUsage] (exported lazily)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from instantstyle.errors import WeightsError
from instantstyle.families import EMOJI
from instantstyle.optimisation import save_checkpoint
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.clip import Clip
from instantstyle.train.emoji.controlnet import new_control
from instantstyle.train.emoji.joint_finetune import JointModel
from instantstyle.train.emoji.training import make_optimiser
from instantstyle.train.emoji.unet import make_unet
from instantstyle.train.emoji.vae import DecoderOnly, make_vae
from instantstyle.utils.atomic_files import atomic_write, write_atomic
from instantstyle.weights.adapter import Adapter, load_adapter

_NOTE = "began.json"
_STAGE = re.compile(r"^\| (\w+) \| ([\d,]+) \| ([\d.]+) \|$", re.MULTILINE)
"""A row of the card's table of stages: its name, optimiser steps, hours."""


def warm_start(folder: Path, model: Path, labels: int) -> None:
    """Write the checkpoints of every stage whose weights a model's folder holds; `labels` is the number
    of concepts of the encoders' classification head.

    Raises WeightsError when the training folder has checkpoints already, or the model is of another layout, and
    OutputError when the disk is full.
    """
    if existing := sorted(file.name for file in folder.glob("*.pt")):
        raise WeightsError(f"{folder} has {', '.join(existing)} already: a training begins in an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _encoders(folder, model, labels)
        _decoder(folder, model)
        _unet_and_adapters(folder, model)
    except (OSError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{model} is no model of the built-in layout to begin from: {error}") from error
    weights = hashlib.sha256((model / "unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    card = model / "README.md"
    ran = _STAGE.findall(card.read_text("utf-8")) if card.is_file() else []
    counted = ", whose steps are counted here" if ran else ""
    note = {
        "what": f"an earlier model (UNet {weights[:16]}){counted}",
        "ran": {stage: (int(steps.replace(",", "")), 3600 * float(hours)) for stage, steps, hours in ran},
    }
    write_atomic(folder / _NOTE, json.dumps(note).encode())


def provenance(folder: Path) -> tuple[str, dict[str, tuple[int, float]]]:
    """A description of the initial weights of a folder's training, and earlier optimiser steps and seconds by stage."""
    file = folder / _NOTE
    if not file.exists():
        return "nothing", {}
    note: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return note["what"], {stage: (int(steps), float(seconds)) for stage, (steps, seconds) in note["ran"].items()}


def _encoders(folder: Path, model: Path, labels: int) -> None:
    shutil.copytree(model / "tokenizer", folder / "tokenizer")
    net = Clip(cast("Any", CLIPTokenizer).from_pretrained(folder / "tokenizer"), labels)
    for module, kind, part in (
        (net.text_1, CLIPTextModel, "text_encoder"),
        (net.text_2, CLIPTextModelWithProjection, "text_encoder_2"),
        (net.image, CLIPVisionModelWithProjection, "image_encoder"),
    ):
        module.load_state_dict(cast("Any", kind).from_pretrained(model / part).float().state_dict())
    for stage, trainable in (("text", (net.text_1, net.text_2, net.project_1, net.facts)), ("clip", (net.image,))):
        net.requires_grad_(False)
        for part in trainable:
            part.requires_grad_(True)
        net.temperature.requires_grad_(stage == "clip")
        _write_checkpoint(folder / f"{stage}.pt", net, weight_decay=0.05)


def _decoder(folder: Path, model: Path) -> None:
    vae = make_vae()
    vae.load_state_dict(cast("Any", AutoencoderKL).from_pretrained(model / "vae").float().state_dict())
    with atomic_write(folder / "vae-linear.pt") as partial:
        torch.save(vae.state_dict(), partial)
    _write_checkpoint(folder / "vae.pt", DecoderOnly(vae))


def _unet_and_adapters(folder: Path, model: Path) -> None:
    unet = make_unet()
    unet.load_state_dict(load_file(model / "unet/diffusion_pytorch_model.safetensors"))
    _write_checkpoint(folder / "unet.pt", unet)
    if (existing := model / "controlnet_canny").exists():
        control = new_control(unet)
        control.load_state_dict(cast("Any", ControlNetModel).from_pretrained(existing).float().state_dict())
        _write_checkpoint(folder / "control.pt", control)
    for name, stage, preset in (
        ("ip_adapter_style.safetensors", "joint", "style"),
        ("ip_adapter.safetensors", "adapter", "all"),
    ):
        if not (model / name).exists():
            continue
        adapter = load_adapter(model / name, EMOJI.unet, dtype=torch.float32)
        if stage == "adapter":
            _write_checkpoint(folder / "adapter.pt", TrainableAdapter(unet, EMOJI.presets[preset], init_from=adapter))
            continue
        joint = JointModel(unet, EMOJI.presets[preset])
        joint.style = TrainableAdapter(
            unet, EMOJI.presets[preset], init_from=_add_silent_sites(adapter, joint.style.adapter)
        )
        _write_checkpoint(folder / "joint.pt", joint)


def _add_silent_sites(adapter: Adapter, untrained: Adapter) -> Adapter:
    """The adapter extended to the sites of `untrained`, with its keys and zero values: outputs do not change."""
    silent = {site: torch.zeros_like(weight) for site, weight in untrained.values.items()}
    return replace(adapter, keys={**untrained.keys, **adapter.keys}, values={**silent, **adapter.values})


def _write_checkpoint(file: Path, net: nn.Module, weight_decay: float = 0.01) -> None:
    """A stage's checkpoint at step 0, with the initial state of AdamW and of Muon with AdamW."""
    states = [make_optimiser(net, 1e-3, muon_lr, weight_decay).state_dict() for muon_lr in (None, 1e-3)]
    average = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    save_checkpoint(file, net, states[0] | states[1], 0, average=average, seconds=0.0)
