"""diffusers' own pipelines, given our embeddings and block scales, draw our pictures."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import parse_block_plan
from instantstyle.errors import InputError
from instantstyle.interop import diffusers_style, widen_adapter
from instantstyle.model import Model
from instantstyle.networks.transformer_denoisers import unpack_latents
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from instantstyle.weights.adapter import extract_blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
diffusers: Any = importlib.import_module("diffusers")
TOLERANCE = 2e-4


def latents(model: Model, request: Request) -> Tensor:
    run = Engine(model).submit(request)
    for _ in run:
        pass
    return run.latents


def theirs(kind: str, folder: Path, adapter: Path, model: Model, request: Request) -> Tensor:
    """A pipeline of diffusers with the adapter's file, and what the request says of its references."""
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    more = (
        {"image_encoder_pretrained_model_name_or_path": None}
        if kind == "FluxPipeline"
        else {"image_encoder_folder": None}
    )
    pipe.load_ip_adapter(adapter.parent, subfolder="", weight_name=adapter.name, **more)
    style = diffusers_style(model, request)
    pipe.set_ip_adapter_scale(style.scale)
    arguments: dict[str, Any] = {"ip_adapter_image_embeds": style.ip_adapter_image_embeds}
    if style.negative_ip_adapter_image_embeds is not None:
        arguments["negative_ip_adapter_image_embeds"] = style.negative_ip_adapter_image_embeds
        arguments |= {"width": 64, "height": 48}
    arguments |= {"generator": torch.Generator("cpu").manual_seed(7), "output_type": "latent"}
    guidance = 3.5 if kind == "FluxPipeline" else 5.0
    steps = request.steps
    out = pipe(prompt=request.prompt, num_inference_steps=steps, guidance_scale=guidance, **arguments).images
    return unpack_latents(out, 6) if kind == "FluxPipeline" else out


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {"steps": 3, "seed": 7, "guidance_rescale": 0.0} | fields
    given = {"references": [StyleReference(tiny_models.picture(1))]} | given
    return Request("a cat", **given)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sdxl, style, content subtracted": (
        "sdxl",
        {"references": [StyleReference(tiny_models.picture(1), content="dog")]},
    ),
    "sdxl, two blocks": ("sdxl", {"plan": "up.0.1=1.2,down.2.1=0.5"}),
    "sdxl, two references": (
        "sdxl",
        {"references": [StyleReference(tiny_models.picture(i), weight=0.7) for i in (1, 2)]},
    ),
    "sdxl, an average": (
        "sdxl",
        {"combine": "average", "references": [StyleReference(tiny_models.picture(i), weight=i / 2) for i in (1, 2)]},
    ),
    "sd15, all": ("sd15", {"plan": "all=0.8"}),
    "flux": (
        "flux",
        {
            "plan": "double.0=0.3,double.1=0.9",
            "references": [StyleReference(tiny_models.picture(1), content="dog")],
            "size": (64, 48),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pipelines_draw_our_pictures(case: str) -> None:
    name, fields = CASES[case]
    kinds = {"sdxl": "StableDiffusionXLPipeline", "sd15": "StableDiffusionPipeline", "flux": "FluxPipeline"}
    model, adapter = (
        tiny_models.model(name) if name != "flux" else tiny_models.flux_with_adapter("xlabs"),
        tiny_models.folder(name) / "ip_adapter.safetensors",
    )
    if name == "flux":
        adapter = tiny_models.flux_adapter("xlabs") / "adapter.safetensors"
    else:
        fields = fields | {"guidance": 5.0}
    asked = request(**fields)
    ours, expected = latents(model, asked), theirs(kinds[name], tiny_models.folder(name), adapter, model, asked)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_widened_file_draws_what_the_style_only_file_holds(name: str, tmp_path: Path) -> None:
    flux = name == "flux"
    model = tiny_models.flux_with_adapter("xlabs") if flux else tiny_models.model(name)
    whole = (
        tiny_models.flux_adapter("xlabs") / "adapter.safetensors"
        if flux
        else tiny_models.folder(name) / "ip_adapter.safetensors"
    )
    plan, layout = "double.1=1" if flux else "up.0.1=1", model.family.layout
    extract_blocks(whole, tmp_path / "slim.safetensors", parse_block_plan(plan, layout, {}), layout)
    widen_adapter(tmp_path / "slim.safetensors", tmp_path / "wide.safetensors", model)
    asked = request(plan=plan, **({"size": (64, 48)} if flux else {"guidance": 5.0}))
    kind = "FluxPipeline" if flux else "StableDiffusionXLPipeline"
    expected = theirs(kind, tiny_models.folder(name), tmp_path / "wide.safetensors", model, asked)
    torch.testing.assert_close(latents(model, asked), expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"window": (0.2, 1.0)}, "no argument for a window"),
        ({"plan": "precise"}, "no argument for a plan with negative blocks"),
        ({"references": []}, "a style without a reference"),
        ({"method": "swapped"}, "a style without a reference and an adapter"),
        (
            {"references": [StyleReference(tiny_models.picture(i), weight=i / 2) for i in (1, 2)]},
            "weigh all references alike",
        ),
    ],
)
def test_what_diffusers_has_no_argument_for_is_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        diffusers_style(tiny_models.model("sdxl"), request(guidance=5.0, **fields))
