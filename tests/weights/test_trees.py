"""Model trees of ComfyUI and A1111: a name is enough, two files of one name are not, a tree's neighbours are found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from instantstyle.errors import WeightsError
from instantstyle.weights.find import find
from instantstyle.weights.trees import VARIABLE, files, look_up


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "ComfyUI"
    touch(root / "models/checkpoints/sdxl/dreams.safetensors")
    touch(root / "models/loras/ink.safetensors")
    touch(root / "models/ipadapter/ip-adapter_sdxl.safetensors")
    monkeypatch.setenv(VARIABLE, str(root))
    return root


@pytest.mark.parametrize("name", ["dreams", "dreams.safetensors", "sdxl/dreams", "sdxl\\dreams.safetensors"])
def test_a_name_is_enough(name: str, comfy: Path) -> None:
    assert look_up("checkpoints", name) == comfy / "models/checkpoints/sdxl/dreams.safetensors"
    assert look_up("loras", name) is None


def test_a1111_has_folders_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "webui"
    model = touch(root / "models/Stable-diffusion/v1-5.safetensors")
    lora = touch(root / "models/Lora/ink.safetensors")
    eyes = touch(root / "extensions/sd-webui-controlnet/annotator/downloads/clip_vision/clip_h.pth")
    monkeypatch.setenv(VARIABLE, str(root))
    assert (look_up("checkpoints", "v1-5"), look_up("loras", "ink"), files("clip_vision")) == (model, lora, [eyes])


def test_extra_model_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's own example, its paths relative to the file, several to a kind."""
    one = touch(tmp_path / "webui/models/Stable-diffusion/one.safetensors")
    ink, wash = touch(tmp_path / "webui/models/Lora/ink.pt"), touch(tmp_path / "webui/models/LyCORIS/wash.safetensors")
    listed = tmp_path / "extra_model_paths.yaml"
    listed.write_text(
        "#comment\na111:\n    base_path: webui/\n    checkpoints: models/Stable-diffusion\n    loras: |\n"
        "         models/Lora\n         models/LyCORIS\n    vae: models/VAE\nother: null\n"
    )
    monkeypatch.setenv(VARIABLE, str(listed))
    assert look_up("checkpoints", "one") == one
    assert files("loras") == [ink, wash]
    listed.write_text("a: [")
    with pytest.raises(WeightsError, match=r"cannot read .*extra_model_paths"):
        look_up("checkpoints", "one")


def test_two_files_of_one_name(comfy: Path) -> None:
    touch(comfy / "models/checkpoints/sd15/dreams.safetensors")
    with pytest.raises(WeightsError, match="stands for several files"):
        look_up("checkpoints", "dreams")
    assert look_up("checkpoints", "sd15/dreams") is not None


def test_the_nearest_name_is_suggested(comfy: Path) -> None:
    with pytest.raises(WeightsError, match=r"did you mean 'dreams\.safetensors'"):
        find("dreamz.safetensors")


def test_a_tree_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere")
    with pytest.raises(WeightsError, match=VARIABLE):
        look_up("checkpoints", "x")


def test_the_image_encoder_is_the_one_that_fits(tmp_path: Path) -> None:
    """Among a tree's CLIPs in single files, by their shapes: names here are misleading on purpose."""
    root = tmp_path / "ComfyUI/models"
    for name, projection in (("ViT-H", 20), ("bigG", 24)):
        touch(root / f"clip_vision/{name}.safetensors")
        shapes = {
            "vision_model.embeddings.patch_embedding.weight": (16, 3, 8, 8),
            "vision_model.embeddings.position_embedding.weight": (17, 16),
            "vision_model.encoder.layers.0.mlp.fc1.weight": (32, 16),
            "visual_projection.weight": (projection, 16),
        }
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        save_file(tensors, root / f"clip_vision/{name}.safetensors")
    (root / "checkpoints").mkdir()
    (root / "ipadapter").mkdir()
    adapter = {"image_proj.proj.weight": torch.zeros(8, 24)}
    save_file(adapter, root / "ipadapter/a.safetensors")
    found = find("emoji", root / "ipadapter/a.safetensors")
    assert found.adapters["adapter"].encoder == root / "clip_vision/bigG.safetensors"
