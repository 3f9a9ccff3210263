"""Folders as diffusers writes them, in half precision, in shards, in both, or as pickles: all load as one model."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from instantstyle.errors import WeightsError
from instantstyle.loading import load

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

KINDS: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
HALF = {"variant": "fp16"}
SHARDS = {"max_shard_size": "20KB"}
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "half": (HALF, "diffusion_pytorch_model.fp16.safetensors"),
    "shards": (SHARDS, "diffusion_pytorch_model.safetensors.index.json"),
    "shards in half": (HALF | SHARDS, "diffusion_pytorch_model.safetensors.index.fp16.json"),
    "pickles": ({"safe_serialization": False}, "diffusion_pytorch_model.bin"),
}
"""What is given to `save_pretrained`, and a file that the UNet's folder then has."""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A function that writes the small SDXL in one of the ways; the numbers are those of half precision."""

    def write(how: dict[str, Any]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(
            tiny_models.folder("sdxl"), folder, ignore=shutil.ignore_patterns("*.safetensors", ".controlnet*")
        )
        for part, kind in KINDS.items():
            net = kind.from_pretrained(tiny_models.folder("sdxl") / part).half()
            # transformers writes no pickles any more, and of diffusers only the UNet's are common.
            theirs = {name: value for name, value in how.items() if name != "safe_serialization" or part == "unet"}
            net.save_pretrained(folder / part, **theirs)
        shutil.rmtree(folder / "image_encoder")
        return folder

    return write


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_same_model(way: str, written: Callable[[dict[str, Any]], Path]) -> None:
    how, telling = WAYS[way]
    folder = written(how)
    assert (folder / "unet" / telling).is_file()
    model, whole = load(folder), tiny_models.model("sdxl")
    for part in KINDS:
        expected = whole.networks[part].state_dict()
        for name, tensor in model.networks[part].state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name].half().float()), f"{part}.{name}"


def test_a_shard_that_is_missing_is_named(written: Callable[[dict[str, Any]], Path]) -> None:
    folder = written(SHARDS)
    index = json.loads((folder / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    shard = sorted(set(index["weight_map"].values()))[1]
    (folder / "unet" / shard).unlink()
    with pytest.raises(WeightsError, match=f"there is no weight file at .*{shard}"):
        load(folder)
