# pyright: reportUnknownMemberType=false

"""Control pictures show what they should; kinds are understood or refused in a sentence; a silent control is none.

Pictures under controls are held to diffusers' in tests/oracle/test_controlnet.py.
"""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny_models
from instantstyle.controlnet import (
    CONTROL_KINDS,
    PREPROCESSORS,
    lineart,
    make_control_image,
    parse_control,
    resolve_control,
    soft_edge,
)
from instantstyle.errors import InputError, WeightsError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.networks.unet import Residuals
from instantstyle.request import Control, Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

transformers: Any = importlib.import_module("transformers")


@cache
def model() -> Model:
    nets = {"canny": tiny_models.controlnet("emoji"), "pose": tiny_models.controlnet("emoji", seed=2)}
    return load(tiny_models.folder("emoji"), controls=nets)


def halves(left: int, right: int, side: int = 64) -> np.ndarray:
    """A picture whose left half is of one grey and its right half of another."""
    pixels = np.full((side, side, 3), left, np.uint8)
    pixels[:, side // 2 :] = right
    return pixels


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_nothing_is_seen_in_an_even_picture(kind: str) -> None:
    assert not PREPROCESSORS[kind](halves(90, 90)).any()


@pytest.mark.parametrize("kind", PREPROCESSORS)
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_seen_is_seen_where_it_is(kind: str, turned: bool) -> None:
    """A border between grey halves, upright or lying: white beside it and black everywhere else."""
    pixels = halves(200, 30)
    lines = PREPROCESSORS[kind](pixels.transpose(1, 0, 2).copy() if turned else pixels)
    lines = lines.T if turned else lines
    assert lines.dtype == np.uint8
    assert lines.max() > 100
    assert lines[:, 28:36].any(axis=1).all()
    assert not lines[:, :24].any()
    assert not lines[:, 40:].any()


def test_edges_are_of_any_channel() -> None:
    """Two colours of one lightness have a border too."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (200, 0, 0), (0, 0, 200)
    assert PREPROCESSORS["canny"](pixels).any()
    assert soft_edge(pixels).any()


def test_soft_edges_are_as_soft_as_the_picture() -> None:
    """The steeper of two borders is whiter, and a negative has the same edges."""
    pixels = halves(100, 255)
    pixels[:, :16] = 60
    lines = soft_edge(pixels)
    faint, strong = lines[:, 12:20].max(), lines[:, 28:36].max()
    assert 0 < faint < strong
    np.testing.assert_array_equal(soft_edge(255 - pixels), lines)


def test_lineart_is_of_dark_lines() -> None:
    """A dark line on white becomes white on black; a white line on black is none."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[30:32] = 0
    drawn = lineart(pixels)
    assert (drawn[30:32] > 100).all()
    assert not drawn[:26].any()
    assert not lineart(255 - pixels)[30:32].any()


def test_the_picture_is_brought_to_size_before_its_edges_are_made() -> None:
    large = Image.fromarray(halves(200, 30, side=512))
    request = Request("a cat", controls=[Control("canny", large)], size=(96, 64))
    drawn = make_control_image(model(), request, request.controls[0])
    assert drawn.size == (96, 64)
    assert set(np.unique(np.asarray(drawn))) == {0, 255}  # edges made smaller would be grey


def test_kinds_say_how_and_which() -> None:
    assert parse_control("canny") == ("canny", None)
    assert parse_control("canny:mine") == ("canny", "mine")
    for kind, how, net in (("canny", "canny", "canny"), ("pose", "pose", "pose"), ("image:canny", "image", "canny")):
        assert resolve_control(model(), kind) == (how, model().controls[net])
    assert resolve_control(model(), "canny:pose") == ("canny", model().controls["pose"])
    given = Control("pose", tiny_models.picture(3, 64))
    assert make_control_image(model(), Request("a cat"), given).tobytes() == tiny_models.picture(3, 64).tobytes()
    only = load(tiny_models.folder("emoji"), controls={"canny": tiny_models.controlnet("emoji")})
    for kind in ("image", "none"):
        assert resolve_control(only, kind) == (kind, only.controls["canny"])
    assert {"canny", "soft-edge", "lineart", "depth", "image", "none"} == set(CONTROL_KINDS)


REFUSED = {
    "cany": "the model has no ControlNet 'cany': it has canny, pose (did you mean 'canny'?)",
    "depth": "the model has no ControlNet 'depth': it has canny, pose",
    "image": "the model has several ControlNets, so 'image' does not say which is to read the picture: give one of "
    "image:canny, image:pose",
    "cany:pose": "the kind of control 'cany:pose' is not understood: before the colon stands how the picture is made, "
    "one of canny, soft-edge, lineart, depth, image, none (did you mean 'canny'?), and behind it the name of a "
    "ControlNet",
    "depth:pose": "a depth picture is made by a depth model, and none was loaded: load with depth=... (--depth-model), "
    "such as depth-anything/Depth-Anything-V2-Small-hf, or give a depth picture as kind 'image:depth'",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_a_sentence(kind: str) -> None:
    with pytest.raises(InputError) as refused:
        Engine(model()).submit(Request("a cat", controls=[Control(kind, tiny_models.picture())]))
    assert str(refused.value) == REFUSED[kind]


@pytest.mark.parametrize(("name", "kind"), [("sdxl", "canny"), ("sd15", "lineart"), ("emoji", "pose")])
def test_a_model_without_controlnets_says_what_to_load(name: str, kind: str) -> None:
    published = {"sdxl": "diffusers/controlnet-canny-sdxl-1.0", "sd15": "lllyasviel/control_v11p_sd15_lineart"}
    wanted = rf"has no ControlNet, .* controls=\{{'{kind}': '{published.get(name, 'a file')}'\}} \(--control-model\)"
    with pytest.raises(InputError, match=wanted):
        Engine(tiny_models.model(name)).submit(Request("a cat", controls=[Control(kind, tiny_models.picture())]))


def latents(*requests: Request) -> list[Tensor]:
    """What requests in flight together end as."""
    engine = Engine(model())
    runs = [engine.submit(request) for request in requests]
    engine.run()
    return [run.latents for run in runs]


def bare(**fields: Any) -> Request:
    given: dict[str, Any] = {"seed": 5, "steps": 3, **fields}
    return Request("a cat", **given)


def control(seed: int = 1, kind: str = "canny", **fields: Any) -> Control:
    return Control(kind, tiny_models.picture(seed), **fields)


@pytest.mark.parametrize(
    "silent",
    [control(weight=0.0), control(window=(0.0, 0.3)), control(window=(0.5, 0.5)), control(window=(0.7, 1.0))],
    ids=["weight 0", "ends within the first step", "empty window", "begins within the last step"],
)
def test_a_silent_control_is_bitwise_none(silent: Control) -> None:
    assert torch.equal(latents(bare(controls=[silent]))[0], latents(bare())[0])
    assert not torch.equal(latents(bare(controls=[control()]))[0], latents(bare())[0])


def test_alone_or_together() -> None:
    """Neighbours with controls change nothing for those without, to the bit; and all are what they are alone."""
    steered = bare(
        controls=[control(), control(2, "pose", weight=1.0)], references=[StyleReference(tiny_models.picture(4))]
    )
    windowed, plain = bare(controls=[control(window=(0.5, 1.0))], seed=6, guidance=1.0), bare(seed=7, count=2)
    others = (bare(), bare(seed=6, guidance=1.0))
    first, second, third = latents(steered, windowed, plain)
    assert torch.equal(third, latents(*others, plain)[-1])
    for together, alone in zip((first, second, third), (steered, windowed, plain), strict=True):
        torch.testing.assert_close(together, latents(alone)[0], atol=2e-4, rtol=0)


def test_reference_rows_and_neighbours_get_zeros() -> None:
    """Residuals of several runs as one: each its own, zeros elsewhere, those of one pixel spread out."""
    from instantstyle.sampling.batch import collate_residuals

    def said(rows: int, size: int, value: float) -> Residuals:
        return [torch.full((rows, 2, size, size), value)], torch.full((rows, 3, size, size), value)

    joined = collate_residuals([(None, 2), (said(1, 4, 5.0), 3), (said(2, 1, 7.0), 2)])
    assert joined is not None
    down, mid = joined
    assert [tuple(t.shape) for t in (*down, mid)] == [(7, 2, 4, 4), (7, 3, 4, 4)]
    assert mid[:, 0, 1, 2].tolist() == [0, 0, 5, 0, 0, 7, 7]
    assert collate_residuals([(None, 2), (None, 1)]) is None


def test_networks_are_never_changed() -> None:
    before = model().weights_hash()
    latents(bare(controls=[control(), control(2, "image:pose")]))
    assert model().weights_hash() == before
    assert before != tiny_models.model("emoji").weights_hash()


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DPT, as MiDaS 3 is published."""
    folder = tmp_path_factory.mktemp("depth")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=False,
    )
    transformers.DPTForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    settings = {"image_processor_type": "DPTImageProcessor", "do_resize": True, "size": size, "resample": 3}
    settings |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_depth_is_that_of_transformers(depth_folder: Path) -> None:
    nets = {"depth": tiny_models.controlnet("emoji")}
    seeing = load(tiny_models.folder("emoji"), controls=nets, depth=depth_folder)
    request = Request("a cat", controls=[Control("depth", tiny_models.picture(2, 96))], size=(64, 96), steps=1)
    ours = np.asarray(make_control_image(seeing, request, request.controls[0]))[..., 0]
    pipe = transformers.pipeline("depth-estimation", model=str(depth_folder))
    theirs = np.asarray(pipe(tiny_models.picture(2, 96).resize((64, 96), Image.Resampling.LANCZOS))["depth"])
    assert ours.shape == (96, 64)
    assert int(theirs.max()) - int(theirs.min()) > 200
    assert int(np.abs(ours.astype(int) - theirs).max()) <= 1
    Engine(seeing).submit(request)
    assert seeing.weights_hash() != load(tiny_models.folder("emoji"), controls=nets).weights_hash()


def test_metres_are_turned_round(depth_folder: Path, tmp_path: Path) -> None:
    """A model that says that it measures distances gives more for what is farther."""
    from instantstyle.weights.depth import load_depth

    for file in depth_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth_estimation_type": "metric"}))
    near, far = (
        load_depth(folder, torch.device("cpu")).estimate(tiny_models.picture(2, 64))
        for folder in (depth_folder, tmp_path)
    )
    assert int(np.abs(255 - far.astype(int) - near).max()) <= 1


def test_a_depth_model_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"cannot load a depth model from .*; give a folder or a hub id such as depth-any"
    ):
        load(tiny_models.folder("emoji"), depth=tmp_path)
