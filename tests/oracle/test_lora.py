"""A LoRA file in each spelling, loaded by us and by diffusers' `load_lora_weights` and `fuse_lora`: one picture."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from instantstyle.loading import load
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from oracle.loras import Spelling, random_lora, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's
]

diffusers: Any = importlib.import_module("diffusers")
CASES: dict[str, tuple[str, Spelling, bool]] = {
    "sdxl, kohya": ("sdxl", "kohya", True),
    "sdxl, kohya with Stability's blocks": ("sdxl", "kohya-sgm", True),
    "sdxl, diffusers": ("sdxl", "diffusers", True),
    "sdxl, diffusers with alphas": ("sdxl", "diffusers-alpha", False),
    "sdxl, diffusers of old": ("sdxl", "diffusers-old", True),
    "sd15, kohya": ("sd15", "kohya", True),
    "sd15, diffusers": ("sd15", "diffusers", False),
}
"""The model, the spelling, and whether the text encoders change too."""
WEIGHT = 0.7
REQUEST = Request("a cat in the house", negative="red", steps=2, guidance=5.0, seed=11)


def parts(pipe: Any) -> dict[str, Any]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: pipe.components[name] for name in names if pipe.components.get(name) is not None}


def fresh(name: str) -> Any:
    kind = diffusers.StableDiffusionPipeline if name == "sd15" else diffusers.StableDiffusionXLPipeline
    pipe = kind.from_pretrained(tiny_models.folder(name), image_encoder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, **more: Any) -> Any:
    return pipe(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance,
        generator=torch.Generator("cpu").manual_seed(11),
        **more,
    ).images[0]


@cache
def bare(name: str) -> Any:
    return Engine(tiny_models.model(name)).submit(REQUEST)


def apart(one: Any, other: Any) -> float:
    """Mean absolute difference of two pictures, of 255."""
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


@pytest.mark.parametrize("case", CASES)
def test_a_lora_is_diffusers(case: str, tmp_path: Path) -> None:
    name, spelling, text = CASES[case]
    pipe = fresh(name)
    nets = parts(pipe) if text else {"unet": pipe.unet}
    lora = random_lora(nets, attention_only=spelling == "diffusers-old")
    file = write(tmp_path / "lora.safetensors", lora, spelling, towers=len(parts(pipe)) - 1)
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    components = [part for part in parts(pipe) if part in nets]
    pipe.fuse_lora(components=components, lora_scale=WEIGHT)
    expected = picture(pipe)

    before = tiny_models.model(name)
    run = Engine(load(tiny_models.folder(name), loras=[(file, WEIGHT)])).submit(REQUEST)
    for _ in run:
        pass
    plain = Engine(before).submit(REQUEST)
    for _ in plain:
        pass
    ours, without = run.result().images[0], plain.result().images[0]
    assert apart(without, expected) > 5
    assert apart(ours, expected) < 1


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_a_lora_and_a_style_at_once(name: str, tmp_path: Path) -> None:
    """The LoRA changes the UNet's own keys and values, the adapter's stay as they are."""
    pipe = fresh(name)
    file = write(tmp_path / "lora.safetensors", random_lora({"unet": pipe.unet}), "diffusers", towers=2)
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    pipe.fuse_lora(components=["unet"], lora_scale=WEIGHT)
    pipe.unload_lora_weights()
    folder = tiny_models.folder(name)
    pipe.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(1.0)
    seen = tiny_models.model(name).encode_image([tiny_models.picture(5)])[:, None]
    expected = picture(pipe, ip_adapter_image_embeds=[torch.cat([torch.zeros_like(seen), seen])])

    styled = REQUEST.model_copy(update={"references": (StyleReference(tiny_models.picture(5)),), "plan": "all"})
    changed = Engine(load(folder, loras=[(file, WEIGHT)]))
    with_both, without = changed.submit(styled), changed.submit(REQUEST)
    changed.run()
    ours = with_both.result().images[0]
    assert apart(without.result().images[0], expected) > 5
    assert apart(ours, expected) < 1
