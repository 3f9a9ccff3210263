"""The report: every experiment runs within its time, nothing is generated twice, and all files are written.

On a synthetic emoji world and a small random model: the numbers mean nothing here.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import tiny_models
from instantstyle.errors import InputError, InstantStyleError
from instantstyle.evaluate import generation_cache, results, tables
from instantstyle.evaluate.experiments import (
    NO_REFERENCE,
    STYLE_IN_PROMPT,
    ExperimentKind,
    Job,
    Subset,
    experiments,
    make_jobs,
    select_tasks,
)
from instantstyle.evaluate.generation_cache import ImageCache, JobProgress
from instantstyle.evaluate.metrics import leakage_nats
from instantstyle.evaluate.report import run_evaluation
from instantstyle.evaluate.results import difference, write_scores
from instantstyle.evaluate.suite import BLOCK, CELLS, evaluation_suite, factorial_block, subsample
from instantstyle.evaluate.tasks import Outputs, Setting, Task, run_tasks
from instantstyle.methods import METHODS
from instantstyle.model import Model

pytestmark = [
    pytest.mark.usefixtures("synthetic_world"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' Euler scheduler
]
MODEL = partial(tiny_models.model, "sdxl")
"""Its prompts may be longer than the small emoji model's."""
SECONDS_PER_IMAGE = 0.7
"""Core seconds of a plain image of the built-in model in a batch; `make floors`."""


@pytest.fixture(scope="module")
def report(synthetic_world: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with two tasks a cell, two methods and two steps."""
    folder = tmp_path_factory.mktemp("referee")
    lines: list[str] = []
    progress: list[JobProgress] = []
    run_evaluation(
        MODEL(),
        folder,
        subset="small",
        count=2,
        methods=["instantstyle", "ip-adapter"],
        steps=2,
        log=lines.append,
        on_progress=progress.append,
    )
    assert progress[-1].done == progress[-1].total == len(list((folder / "pictures").glob("*.png")))
    assert progress[-1].seconds_left == 0
    return folder


def _fail(model: Model, tasks: Sequence[Task], setting: Setting, steps: int = 0) -> Outputs:
    raise AssertionError("generated again")


def test_the_validity_table_comes_first_and_no_cells_are_pooled(report: Path) -> None:
    text = (report / "report.md").read_text("utf-8")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads[0] == "## Which measures may rank methods"
    assert [head.removeprefix("## ") for head in heads if head.removeprefix("## ") in CELLS] == list(CELLS)
    for name in ("curve.png", "sheet-1.png", "sheet-4.png"):
        assert f"({name})" in text
        with Image.open(report / name) as figure:
            assert min(figure.size) > 200
    data = json.loads((report / "report.json").read_text("utf-8"))
    assert data["questions"] == 8
    assert {(row["other"], row["cell"]) for row in data["pairs"]} >= {("ip-adapter", cell) for cell in CELLS}
    assert all(f"| {name} |" in text.partition("Not admitted")[2] for name in ("ip-adapter", "palette alone", "truth"))
    rows = {(row["entry"], row["kind"], row["cell"]): row for row in data["entries"]}
    assert rows["ip-adapter", "method", CELLS[3]]["questions"] == 2
    assert rows["instantstyle", "method", CELLS[0]]["rows"] == 4, "two steps, with and without words"
    assert rows["copy of the reference", "control", CELLS[0]]["measures"]["four-way right, conv"][0] == 0


def test_the_normalized_distance_is_1_without_a_reference_and_0_at_the_oracle(report: Path) -> None:
    lines = [line.split(" | ") for line in (report / "report.md").read_text("utf-8").splitlines()]
    heads = next(line for line in lines if line[-3:] == ["core seconds", "UNet rows", "fit, core seconds |"])
    places = [i for i, head in enumerate(heads) if head.startswith("normalized distance, ")]
    assert [heads[i].rpartition(" ")[2] for i in places] == ["conv", "strokes", "pixels"]
    rows = {
        line[0].strip("| "): [line[i].replace("-0.00", "0.00") for i in places]
        for line in lines[::-1]
        if len(line) == len(heads)
    }
    assert rows["no reference"] == ["1.00 (1.00 to 1.00)"] * 3
    assert rows["truth through the VAE"] == ["0.00 (0.00 to 0.00)"] * 3
    assert all(" to " in each for each in rows["copy of the reference"])


def test_a_second_run_generates_nothing_and_writes_the_same(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_cache, "run_tasks", _fail)
    before = (report / "report.md").read_text("utf-8")
    arguments: dict[str, Any] = {"subset": "small", "count": 2, "methods": ["instantstyle", "ip-adapter"], "steps": 2}
    run_evaluation(MODEL(), report, **arguments, log=lambda line: None)
    assert (report / "report.md").read_text("utf-8") == before
    arguments["steps"] = 3
    with pytest.raises(AssertionError, match="generated again"):  # other steps are other images
        run_evaluation(MODEL(), report, **arguments, log=lambda line: None)


def test_scores_have_a_row_an_image_with_and_without_pyarrow(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tuple(select_tasks("small", 1))
    columns = {"copies": np.arange(4.0)}
    one = results.MethodResult("x", "method", 1.0, tasks, np.zeros((4, 64, 64, 3), np.uint8), 0.1, 50.0, 0.0, columns)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    lines = write_scores(tmp_path, [one]).read_text("utf-8").splitlines()
    assert len(lines) == 1 + 4
    assert lines[0].split(",")[:4] == ["entry", "kind", "strength", "cell"]
    assert [line.split(",")[-1] for line in lines[1:]] == ["0", "1", "2", "3"]
    monkeypatch.undo()
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(report / "scores.parquet")
    rows = {name: table.column("entry").to_pylist().count(name) for name in ("no reference", "instantstyle")}
    # Two tasks in four cells; of the method also three strengths in the first cell.
    assert rows == {"no reference": 8, "instantstyle": 8 + 2 * 3}


def test_a_difference_is_paired_by_task() -> None:
    tasks = tuple(select_tasks("small", 2))
    nothing = np.zeros((8, 64, 64, 3), np.uint8)
    values = np.arange(8.0)

    def result(rows: Sequence[int], shift: float) -> results.MethodResult:
        own = tuple(tasks[i] for i in rows)
        return results.MethodResult(
            "x", "method", 1.0, own, nothing[: len(own)], 0.0, 0.0, 0.0, {"m": values[rows] + shift}
        )

    every, some = result(range(8), 0.0), result([7, 1, 0], 0.25)
    interval = difference(some, every, "m", CELLS[0])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25)), (
        "pairs, whatever their order"
    )


def _result(
    name: str, kind: ExperimentKind, nearest: float, classifiers: Sequence[str] = ("conv", "strokes")
) -> results.MethodResult:
    """A result on the small suite with the same four-way score in every task."""
    tasks = tuple(select_tasks("small"))
    columns = {f"four-way right, {c}": np.full(len(tasks), nearest) for c in classifiers}
    return results.MethodResult(
        name, kind, 1.0, tasks, np.zeros((len(tasks), 64, 64, 3), np.uint8), 0.1, 50.0, 0.0, columns
    )


def test_findings_and_pairs_have_their_intervals(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    """InstantStyle is a half above no reference, level with IP-Adapter, below words by one classifier alone."""
    admitted = ["four-way right, conv", "four-way right, strokes"]
    compared = [
        _result(NO_REFERENCE, "control", 0.25),
        _result("instantstyle", "method", 0.75),
        _result("ip-adapter", "method", 0.75),
        replace(_result(STYLE_IN_PROMPT, "control", 1.0), columns=_result("", "control", 1.0, ["conv"]).columns),
    ]
    lines = tables.findings(compared, admitted)
    assert "higher than no reference" in lines[0]
    assert "not told apart from ip-adapter" in lines[0]
    assert "four-way right higher: **+0.50** (+0.50 to +0.50) by conv" in "\n".join(lines)
    table = "\n".join(tables.paired_tables(compared, CELLS[0], admitted))
    assert "| instantstyle less | four-way right, conv | four-way right, strokes |" in table
    assert "| ip-adapter | +0.00 (+0.00 to +0.00) | +0.00 (+0.00 to +0.00) |" in table
    data = tables.pairs_data(compared)
    assert {(row["other"], row["cell"]) for row in data} >= {("ip-adapter", cell) for cell in CELLS}
    first = {row["other"]: row for row in data if row["cell"] == CELLS[0]}
    assert first["no reference"]["verdict"] == "higher"
    pairs = json.loads(json.dumps(data))
    shown = "\n".join(script("docs/evaluation_tables.py").differences({"pairs": pairs}, CELLS[0]))
    assert "| no reference | **+0.50** (+0.50 to +0.50) |" in shown
    assert "| ip-adapter | +0.00 (+0.00 to +0.00) |" in shown


def test_leakage_nats_are_an_excess_over_other_references() -> None:
    """Own reference at log p = -1, the two others at -3 and -4 for the first picture: -1 - (-3.5)."""
    log_p = np.full((3, 6), -9.0)
    log_p[0, :3] = (-1, -3, -4)
    shown, target = np.array([0, 1, 2]), np.array([3, 4, 5])
    excess = leakage_nats(log_p, shown, target, ["near"] * 3)
    assert excess.tolist() == [2.5, 0, 0]
    order = [2, 0, 1]
    assert leakage_nats(log_p[order], shown[order], target[order], ["near"] * 3).tolist() == excess[order].tolist()


def test_the_comparison_fits_its_time() -> None:
    """Two cores, an hour and five minutes; a third is left for measuring and for cores that are shared."""
    allowed: dict[Subset, int] = {"all": 60, "small": 5}
    for subset, minutes in allowed.items():
        rows = experiments(select_tasks(subset), subset)
        jobs = make_jobs(rows, lambda task, setting: False)
        assert sum(job.cost for job in jobs) * SECONDS_PER_IMAGE / 2 < minutes * 60 * 0.75, subset
        assert max(job.cost for job in jobs) * SECONDS_PER_IMAGE < minutes * 60 * 0.75 / 4, (
            "no job that everything waits for"
        )
        pairs = {(job.setting, task) for job in jobs for task in job.tasks}
        assert len(pairs) == sum(len(job.tasks) for job in jobs), "nothing is generated twice"
        assert {row.name for row in rows if row.kind == "method"} == {name for name in METHODS if name != "none"}
    swept = [row for row in experiments(select_tasks("all")) if row.kind == "strength"]
    tries = {
        name: sum(row.name == name for row in swept) for name, spec in METHODS.items() if spec.strength is not None
    }
    assert len(set(tries.values())) == 1, "every method has as many tries"


def test_jobs_that_share_a_fit_come_after_it_and_cached_images_are_left_out() -> None:
    tasks = select_tasks("small", 2)
    rows = experiments(tasks, "all", ["b-lora", "ip-adapter"])
    jobs = make_jobs(rows, lambda task, setting: setting.method == "none")
    assert not [job for job in jobs if job.setting.method == "none"]
    assert [job.cost for job in jobs] == sorted((job.cost for job in jobs), reverse=True)
    fitted = [job for job in jobs if job.setting.method == "b-lora" and job.setting.reference == "true"]
    for task in {task for job in fitted for task in job.tasks if task.cell == CELLS[0]}:
        first = next(job for job in fitted if task in job.tasks)
        assert first.cost >= METHODS["b-lora"].fit_cost, "the fit is counted where it is made"
    with pytest.raises(InputError, match=r"'ip-adaptor'.*ip-adapter"):
        experiments(tasks, "all", ["ip-adaptor"])


def test_a_subsample_has_as_many_styles_as_possible() -> None:
    suite = evaluation_suite()
    few = subsample(suite, 12)
    for cell in CELLS:
        own = [task for task in few if task.cell == cell]
        assert len(own) == 12
        assert len({repr(task.style) for task in own}) == len({repr(task.style) for task in suite if task.cell == cell})
    assert [task for task in suite if task in few] == few, "in the suite's order"
    assert subsample(suite, 99) == suite
    assert set(subsample(suite, 3)) < set(few)


def test_the_variance_block_is_full_and_in_order() -> None:
    tasks = np.array(
        [(task.target, repr(task.style), task.reference_content, str(task.seed)) for task in factorial_block()]
    ).reshape(*BLOCK, 4)
    for axis in range(4):
        level = np.moveaxis(tasks[..., axis], axis, 0).reshape(BLOCK[axis], -1)
        assert len(set(level[:, 0])) == BLOCK[axis]
        assert all(len(set(row)) == 1 for row in level)
    assert not {task.target for task in factorial_block()} & {task.reference_content for task in factorial_block()}


def test_permuting_tasks_permutes_images() -> None:
    """An image depends on its task alone, not on its row in the batch."""
    tasks = select_tasks("small", 1)[:3]
    model, setting, order = MODEL(), Setting("ip-adapter"), [2, 0, 1]
    first = run_tasks(model, tasks, setting, 2).pixels.astype(int)
    permuted = run_tasks(model, [tasks[i] for i in order], setting, 2).pixels.astype(int)
    assert np.abs(permuted - first[order]).max() <= 1
    assert np.abs(permuted - first).max() > 1, "the images differ, so a wrong order would be seen"
    # Permuting the targets alone: each image is the one of its own task run alone.
    mixed = [replace(task, target=tasks[i].target) for task, i in zip(tasks, order, strict=True)]
    together = run_tasks(model, mixed, setting, 2).pixels.astype(int)
    alone = np.concatenate([run_tasks(model, [task], setting, 2).pixels for task in mixed]).astype(int)
    assert np.abs(together - alone).max() <= 1


def test_the_default_strength_has_one_cached_image_whether_given_or_not(tmp_path: Path) -> None:
    cache, tasks = ImageCache(tmp_path, "model", 2), select_tasks("small", 1)[0]
    assert cache.path(tasks, Setting("swapped")) == cache.path(tasks, Setting("swapped", strength=1.0))
    assert cache.path(tasks, Setting("swapped")) != cache.path(tasks, Setting("swapped", strength=0.5))
    keys = {*Setting().to_dict()}
    assert keys >= {"styled_words", "subtract"}, "as in 0.1.0, whose images are found again"
    assert cache.path(tasks, Setting("none")) != ImageCache(tmp_path, "other", 2).path(tasks, Setting("none"))


@pytest.mark.slow
def test_two_workers_generate_what_one_does_and_a_dead_one_is_an_error(tmp_path: Path) -> None:
    """Workers do not see the synthetic world, so their tasks have no references."""
    from instantstyle.loading import load

    model = MODEL()
    load_again = partial(load, tiny_models.folder("sdxl"))
    tasks = tuple(select_tasks("small", 2))
    jobs = [Job(Setting("none"), tasks[:4], 4.0), Job(Setting("none"), tasks[4:], 4.0)]
    one, two = (
        ImageCache(tmp_path / "one", model.weights_fingerprint, 2),
        ImageCache(tmp_path / "two", model.weights_fingerprint, 2),
    )
    generation_cache.run_jobs(one, jobs, model)
    generation_cache.run_jobs(two, jobs, model, workers=2, load=load_again)
    assert np.array_equal(one.get(tasks, Setting("none")).pixels, two.get(tasks, Setting("none")).pixels)
    with pytest.raises(InstantStyleError, match="run the same command again"):
        generation_cache.run_jobs(ImageCache(tmp_path / "three", "x", 2), jobs, model, workers=2, load=_die)


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A killed parent cannot end its workers, so they watch for it."""
    jobs = [Job(Setting("none"), (task,), 1.0) for task in select_tasks("small", 1)[:2]]
    parent = multiprocessing.get_context("spawn").Process(target=_run_forever, args=(tmp_path, jobs))
    parent.start()
    _wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    pids = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert all(map(_is_running, pids))
    parent.kill()
    parent.join()
    _wait_until(lambda: not any(map(_is_running, pids)))


def _run_forever(folder: Path, jobs: Sequence[Job]) -> None:
    generation_cache.run_jobs(
        ImageCache(folder, "x", 2), jobs, cast("Any", None), workers=2, load=partial(_load_forever, folder)
    )


def _load_forever(folder: Path) -> Model:
    (folder / f"{os.getpid()}.pid").touch()
    while True:
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and ") Z " not in state.read_text("utf-8")


def _wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _die() -> Model:
    """Ends its process as the kernel would when out of memory."""
    os._exit(9)
