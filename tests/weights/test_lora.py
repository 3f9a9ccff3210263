"""LoRA files: what is refused and in which words, strengths, and writing; pictures are compared in tests/oracle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

import tiny_models
from instantstyle.errors import InputError, WeightsError
from instantstyle.loading import load
from instantstyle.weights.lora import LoRAFactors, parse_lora, read_lora, save_lora, with_loras

ATTN = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
NAME = f"{ATTN}.to_k.weight"


def parts(name: str = "sdxl") -> Any:
    model = tiny_models.model(name)
    return {part: net for part, net in model.networks.items() if part in ("unet", "text_encoder", "text_encoder_2")}


def config(name: str = "sdxl") -> Any:
    return tiny_models.model(name).family.unet


def factors(rank: int = 2, context: int = 32) -> LoRAFactors:
    make = torch.Generator().manual_seed(0)
    width = tiny_models.model("sdxl").unet.get_parameter(NAME).shape[0]
    return LoRAFactors(torch.randn(width, rank, generator=make), torch.randn(rank, context, generator=make), 0.5)


def file(path: Path, **changes: Any) -> Path:
    save_lora(path / "lora.safetensors", {NAME: factors(**changes)})
    return path / "lora.safetensors"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("C:/a.safetensors", ("C:/a.safetensors", 1.0)),
        ("C:/a.safetensors:-1", ("C:/a.safetensors", -1.0)),
        ("owner/name/a.safetensors:.5", ("owner/name/a.safetensors", 0.5)),
        ("a.safetensors:0.8:style", ("a.safetensors:style", 0.8)),
        ("C:/a.safetensors:content", ("C:/a.safetensors:content", 1.0)),
    ],
)
def test_what_the_command_line_takes(text: str, expected: tuple[str, float]) -> None:
    assert parse_lora(text) == expected


def test_strength_acts_once_and_scales_are_kept(tmp_path: Path) -> None:
    path, one = file(tmp_path), factors()
    before = tiny_models.model("sdxl").weights_hash()
    changed = with_loras(parts(), [(path, 0.3), (path, 0.4)], config())["unet"]
    base = tiny_models.model("sdxl").unet.get_parameter(NAME)
    torch.testing.assert_close(changed.get_parameter(NAME) - base, 0.7 * 0.5 * one.up @ one.down, atol=1e-5, rtol=1e-4)
    assert changed.get_parameter("conv_in.weight") is tiny_models.model("sdxl").unet.get_parameter("conv_in.weight")
    assert tiny_models.model("sdxl").weights_hash() == before
    assert with_loras(parts(), [(path, 0.0)], config())["unet"] is tiny_models.model("sdxl").unet


def test_a_model_remembers_its_loras(tmp_path: Path) -> None:
    path = file(tmp_path)
    model = load(tiny_models.folder("sdxl"), loras=[(path, 0.5)])
    assert model.loras == ((str(path), 0.5),)
    assert model.weights_fingerprint != tiny_models.model("sdxl").weights_fingerprint


def refused(path: Path, name: str = "sdxl") -> str:
    with pytest.raises(WeightsError) as failure:
        read_lora(path, parts(name), config(name))
    return str(failure.value)


def test_another_family_is_told_by_the_width_of_its_text(tmp_path: Path) -> None:
    said = refused(file(tmp_path, context=2048))
    assert "2048 wide (family sdxl)" in said
    assert "this UNet's are 32 wide" in said


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"unet.no.such.to_q.lora_A.weight": (2, 32), "unet.no.such.to_q.lora_B.weight": (32, 2)}, "does not have"),
        ({f"unet.{ATTN}.to_q.lora_A.weight": (2, 7), f"unet.{ATTN}.to_q.lora_B.weight": (32, 2)}, "has shape"),
        ({f"unet.{ATTN}.to_q.lora_A.weight": (2, 32)}, "without its other half"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (2, 32)}, "diffusion transformer"),
        ({f"unet.{ATTN}.to_q.lora_A.weight": (2, 32), f"unet.{ATTN}.to_q.dora_scale": (32,)}, "DoRA"),
        ({"lora_unet_x.hada_w1_a": (2, 2)}, "LoHa"),
        ({"conv_in.weight": (2, 2)}, "is no LoRA file"),
        ({"lora_unet_down_blocks_1_x.lora_down.weight": (2, 2)}, "does not have"),
    ],
)
def test_what_is_no_plain_lora_for_this_model(tensors: dict[str, tuple[int, ...]], said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    assert said in refused(path)


def test_a_tower_that_is_not_there_and_weights_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "te2.safetensors"
    stem = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{stem}.lora_A.weight": torch.zeros(2, 16), f"{stem}.lora_B.weight": torch.zeros(16, 2)}, path)
    assert "changes the text_encoder_2, which this model does not have" in refused(path, "sd15")
    for weight in (float("nan"), 11.0):
        with pytest.raises(InputError, match="from -10 to 10"):
            with_loras(parts(), [(path, weight)], config())


def test_peft_folders_with_their_settings(tmp_path: Path) -> None:
    one = factors()
    keys = {f"base_model.model.{ATTN}.to_k.lora_{kind}.weight": x for kind, x in (("A", one.down), ("B", one.up))}
    save_file(keys, tmp_path / "adapter_model.safetensors")
    settings = {"r": 2, "lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 3}, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    read = read_lora(tmp_path, parts(), config())["unet"][NAME]
    assert read.scale == pytest.approx(3 / 2**0.5)


def test_written_files_say_what_they_are(tmp_path: Path) -> None:
    path = file(tmp_path)
    tensors = load_file(path)
    assert list(tensors) == [f"unet.{ATTN}.to_k.lora_A.weight", f"unet.{ATTN}.to_k.lora_B.weight"]
    assert [each.name for each in tmp_path.iterdir()] == ["lora.safetensors"]
