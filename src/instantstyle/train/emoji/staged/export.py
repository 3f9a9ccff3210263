# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""Export of the checkpoints so far as a model folder that `load` reads, for probes and evaluation."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from instantstyle.families import EMOJI
from instantstyle.train.emoji.export import diffusers_unet
from instantstyle.train.emoji.staged.data import LARGE, SHIPPED
from instantstyle.weights.adapter import Adapter, save_adapter

_SHIPPED_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor")


def assemble(
    folder: Path, unet: Mapping[str, Tensor], vae: AutoencoderKL | None = None, adapters: Mapping[str, Adapter] = {}
) -> Path:
    """Write a model: the shipped encoders, this UNet, this VAE or the shipped one, adapters by file name.

    An existing folder is replaced.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for part in _SHIPPED_PARTS + ("scheduler",) + (("vae",) if vae is None else ()):
        shutil.copytree(SHIPPED / part, new / part)
    for name in ("model_index.json", "vocabulary.json", "names.json"):
        shutil.copyfile(SHIPPED / name, new / name)
    net = diffusers_unet(LARGE)
    net.load_state_dict(dict(unet), strict=True)
    cast("Any", net).half().save_pretrained(new / "unet")
    if vae is not None:
        cast("Any", vae).half().save_pretrained(new / "vae")
        cast("Any", vae).float()
    for name, adapter in adapters.items():
        save_adapter(new / name, adapter, EMOJI.unet)
        half = {key: tensor.half().contiguous() for key, tensor in load_file(new / name).items()}
        save_file(half, new / name, metadata={"format": "pt"})
    files = sorted(file for file in new.rglob("*") if file.is_file())
    for file in files:
        file.chmod(0o644)
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(new)}\n" for file in files)
    (new / "SHA256SUMS").write_text(lines, "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)
    return folder


def averaged(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint."""
    return torch.load(checkpoint, weights_only=True, map_location="cpu")["average"]
