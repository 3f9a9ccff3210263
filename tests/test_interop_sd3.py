"""diffusers' pipeline of Stable Diffusion 3, given our embeddings and scale, draws our picture."""

import importlib
from typing import Any

import pytest
import torch

import tiny_models
from instantstyle.errors import InputError
from instantstyle.interop import diffusers_style
from instantstyle.loading import load
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine

diffusers: Any = importlib.import_module("diffusers")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_pipeline_draws_our_picture() -> None:
    files = tiny_models.sd35_adapter()
    model = load(tiny_models.folder("sd35"), adapter=files / "adapter.bin", image_encoder=files / "image_encoder")
    references = [StyleReference(tiny_models.picture(1), weight=0.9)]
    request = Request("a cat", steps=3, seed=7, size=(64, 48), plan="all=0.7", references=references)
    run = Engine(model).submit(request)
    for _ in run:
        pass
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(tiny_models.folder("sd35"))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(files, subfolder="", weight_name="adapter.bin", image_encoder_folder=None)
    style = diffusers_style(model, request)
    pipe.set_ip_adapter_scale(style.scale)
    generator = torch.Generator("cpu").manual_seed(7)
    arguments: dict[str, Any] = {"width": 64, "height": 48, "generator": generator, "output_type": "latent"}
    arguments |= {"num_inference_steps": 3, "guidance_scale": 4.5, "prompt": "a cat"}
    expected = pipe(**arguments, ip_adapter_image_embeds=style.ip_adapter_image_embeds).images
    torch.testing.assert_close(run.latents, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
    with pytest.raises(InputError, match="diffusers has one scale for all layers"):
        diffusers_style(model, request.model_copy(update={"plan": "joint.0=1"}))
