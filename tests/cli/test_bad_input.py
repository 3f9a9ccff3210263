"""Whatever is wrong with what is given is a sentence on stderr and exit code 1 or 2; nothing is written."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

import tiny_models
from image_bytes import encoded, header
from instantstyle import cli
from instantstyle.request import GenerationMetadata, Request
from instantstyle.sampling import Engine
from instantstyle.utils import images


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of the built-in's layout, and damaged ones beside it."""
    folder = tiny_models.emoji(tmp_path_factory.mktemp("models") / "emoji")
    _damage(folder, "short", lambda path: path.write_bytes(path.read_bytes()[:2000]))
    _damage(folder, "missing", Path.unlink)
    _damage(folder, "nan", lambda path: _change(path, path, "conv_in.weight", lambda w: w * torch.nan))
    _damage(folder, "narrow", lambda path: _change(path, path, "conv_in.weight", lambda w: w[:, :3]))
    return folder


def _damage(folder: Path, name: str, how: Callable[[Path], object]) -> None:
    copy = folder.parent / name
    shutil.copytree(folder, copy)
    how(copy / "unet/diffusion_pytorch_model.safetensors")


def _change(source: Path, target: Path, key: str, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(source)
    name = next(name for name in tensors if name.endswith(key))
    save_file({**tensors, name: how(tensors[name]).contiguous()}, target)


@pytest.fixture
def folder(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder full of traps, which is the current one."""
    monkeypatch.chdir(tmp_path)
    picture = tiny_models.picture(1, side=64)
    picture.save("ref.png")
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("I am no picture.")
    Path("huge.png").write_bytes(header(10_000, 10_000))
    Path("short.png").write_bytes(encoded(picture)[:600])
    Path("short.jpg").write_bytes(encoded(picture, "JPEG")[:500])
    Path("drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    Path("drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Path("a-folder.png").mkdir()
    Path("no-model").mkdir()
    os.mkfifo("pipe.png")
    adapter = small / "ip_adapter.safetensors"
    # Not the first weight: beartype looks at the first value of a mapping, and so reads a lazy one before its time.
    _change(adapter, Path("nan.safetensors"), "3.to_k_ip.weight", lambda w: w * torch.nan)
    _change(adapter, Path("wide.safetensors"), "to_k_ip.weight", lambda w: torch.cat([w, w], dim=1))
    _change(adapter, Path("eyes.safetensors"), "proj.weight", lambda w: torch.cat([w, w], dim=1))
    Path("short.safetensors").write_bytes(adapter.read_bytes()[:1000])
    save_file({"something.else": torch.zeros(3)}, "other.safetensors")
    asked = Request("a cat", seed=1, steps=2, size=(64, 64))
    _remembering("index.png", GenerationMetadata(asked, 3, model=str(small)).to_json())
    _remembering("gone.png", GenerationMetadata(asked, model="no-such-model").to_json())
    _remembering("cut.png", GenerationMetadata(asked, model=str(small)).to_json())
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-40])
    _remembering("broken.png", '{"request": ')
    _remembering("future.png", json.dumps({"request": {"prompt": "a", "flavour": 1}}))
    _remembering("path.png", json.dumps({"request": {"prompt": "a", "references": [{"image": "ref.png"}]}}))
    return tmp_path


def _remembering(name: str, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(images.METADATA_KEY, text)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(name, pnginfo=info)


def _draw(*flags: str) -> tuple[str, ...]:
    return ("generate", "a cat", "--out", "cat.png", "--steps", "1", "--model", "SMALL", *flags)


def _styled(*flags: str) -> tuple[str, ...]:
    return _draw("--style", "ref.png", *flags)


def _said(prompt: str) -> tuple[str, ...]:
    return ("generate", prompt, "--out", "cat.png", "--steps", "1", "--model", "SMALL")


BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    # what is wrong: what is given (of a flag given twice the last holds), the exit code, a part of the sentence
    "reference: missing": (_draw("--style", "nowhere.png"), 2, "there is no picture at 'nowhere.png'"),
    "reference: empty": (_draw("--style", "empty.png"), 2, "'empty.png' is empty"),
    "reference: truncated PNG": (_draw("--style", "short.png"), 2, "'short.png' is damaged or cut short"),
    "reference: truncated JPEG": (_draw("--style", "short.jpg"), 2, "'short.jpg' is no picture that can be read"),
    "reference: 100 megapixels": (_draw("--style", "huge.png"), 2, "10000 x 10000 is 100,000,000"),
    "reference: text renamed": (_draw("--style", "text.png"), 2, "'text.png' is no picture"),
    "reference: SVG": (_draw("--style", "drawing.svg"), 2, "is no picture"),
    "reference: EPS": (_draw("--style", "drawing.eps"), 2, "is no picture"),
    "reference: folder": (_draw("--style", "a-folder.png"), 2, "is a folder"),
    "reference: pipe": (_draw("--style", "pipe.png"), 2, "no regular file"),
    "reference: no name": (_draw("--style", ""), 2, "'.' is a folder"),
    "reference: weight below zero": (_styled("--weight", "-1"), 2, "weight must be at least 0, not -1"),
    "reference: endless weight": (_styled("--weight", "inf"), 2, "weight must be"),
    "content: no reference": (_draw("--content", "dog"), 2, "give --style as well"),
    "content: not one for each": (
        _styled("--style", "ref.png", "--content", "dog"),
        2,
        "2 --style and 1 --content",
    ),
    "content: endless": (_styled("--content", "dog " * 1000), 2, "content is too long"),
    "content: more than is read": (_styled("--content", "dog " * 60), 2, "tokens"),
    "plan: unknown preset": (_styled("--plan", "stlye"), 2, "did you mean 'style'?"),
    "plan: unknown block": (_styled("--plan", "up.7.1=1"), 2, "there is no block 'up.7.1'"),
    "plan: empty": (_styled("--plan", ""), 2, "plan"),
    "plan: no number": (_styled("--plan", "up.0.1=loud"), 2, "cannot read 'up.0.1=loud'"),
    "method: unknown": (_styled("--method", "instantstlye"), 2, "did you mean 'instantstyle'?"),
    "plan: a dictionary cut short": (_styled("--plan", '{"up": 1'), 2, "begins as JSON"),
    "plan: no reference": (_draw("--plan", "style"), 2, "--plan says something of a reference"),
    "re-embed: no reference": (
        _draw(
            "--re-embed",
        ),
        2,
        "--re-embed says something of a reference",
    ),
    "re-embed: no card": (
        _styled(
            "--re-embed",
        ),
        2,
        "--re-embed says something of style cards",
    ),
    "content weight: no content": (_styled("--content-weight", "1"), 2, "--content-weight says something of a content"),
    "subtraction: no content": (_styled("--subtraction", "paper"), 2, "--subtraction says something of a content"),
    "combine: one reference": (_styled("--combine", "average"), 2, "--combine says something of several references"),
    "mask: no init": (_draw("--mask", "ref.png"), 2, "--mask says something of a picture to begin from"),
    "strength: no init": (_draw("--strength", "0.5"), 2, "--strength says something of a picture to begin from"),
    "style mask: no reference": (_draw("--style-mask", "ref.png"), 2, "--style-mask says something of a reference"),
    "through: no reference": (_draw("--through", "a"), 2, "--through says something of a reference"),
    "depth model: no depth": (
        _draw("--control", "ref.png", "--depth-model", "x"),
        2,
        "--depth-model says what makes depth pictures, and none is made",
    ),
    "reference: a URL": (_draw("--style", "https://a.b/c.png"), 2, "'https://a.b/c.png' is a URL, and nothing is"),
    "again: a URL": (("again", "https://a.b/c.png"), 2, "'https://a.b/c.png' is a URL, and nothing is fetched"),
    "plan: too loud": (_styled("--plan", "up.0.1=" + "9" * 400), 2, "from 0 to 10"),
    "content weight: no reference": (_draw("--content-weight", "1"), 2, "--content-weight says something"),
    "window: no reference": (_draw("--window", "0", "1"), 2, "--window says something"),
    "fit: no reference": (_draw("--fit", "crop"), 2, "--fit says something"),
    "subtraction: no reference": (_draw("--subtraction", "paper"), 2, "--subtraction says something"),
    "option: of none": (_draw("--option", "shift=1"), 2, "method 'instantstyle' has no option 'shift': it has none"),
    "option: no value": (_styled("--option", "shift"), 2, "an option is name=value such as shift=0.5, not 'shift'"),
    "option: twice": (_styled("--option", "a=1", "--option", "a=2"), 2, "the option a is given twice"),
    "option: of no such name": (_styled("--option", "shift=1"), 2, "method 'instantstyle' has no option 'shift'"),
    "combine: no reference": (_draw("--combine", "average"), 2, "--combine says something"),
    "method: subtracts nothing": (_styled("--content", "dog", "--method", "ip-adapter"), 2, "method 'instantstyle'"),
    "subtraction: unknown": (_styled("--content", "a", "--subtraction", "all"), 2, "subtraction must be 'paper'"),
    "combine: unknown": (_styled("--combine", "mix"), 2, "combine must be 'concat' or 'average', not 'mix'"),
    "fit: unknown": (_styled("--fit", "stretch"), 2, "fit must be 'crop', 'pad' or 'squash', not 'stretch'"),
    "window: backwards": (_styled("--window", "0.8", "0.2"), 2, "window"),
    "window: outside": (_styled("--window", "0", "2"), 2, "window.1 must be at most 1"),
    "prompt: 10,000 characters": (_said("cat " * 2500), 2, "10,000 characters, and at most 2,000"),
    "prompt: more than is read": (_said("cat " * 400), 2, "tokens"),
    "prompt: not text": (_said("a \udcff"), 2, "prompt must be a valid string"),
    "prompt: none": (("generate", "--out", "cat.png"), 2, "prompt"),
    "negative: 10,000 characters": (_draw("--negative", "x" * 10_000), 2, "negative is too long"),
    "steps: 0": (_draw("--steps", "0"), 2, "steps must be at least 1, not 0"),
    "steps: too many": (_draw("--steps", "1001"), 2, "steps must be at most 1,000"),
    "steps: a word": (_draw("--steps", "many"), 2, "Invalid value for '--steps'"),
    "seed: -1": (_draw("--seed", "-1"), 2, "seed must be at least 0, not -1"),
    "seed: 2**63": (_draw("--seed", str(2**63)), 2, "seed must be at most"),
    "guidance: nan": (_draw("--guidance", "nan"), 2, "guidance must be a finite number"),
    "guidance: -1": (_draw("--guidance", "-1"), 2, "guidance must be at least 0"),
    "count: 0": (_draw("--count", "0"), 2, "count must be at least 1"),
    "count: 1000": (_draw("--count", "1000"), 2, "count must be at most 64"),
    "size: not divisible": (_draw("--size", "100x64"), 2, "multiples of 32, such as 96x64"),
    "size: 0": (_draw("--size", "0x64"), 2, "must be at least 8"),
    "size: huge": (_draw("--size", "100000"), 2, "must be at most 4,096"),
    "size: words": (_draw("--size", "64 by 64"), 2, "such as 1024x768"),
    "sampler: unknown": (_draw("--sampler", "eulr"), 2, "did you mean 'euler'?"),
    "device: unknown": (_draw("--device", "cdua"), 2, "did you mean 'cuda'?"),
    "dtype: unknown": (_draw("--dtype", "float23"), 2, "did you mean 'float32'?"),
    "model: unknown": (_draw("--model", "emojy"), 1, "emojy"),
    "model: empty folder": (_draw("--model", "no-model"), 1, "unet/config.json"),
    "model: truncated weights": (_draw("--model", "DAMAGED/short"), 1, "diffusion_pytorch_model.safetensors"),
    "model: no weights": (_draw("--model", "DAMAGED/missing"), 1, "unet"),
    "model: NaN weights": (_draw("--model", "DAMAGED/nan"), 1, "conv_in.weight"),
    "model: wrong shape": (_draw("--model", "DAMAGED/narrow"), 1, "conv_in.weight"),
    "adapter: missing": (_styled("--adapter", "nowhere.safetensors"), 1, "nowhere.safetensors"),
    "adapter: wrong width": (_styled("--adapter", "wide.safetensors"), 1, "64 wide, but this UNet's are 32 wide"),
    "adapter: for another encoder": (_styled("--adapter", "eyes.safetensors"), 1, "encoder"),
    "adapter: NaN weights": (_styled("--adapter", "nan.safetensors", "--plan", "all"), 1, "to_k_ip.weight"),
    "adapter: truncated": (_styled("--adapter", "short.safetensors"), 1, "short.safetensors"),
    "adapter: something else": (_styled("--adapter", "other.safetensors"), 1, "other.safetensors"),
    "out: no folder": (_draw("--out", "nowhere/cat.png"), 1, "there is no folder 'nowhere'"),
    "out: a folder": (_draw("--out", "a-folder.png"), 1, "it is a folder"),
    "out: inside a file": (_draw("--out", "ref.png/cat.png"), 1, "cannot write"),
    "out: no PNG": (_draw("--out", "cat.jpg"), 2, "must end in .png"),
    "out: name too long": (_draw("--out", "x" * 300 + ".png"), 1, "file name too long"),
    "out: not given": (("generate", "a cat"), 2, "--out"),
    "command: unknown": (("genrate", "a cat"), 2, "genrate"),
    "flag: unknown": (_draw("--stpes", "3"), 2, "--stpes"),
    "again: missing": (("again", "nowhere.png"), 2, "there is no picture"),
    "again: remembers nothing": (("again", "ref.png"), 2, "does not remember"),
    "again: text": (("again", "text.png"), 2, "is no picture"),
    "again: truncated": (("again", "cut.png"), 2, "'cut.png' is damaged or cut short"),
    "again: broken memory": (("again", "broken.png"), 2, "cannot be read"),
    "again: of another version": (("again", "future.png"), 2, "'flavour'"),
    "again: names a file of ours": (("again", "path.png"), 2, "not the path 'ref.png'"),
    "again: a picture too many": (("again", "index.png"), 2, "picture 4 of 1"),
    "again: its model is gone": (("again", "gone.png"), 1, "no-such-model"),
    "doctor: unknown model": (("doctor", "--model", "emojy", "--json"), 1, "emojy"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_sentence(
    what: str, folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, code, sentence = BAD[what]
    # Types of mappings are checked by reading an item, and lazy weights that hold NaN cannot be read.
    monkeypatch.setattr(config, "jaxtyping_disable", "NaN weights" in what)
    real = [word.replace("SMALL", str(small)).replace("DAMAGED", str(small.parent)) for word in given]
    monkeypatch.setattr(sys, "argv", ["instantstyle", *real])
    before = _everything(folder)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == code, (shown.err, shown.out)
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert "mistake of ours" not in shown.err
    complaint = shown.err.strip().splitlines()[-1]
    assert complaint.lower().startswith("error: ")
    assert len(complaint) < 700
    if given[0] != "doctor":  # which still tells what it knows
        assert shown.out == ""
    assert _everything(folder) == before, "something was written"


def _everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_is_a_sentence(
    error: Exception, folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(Engine, "submit", full)
    monkeypatch.setattr(sys, "argv", ["instantstyle", *_said("a cat"), "--model", str(small)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: there is not enough memory")


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 25


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable to root")
def test_a_folder_without_permission(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "locked").mkdir(mode=0o500)
    monkeypatch.setattr(sys, "argv", ["instantstyle", *_draw("--out", "locked/cat.png")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "permission denied" in capsys.readouterr().err
