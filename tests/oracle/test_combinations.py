"""Every base x adapter x sampler of `combinations` draws diffusers' picture from the same files, seed and scheduler.

Checkpoints in one file go through diffusers' own `from_single_file`.  A style-only file, which diffusers cannot read,
is held to the whole adapter muted outside of the style blocks.  Base adapters reach diffusers as we write them.
"""

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

import checkpoints
import tiny_models
from instantstyle.families import FAMILIES
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.networks.image_projection import Resampler
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import SAMPLERS, Engine
from instantstyle.weights.adapter import extract_blocks, load_adapter, save_adapter
from instantstyle.weights.clip_vocab import clip_vocabulary
from oracle.combinations import ADAPTERS, BASES, COMBINATIONS, OTHERS
from oracle.paired_unets import random_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers' own, with this numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

STYLE = {"sdxl": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "sd15": {"up": {"block_1": [1.0, 1.0, 1.0]}}}
"""diffusers' words for our presets `style`."""
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
TOLERANCE = 2e-4
"""Of latents whose spread is about 1: rounding, since rows are stacked and weights applied later."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:
    """From a base to what we load, the folder of the same weights, and a folder of its adapters."""

    @cache
    def made(base: str) -> tuple[Path, Path, Path]:
        here = tmp_path_factory.mktemp(base)
        family = base.removesuffix("-file")
        if base.endswith("-file"):
            file = here / "dreams.safetensors"
            nets = checkpoints.write(file, family)
            _folder(nets, here / "folder", xl=family == "sdxl")
            given, folder = file, here / "folder"
        else:
            given = folder = tiny_models.folder(family)
        context = json.loads((folder / "unet/config.json").read_text())["cross_attention_dim"]
        torch.manual_seed(3)  # pyright: ignore[reportUnknownMemberType]
        tensors = tiny_models.adapter_tensors(folder, 24, context)
        save_file(tensors, here / "base.safetensors")
        projection = Resampler(16, context, 6, dim=64, depth=4, heads=1)
        layers = {name: tensor for name, tensor in tensors.items() if name.startswith("ip_adapter.")}
        mapped = {f"image_proj.{name}": tensor for name, tensor in random_weights(projection, 4).items()}
        save_file(layers | mapped, here / "plus.safetensors")
        if not base.endswith("-file"):
            unet = tiny_models.model(family).family.unet
            # diffusers reads the file that we have written of what we have read.
            save_adapter(here / "written.safetensors", load_adapter(here / "base.safetensors", unet), unet)
            extract_blocks(
                here / "base.safetensors", here / "slim.safetensors", FAMILIES[family].presets["style"], unet
            )
        return given, folder, here

    return made


def _folder(nets: dict[str, Any], folder: Path, *, xl: bool) -> None:
    """The same weights in diffusers' layout, with the schedulers that were published."""
    for part, net in nets.items():
        net.save_pretrained(folder / part)
    tokens, merges = clip_vocabulary()
    for suffix in ("", "_2") if xl else ("",):
        padding = {"pad_token": "!"} if suffix else {}
        tokenizer = transformers.CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77, **padding)
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    kind = diffusers.EulerDiscreteScheduler if xl else diffusers.PNDMScheduler
    more = {"timestep_spacing": "leading"} if xl else {"skip_prk_steps": True, "set_alpha_to_one": False}
    kind(**NOISE, **more).save_pretrained(folder / "scheduler")
    said = folder / "scheduler/scheduler_config.json"
    # The published files say so for whichever sampler is made of them; diffusers' DDIM would clip otherwise.
    said.write_text(json.dumps(json.loads(said.read_text()) | {"clip_sample": False, "set_alpha_to_one": False}))
    index = json.loads((tiny_models.folder("sdxl" if xl else "sd15") / "model_index.json").read_text())
    index |= {"scheduler": ["diffusers", kind.__name__], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))


EYES = "image_encoder"


@cache
def pipeline(base: str, given: Path, folder: Path) -> Any:
    kind = diffusers.StableDiffusionPipeline if base.startswith("sd15") else diffusers.StableDiffusionXLPipeline
    if given.is_file():
        arguments = {"safety_checker": None, "feature_extractor": None} if base.startswith("sd15") else {}
        pipe = kind.from_single_file(
            str(given), config=str(folder), local_files_only=True, torch_dtype=torch.float32, **arguments
        )
    else:
        pipe = kind.from_pretrained(folder, image_encoder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, family: str, file: Path | None, adapter: str, model: Model, request: Request) -> Any:
    arguments: dict[str, Any] = {}
    if file is not None:
        pipe.load_ip_adapter(file.parent, subfolder="", weight_name=file.name, image_encoder_folder=None)
        pipe.set_ip_adapter_scale(STYLE[family] if adapter in ("style", "slim") else 1.0)
        net = transformers.CLIPVisionModelWithProjection.from_pretrained(tiny_models.folder("sdxl") / EYES)
        pixels = model.preprocess_images([tiny_models.picture(5)], "squash")
        with torch.no_grad():
            seen, dark = (net(each, output_hidden_states=True) for each in (pixels, torch.zeros_like(pixels)))
        pair = (
            [dark.hidden_states[-2], seen.hidden_states[-2]]
            if adapter == "plus"
            else [torch.zeros_like(seen.image_embeds), seen.image_embeds]
        )
        arguments["ip_adapter_image_embeds"] = [torch.cat(pair)[:, None]]
    own = pipe.scheduler
    last: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        last.append(tensors["latents"])
        return tensors

    assert request.sampler
    assert request.seed is not None
    try:
        pipe.scheduler = getattr(diffusers, SAMPLERS[request.sampler]).from_config(own.config)
        images = pipe(
            request.prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            height=64,
            width=64,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            callback_on_step_end=keep,
            **arguments,
        ).images
        return last[-1], images
    finally:
        pipe.scheduler = own
        if file is not None:
            pipe.unload_ip_adapter()


@cache
def ours(given: Path, file: Path | None) -> Model:
    return load(given) if file is None else load(given, adapter=file, image_encoder=tiny_models.folder("sdxl") / EYES)


@pytest.mark.parametrize(("base", "adapter", "sampler"), COMBINATIONS, ids=[" ".join(each) for each in COMBINATIONS])
def test_it_is_diffusers_picture(
    base: str, adapter: str, sampler: str, place: Callable[[str], tuple[Path, Path, Path]]
) -> None:
    given, folder, adapters = place(base)
    family = base.removesuffix("-file")
    mine = None if adapter == "none" else adapters / f"{adapter.replace('style', 'base')}.safetensors"
    whole = adapters / ("base.safetensors" if base.endswith("-file") else "written.safetensors")
    other = None if mine is None else adapters / "plus.safetensors" if adapter == "plus" else whole
    fields: dict[str, Any] = (
        {"method": "none"} if mine is None else {"references": [StyleReference(tiny_models.picture(5))]}
    )
    plan = "style" if adapter in ("style", "slim") else "all"
    request = Request("a cat", steps=3, guidance=5.0, seed=11, size=(64, 64), sampler=sampler, plan=plan, **fields)
    model = ours(given, mine)
    expected, images = theirs(pipeline(base, given, folder), family, other, adapter, model, request)
    run = Engine(model).submit(request)
    for _ in run:
        pass
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(run.latents, expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0)
    assert np.abs(np.asarray(run.result().images[0], int) - np.asarray(images[0], int)).mean() < 1
    if mine is not None:  # else any adapter would do
        bare = Engine(model).submit(request.model_copy(update={"references": (), "method": "none"}))
        for _ in bare:
            pass
        assert float((bare.latents - expected).abs().max()) > 50 * TOLERANCE * float(expected.abs().max())


def test_the_page_names_what_is_there() -> None:
    assert {base for base, _, _ in COMBINATIONS} == set(BASES)
    assert {adapter for _, adapter, _ in COMBINATIONS} == set(ADAPTERS)
    for where in OTHERS.values():
        assert (Path(__file__).parent / where).is_file()
