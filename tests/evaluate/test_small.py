"""The referee's small set on the shipped weights, on a machine that has nothing but the package: what CI runs of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from instantstyle.emoji.captions import with_article
from instantstyle.evaluate import experiments, generation_cache, ground_truth, suite
from instantstyle.evaluate.ground_truth import render
from instantstyle.evaluate.report import evaluate
from instantstyle.evaluate.suite import CELLS
from instantstyle.evaluate.tasks import Task, to_request
from instantstyle.loading import load
from instantstyle.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' Euler scheduler
ASKED: dict[str, Any] = {"subset": "small", "count": 2, "methods": ["instantstyle"]}
"""Two questions a cell, one method and all controls, at the full number of steps: fifty pictures, half a minute."""


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load()


@pytest.fixture(scope="module")
def bare() -> Any:
    """A machine without the emoji world: who looks for it fails, and does not fetch."""

    def none(*_: object) -> object:
        raise AssertionError("the small set needs no drawing beyond those that are carried")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth, "masters", none)
        patch.setattr(suite, "concepts", none)
        patch.setattr(suite, "has", none)
        patch.setattr(experiments, "block", none)
        yield


class Stopped(BaseException):
    """What a signal raises in the midst of drawing."""


@pytest.fixture(scope="module")
def report(bare: None, shipped: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose drawing was broken off after two jobs and went on: nothing that was kept is drawn again."""
    folder = tmp_path_factory.mktemp("small")
    before, jobs = generation_cache.run_tasks, 0

    def broken(*given: Any, **more: Any) -> Any:
        nonlocal jobs
        jobs += 1
        if jobs == 3:
            raise Stopped
        return before(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_cache, "ask", broken)
        with pytest.raises(Stopped):
            evaluate(shipped, folder, **ASKED, say=lambda line: None)
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "pictures").glob("*.png")}
    assert kept
    assert not (folder / "report.md").exists(), "a report is written whole or not at all"
    lines: list[str] = []
    evaluate(shipped, folder, **ASKED, say=lines.append)
    there = {path.name: path.stat().st_mtime_ns for path in (folder / "pictures").glob("*.png")}
    assert kept.items() <= there.items(), "what was drawn is not drawn again"
    told = re.match(r"(\d+) pictures to draw", lines[0])
    assert told
    assert int(told[1]) == len(there) - len(kept)
    return folder


def test_the_small_set_runs_on_a_bare_machine(report: Path) -> None:
    said = json.loads((report / "report.json").read_text("utf-8"))
    assert said["questions"] == 8
    first = {row["entry"]: row for row in said["entries"] if row["cell"] == CELLS[0] and row["kind"] != "strength"}
    for judge in ("conv", "strokes", "pixels"):
        measure = f"four-way right, {judge}"
        if measure in said["admitted"]:
            assert first["truth"]["measures"][measure][0] == 1
            assert first["copy of the reference"]["measures"][measure][0] == 0
    assert any(each.startswith("four-way right") for each in said["admitted"]), "the truth wins"
    assert first["instantstyle"]["rows"] == first["no reference"]["rows"] == 2 * 25


def test_the_style_comes_nearer_to_the_truth_than_no_reference(report: Path, shipped: Model) -> None:
    """The claim itself in small, from the pictures' own scores; by the judge that nothing was tuned on."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(report / "scores.parquet").to_pylist()

    def mean(entry: str, kind: str) -> float:
        far = [row["distance to truth, conv"] for row in table if (row["entry"], row["kind"]) == (entry, kind)]
        return sum(far) / len(far)

    assert mean("truth through the VAE", "control") < mean("instantstyle", "method") < mean("no reference", "control")


def test_things_are_asked_for_by_their_article(bare: None, shipped: Model, report: Path) -> None:
    """`an umbrella`, as the captions have it that the model was taught; and the reader of prompts leaves it so."""
    one = suite.evaluation_suite(small=True)[0]
    for thing, words in (("umbrella", "an umbrella"), ("octopus", "an octopus"), ("key", "a key")):
        asked = Task(thing, one.style, one.reference_content, one.swap_content, 1)
        assert asked.words == with_article(thing) == words
    made = to_request(one, experiments.Setting("instantstyle"), shipped)
    assert made.prompt == one.words
    assert render(one.reference_content, one.style).shape == (64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_command_goes_on_where_it_was_killed(tmp_path: Path, sign: signal.Signals) -> None:
    """The command itself, with two workers, killed in the midst: what it had drawn is there and stays as it is."""
    words = "evaluate --subset small --count 1 --jobs 2 --methods instantstyle --methods swapped --steps 8"
    argv = [sys.executable, "-m", "instantstyle", *words.split(), "--out", str(tmp_path)]
    began = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while len(list(tmp_path.glob("pictures/*.png"))) < 4:
        assert began.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(began.pid, sign)
    assert began.wait(60) != 0
    assert not (tmp_path / "report.md").exists()
    time.sleep(1)  # workers end with their parent
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("pictures/*.png")}
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "report.md")
    assert {name: (tmp_path / "pictures" / name).read_bytes() for name in kept} == kept
    assert not list(tmp_path.rglob("*part*")), "no leavings"
