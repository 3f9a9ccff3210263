# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A restart package: checkpoints compressed for resuming a training on another machine, small enough for a repository.

A checkpoint holds the weights three times over (raw, averaged, the optimiser's two moments).  The package holds the
averaged ones in float16 and the raw ones as differences from them, in float8 (e4m3) with a scale a tensor;
optimiser states are left out.  `state.json` holds the steps of each stage and the seeds of the data.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from instantstyle.errors import WeightsError
from instantstyle.optimisation import save_checkpoint
from instantstyle.train.emoji.training import make_optimiser
from instantstyle.utils.atomic_files import atomic_write, write_atomic

STATE = "state.json"
_FLOAT8_MAX = 448.0
"""The largest number of float8 e4m3."""


def pack(
    folder: Path, target: Path, stages: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any] | None = None
) -> None:
    """Write the package of a training folder: for each stage its weights and its metadata in `stages`.

    `data` holds what the training data can be made again from: seeds and counts.

    Raises WeightsError when a stage has no checkpoint.
    """
    target.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {}
    for name, metadata in stages.items():
        saved = checkpoint(folder / f"{name}.pt")
        average = cast("dict[str, Tensor]", saved["average"])
        tensors: dict[str, Tensor] = {}
        for key, mean in average.items():
            tensors[f"average.{key}"] = mean.half().contiguous()
            difference = saved["net"][key].float() - mean.half().float()
            scale = (difference.abs().max() / _FLOAT8_MAX).clamp_min(1e-12)
            tensors[f"difference.{key}"] = (difference / scale).to(torch.float8_e4m3fn).contiguous()
            tensors[f"scale.{key}"] = scale
        with atomic_write(target / f"{name}.safetensors") as partial:
            save_file(tensors, partial)
        manifest[name] = {"step": int(saved["step"]), "seconds": round(float(saved["seconds"])), **metadata}
    write_atomic(target / STATE, f"{json.dumps({'data': dict(data or {}), 'stages': manifest}, indent=2)}\n".encode())


def state(package: Path) -> dict[str, dict[str, Any]]:
    """Metadata of a package's stages, by name.  Raises WeightsError when there is no package."""
    try:
        return json.loads((package / STATE).read_text("utf-8"))["stages"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"there is no restart package in {package}: {error}") from error


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged and the raw weights of one stage's file, float32."""
    average, raw = dict[str, Tensor](), dict[str, Tensor]()
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
            kind, key = name.split(".", 1)
            if kind == "average":
                average[key] = tensors.get_tensor(name).float()
                difference = tensors.get_tensor(f"difference.{key}").float()
                raw[key] = average[key] + difference * tensors.get_tensor(f"scale.{key}")
    return average, raw


def restore(package: Path, name: str, net: nn.Module, folder: Path, lr: float, muon: float | None) -> None:
    """Write a stage's checkpoint from the package with a new optimiser state; an existing checkpoint is kept.

    `net` is the stage's initial network, which gives the weights that are not trained.  Raises WeightsError when the
    package's weights are not those that `net` trains.
    """
    file, source = folder / f"{name}.pt", package / f"{name}.safetensors"
    if file.exists() or not source.exists():
        return
    average, raw = read(source)
    trainable = {key: p for key, p in net.named_parameters() if p.requires_grad}
    if set(raw) != set(trainable):
        raise WeightsError(
            f"{source} holds {len(raw)} weights, of which {len(set(raw) & set(trainable))} are this stage's"
        )
    net.load_state_dict({**net.state_dict(), **raw})
    optimiser, entry = make_optimiser(net, lr, muon), state(package)[name]
    step, seconds = int(entry["step"]), float(entry["seconds"])
    save_checkpoint(file, net, optimiser.state_dict(), step, average=average, seconds=seconds)


def checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of `train_stage`.  Raises WeightsError when the file does not exist."""
    if not file.exists():
        raise WeightsError(f"there is no checkpoint {file}")
    return torch.load(file, weights_only=True, map_location="cpu", mmap=True)
