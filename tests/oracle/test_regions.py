"""References that speak each in its own region are diffusers' `ip_adapter_masks`: same folder, seed and masks."""

import importlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models
from instantstyle.errors import InputError
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")


def half(left: bool, size: tuple[int, int]) -> Image.Image:
    """White on one side of a slanted edge."""
    y, x = np.mgrid[: size[1], : size[0]]
    inside = (x / size[0] + 0.3 * y / size[1] < 0.6) == left
    return Image.fromarray((255 * inside).astype(np.uint8)).convert("RGB")


@cache
def pipeline(name: str) -> Any:
    kind = diffusers.StableDiffusionPipeline if name == "sd15" else diffusers.StableDiffusionXLPipeline
    pipe = kind.from_pretrained(tiny_models.folder(name))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(tiny_models.folder(name), subfolder="", weight_name="ip_adapter.safetensors")
    pipe.set_ip_adapter_scale([[0.8, 1.4]])
    return pipe


def theirs(name: str, request: Request, masks: list[Image.Image]) -> torch.Tensor:
    pipe = pipeline(name)
    assert request.size is not None
    assert request.seed is not None
    width, height = request.size
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tiny_models.folder(name) / "feature_extractor")
    with torch.no_grad():
        seen = [
            pipe.image_encoder(processor(each.image.open(), return_tensors="pt").pixel_values).image_embeds
            for each in request.references
        ]
    embeds = torch.stack(seen, dim=1)
    regions = importlib.import_module("diffusers.image_processor").IPAdapterMaskProcessor()
    regions = regions.preprocess(masks, height=height, width=width)[:, 0][None]
    return pipe(
        prompt=request.prompt,
        width=width,
        height=height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds])],
        cross_attention_kwargs={"ip_adapter_masks": [regions]},
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="latent",
    ).images


@pytest.mark.parametrize(("name", "size"), [("sdxl", (64, 64)), ("sdxl", (128, 64)), ("sd15", (64, 64))])
def test_each_in_its_region(name: str, size: tuple[int, int]) -> None:
    masks = [half(True, size), half(False, size)]
    weights = (0.8, 1.4)
    references = [
        StyleReference(tiny_models.picture(seed), weight=weight, mask=mask)
        for seed, weight, mask in zip((1, 2), weights, masks, strict=True)
    ]
    request = Request("a cat", references=references, plan="all", steps=4, seed=3, guidance=5.0, size=size)
    expected = theirs(name, request, masks)
    engine = Engine(tiny_models.model(name))
    run = engine.submit(request)
    unmasked = [each.model_copy(update={"mask": None}) for each in references]
    other = engine.submit(request.model_copy(update={"references": tuple(unmasked)}))
    for _ in run:
        pass
    tolerance = 5e-4 * float(expected.abs().max())
    torch.testing.assert_close(run.latents, expected, atol=tolerance, rtol=0)
    assert float((other.latents - expected).abs().max()) > 20 * tolerance


def test_a_white_mask_is_none_and_a_black_one_a_sentence() -> None:
    engine = Engine(tiny_models.model("emoji"))

    def submit(mask: Image.Image | None, **fields: Any) -> Any:
        references = [StyleReference(tiny_models.picture(1), mask=mask), *fields.pop("more", ())]
        return engine.submit(Request("a cat", references=references, seed=1, steps=1, **fields))

    white, black = (Image.new("RGB", (20, 30), colour) for colour in ("white", "black"))
    with_mask, without = submit(white), submit(None)
    engine.run()
    torch.testing.assert_close(with_mask.latents, without.latents, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="black everywhere"):
        submit(black)
    with pytest.raises(InputError, match="combine='average'"):
        submit(white, combine="average", more=[StyleReference(tiny_models.picture(2))]).prepare()
    with pytest.raises(InputError, match="'swapped' does not use mask of a reference"):
        submit(white, method="swapped")
