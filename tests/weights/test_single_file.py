"""Checkpoints in one file: told by their shapes, read as diffusers would, small in numbers and full in shapes."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import checkpoints
import tiny_models
from instantstyle import Request
from instantstyle.errors import WeightsError
from instantstyle.families import SD15, SDXL
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.networks.unet import UNet
from instantstyle.pipeline import generate
from instantstyle.sampling.schedulers import make_scheduler
from instantstyle.weights import single_file
from instantstyle.weights.clip_vocab import clip_vocabulary
from instantstyle.weights.single_file import open_single_file, unet_layout
from instantstyle.weights.unet_config import unet_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """The family, the file, and the networks it was written from."""
    path = tmp_path_factory.mktemp("single") / "dreams.safetensors"
    return request.param, path, checkpoints.write(path, request.param)


@pytest.fixture(scope="module")
def loaded(written: tuple[str, Path, Any]) -> Model:
    return load(written[1])


def test_every_network_gives_back_what_was_written(written: tuple[str, Path, Any], loaded: Model) -> None:
    family, _, nets = written
    assert loaded.family.name == family
    assert loaded.family.size == ((1024, 1024) if family == "sdxl" else (512, 512))
    assert loaded.family.force_zeros_for_empty_prompt == (family == "sdxl")
    assert set(loaded.networks) == set(nets)
    for part, net in loaded.networks.items():
        expected = nets[part].state_dict()
        assert net.state_dict().keys() == expected.keys()
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, expected[name]), f"{part}.{name}"


def test_it_says_what_the_networks_say(written: tuple[str, Path, Any], loaded: Model) -> None:
    family, _, nets = written
    said = loaded.encode_prompt(["a photo of a cat"])
    ids = torch.tensor([[49406, 320, 1125, 539, 320, 2368, 49407]])  # published with CLIP
    padded = torch.cat([ids, torch.full((1, 70), 49407)], dim=1)
    with torch.no_grad():
        first = nets["text_encoder"](padded, output_hidden_states=True)
        width = first.last_hidden_state.shape[-1]
        expected = first.hidden_states[-2] if family == "sdxl" else first.last_hidden_state
        torch.testing.assert_close(said.prompt_embeds[..., :width], expected)
        if family == "sdxl":
            zeros = torch.cat([ids, torch.zeros(1, 70, dtype=torch.long)], dim=1)
            second = nets["text_encoder_2"](zeros, output_hidden_states=True)
            torch.testing.assert_close(said.prompt_embeds[..., width:], second.hidden_states[-2])
            torch.testing.assert_close(said.pooled_prompt_embeds, second.text_embeds)


def test_it_draws(loaded: Model) -> None:
    result = generate(loaded, Request("a cat", steps=2, size=(64, 64), seed=1))
    assert result.images[0].size == (64, 64)


def test_clip_s_vocabulary_is_whole() -> None:
    tokens, merges = clip_vocabulary()
    assert (len(tokens), len(merges)) == (49408, 48894)
    assert (tokens["a</w>"], tokens["cat</w>"], tokens["<|endoftext|>"]) == (320, 2368, 49407)


@pytest.mark.parametrize(("family", "ours"), [("sdxl", SDXL), ("sd15", SD15)])
@pytest.mark.parametrize("inputs", [4, 9])
def test_shapes_of_the_full_size_are_the_family(family: str, ours: Any, inputs: int) -> None:
    """Keys and shapes of SDXL 1.0 and SD 1.5, and of their inpainting UNets, without a number of them."""
    with torch.device("meta"):
        unet = checkpoints.networks(family, checkpoints.FULL[family], inputs=inputs)["unet"]
    levels = len(unet.down_blocks)
    shapes = {
        f"model.diffusion_model.{checkpoints.unet_name(name, levels)}": tuple(tensor.shape)
        for name, tensor in unet.state_dict().items()
    }
    layout = unet_layout(shapes, single_file.UNET)
    config = unet_config(layout)
    assert config.in_channels == inputs
    assert dataclasses.replace(config, in_channels=4) == ours.unet
    convert: Any = importlib.import_module("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint
    marks = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in UNet(config).state_dict().items()}
    assert {name: tuple(t.shape) for name, t in convert(marks, layout).items()} == expected


Extra = dict[str, Tensor]


@pytest.mark.parametrize(
    ("family", "extra", "expected"),
    [
        ("sdxl", {}, ("EulerDiscreteScheduler", "epsilon", False)),
        ("sdxl", {"v_pred": torch.zeros(1)}, ("EulerDiscreteScheduler", "v_prediction", False)),
        (
            "sdxl",
            {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)},
            ("EulerDiscreteScheduler", "v_prediction", True),
        ),
        ("sd15", {}, ("PNDMScheduler", "epsilon", False)),
    ],
)
def test_what_it_was_trained_for_is_honoured(family: str, extra: Extra, expected: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.write(path, family, extra=extra)
    config = open_single_file(path).configs["scheduler/scheduler_config.json"]
    told = config["_class_name"], config["prediction_type"], config.get("rescale_betas_zero_snr", False)
    assert told == expected


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpm++", "unipc"])
def test_a_schedule_that_ends_in_noise_does_so_with_every_sampler(sampler: str, tmp_path: Path) -> None:
    """Of the first step's latents nothing is signal, and the steps begin where training's noise ended."""
    path = tmp_path / "x.safetensors"
    checkpoints.write(path, "sdxl", extra={"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)})
    steps = make_scheduler(load(path), sampler)
    steps.set_timesteps(4)
    assert steps.config.prediction_type == "v_prediction"
    assert float(steps.timesteps[0]) == 999
    assert float(steps.alphas_cumprod[-1]) < 1e-6


def _only(*prefixes: str) -> Callable[[Extra], Extra]:
    return lambda tensors: {name: t for name, t in tensors.items() if name.startswith(prefixes)}


def _also(**more: Tensor) -> Callable[[Extra], Extra]:
    return lambda tensors: {**tensors, **{name.replace("__", "."): t for name, t in more.items()}}


WRONG: list[tuple[Callable[[Extra], Extra], str]] = [
    (_only("model."), "has a UNet and no a VAE, no CLIP's text encoder: give the whole checkpoint"),
    (_only("first_stage_model.", "cond_stage_model."), "has a VAE, CLIP's text encoder and no a UNet"),
    (lambda _: {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "is a LoRA"),
    (lambda _: {"image_proj.proj.weight": torch.zeros(1)}, "is an IP-Adapter"),
    (lambda _: {"control_model.input_hint_block.0.weight": torch.zeros(1)}, "is a ControlNet"),
    (lambda _: {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1)}, "is of Flux"),
    (lambda _: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "a UNet in diffusers' names"),
    (lambda _: {"something": torch.zeros(1)}, "begins with a tensor 'something'"),
    (_also(model__diffusion_model__strange__weight=torch.zeros(1)), "tensors of a UNet that nobody knows"),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG, ids=[sentence[:30] for _, sentence in WRONG])
def test_another_file_is_told_what_it_is(change: Callable[[Extra], Extra], sentence: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

    path = tmp_path / "x.safetensors"
    checkpoints.write(path, "sd15")
    save_file(change(load_file(path)), path)
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert sentence in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

    path = tmp_path / "x.safetensors"
    checkpoints.write(path, "sd15")
    tensors = load_file(path)
    del tensors["model.diffusion_model.middle_block.1.norm.bias"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"1 missing \(mid_block\.attentions\.0\.norm\.bias\)"):
        load(path)


def test_the_built_in_adapter_has_no_place_in_it(written: tuple[str, Path, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="this UNet's are"):
        load(written[1], adapter=tiny_models.folder("emoji") / "ip_adapter.safetensors")
