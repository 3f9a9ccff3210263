"""Every command of docs/own-models.md runs, in its order, on small files of the layouts it speaks of."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from typer.testing import CliRunner

import checkpoints
import tiny_models
from instantstyle.cli import app
from instantstyle.weights import hub, resolve
from instantstyle.weights.lora import LoRAFactors, save_lora

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers' Euler and of accelerate's hooks

PAGE = Path(__file__).resolve().parents[2] / "docs/own-models.md"
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_models.folder("sdxl"), tmp_path / "my-sdxl")
    shutil.copytree(tiny_models.folder("sd15"), tmp_path / "my-sd15")
    shutil.copy(tmp_path / "my-sdxl/ip_adapter.safetensors", tmp_path / "ip-adapter.safetensors")
    (tmp_path / "ComfyUI/models/checkpoints").mkdir(parents=True)
    checkpoints.write(tmp_path / "dreams.safetensors", "sd15")
    shutil.copy(tmp_path / "dreams.safetensors", tmp_path / "ComfyUI/models/checkpoints")
    for name in ("ref", "other", "photo"):
        tiny_models.picture(len(name)).save(tmp_path / f"{name}.png")
    for folder in ("loras", "controlnet"):
        (tmp_path / "ComfyUI/models" / folder).mkdir()
    changed = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    factors = LoRAFactors(torch.ones(32, 1), torch.ones(1, 32))  # both small models are as wide there
    save_lora(tmp_path / "ComfyUI/models/loras/ink.safetensors", {changed: factors})
    save_lora(tmp_path / "hyper.safetensors", {changed: factors})
    shutil.copy(controlled(tmp_path), tmp_path / "ComfyUI/models/controlnet/control_canny.safetensors")
    # The text tower of the small models' CLIP: 24 wide embeddings, as their image encoder's.
    shutil.copytree(tiny_models.folder("sdxl") / "text_encoder_2", tmp_path / "clip-vit-h")
    shutil.copytree(tiny_models.folder("sdxl") / "tokenizer_2", tmp_path / "clip-vit-h/tokenizer")

    def fetched(name: str) -> Path:
        assert name == resolve.HUB["sdxl"]
        return tmp_path / "my-sdxl"

    monkeypatch.setattr(hub, "fetch_model", fetched)
    return tmp_path


def controlled(place: Path) -> Path:
    """A random ControlNet for the checkpoint in one file."""
    nets = checkpoints.networks("sd15", checkpoints.SMALL["sd15"])
    net = tiny_models.diffusers.ControlNetModel.from_unet(nets["unet"])
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    save_file(dict(net.state_dict()), place / "control.safetensors")
    return place / "control.safetensors"


@pytest.mark.slow
def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    for line in COMMANDS:
        if line.startswith("export "):
            monkeypatch.setenv(*line.removeprefix("export ").split("=", 1))
            continue
        words = shlex.split(line)
        assert words[0] == "instantstyle", line
        outcome = CliRunner().invoke(app, words[1:])
        assert outcome.exit_code == 0, f"{line}\n{outcome.output}\n{outcome.exception!r}"
        runs += 1
    assert runs == len(COMMANDS) - 1 >= 11
    pictures = {path.stem: Image.open(path).tobytes() for path in place.glob("*.png")}
    assert pictures["style"] == pictures["slim"], "a style-only file is all that the plan style reads"
    assert pictures["free"] == pictures["offload"] == pictures["folder"], "memory is spared, nothing else"
    assert pictures["single"] == pictures["tree"] != pictures["names"]
    assert pictures["few"] != pictures["folder"]
    assert len({pictures[name] for name in ("style", "two", "folder")}) == 3
