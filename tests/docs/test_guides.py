"""The commands of docs/batch.md, docs/generating.md and docs/transformers.md run, on files that are made for them."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import tiny_models
from cli_runner import Command, command_runner
from instantstyle.blocks import parse_block_plan
from instantstyle.request import Request, StyleReference
from instantstyle.weights.adapter import extract_blocks
from studio_server import live_server

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language."""
    found = re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return command_runner(monkeypatch, capsys)


def test_the_page_on_many_pictures(command: Command, tmp_path: Path) -> None:
    (table,) = blocks("batch.md", "json")
    rows = [json.loads(line) for line in table.splitlines()]
    (tmp_path / "jobs.jsonl").write_text("".join(f"{json.dumps({**row, 'steps': 1})}\n" for row in rows))
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "styles").mkdir()
    for file in (tmp_path / "ink.png", tmp_path / "styles" / "ink.png"):
        tiny_models.picture(1).save(file)
    (text,) = blocks("batch.md", "sh")
    for line in text.splitlines():
        _, *arguments = shlex.split(line.replace("0-9", "0-1").replace("--steps 20", "--steps 1"))
        told = command(*arguments)
        assert told.code == 0, told.err
    # Two rows and three pictures, then two rows of another table in the same folder.
    assert sorted(file.name for file in (tmp_path / "pictures").glob("*.png")) == [
        "000001.png",
        "000002-1.png",
        "000002-2.png",
        "000002.png",
    ]


def test_the_page_on_generating(command: Command, tmp_path: Path) -> None:
    (text,) = blocks("generating.md", "sh")
    serve, generate = text.splitlines()
    assert serve == "instantstyle serve --no-open &"
    with live_server(tmp_path / "studio") as (address, _):
        _, *arguments = shlex.split(generate.replace("http://127.0.0.1:7860", address))
        told = command(*arguments, "--steps", "2")
    assert told.code == 0, told.err
    assert (tmp_path / "cat.png").stat().st_size > 1000


def test_the_page_on_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.picture(1).save("ref.png")
    draw, interop = blocks("transformers.md", "python")
    draw = draw.replace('"flux-dev"', repr(str(tiny_models.folder("flux")))).replace(
        "seed=7", "seed=7, steps=2, size=(64, 48)"
    )
    exec(compile(draw, "transformers.md", "exec"), {})
    assert (tmp_path / "cat.png").stat().st_size > 1000

    class Pipeline:
        """What a pipeline is asked; tests/test_interop.py asks diffusers' own."""

        def __init__(self) -> None:
            self.scale: object = None
            self.embeds: list[Tensor] = []

        def set_ip_adapter_scale(self, scale: Mapping[str, Any]) -> None:
            self.scale = scale

        def __call__(self, prompt: str, *, ip_adapter_image_embeds: list[Tensor]) -> None:
            self.embeds = ip_adapter_image_embeds

    model, pipe = tiny_models.model("sdxl"), Pipeline()
    plan = parse_block_plan("style", model.family.layout, model.family.presets)
    extract_blocks(
        tiny_models.folder("sdxl") / "ip_adapter.safetensors", Path("style-only.safetensors"), plan, model.family.layout
    )
    request = Request("a cat", references=[StyleReference("ref.png")], guidance=5.0)
    exec(compile(interop, "transformers.md", "exec"), {"model": model, "request": request, "pipe": pipe})
    assert pipe.scale
    assert all(isinstance(each, Tensor) for each in pipe.embeds)
    assert (tmp_path / "wide.safetensors").stat().st_size > (tmp_path / "style-only.safetensors").stat().st_size
