"""The whole way from a request to latents is that of diffusers' pipelines: same folder, seed, scheduler and style.

Subtraction is what the paper's code does, done outside of diffusers by editing `ip_adapter_image_embeds`.
"""

import importlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}
STYLE_AND_LAYOUT = {"down": {"block_2": [0.0, 0.7]}, "up": {"block_0": [0.0, 1.3, 0.0]}}
TOLERANCE = 2e-4
"""Of latents whose spread is about 1, after all steps: rounding, since rows are stacked and weights applied later."""


@cache
def pipeline(name: str) -> Any:
    kind = diffusers.StableDiffusionPipeline if name == "sd15" else diffusers.StableDiffusionXLPipeline
    pipe = kind.from_pretrained(tiny_models.folder(name))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(tiny_models.folder(name), subfolder="", weight_name="ip_adapter.safetensors")
    return pipe


def embedding(pipe: Any, name: str, seed: int, content: str | None) -> Any:
    """The image embedding by transformers' own preprocessing, less half of the content's pooled text embedding."""
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tiny_models.folder(name) / "feature_extractor")
    pixels = processor(tiny_models.picture(seed), return_tensors="pt").pixel_values
    with torch.no_grad():
        image = pipe.image_encoder(pixels).image_embeds
        return image if content is None else image - 0.5 * pipe.encode_prompt(content)[2]


def theirs(name: str, request: Request, scale: Any, seeds: list[int], content: str | None, kind: str | None) -> Any:
    pipe = pipeline(name)
    own = pipe.scheduler
    try:
        if kind is not None:
            pipe.scheduler = getattr(diffusers, kind).from_config(own.config)
        pipe.set_ip_adapter_scale(scale if seeds else 0.0)
        seen = [embedding(pipe, name, seed, content) for seed in seeds or [0]]
        embeds = torch.stack(seen, dim=1)
        if request.do_classifier_free_guidance:
            embeds = torch.cat([torch.zeros_like(embeds), embeds])
        arguments = {
            "prompt": request.prompt,
            "negative_prompt": request.negative or None,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "guidance_rescale": request.guidance_rescale,
            "num_images_per_prompt": request.count,
            "ip_adapter_image_embeds": [embeds],
        }
        seen_latents: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
            seen_latents.append(tensors["latents"])
            return tensors

        pictures = pipe(**arguments, generator=generator(request), callback_on_step_end=keep).images
        return seen_latents[-1], pictures
    finally:
        pipe.scheduler = own


def generator(request: Request) -> torch.Generator:
    assert request.seed is not None
    return torch.Generator("cpu").manual_seed(request.seed)


CASES: dict[str, tuple[str, dict[str, Any], Any, list[int], str | None, str | None]] = {
    "bare": ("sdxl", {}, 0.0, [], None, None),
    "style": ("sdxl", {}, STYLE, [1], None, None),
    "style, content subtracted": ("sdxl", {}, STYLE, [1], "dog", None),
    "style and layout": ("sdxl", {"plan": "up.0.1=1.3,down.2.1=0.7"}, STYLE_AND_LAYOUT, [1], "dog", None),
    "all": ("sdxl", {"plan": "all=0.6"}, 0.6, [1], None, None),
    "ip-adapter": ("sdxl", {"method": "ip-adapter"}, 1.0, [1], None, None),
    "negative prompt": ("sdxl", {"negative": "a red house"}, STYLE, [1], None, None),
    "no guidance": ("sdxl", {"guidance": 1.0}, STYLE, [1], "dog", None),
    "three pictures": ("sdxl", {"count": 3}, STYLE, [1], "dog", None),
    "two references": ("sdxl", {"plan": "all"}, 1.0, [1, 2], "dog", None),
    "ddim": ("sdxl", {"sampler": "ddim"}, STYLE, [1], None, "DDIMScheduler"),
    "euler": ("sdxl", {"sampler": "euler"}, STYLE, [1], None, "EulerDiscreteScheduler"),
    "dpm++": ("sdxl", {"sampler": "dpm++"}, STYLE, [1], None, "DPMSolverMultistepScheduler"),
    "unipc": ("sdxl", {"sampler": "unipc"}, STYLE, [1], None, "UniPCMultistepScheduler"),
    "lcm": ("sdxl", {"sampler": "lcm"}, STYLE, [1], None, "LCMScheduler"),
    "rescaled": ("sdxl", {"guidance_rescale": 0.7}, STYLE, [1], None, None),
    "three pictures, rescaled": ("sdxl", {"guidance_rescale": 0.7, "count": 3}, STYLE, [1], None, None),
    "sd15, rescaled": ("sd15", {"plan": "all=0.8", "guidance_rescale": 1.0}, 0.8, [1], None, None),
    "emoji, rescaled": ("emoji", {"plan": "all", "guidance_rescale": 0.7}, 1.0, [1], "dog", None),
    "emoji": ("emoji", {"plan": "all"}, 1.0, [1], "dog", None),
    "emoji, euler": ("emoji", {"sampler": "euler"}, None, [], None, "EulerDiscreteScheduler"),
    "sd15": ("sd15", {"plan": "all=0.8"}, 0.8, [1], None, None),
    "sd15, bare, negative": ("sd15", {"negative": "a red house"}, 0.0, [], None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_picture_is_diffusers(case: str) -> None:
    name, fields, scale, seeds, content, kind = CASES[case]
    references = [StyleReference(tiny_models.picture(seed), content=content) for seed in seeds]
    defaults: dict[str, Any] = {"prompt": "a cat in the house", "steps": 6, "guidance": 5.0, "seed": 11}
    defaults["guidance_rescale"] = 0.0  # diffusers' own default, whatever the family's is
    request = Request(references=references, **(defaults | fields))
    expected, expected_pictures = theirs(name, request, scale, seeds, content, kind)

    run = Engine(tiny_models.model(name)).submit(request)
    for _ in run:
        pass
    pictures = run.result().images

    assert run.latents.shape == expected.shape
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(run.latents, expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)
    for ours, other in zip(pictures, expected_pictures, strict=True):
        assert int(np.abs(np.asarray(ours, int) - np.asarray(other, int)).max()) <= 1


def test_a_style_is_no_small_matter_here() -> None:
    """The cases above could not fail if a random adapter changed nothing."""
    asked = Request("a cat", steps=4, guidance=5.0, guidance_rescale=0.0, seed=1)
    bare, _ = theirs("sdxl", asked, 0.0, [], None, None)
    styled, _ = theirs("sdxl", asked, STYLE, [1], None, None)
    subtracted, _ = theirs("sdxl", asked, STYLE, [1], "dog", None)
    rescaled, _ = theirs("sdxl", asked.model_copy(update={"guidance_rescale": 0.7}), STYLE, [1], None, None)
    assert float((styled - bare).abs().max()) > 100 * TOLERANCE * float(bare.abs().max())
    assert float((styled - subtracted).abs().max()) > 10 * TOLERANCE * float(bare.abs().max())
    assert float((styled - rescaled).abs().max()) > 10 * TOLERANCE * float(bare.abs().max())
