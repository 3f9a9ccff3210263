"""The whole way from a request to a picture is that of diffusers' Flux pipelines: same folder, seed and schedule."""

from typing import Any

import pytest
import torch

import tiny_models
from instantstyle.networks.transformer_denoisers import pack_latents, unpack_latents
from instantstyle.request import Init, Request
from oracle.flow_pipelines import assert_equal_runs, run_ours, run_theirs

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]

SIZE = (64, 48)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dev": ("flux", {}, {"guidance_scale": 3.5}),
    "dev, told another guidance": ("flux", {"guidance": 1.5}, {"guidance_scale": 1.5}),
    "dev, true guidance": (
        "flux",
        {"true_guidance": 3.0, "negative": "a red house"},
        {"guidance_scale": 3.5, "true_cfg_scale": 3.0, "negative_prompt": "a red house"},
    ),
    "dev, another size": ("flux", {"size": (32, 96)}, {"guidance_scale": 3.5, "width": 32, "height": 96}),
    "two pictures": ("flux", {"count": 2}, {"guidance_scale": 3.5, "num_images_per_prompt": 2}),
    "schnell": ("schnell", {}, {}),
    "schnell, true guidance": (
        "schnell",
        {"guidance": 2.5, "negative": "a dog"},
        {"true_cfg_scale": 2.5, "negative_prompt": "a dog"},
    ),
}


def unpacked(theirs: tuple[torch.Tensor, Any], height: int) -> tuple[torch.Tensor, Any]:
    return unpack_latents(theirs[0], height // 8), theirs[1]


@pytest.mark.parametrize("case", CASES)
def test_the_whole_picture_is_diffusers(case: str) -> None:
    name, fields, arguments = CASES[case]
    given: dict[str, Any] = {"steps": 4, "seed": 11, "size": SIZE} | fields
    request = Request("a cat in the house", **given)
    length = tiny_models.model(name).family.max_text_tokens
    more: dict[str, Any] = {"width": SIZE[0], "height": SIZE[1], "max_sequence_length": length}
    theirs = run_theirs(name, "FluxPipeline", 11, prompt=request.prompt, num_inference_steps=4, **more | arguments)
    assert request.size
    assert_equal_runs(run_ours(name, request), unpacked(theirs, request.size[1]))


@pytest.mark.parametrize("strength", [0.3, 0.55, 1.0])
def test_a_picture_to_begin_from(strength: float) -> None:
    picture = tiny_models.picture(3).resize(SIZE)
    request = Request("a cat", steps=5, seed=4, size=SIZE, init=Init(picture, strength))
    arguments: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 5, "guidance_scale": 3.5}
    more = {"image": picture, "strength": strength, "width": SIZE[0], "height": SIZE[1]}
    theirs = run_theirs("flux", "FluxImg2ImgPipeline", 4, **arguments, **more)
    assert_equal_runs(run_ours("flux", request), unpacked(theirs, SIZE[1]))


def test_packing_is_diffusers_own_and_can_be_undone() -> None:
    latents = torch.randn(2, 3, 8, 6)
    import diffusers

    kind: Any = diffusers
    assert torch.equal(pack_latents(latents), kind.FluxPipeline._pack_latents(latents, 2, 3, 8, 6))
    assert torch.equal(unpack_latents(pack_latents(latents), 8), latents)
