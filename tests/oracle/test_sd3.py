"""The whole way from a request to a picture is that of diffusers' Stable Diffusion 3 pipelines."""

from typing import Any

import pytest

import tiny_models
from instantstyle.request import Init, Request
from oracle.flow_pipelines import assert_equal_runs, run_ours, run_theirs

SIZE = (64, 48)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bare": ({}, {"guidance_scale": 4.5}),
    "negative": (
        {"negative": "a red house", "guidance": 7.0},
        {"negative_prompt": "a red house", "guidance_scale": 7.0},
    ),
    "no guidance": ({"guidance": 1.0}, {"guidance_scale": 1.0}),
    "two pictures": ({"count": 2}, {"guidance_scale": 4.5, "num_images_per_prompt": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_picture_is_diffusers(case: str) -> None:
    fields, arguments = CASES[case]
    request = Request("a cat in the house", steps=4, seed=11, size=SIZE, **fields)
    more: dict[str, Any] = {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": 4, "prompt": request.prompt}
    theirs = run_theirs("sd35", "StableDiffusion3Pipeline", 11, **more, **arguments)
    assert_equal_runs(run_ours("sd35", request), theirs)


@pytest.mark.parametrize("strength", [0.3, 0.55, 1.0])
def test_a_picture_to_begin_from(strength: float) -> None:
    picture = tiny_models.picture(3).resize(SIZE)
    request = Request("a cat", steps=5, seed=4, size=SIZE, init=Init(picture, strength))
    arguments: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 5, "guidance_scale": 4.5}
    more = {"image": picture, "strength": strength, "width": SIZE[0], "height": SIZE[1]}
    theirs = run_theirs("sd35", "StableDiffusion3Img2ImgPipeline", 4, **arguments, **more)
    assert_equal_runs(run_ours("sd35", request), theirs)


def test_what_is_kept_of_a_picture_is_what_diffusers_keeps() -> None:
    picture = tiny_models.picture(3).resize(SIZE)
    mask = tiny_models.picture(5).convert("L").point([255 * (value > 127) for value in range(256)]).resize(SIZE)
    request = Request("a cat", steps=5, seed=4, size=SIZE, init=Init(picture, 0.6, mask))
    arguments: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 5, "guidance_scale": 4.5}
    more = {"image": picture, "mask_image": mask, "strength": 0.6, "width": SIZE[0], "height": SIZE[1]}
    theirs = run_theirs("sd35", "StableDiffusion3InpaintPipeline", 4, **arguments, **more)
    ours = run_ours("sd35", request)
    assert_equal_runs((ours[0], []), (theirs[0], []))
