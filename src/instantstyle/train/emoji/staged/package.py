# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A restart package: what a training goes on from on another machine, small enough to be kept in a repository.

A checkpoint holds the weights three times over (raw, averaged, the optimiser's two moments).  The package keeps the
averaged ones in float16 and the raw ones as their difference from them, in float8 (e4m3) by tensor with a scale;
optimisers begin anew.  `state.json` says how far each stage is and on what data.
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
_MOST = 448.0
"""The largest number of float8 e4m3."""


def pack(
    folder: Path, target: Path, stages: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any] | None = None
) -> None:
    """Write the package of a training folder: for each stage its weights and what `stages` says of it.

    `data` is what makes the same data again: seeds and counts.

    Raises WeightsError when a stage has no checkpoint.
    """
    target.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {}
    for name, more in stages.items():
        saved = checkpoint(folder / f"{name}.pt")
        average = cast("dict[str, Tensor]", saved["average"])
        tensors: dict[str, Tensor] = {}
        for key, mean in average.items():
            tensors[f"average.{key}"] = mean.half().contiguous()
            difference = saved["net"][key].float() - mean.half().float()
            scale = (difference.abs().max() / _MOST).clamp_min(1e-12)
            tensors[f"difference.{key}"] = (difference / scale).to(torch.float8_e4m3fn).contiguous()
            tensors[f"scale.{key}"] = scale
        with atomic_write(target / f"{name}.safetensors") as partial:
            save_file(tensors, partial)
        said[name] = {"step": int(saved["step"]), "seconds": round(float(saved["seconds"])), **more}
    write_atomic(target / STATE, f"{json.dumps({'data': dict(data or {}), 'stages': said}, indent=2)}\n".encode())


def state(package: Path) -> dict[str, dict[str, Any]]:
    """What a package says of its stages.  Raises WeightsError when there is none."""
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
    """Write a stage's checkpoint from the package, as `train` reads it, its optimiser anew; none that is there already.

    `net` is the stage's network as it begins: what is not trained is as it has it.  Raises WeightsError when the
    package has other weights than it trains.
    """
    file, source = folder / f"{name}.pt", package / f"{name}.safetensors"
    if file.exists() or not source.exists():
        return
    average, raw = read(source)
    learns = {key: p for key, p in net.named_parameters() if p.requires_grad}
    if set(raw) != set(learns):
        raise WeightsError(
            f"{source} holds {len(raw)} weights, of which {len(set(raw) & set(learns))} are this stage's"
        )
    net.load_state_dict({**net.state_dict(), **raw})
    optimiser, said = make_optimiser(net, lr, muon), state(package)[name]
    step, seconds = int(said["step"]), float(said["seconds"])
    save_checkpoint(file, net, optimiser.state_dict(), step, average=average, seconds=seconds)


def checkpoint(file: Path) -> dict[str, Any]:
    """What `train` saved.  Raises WeightsError when there is nothing."""
    if not file.exists():
        raise WeightsError(f"there is no checkpoint {file}")
    return torch.load(file, weights_only=True, map_location="cpu", mmap=True)
