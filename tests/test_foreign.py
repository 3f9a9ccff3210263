"""Requests read from other programs' pictures: hand-made PNGs of what A1111, ComfyUI and InvokeAI write."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from instantstyle.cli import app
from instantstyle.errors import PictureError
from instantstyle.request import Request, Result
from instantstyle.request.third_party_metadata import read_third_party_request

A1111 = """a cat, (masterpiece:1.2),
sitting in a house
Negative prompt: blurry, text
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, Model hash: 31e35c80fc, \
Model: sd_xl_base_1.0, Denoising strength: 0.7, Lora hashes: "one: aa11, two: bb22", Version: v1.9.3"""

COMFY: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8566257,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamshaper_8.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 2}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x.safetensors", "model": ["4", 0], "clip": ["4", 1]}},
}
INVOKE: dict[str, Any] = {
    "app_version": "4.2.8",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a red house",
    "negative_prompt": "people",
    "width": 1024,
    "height": 832,
    "seed": 42,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "euler_a",
    "model": {"key": "k", "hash": "h", "name": "stable-diffusion-xl-base-1-0", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"name": "ink"}, "weight": 0.75}],
}


def picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a1111(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", parameters=A1111))
    request = read.request
    assert (read.program, read.model) == ("A1111", "sd_xl_base_1.0")
    assert request.prompt == "a cat, (masterpiece:1.2),\nsitting in a house"
    assert (request.negative, request.steps, request.guidance) == ("blurry, text", 25, 6.5)
    assert (request.seed, request.size, request.sampler) == (1234567890, (512, 768), "dpm++")
    assert read.unsupported == (
        "Denoising strength 0.7",
        "Lora hashes one: aa11, two: bb22",
        "scheduler karras",
    )


def test_a1111_without_negative_or_values(tmp_path: Path) -> None:
    assert read_third_party_request(picture(tmp_path / "a.png", parameters="a cat: a dog")).request == Request(
        "a cat: a dog"
    )


def test_comfyui(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", prompt=json.dumps(COMFY), workflow="{}"))
    request = read.request
    assert (read.program, read.model) == ("ComfyUI", "dreamshaper_8.safetensors")
    assert (request.prompt, request.negative) == ("a glass bottle", "watermark")
    assert (request.steps, request.guidance, request.seed, request.sampler) == (20, 8.0, 8566257, "euler")
    assert (request.size, request.count) == ((512, 640), 2)
    assert read.unsupported == ("node LoraLoader", "scheduler karras")


def test_invokeai(tmp_path: Path) -> None:
    read = read_third_party_request(picture(tmp_path / "a.png", invokeai_metadata=json.dumps(INVOKE)))
    request = read.request
    assert (read.program, read.model) == ("InvokeAI", "stable-diffusion-xl-base-1-0")
    assert (request.prompt, request.negative, request.seed) == ("a red house", "people", 42)
    assert (request.steps, request.guidance, request.size, request.sampler) == (30, 7.5, (1024, 832), None)
    assert read.unsupported == ("sampler euler_a", "LoRA")


def test_ours(tmp_path: Path) -> None:
    asked = Request("a cat", seed=3, plan="layout")
    Result([Image.new("RGB", (8, 8))], asked, model="emoji").save(tmp_path / "a.png")
    assert read_third_party_request(tmp_path / "a.png").request == asked


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({}, "does not say how it was made"),
        ({"prompt": "{"}, "cannot be read as a request"),
        ({"prompt": "[]"}, "cannot be read as a request"),
        ({"prompt": json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}})}, "no KSampler"),
        ({"invokeai_metadata": '{"positive_prompt": "a", "steps": -1}'}, "steps must be at least 1"),
        ({"invokeai_metadata": "[1]"}, "cannot be read as a request"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(texts: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=sentence):
        read_third_party_request(picture(tmp_path / "a.png", **texts))


def test_a_graph_that_bites_its_tail_ends(tmp_path: Path) -> None:
    ring = {**COMFY, "6": {"class_type": "X", "inputs": {"a": ["6", 0], "b": ["6", 0]}}}
    assert read_third_party_request(picture(tmp_path / "a.png", prompt=json.dumps(ring))).request.prompt == ""


def test_the_command_prints_a_request(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", parameters=A1111)
    outcome = CliRunner().invoke(app, ["again", str(path), "--as-request"])
    assert outcome.exit_code == 0
    assert Request.from_json(outcome.stdout).steps == 25
    assert "left out" in outcome.stderr
    assert "with the model sd_xl_base_1.0" in outcome.stderr
