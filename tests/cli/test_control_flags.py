"""`generate --control`: what is followed is remembered, written and found again; what does not fit is told."""

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import tiny_models
from instantstyle import cli
from instantstyle.loading import load
from instantstyle.pipeline import generate
from instantstyle.request import Control, Request, recall

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command line in a folder that holds `photo.png`: exit code, and what it said on stderr."""
    monkeypatch.chdir(tmp_path)
    tiny_models.picture(1, 96).save("photo.png")
    tiny_models.picture(2, 64).save("pose.png")

    def run(*arguments: str | Path, command: str = "generate") -> tuple[int, str]:
        more = ["a cat", "--model", tiny_models.folder("emoji"), "--steps", 2, "--seed", 7, "--out", "cat.png"]
        given = [command, *(more if command == "generate" else []), *arguments]
        monkeypatch.setattr(sys, "argv", ["instantstyle", *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return run


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_photo_is_followed_remembered_and_followed_again(draw: Command) -> None:
    net = tiny_models.controlnet("emoji")
    flags = ("--control", "photo.png", "--control-weight", 0.9, "--control-window", 0, 0.5)
    assert draw(*flags, "--control-model", net, "--save-control", "edges.png")[0] == 0

    memory = recall("cat.png")
    control = memory.request.controls[0]
    assert (control.kind, control.weight, control.window) == ("canny", 0.9, (0.0, 0.5))
    assert memory.controls == {"canny": str(net)}
    assert 'ControlNet 0: "Module: canny, Weight: 0.9, Guidance Start: 0, Guidance End: 0.5"' in memory.parameters()
    small = tiny_models.picture(1, 96).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(pixels("edges.png")[..., 0], cv2.Canny(np.asarray(small), 50, 200))

    request = Request("a cat", seed=7, steps=2, controls=[Control("canny", "photo.png", 0.9, (0.0, 0.5))])
    made = generate(load(tiny_models.folder("emoji"), controls={"canny": net}), request).images[0]
    np.testing.assert_array_equal(pixels("cat.png"), np.asarray(made))
    assert draw("cat.png", command="again")[0] == 0


def test_several_at_once(draw: Command) -> None:
    nets = [tiny_models.controlnet("emoji", seed=seed) for seed in (1, 2)]
    flags = ["--control", "photo.png", "--control-kind", "soft-edge", "--control-model", nets[0]]
    flags += [
        "--control",
        "pose.png",
        "--control-kind",
        "image:pose",
        "--control-model",
        nets[1],
        "--save-control",
        "c.png",
    ]
    assert draw(*flags)[0] == 0
    memory = recall("cat.png")
    assert [(c.kind, c.weight) for c in memory.request.controls] == [("soft-edge", 0.6), ("image:pose", 0.6)]
    assert memory.controls == {"soft-edge": str(nets[0]), "pose": str(nets[1])}
    np.testing.assert_array_equal(pixels("c-2.png"), np.asarray(tiny_models.picture(2, 64)))
    assert pixels("c-1.png").any()


CONTROL = ("--control", "photo.png")
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no picture": (
        ("--control-kind", "canny"),
        "--control-kind says something of a picture to follow, and there is none",
    ),
    "nor here": (
        ("--save-control", "c.png"),
        "--save-control says something of a picture to follow, and there is none",
    ),
    "too many": (
        (*CONTROL, "--control-weight", "1", "--control-weight", "0.5"),
        "there are 1 --control and 2 --control-weight",
    ),
    "two of one kind": (
        (*CONTROL, *CONTROL, "--control-model", "a", "--control-model", "b"),
        "tell them apart by a name of their own, as in --control-kind canny:one --control-kind canny:two",
    ),
    "none here": (CONTROL, "has no ControlNet, so no picture can be followed: load it with controls={'canny':"),
    "nothing there": ((*CONTROL, "--control-model", "./nowhere"), "there is no ControlNet at './nowhere'"),
    "no such kind": ((*CONTROL, "--control-kind", "cany:x"), "the kind of control 'cany:x' is not understood"),
    "no picture at all": (("--control", "nowhere.png"), "there is no picture at 'nowhere.png'"),
    "no folder": ((*CONTROL, "--save-control", "nowhere/c.png"), "there is no folder 'nowhere'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_a_sentence_and_nothing_is_written(case: str, draw: Command) -> None:
    flags, said = WRONG[case]
    code, told = draw(*flags)
    assert code in (1, 2)
    assert said in " ".join(told.split())
    assert not list(Path().glob("c*.png"))
