"""Pictures under ControlNets are those of diffusers' ControlNet pipelines: same files, seed, sampler, control pictures.

One, several at once (MultiControlNet), in a window of the run, with a style, pooled (guess mode).
"""

import importlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.request import Control, Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

diffusers: Any = importlib.import_module("diffusers")

TOLERANCE = 2e-4
"""Of latents whose spread is about 1, after all steps: rounding, since rows are stacked."""
STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}


@cache
def model(name: str) -> Model:
    return load(tiny_models.folder(name), controls={"canny": net(name, "canny"), "tile": net(name, "tile")})


@cache
def net(name: str, kind: str) -> Path:
    return pooled(name) if kind == "pooled" else tiny_models.controlnet(name, seed={"canny": 1, "tile": 2}[kind])


def pooled(name: str) -> Path:
    """A ControlNet that pools, such as SD1.5's shuffle: the same weights, and a word in its configuration."""
    folder = tiny_models.controlnet(name).with_name(".controlnet-pooled")
    if not folder.exists():
        shutil.copytree(tiny_models.controlnet(name), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"global_pool_conditions": True}))
    return folder


@cache
def pipeline(name: str, kinds: tuple[str, ...]) -> Any:
    nets = [diffusers.ControlNetModel.from_pretrained(net(name, kind)) for kind in kinds]
    kind = (
        diffusers.StableDiffusionControlNetPipeline if name == "sd15" else diffusers.StableDiffusionXLControlNetPipeline
    )
    pipe = kind.from_pretrained(tiny_models.folder(name), controlnet=nets if len(nets) > 1 else nets[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edges(seed: int) -> Image.Image:
    """What InstantStyle's own script makes of a picture (cv2.Canny, 50 and 200), of one that has the size already."""
    lines = cv2.Canny(np.asarray(tiny_models.picture(seed, 64)), 50, 200)
    return Image.fromarray(cv2.cvtColor(lines, cv2.COLOR_GRAY2RGB))


def theirs(name: str, request: Request, given: list[tuple[str, Image.Image]], style: bool) -> tuple[Any, Any]:
    pipe = pipeline(name, tuple(kind for kind, _ in given))
    windows = [control.window for control in request.controls]
    weights = [control.weight for control in request.controls]
    pictures, starts, ends = [picture for _, picture in given], [w[0] for w in windows], [w[1] for w in windows]
    one = len(given) == 1
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative or None,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "num_images_per_prompt": request.count,
        "image": pictures[0] if one else pictures,
        "controlnet_conditioning_scale": weights[0] if one else weights,
        "control_guidance_start": starts[0] if one else starts,
        "control_guidance_end": ends[0] if one else ends,
        "height": 64,
        "width": 64,
    }
    if style:
        pipe.load_ip_adapter(tiny_models.folder(name), subfolder="", weight_name="ip_adapter.safetensors")
        pipe.set_ip_adapter_scale(1.0 if name == "sd15" else STYLE)
        seen = tiny_models.model(name).encode_image([tiny_models.picture(5)])[:, None]
        arguments["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(seen), seen])]
    last: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        last.append(tensors["latents"])
        return tensors

    assert request.seed is not None
    try:
        chance = torch.Generator("cpu").manual_seed(request.seed)
        pictures = pipe(**arguments, generator=chance, callback_on_step_end=keep).images
    finally:
        if style:
            pipe.unload_ip_adapter()
    return last[-1], pictures


def ours(name: str, request: Request) -> tuple[torch.Tensor, Any]:
    run = Engine(model(name)).submit(request)
    for _ in run:
        pass
    return run.latents, run.result().images


SMALL = tiny_models.picture(1, 48)
WIDE = tiny_models.picture(1, 48).resize((90, 48))
CANNY = Control("canny", tiny_models.picture(2, 64), 0.8)
TILE = Control("tile", SMALL, 0.7)
Case = tuple[str, list[Control], list[tuple[str, Image.Image]], dict[str, Any]]
CASES: dict[str, Case] = {
    "canny": ("sdxl", [CANNY], [("canny", edges(2))], {}),
    "as it is, of another shape": ("sdxl", [Control("image:tile", WIDE)], [("tile", WIDE)], {}),
    "with a style": ("sdxl", [CANNY], [("canny", edges(2))], {"references": [StyleReference(tiny_models.picture(5))]}),
    "two": ("sdxl", [CANNY, TILE], [("canny", edges(2)), ("tile", SMALL)], {}),
    "three pictures": ("sdxl", [CANNY], [("canny", edges(2))], {"count": 3}),
    "no guidance": ("sdxl", [CANNY], [("canny", edges(2))], {"guidance": 1.0}),
    "a window": ("sdxl", [Control("tile", SMALL, 1.0, (0.2, 0.7))], [("tile", SMALL)], {}),
    "sd15": ("sd15", [CANNY], [("canny", edges(2))], {"negative": "a red house"}),
    "sd15, with a style": (
        "sd15",
        [CANNY],
        [("canny", edges(2))],
        {"references": [StyleReference(tiny_models.picture(5))], "plan": "all"},
    ),
    "sd15, two in windows of their own": (
        "sd15",
        [Control("canny", tiny_models.picture(2, 64), 0.5, (0.0, 0.6)), Control("tile", SMALL, 1.0, (0.3, 1.0))],
        [("canny", edges(2)), ("tile", SMALL)],
        {},
    ),
    "the built-in layout": ("emoji", [CANNY], [("canny", edges(2))], {"guidance_rescale": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_picture_is_diffusers(case: str) -> None:
    name, controls, given, fields = CASES[case]
    more: dict[str, Any] = {"guidance": 5.0, **fields}
    request = Request("a cat in the house", seed=11, steps=5, controls=controls, **more)
    expected, expected_pictures = theirs(name, request, given, "references" in fields)
    latents, pictures = ours(name, request)

    assert latents.shape == expected.shape
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(latents, expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)
    for mine, other in zip(pictures, expected_pictures, strict=True):
        assert float(np.abs(np.asarray(mine, float) - np.asarray(other, float)).mean()) < 1


def test_one_that_pools_speaks_to_the_conditional_rows_alone() -> None:
    given = load(tiny_models.folder("sd15"), controls={"shuffle": pooled("sd15")})
    request = Request("a cat", seed=3, steps=3, guidance=5.0, controls=[Control("shuffle", SMALL, 1.0)])
    expected, _ = theirs("sd15", request, [("pooled", SMALL)], False)
    run = Engine(given).submit(request)
    while not run.done:
        run.engine.step()
    torch.testing.assert_close(run.latents, expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_a_control_is_no_small_matter_here(name: str) -> None:
    """The cases above could not fail if a random ControlNet changed nothing, or if any would do."""
    request = Request("a cat", seed=11, steps=3)
    pictures = [
        ours(name, request.model_copy(update={"controls": controls}))[0]
        for controls in ((), (CANNY,), (TILE,), (Control("image:canny", SMALL, 0.7),), (CANNY, TILE))
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert float((one - other).abs().max()) > 100 * TOLERANCE * float(one.abs().max())
