"""Checkpoints and adapters as people have them: read rightly, or refused by the name of what they are."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

import checkpoints
import tiny_models
from instantstyle import Request
from instantstyle.errors import WeightsError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.pipeline import generate
from instantstyle.weights.adapter import adapter_input_dim, load_adapter
from instantstyle.weights.single_file import open_single_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

Tensors = dict[str, Tensor]
FAMILIES = ("sd15", "sdxl")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensors]:
    """The tensors of a checkpoint of each family."""
    folder = tmp_path_factory.mktemp("stored")
    for family in FAMILIES:
        checkpoints.write(folder / f"{family}.safetensors", family)
    return {family: load_file(folder / f"{family}.safetensors") for family in FAMILIES}


def drawn(model: Model) -> np.ndarray[Any, Any]:
    request = Request("a cat", size=(64, 64), steps=2, seed=1, method="none")
    return np.asarray(generate(model, request).images[0])


def scheduler(path: Path) -> Mapping[str, Any]:
    return open_single_file(path).configs["scheduler/scheduler_config.json"]


def _ckpt(tensors: Tensors, path: Path) -> Path:
    torch.save({"state_dict": tensors, "global_step": 7, "epoch": np.float64(1.5)}, path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def _bare_ckpt(tensors: Tensors, path: Path) -> Path:
    torch.save(tensors, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def _old_text_names(tensors: Tensors, path: Path) -> Path:
    save_file({name.replace("transformer.text_model.", "transformer."): x for name, x in tensors.items()}, path)
    return path


def _training_leftovers(tensors: Tensors, path: Path) -> Path:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = {"betas": betas, "alphas_cumprod": torch.cumprod(1 - betas, 0), "logvar": torch.zeros(1000)}
    save_file(
        {**tensors, **kept, "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(1.0)}, path
    )
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [_ckpt, _bare_ckpt, _old_text_names, _training_leftovers])
def test_layouts_that_hold_the_same_model(
    layout: Callable[[Tensors, Path], Path], family: str, stored: Mapping[str, Tensors], tmp_path: Path
) -> None:
    save_file(stored[family], tmp_path / "plain.safetensors")
    path = layout(stored[family], tmp_path / "x.safetensors")
    ours, expected = (drawn(load(each)).astype(np.int16) for each in (path, tmp_path / "plain.safetensors"))
    assert np.abs(ours - expected).max() <= 1  # where tensors lie in memory decides the last bit


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_marks_and_schedules_say(family: str, stored: Mapping[str, Tensors], tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", stored[family]
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    assert scheduler(path)["prediction_type"] == "v_prediction"
    assert scheduler(path)["rescale_betas_zero_snr"]
    save_file(tensors, path, metadata={"modelspec.prediction_type": "v"})
    assert scheduler(path)["prediction_type"] == "v_prediction"
    assert not scheduler(path).get("rescale_betas_zero_snr")
    diffusers: Any = tiny_models.diffusers
    rescaled = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    save_file({**tensors, "alphas_cumprod": rescaled.alphas_cumprod}, path)
    assert scheduler(path)["rescale_betas_zero_snr"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"edm_vpred.sigma_max": torch.tensor(120.0)}, "a checkpoint of CosXL"),
        ({"edm_vpred.sigma_min": torch.tensor(0.002)}, "a checkpoint of CosXL"),
        ({"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}, "Playground 2.5"),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "noise schedule"),
        ({"flow_shift": torch.tensor(3.0)}, "is marked by flow_shift"),
        ({"rf_pred": torch.zeros(0)}, "is marked by rf_pred"),
    ],
)
def test_marks_of_what_is_not_supported(
    extra: Tensors, message: str, stored: Mapping[str, Tensors], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({**stored["sdxl"], **extra}, path)
    with pytest.raises(WeightsError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0}, "EDMDPM.* as Playground 2.5"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "EDMEuler.* CosXL"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "FlowMatch.* not supported"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous time steps"),
        ({"_class_name": "NoSuchScheduler"}, "does not have"),
    ],
)
def test_schedulers_of_other_noise(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models.folder("sdxl"), folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        load(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_adapter_as_trained(family: str, prefix: str, suffix: str, tmp_path: Path) -> None:
    """What IP-Adapter's training scripts save: everything that went through the optimizer's model, the UNet too."""
    published = load_file(tiny_models.folder(family) / "ip_adapter.safetensors")
    renamed = {
        prefix + name.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): tensor
        for name, tensor in published.items()
    }
    path = tmp_path / f"model{suffix}"
    tensors = {f"{prefix}unet.conv_in.weight": torch.zeros(1), **renamed}
    if suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    config, original = tiny_models.model(family).family.unet, tiny_models.folder(family) / "ip_adapter.safetensors"
    ours, expected = load_adapter(path, config, lazy=True), load_adapter(original, config)
    assert adapter_input_dim(path) == adapter_input_dim(original)
    assert list(ours.keys) == list(expected.keys)
    assert all(torch.equal(ours.keys[site], expected.keys[site]) for site in expected.keys)
    assert all(torch.equal(ours.values[site], expected.values[site]) for site in expected.values)
    projections = (ours.projection.state_dict(), expected.projection.state_dict())
    assert all(torch.equal(projections[0][name], tensor) for name, tensor in projections[1].items())


X = torch.zeros(1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"image_proj_model.proj.weight": X}, "IP-Adapter as trained"),
        ({"diffusion_model.input_blocks.0.0.weight": X}, "a UNet alone"),
        ({"unet.down_blocks.0.resnets.0.conv1.weight": X}, "UNet in diffusers' names"),
        ({"model.diffusion_model.joint_blocks.0.x.weight": X}, "Stable Diffusion 3"),
        ({"transformer_blocks.0.attn.to_q.weight": X}, "a diffusion transformer"),
        ({"clip_txt_mapper.weight": X}, "Stable Cascade"),
        ({"model.diffusion_model.x.weight.absmax": X}, "bitsandbytes"),
        ({"emb_params": X}, "textual inversion"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": X}, "text encoder alone"),
        ({"body.0.block1.weight": X}, "T2I-Adapter"),
    ],
)
def test_other_files_are_called_by_their_names(tensors: Tensors, message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\x00\x00\x00\x00", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
    ],
)
def test_what_is_no_weight_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load(path)
    with pytest.raises(WeightsError, match=message):
        load(tiny_models.folder("sdxl"), adapter=path)
