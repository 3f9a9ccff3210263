"""The small suite on the built-in model, without the emoji world's drawings: what CI runs of the benchmark."""

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
from instantstyle.evaluate.report import run_evaluation
from instantstyle.evaluate.suite import CELLS
from instantstyle.evaluate.tasks import Setting, Task, to_request
from instantstyle.loading import load
from instantstyle.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' Euler scheduler
STEPS = 8
"""A third of what the benchmark takes, which `make referee-small` and the acceptance checks do in full."""
ARGUMENTS: dict[str, Any] = {"subset": "small", "count": 2, "methods": ["instantstyle"], "steps": STEPS}
"""Two tasks a cell, one method and all controls: fifty images."""


@pytest.fixture(scope="module")
def built_in() -> Model:
    return load()


@pytest.fixture(scope="module")
def without_drawings() -> Any:
    """A machine without the emoji world: reading it fails, and nothing is fetched."""

    def fail(*_: object) -> object:
        raise AssertionError("the small suite needs no drawing beyond the bundled ones")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth, "rasters", fail)
        patch.setattr(suite, "concepts", fail)
        patch.setattr(suite, "in_set", fail)
        patch.setattr(experiments, "factorial_block", fail)
        yield


class Interrupted(BaseException):
    """Stands for what a signal raises."""


@pytest.fixture(scope="module")
def report(without_drawings: None, built_in: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that was interrupted after two jobs and continued: no cached image is generated again."""
    folder = tmp_path_factory.mktemp("small")
    run_tasks, jobs = generation_cache.run_tasks, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal jobs
        jobs += 1
        if jobs == 3:
            raise Interrupted
        return run_tasks(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_cache, "run_tasks", interrupted)
        with pytest.raises(Interrupted):
            run_evaluation(built_in, folder, **ARGUMENTS, log=lambda line: None)
    first = {path.name: path.stat().st_mtime_ns for path in (folder / "pictures").glob("*.png")}
    assert first
    assert not (folder / "report.md").exists(), "a report is complete or not there"
    lines: list[str] = []
    run_evaluation(built_in, folder, **ARGUMENTS, log=lines.append)
    images = {path.name: path.stat().st_mtime_ns for path in (folder / "pictures").glob("*.png")}
    assert first.items() <= images.items(), "cached images are not generated again"
    match = re.match(r"(\d+) pictures to draw", lines[0])
    assert match
    assert int(match[1]) == len(images) - len(first)
    return folder


def test_the_small_suite_runs_without_drawings(report: Path) -> None:
    data = json.loads((report / "report.json").read_text("utf-8"))
    assert data["questions"] == 8
    first = {row["entry"]: row for row in data["entries"] if row["cell"] == CELLS[0] and row["kind"] != "strength"}
    for feature in ("conv", "strokes", "pixels"):
        measure = f"four-way right, {feature}"
        if measure in data["admitted"]:
            assert first["truth"]["measures"][measure][0] == 1
            assert first["copy of the reference"]["measures"][measure][0] == 0
    assert any(each.startswith("four-way right") for each in data["admitted"]), "at least one is valid"
    for feature in ("conv", "strokes", "pixels"):
        distance = f"normalized distance, {feature}"
        assert first["no reference"]["measures"][distance] == [1, 1, 1]
        assert first["truth through the VAE"]["measures"][distance][0] == 0
        mean, low, high = first["instantstyle"]["measures"][distance]
        assert low <= mean <= high
    assert first["instantstyle"]["rows"] == first["no reference"]["rows"] == 2 * STEPS


def test_instantstyle_is_nearer_to_the_truth_than_no_reference(report: Path, built_in: Model) -> None:
    """The claim in small, from the images' scores by the held-out classifier."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(report / "scores.parquet").to_pylist()

    def mean(entry: str, kind: str) -> float:
        distances = [row["distance to truth, conv"] for row in table if (row["entry"], row["kind"]) == (entry, kind)]
        return sum(distances) / len(distances)

    assert mean("truth through the VAE", "control") < mean("instantstyle", "method") < mean("no reference", "control")


def test_prompts_have_an_article(without_drawings: None, built_in: Model, report: Path) -> None:
    """`an umbrella`, as training captions have it; and prompt normalisation leaves it so."""
    one = suite.evaluation_suite(small=True)[0]
    for target, prompt in (("umbrella", "an umbrella"), ("octopus", "an octopus"), ("key", "a key")):
        task = Task(target, one.style, one.reference_content, one.swap_content, 1)
        assert task.prompt == with_article(target) == prompt
    assert to_request(one, Setting("instantstyle"), built_in).prompt == one.prompt
    assert render(one.reference_content, one.style).shape == (64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_continues_where_it_was(tmp_path: Path, sign: signal.Signals) -> None:
    """The command with two workers, killed while it runs: the images it had finished stay as they are."""
    arguments = "evaluate --subset small --count 1 --jobs 2 --methods instantstyle --methods swapped --steps 8"
    argv = [sys.executable, "-m", "instantstyle", *arguments.split(), "--out", str(tmp_path)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("pictures/*.png"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, sign)
    assert process.wait(60) != 0
    assert not (tmp_path / "report.md").exists()
    time.sleep(1)  # workers end with their parent
    finished = {path.name: path.read_bytes() for path in tmp_path.glob("pictures/*.png")}
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "report.md")
    assert {name: (tmp_path / "pictures" / name).read_bytes() for name in finished} == finished
    assert not list(tmp_path.rglob("*part*")), "no temporary files"
