"""Model trees of ComfyUI and A1111: a name is enough, two files of one name are not, a tree's neighbours are found."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

import checkpoints
import tiny_models
from cli_runner import command_runner
from instantstyle.errors import WeightsError
from instantstyle.weights.lora import LoRAFactors, save_lora
from instantstyle.weights.model_folders import VARIABLE, find_file, list_files
from instantstyle.weights.resolve import resolve_model


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
    assert find_file("checkpoints", name) == comfy / "models/checkpoints/sdxl/dreams.safetensors"
    assert find_file("loras", name) is None


def test_a1111_has_folders_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "webui"
    model = touch(root / "models/Stable-diffusion/v1-5.safetensors")
    lora = touch(root / "models/Lora/ink.safetensors")
    eyes = touch(root / "extensions/sd-webui-controlnet/annotator/downloads/clip_vision/clip_h.pth")
    monkeypatch.setenv(VARIABLE, str(root))
    assert (find_file("checkpoints", "v1-5"), find_file("loras", "ink"), list_files("clip_vision")) == (
        model,
        lora,
        [eyes],
    )


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
    assert find_file("checkpoints", "one") == one
    assert list_files("loras") == [ink, wash]
    listed.write_text("a: [")
    with pytest.raises(WeightsError, match=r"cannot read .*extra_model_paths"):
        find_file("checkpoints", "one")


def test_two_files_of_one_name(comfy: Path) -> None:
    touch(comfy / "models/checkpoints/sd15/dreams.safetensors")
    with pytest.raises(WeightsError, match="stands for several files"):
        find_file("checkpoints", "dreams")
    assert find_file("checkpoints", "sd15/dreams") is not None


def test_the_nearest_name_is_suggested(comfy: Path) -> None:
    with pytest.raises(WeightsError, match=r"did you mean 'dreams\.safetensors'"):
        resolve_model("dreamz.safetensors")


def test_a_tree_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere")
    with pytest.raises(WeightsError, match=VARIABLE):
        find_file("checkpoints", "x")


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
    found = resolve_model("emoji", root / "ipadapter/a.safetensors")
    assert found.adapters["adapter"].encoder == root / "clip_vision/bigG.safetensors"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ComfyUI folder with a base, an adapter and an image encoder; a webui's LoRA and ControlNet are listed in it."""
    root = tmp_path_factory.mktemp("tree")
    comfy, webui = root / "ComfyUI", root / "webui"
    for folder in ("checkpoints", "ipadapter", "clip_vision"):
        (comfy / "models" / folder).mkdir(parents=True)
    for folder in ("Lora/ink", "ControlNet"):
        (webui / "models" / folder).mkdir(parents=True)
    nets = checkpoints.write(comfy / "models/checkpoints/dreams.safetensors", "sd15")
    nets["unet"].save_pretrained(root / "unet")
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    save_file(tiny_models.adapter_tensors(root, 24, 64), comfy / "models/ipadapter/looks.safetensors")
    config = tiny_models.transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=24,
        num_hidden_layers=1,
        num_attention_heads=16,
        image_size=16,
        patch_size=8,
        hidden_act="gelu",
    )
    eyes = tiny_models.transformers.CLIPVisionModelWithProjection(config).state_dict()
    save_file(dict(eyes), comfy / "models/clip_vision/clip.safetensors")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    save_lora(webui / "models/Lora/ink/wash.safetensors", {name: LoRAFactors(torch.randn(32, 2), torch.randn(2, 64))})
    net = tiny_models.diffusers.ControlNetModel.from_unet(nets["unet"])
    for tensor in net.parameters():
        tensor.data = 0.1 * torch.randn_like(tensor) + float(tensor.ndim == 1)
    save_file(net.state_dict(), webui / "models/ControlNet/control_canny.safetensors")
    (comfy / "extra_model_paths.yaml").write_text(
        "a111:\n    base_path: ../webui\n    loras: models/Lora\n    controlnet: models/ControlNet\n"
    )
    tiny_models.picture(1).save(root / "ref.png")
    return root


NAMES = ("--model", "dreams", "--adapter", "looks", "--lora", "ink/wash:0.5", "--control-model", "control_canny")


def drawing(*more: str) -> tuple[str, ...]:
    fixed = ("generate", "a cat", "--style", "ref.png", "--plan", "all", "--control", "ref.png", "--size", "64")
    return (*fixed, "--steps", "2", "--seed", "3", *more)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy
def test_everything_is_found_by_its_name(
    full: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base, adapter, its image encoder, a LoRA and a ControlNet; the picture is that of their paths."""
    monkeypatch.chdir(full)
    command = command_runner(monkeypatch, capsys)
    paths = (
        *("--model", "ComfyUI/models/checkpoints/dreams.safetensors"),
        *("--adapter", "ComfyUI/models/ipadapter/looks.safetensors"),
        *("--image-encoder", "ComfyUI/models/clip_vision/clip.safetensors"),
        *("--lora", "webui/models/Lora/ink/wash.safetensors:0.5"),
        *("--control-model", "webui/models/ControlNet/control_canny.safetensors"),
    )
    told = command(*drawing(*paths, "--out", "paths.png"))
    assert told.code == 0, told.err
    # What lies in a tree finds its neighbours without being told of the tree.
    beside = command(*drawing("--model", "ComfyUI/models/checkpoints/dreams.safetensors", *NAMES[2:], "--out", "b.png"))
    assert beside.code == 0, beside.err
    monkeypatch.setenv(VARIABLE, "ComfyUI")
    named = command(*drawing(*NAMES, "--out", "names.png"))
    assert named.code == 0, named.err
    pictures = [Image.open(name).tobytes() for name in ("paths.png", "names.png", "b.png")]
    assert pictures[0] == pictures[1] == pictures[2]
    without = command(*drawing(*NAMES[:4], *NAMES[6:], "--out", "no-lora.png"))
    assert without.code == 0, without.err
    assert Image.open("no-lora.png").tobytes() != pictures[0]

    missed = command(*drawing(*NAMES[:4], "--lora", "wach.safetensors", *NAMES[6:], "--out", "no.png"))
    assert (missed.code, "did you mean 'wash.safetensors'?" in missed.err) == (1, True), missed.err
    missed = command(*drawing(*NAMES[:6], "--control-model", "control_kanny.safetensors", "--out", "no.png"))
    assert (missed.code, "did you mean 'control_canny.safetensors'?" in missed.err) == (1, True), missed.err
    assert command("again", "names.png", "--out", "again.png").code == 0
    assert Image.open("again.png").tobytes() == pictures[1], "a name is remembered"
