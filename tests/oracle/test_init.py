"""Beginning from a picture, and painting a part of it anew, is diffusers' Img2Img and Inpaint: same folder and seed."""

import atexit
import importlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.request import Init, Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}
KINDS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def photo(width: int = 64, height: int = 64) -> Image.Image:
    return tiny_models.picture(21, 64).resize((width, height))


def mask(width: int = 64, height: int = 64) -> Image.Image:
    """White where the picture changes: a disc off the middle, with soft edges."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((x + 0.5) / width - 0.6, (y + 0.5) / height - 0.45)
    return Image.fromarray(np.clip(255 * (0.32 - distance) / 0.05, 0, 255).astype(np.uint8)).convert("RGB")


@cache
def folder(name: str) -> Path:
    """A model's folder; of `sdxl-inpainting` the UNet reads nine channels."""
    base, _, inpainting = name.partition("-")
    if not inpainting:
        return tiny_models.folder(base)
    path = Path(tempfile.mkdtemp(prefix="instantstyle-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    shutil.copytree(tiny_models.folder(base), path, dirs_exist_ok=True)
    config = json.loads((path / "unet/config.json").read_text())
    torch.manual_seed(5)  # pyright: ignore[reportUnknownMemberType]
    diffusers.UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(path / "unet")
    return path


@cache
def model(name: str) -> Model:
    return load(folder(name))


@cache
def pipeline(name: str, what: str) -> Any:
    kind = getattr(diffusers, f"StableDiffusion{'' if name.startswith('sd15') else 'XL'}{what}Pipeline")
    pipe = kind.from_pretrained(folder(name))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(folder(name), subfolder="", weight_name="ip_adapter.safetensors")
    return pipe


def theirs(name: str, request: Request) -> tuple[torch.Tensor, list[Image.Image]]:
    init, pipe = request.init, pipeline(name, "Img2Img" if request.init and request.init.mask is None else "Inpaint")
    assert init is not None
    assert request.seed is not None
    own = pipe.scheduler
    if request.sampler is not None:
        pipe.scheduler = getattr(diffusers, KINDS[request.sampler]).from_config(own.config)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder(name) / "feature_extractor")
    reference = request.references[0].image.open() if request.references else tiny_models.picture(1)
    with torch.no_grad():
        embeds = pipe.image_encoder(processor(reference, return_tensors="pt").pixel_values).image_embeds[None]
    scale: Any = 1.0 if name.startswith("sd15") else STYLE
    pipe.set_ip_adapter_scale(scale if request.references else 0.0)
    inpaint = {}
    if init.mask is not None:
        width, height = init.image.open().size
        inpaint = {"mask_image": init.mask.open(), "width": width, "height": height}
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        seen.append(tensors["latents"])
        return tensors

    try:
        pictures = pipe(
            prompt=request.prompt,
            image=init.image.open(),
            strength=init.strength,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            num_images_per_prompt=request.count,
            ip_adapter_image_embeds=[
                torch.cat([torch.zeros_like(embeds), embeds]) if request.do_classifier_free_guidance else embeds
            ],
            generator=torch.Generator("cpu").manual_seed(request.seed),
            callback_on_step_end=keep,
            **inpaint,
        ).images
    finally:
        pipe.scheduler = own
    return seen[-1], pictures


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "img2img": ("sdxl", {"strength": 0.6}, {}),
    "img2img, all of it": ("sdxl", {"strength": 1.0}, {}),
    "img2img, a style, three pictures": ("sdxl", {"strength": 0.45}, {"count": 3, "references": True}),
    "img2img, wide": ("sdxl", {"strength": 0.7, "image": photo(96, 32)}, {}),
    "img2img, ddim": ("sdxl", {"strength": 0.7}, {"sampler": "ddim"}),
    "img2img, dpm++": ("sdxl", {"strength": 0.7}, {"sampler": "dpm++"}),
    "img2img, unipc": ("sdxl", {"strength": 0.7}, {"sampler": "unipc"}),
    "img2img, no guidance": ("sdxl", {"strength": 0.7}, {"guidance": 1.0}),
    "img2img, sd15": ("sd15", {"strength": 0.5}, {}),
    "img2img, sd15, a style": ("sd15", {"strength": 0.5}, {"references": True, "plan": "all"}),
    "img2img, sd15, a style, euler": (
        "sd15",
        {"strength": 0.5},
        {"references": True, "plan": "all", "sampler": "euler"},
    ),
    "inpaint": ("sdxl", {"strength": 0.7, "mask": mask()}, {}),
    "inpaint, all of it": ("sdxl", {"strength": 1.0, "mask": mask()}, {}),
    "inpaint, a style, two pictures": ("sdxl", {"strength": 0.7, "mask": mask()}, {"count": 2, "references": True}),
    "inpaint, wide": ("sdxl", {"strength": 0.7, "image": photo(96, 32), "mask": mask(96, 32)}, {}),
    "inpaint, dpm++": ("sdxl", {"strength": 0.7, "mask": mask()}, {"sampler": "dpm++"}),
    "inpaint, sd15": ("sd15", {"strength": 0.7, "mask": mask()}, {}),
    "inpaint, sd15, a style": ("sd15", {"strength": 0.7, "mask": mask()}, {"references": True, "plan": "all"}),
    "inpaint, sd15, all of it": ("sd15", {"strength": 1.0, "mask": mask()}, {}),
    "nine channels": ("sdxl-inpainting", {"strength": 0.7, "mask": mask()}, {}),
    "nine channels, all of it": ("sdxl-inpainting", {"strength": 1.0, "mask": mask()}, {"count": 2}),
    "nine channels, a style": ("sdxl-inpainting", {"strength": 0.7, "mask": mask()}, {"references": True}),
    "nine channels, sd15": ("sd15-inpainting", {"strength": 0.7, "mask": mask()}, {}),
    "nine channels, sd15, a style": (
        "sd15-inpainting",
        {"strength": 0.7, "mask": mask()},
        {"references": True, "plan": "all"},
    ),
    "nine channels, sd15, all of it": ("sd15-inpainting", {"strength": 1.0, "mask": mask()}, {"guidance": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_picture_from_a_picture_is_diffusers(case: str) -> None:
    name, init, fields = CASES[case]
    if fields.pop("references", False):
        fields["references"] = [StyleReference(tiny_models.picture(1))]
    defaults: dict[str, Any] = {"prompt": "a cat", "steps": 6, "guidance": 5.0, "seed": 11}
    image = init.get("image", photo())
    given: dict[str, Any] = {"init": Init(**({"image": image} | init)), "size": image.size}
    request = Request(**(defaults | given | fields))
    expected, pictures = theirs(name, request)
    run = Engine(model(name)).submit(request)
    for _ in run:
        pass
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(run.latents, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
    # What a mask keeps is the init picture's own pixels here (tests/cases); theirs is what the VAE makes of them.
    for ours, other in zip(run.engine.model.decode_latents(run.latents), pictures, strict=True):
        assert np.abs(np.asarray(ours, int) - np.asarray(other, int)).mean() < 1


def test_the_picture_and_the_mask_are_no_small_matter_here() -> None:
    """The cases above could not fail if a random network made the same of everything."""
    request = Request("a cat", steps=6, guidance=5.0, seed=11, init=Init(photo(), 0.7, mask()))
    bare, _ = theirs("sdxl-inpainting", request)
    for other in (Init(tiny_models.picture(4, 64), 0.7, mask()), Init(photo(), 0.7, mask().rotate(180))):
        changed, _ = theirs("sdxl-inpainting", request.model_copy(update={"init": other}))
        assert float((changed - bare).abs().max()) > 100 * 2e-4 * float(bare.abs().max())
