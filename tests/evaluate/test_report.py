"""The comparison as a product: all of it is asked and within its time, nothing is drawn twice, what is written is there

A world drawn on the spot and a small random model: what is measured means nothing here, only how it is gone about.
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
from instantstyle.evaluate.experiments import Job, Kind, Subset, experiments, make_jobs, select_tasks
from instantstyle.evaluate.generation_cache import CacheProgress, ImageCache
from instantstyle.evaluate.metrics import leakage_nats
from instantstyle.evaluate.report import evaluate
from instantstyle.evaluate.results import difference, write_scores
from instantstyle.evaluate.suite import BLOCK, CELLS, evaluation_suite, factorial_block, subsample
from instantstyle.evaluate.tasks import Outputs, Setting, Task, run_tasks
from instantstyle.methods import METHODS
from instantstyle.model import Model

pytestmark = [
    pytest.mark.usefixtures("drawn_world"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' Euler scheduler
]
MODEL = partial(tiny_models.model, "sdxl")
"""Its texts may be longer than the small emoji model's, which spells what it does not know."""
A_PICTURE = 0.7
"""Seconds of one core that a plain picture of the built-in model takes, drawn with others; `make floors`."""


@pytest.fixture(scope="module")
def written(drawn_world: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, of two questions a cell, two methods and two steps."""
    folder = tmp_path_factory.mktemp("referee")
    lines: list[str] = []
    seen: list[CacheProgress] = []
    evaluate(
        MODEL(),
        folder,
        subset="small",
        count=2,
        methods=["instantstyle", "ip-adapter"],
        steps=2,
        say=lines.append,
        watch=seen.append,
    )
    assert seen[-1].done == seen[-1].total == len(list((folder / "pictures").glob("*.png")))
    assert seen[-1].seconds_left == 0
    return folder


def _never(model: Model, questions: Sequence[Task], way: Setting, steps: int = 0, report: object = None) -> Outputs:
    raise AssertionError("it was drawn already")


def test_the_admission_table_comes_first_and_no_cells_are_pooled(written: Path) -> None:
    text = (written / "report.md").read_text("utf-8")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads[0] == "## Which measures may rank methods"
    assert [head.removeprefix("## ") for head in heads if head.removeprefix("## ") in CELLS] == list(CELLS)
    for name in ("curve.png", "sheet-1.png", "sheet-4.png"):
        assert f"({name})" in text
        with Image.open(written / name) as figure:
            assert min(figure.size) > 200
    said = json.loads((written / "report.json").read_text("utf-8"))
    assert said["questions"] == 8
    assert {(row["other"], row["cell"]) for row in said["pairs"]} >= {("ip-adapter", cell) for cell in CELLS}
    assert all(f"| {name} |" in text.partition("Not admitted")[2] for name in ("ip-adapter", "palette alone", "truth"))
    rows = {(row["entry"], row["kind"], row["cell"]): row for row in said["entries"]}
    assert rows["ip-adapter", "method", CELLS[3]]["questions"] == 2
    assert rows["instantstyle", "method", CELLS[0]]["rows"] == 4, "two steps, with and without words"
    assert rows["copy of the reference", "control", CELLS[0]]["measures"]["four-way right, conv"][0] == 0


def test_the_way_left_is_1_without_a_reference_and_0_at_the_oracle_by_every_judge(written: Path) -> None:
    lines = [line.split(" | ") for line in (written / "report.md").read_text("utf-8").splitlines()]
    heads = next(line for line in lines if line[-3:] == ["core seconds", "UNet rows", "fit, core seconds |"])
    places = [i for i, head in enumerate(heads) if head.startswith("way left to the truth, ")]
    assert [heads[i].rpartition(" ")[2] for i in places] == ["conv", "strokes", "pixels"]
    rows = {
        line[0].strip("| "): [line[i].replace("-0.00", "0.00") for i in places]
        for line in lines[::-1]
        if len(line) == len(heads)
    }
    assert rows["no reference"] == ["1.00 (1.00 to 1.00)"] * 3
    assert rows["truth through the VAE"] == ["0.00 (0.00 to 0.00)"] * 3
    assert all(" to " in each for each in rows["copy of the reference"])


def test_a_second_run_draws_nothing_and_says_the_same(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_cache, "ask", _never)
    before = (written / "report.md").read_text("utf-8")
    again: dict[str, Any] = {"subset": "small", "count": 2, "methods": ["instantstyle", "ip-adapter"], "steps": 2}
    evaluate(MODEL(), written, **again, say=lambda line: None)
    assert (written / "report.md").read_text("utf-8") == before
    again["steps"] = 3
    with pytest.raises(AssertionError, match="drawn already"):  # other steps are other pictures
        evaluate(MODEL(), written, **again, say=lambda line: None)


def test_scores_are_a_row_a_picture_with_and_without_pyarrow(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tuple(select_tasks("small", 1))
    columns = {"copies": np.arange(4.0)}
    one = results.MethodResult("x", "method", 1.0, asked, np.zeros((4, 64, 64, 3), np.uint8), 0.1, 50.0, 0.0, columns)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    lines = write_scores(tmp_path, [one]).read_text("utf-8").splitlines()
    assert len(lines) == 1 + 4
    assert lines[0].split(",")[:4] == ["entry", "kind", "strength", "cell"]
    assert [line.split(",")[-1] for line in lines[1:]] == ["0", "1", "2", "3"]
    monkeypatch.undo()
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written / "scores.parquet")
    asked_of = {name: table.column("entry").to_pylist().count(name) for name in ("no reference", "instantstyle")}
    # Two questions in four cells; of the method also three strengths in the first cell.
    assert asked_of == {"no reference": 8, "instantstyle": 8 + 2 * 3}


def test_a_difference_is_taken_question_by_question() -> None:
    asked = tuple(select_tasks("small", 2))
    nothing = np.zeros((8, 64, 64, 3), np.uint8)
    values = np.arange(8.0)

    def entry(kept: Sequence[int], by: float) -> results.MethodResult:
        mine = tuple(asked[i] for i in kept)
        return results.MethodResult(
            "x", "method", 1.0, mine, nothing[: len(mine)], 0.0, 0.0, 0.0, {"m": values[kept] + by}
        )

    whole, part = entry(range(8), 0.0), entry([7, 1, 0], 0.25)
    found = difference(part, whole, "m", CELLS[0])
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25)), "pairs, whatever their order"


def _entry(name: str, kind: Kind, nearest: float, judges: Sequence[str] = ("conv", "strokes")) -> results.MethodResult:
    """Somebody asked all small questions, as near to the truth as is said, question by question the same."""
    asked = tuple(select_tasks("small"))
    columns = {f"four-way right, {judge}": np.full(len(asked), nearest) for judge in judges}
    return results.MethodResult(
        name, kind, 1.0, asked, np.zeros((len(asked), 64, 64, 3), np.uint8), 0.1, 50.0, 0.0, columns
    )


def test_who_is_told_apart_is_said_with_intervals(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    """InstantStyle a half above no reference for certain, level with IP-Adapter, below words by one judge alone."""
    admitted = ["four-way right, conv", "four-way right, strokes"]
    compared = [
        _entry(results.NO_REFERENCE, "control", 0.25),
        _entry("instantstyle", "method", 0.75),
        _entry("ip-adapter", "method", 0.75),
        replace(_entry(results.STYLE_IN_PROMPT, "control", 1.0), columns=_entry("", "control", 1.0, ["conv"]).columns),
    ]
    lines = tables.words(compared, admitted)
    assert "higher than no reference" in lines[0]
    assert "not told apart from ip-adapter" in lines[0]
    assert "four-way right higher: **+0.50** (+0.50 to +0.50) by conv" in "\n".join(lines)
    table = "\n".join(tables.paired(compared, CELLS[0], admitted))
    assert "| instantstyle less | four-way right, conv | four-way right, strokes |" in table
    assert "| ip-adapter | +0.00 (+0.00 to +0.00) | +0.00 (+0.00 to +0.00) |" in table
    said = tables.pairs(compared)
    assert {(row["other"], row["cell"]) for row in said} >= {("ip-adapter", cell) for cell in CELLS}
    first = {row["other"]: row for row in said if row["cell"] == CELLS[0]}
    assert first["no reference"]["verdict"] == "higher"
    pairs = json.loads(json.dumps(said))
    shown = "\n".join(script("docs/evaluation_tables.py").differences({"pairs": pairs}, CELLS[0]))
    assert "| no reference | **+0.50** (+0.50 to +0.50) |" in shown
    assert "| ip-adapter | +0.00 (+0.00 to +0.00) |" in shown


def test_excess_nats_are_beyond_what_the_others_show() -> None:
    """Own reference at log p = -1, the two others at -3 and -4 for the first picture: -1 - (-3.5)."""
    log_p = np.full((3, 6), -9.0)
    log_p[0, :3] = (-1, -3, -4)
    shown, target = np.array([0, 1, 2]), np.array([3, 4, 5])
    found = leakage_nats(log_p, shown, target, ["near"] * 3)
    assert found.tolist() == [2.5, 0, 0]
    order = [2, 0, 1]
    assert leakage_nats(log_p[order], shown[order], target[order], ["near"] * 3).tolist() == found[order].tolist()


def test_the_whole_comparison_fits_its_time() -> None:
    """Two cores, an hour and five minutes; a third is left for measuring and for cores that are shared."""
    allowed: dict[Subset, int] = {"all": 60, "small": 5}
    for subset, minutes in allowed.items():
        rows = experiments(select_tasks(subset), subset)
        todo = make_jobs(rows, lambda question, way: False)
        assert sum(job.cost for job in todo) * A_PICTURE / 2 < minutes * 60 * 0.75, subset
        assert max(job.cost for job in todo) * A_PICTURE < minutes * 60 * 0.75 / 4, "no job that all wait for"
        asked = {(job.setting, question) for job in todo for question in job.tasks}
        assert len(asked) == sum(len(job.tasks) for job in todo), "nothing is drawn twice"
        assert {row.name for row in rows if row.kind == "method"} == {name for name in METHODS if name != "none"}
    swept = [row for row in experiments(select_tasks("all")) if row.kind == "strength"]
    tries = {
        name: sum(row.name == name for row in swept) for name, spec in METHODS.items() if spec.strength is not None
    }
    assert len(set(tries.values())) == 1, "every method has as many tries"


def test_what_shares_a_fit_comes_after_it_and_what_is_there_is_left_out() -> None:
    asked = select_tasks("small", 2)
    rows = experiments(asked, "all", ["b-lora", "ip-adapter"])
    todo = make_jobs(rows, lambda question, way: way.method == "none")
    assert not [job for job in todo if job.setting.method == "none"]
    assert [job.cost for job in todo] == sorted((job.cost for job in todo), reverse=True)
    fitted = [job for job in todo if job.setting.method == "b-lora" and job.setting.reference == "true"]
    for question in {q for job in fitted for q in job.tasks if q.cell == CELLS[0]}:
        first = next(job for job in fitted if question in job.tasks)
        assert first.cost >= METHODS["b-lora"].fit_cost, "the fit is counted where it is made"
    with pytest.raises(InputError, match=r"'ip-adaptor'.*ip-adapter"):
        experiments(asked, "all", ["ip-adaptor"])


def test_fewer_questions_are_of_as_many_styles_as_there_can_be() -> None:
    whole = evaluation_suite()
    few = subsample(whole, 12)
    for cell in CELLS:
        own = [q for q in few if q.cell == cell]
        assert len(own) == 12
        assert len({repr(q.style) for q in own}) == len({repr(q.style) for q in whole if q.cell == cell})
    assert [q for q in whole if q in few] == few, "in the suite's order"
    assert subsample(whole, 99) == whole
    assert set(subsample(whole, 3)) < set(few)


def test_the_variance_block_is_full_and_in_order() -> None:
    asked = np.array([(q.target, repr(q.style), q.reference_content, str(q.seed)) for q in factorial_block()]).reshape(
        *BLOCK, 4
    )
    for axis in range(4):
        level = np.moveaxis(asked[..., axis], axis, 0).reshape(BLOCK[axis], -1)
        assert len(set(level[:, 0])) == BLOCK[axis]
        assert all(len(set(row)) == 1 for row in level)
    assert not {q.target for q in factorial_block()} & {q.reference_content for q in factorial_block()}


def test_permuting_questions_permutes_pictures() -> None:
    """Who is asked what is all that counts, not in which row it stands; things change places with their pictures."""
    asked = select_tasks("small", 1)[:3]
    model, way, order = MODEL(), Setting("ip-adapter"), [2, 0, 1]
    first = run_tasks(model, asked, way, 2).pixels.astype(int)
    turned = run_tasks(model, [asked[i] for i in order], way, 2).pixels.astype(int)
    assert np.abs(turned - first[order]).max() <= 1
    assert np.abs(turned - first).max() > 1, "the pictures differ, so the order could have been lost"
    # The targets alone change places: each picture is what its own question, asked alone, gives.
    mixed = [replace(q, target=asked[i].target) for q, i in zip(asked, order, strict=True)]
    together = run_tasks(model, mixed, way, 2).pixels.astype(int)
    alone = np.concatenate([run_tasks(model, [q], way, 2).pixels for q in mixed]).astype(int)
    assert np.abs(together - alone).max() <= 1


def test_the_published_strength_is_the_same_picture_whether_it_is_said_or_not(tmp_path: Path) -> None:
    kept, asked = ImageCache(tmp_path, "model", 2), select_tasks("small", 1)[0]
    assert kept.path(asked, Setting("swapped")) == kept.path(asked, Setting("swapped", strength=1.0))
    assert kept.path(asked, Setting("swapped")) != kept.path(asked, Setting("swapped", strength=0.5))
    assert kept.path(asked, Setting("none")) != ImageCache(tmp_path, "other", 2).path(asked, Setting("none"))


@pytest.mark.slow
def test_two_workers_draw_what_one_does_and_a_dead_one_is_a_sentence(tmp_path: Path) -> None:
    """Processes of their own do not see the world drawn on the spot, so they are asked without references."""
    from instantstyle.loading import load

    model = MODEL()
    again = partial(load, tiny_models.folder("sdxl"))
    asked = tuple(select_tasks("small", 2))
    todo = [Job(Setting("none"), asked[:4], 4.0), Job(Setting("none"), asked[4:], 4.0)]
    one, two = (
        ImageCache(tmp_path / "one", model.weights_fingerprint, 2),
        ImageCache(tmp_path / "two", model.weights_fingerprint, 2),
    )
    generation_cache.draw_jobs(one, todo, model)
    generation_cache.draw_jobs(two, todo, model, workers=2, load=again)
    assert np.array_equal(one.get(asked, Setting("none")).pixels, two.get(asked, Setting("none")).pixels)
    with pytest.raises(InstantStyleError, match="run the same command again"):
        generation_cache.draw_jobs(ImageCache(tmp_path / "three", "x", 2), todo, model, workers=2, load=_die)


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed can end nobody, so the workers see to it, in the midst of whatever they do."""
    todo = [Job(Setting("none"), (question,), 1.0) for question in select_tasks("small", 1)[:2]]
    parent = multiprocessing.get_context("spawn").Process(target=_asks_for_ever, args=(tmp_path, todo))
    parent.start()
    _until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    numbers = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert all(map(_lives, numbers))
    parent.kill()
    parent.join()
    _until(lambda: not any(map(_lives, numbers)))


def _asks_for_ever(folder: Path, todo: Sequence[Job]) -> None:
    generation_cache.draw_jobs(
        ImageCache(folder, "x", 2), todo, cast("Any", None), workers=2, load=partial(_takes_for_ever, folder)
    )


def _takes_for_ever(folder: Path) -> Model:
    (folder / f"{os.getpid()}.pid").touch()
    while True:
        time.sleep(0.1)


def _lives(number: int) -> bool:
    """Whether a process is there and no zombie that nobody asks for."""
    state = Path(f"/proc/{number}/stat")
    return state.exists() and ") Z " not in state.read_text("utf-8")


def _until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def _die() -> Model:
    """Ends its process as a full memory would."""
    os._exit(9)
