"""InstantX' adapter of Stable Diffusion 3.5, as diffusers' pipeline with the same file draws it."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import parse_block_plan
from instantstyle.errors import InputError, WeightsError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from instantstyle.weights.adapter import extract_blocks, load_adapter

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")
SIZE, STEPS = (64, 48), 3
TOLERANCE = 2e-5


@cache
def model() -> Model:
    files = tiny_models.sd35_adapter()
    return load(tiny_models.folder("sd35"), adapter=files / "adapter.bin", image_encoder=files / "image_encoder")


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {"steps": STEPS, "seed": 7, "size": SIZE, "plan": "all"} | fields
    given = {"references": [StyleReference(tiny_models.picture(1))]} | given
    return Request("a cat", **given)


def latents(asked: Request, drawer: Model | None = None) -> Tensor:
    run = Engine(drawer or model()).submit(asked)
    for _ in run:
        pass
    return run.latents


def theirs(scales: list[float], guidance: float) -> Tensor:
    """diffusers' picture: hidden states by transformers' own preprocessing, a scale a layer."""
    files = tiny_models.sd35_adapter()
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(tiny_models.folder("sd35"))
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer._load_ip_adapter_weights(torch.load(files / "adapter.bin", weights_only=True))
    kinds: Any = importlib.import_module("diffusers.models.attention_processor")
    speaking = [
        p for p in pipe.transformer.attn_processors.values() if isinstance(p, kinds.SD3IPAdapterJointAttnProcessor2_0)
    ]
    for scale, processor in zip(scales, speaking, strict=True):
        processor.scale = scale
    net = transformers.SiglipVisionModel.from_pretrained(files / "image_encoder")
    process = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    with torch.no_grad():
        pixels = process(tiny_models.picture(1), return_tensors="pt").pixel_values
        hidden = net(pixels, output_hidden_states=True).hidden_states[-2]
    embeds = torch.cat([torch.zeros_like(hidden), hidden]) if guidance > 1 else hidden
    more = {"prompt": "a cat", "num_inference_steps": STEPS, "width": SIZE[0], "height": SIZE[1]}
    generator = torch.Generator("cpu").manual_seed(7)
    more |= {"guidance_scale": guidance, "output_type": "latent", "generator": generator}
    return pipe(**more, ip_adapter_image_embeds=embeds).images


@pytest.mark.parametrize(
    ("plan", "scales", "guidance"),
    [
        ("all=0.6", [0.6] * 4, 4.5),
        ("joint.0=0.3,joint.1=0.9,joint.2=0.5", [0.3, 0.3, 0.9, 0.5], 4.5),
        ("all", [1.0] * 4, 1.0),
    ],
)
def test_the_adapter_is_diffusers(plan: str, scales: list[float], guidance: float) -> None:
    ours, expected = latents(request(plan=plan, guidance=guidance)), theirs(scales, guidance)
    close = TOLERANCE * float(expected.abs().max())
    torch.testing.assert_close(ours, expected, atol=close, rtol=0)
    assert float((ours - latents(request(references=[], guidance=guidance))).abs().max()) > 20 * close


def test_laws() -> None:
    before, bare = model().weights_hash(), latents(request(references=[]))
    for fields in ({"references": [StyleReference(tiny_models.picture(1), weight=0)]}, {"plan": "all=0"}):
        assert torch.equal(latents(request(**fields)), bare)
    faint = latents(request(references=[StyleReference(tiny_models.picture(1), weight=1e-6)]))
    torch.testing.assert_close(faint, bare, atol=1e-5, rtol=0)
    engine = Engine(model())
    asked = [request(), request(references=[]), request(plan="joint.1=0.5", steps=2, count=2)]
    asked += [request(references=[StyleReference(tiny_models.picture(each)) for each in (2, 3)])]
    runs = [engine.submit(each) for each in asked]
    engine.run()
    for run, each in zip(runs, asked, strict=True):
        torch.testing.assert_close(run.latents, latents(each), atol=5e-5, rtol=0)
    assert model().weights_hash() == before


def test_a_style_only_file(tmp_path: Path) -> None:
    files, layout = tiny_models.sd35_adapter(), model().family.layout
    slim = tmp_path / "slim.safetensors"
    extract_blocks(files / "adapter.bin", slim, parse_block_plan("joint.1=1", layout, {}), layout)
    small = load(tiny_models.folder("sd35"), adapter=slim, image_encoder=files / "image_encoder")
    ours, whole = latents(request(plan="joint.1=1"), small), latents(request(plan="joint.1=1"))
    torch.testing.assert_close(ours, whole, atol=TOLERANCE, rtol=0)


def test_what_does_not_fit_is_a_sentence() -> None:
    file, flux = (
        tiny_models.sd35_adapter() / "adapter.bin",
        tiny_models.flux_adapter("instantx") / "adapter.safetensors",
    )
    with pytest.raises(WeightsError, match="it is for another family"):
        load_adapter(file, tiny_models.model("flux").family.layout)
    with pytest.raises(WeightsError, match="it is for another family"):
        load_adapter(flux, model().family.layout)
    with pytest.raises(InputError, match="content cannot be subtracted with a Plus adapter"):
        Engine(model()).submit(request(references=[StyleReference(tiny_models.picture(1), content="dog")])).prepare()
