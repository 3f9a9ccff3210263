"""Following a run: rows a step, scores and sheets at their intervals, and a full disk that stops nothing."""

import csv
import importlib
import resource
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from instantstyle.emoji.sources import cache_folder
from instantstyle.model import Model
from instantstyle.train.adapter_run import AdapterTrainingJob, train_adapter_job
from instantstyle.train.data.feature_cache import FeatureConfig
from instantstyle.train.tracking import MetricsLog, read_metrics
from instantstyle.train.trainer import StepMetrics, TrainingConfig, TrainingProgress
from tiny_models import folder as model_folder
from train import gallery

pytestmark = pytest.mark.filterwarnings("ignore:__array__")  # diffusers' Euler scheduler under a newer NumPy
SETTINGS = TrainingConfig(steps=4, batch=2, lr=1e-3, log_every=1)


@contextmanager
def full(size: int) -> Generator[None]:
    """While entered, the system refuses that any file grows beyond so many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def at(*steps: int) -> TrainingProgress:
    return TrainingProgress(
        steps[-1],
        100,
        tuple(StepMetrics(step, 1 / step, 0.1, 1e-3) for step in steps),
        seconds=1.0,
        samples_per_second=8.0,
        global_batch_size=8,
    )


def table(file: Path) -> list[list[str]]:
    with file.open(newline="") as read:
        return list(csv.reader(read))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: steps and values by name."""
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    read = reader.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_a_full_disk_loses_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook = threading.excepthook
    log = MetricsLog(tmp_path, 0)
    log.log(at(1, 2))
    (board,) = (tmp_path / "tensorboard").iterdir()
    begun = board.read_bytes()
    with full((tmp_path / "losses.csv").stat().st_size + 10):
        log.log(at(3, 4))
        log.log(at(5))
        assert [row["step"] for row in read_metrics(tmp_path / "losses.csv")] == ["1", "2"]
        assert (tmp_path / "losses.csv").read_bytes().endswith(b"\n"), "no half of a row stays"
        assert board.read_bytes() == begun
    said = capsys.readouterr().err
    assert said.count("waits for room") == 2, "once for losses.csv and once for TensorBoard"
    assert "Traceback" not in said, "TensorBoard's thread fails as well"
    log.log(at(6))
    log.scores(6, {"distance_reduction": 0.5})
    log.close()
    assert threading.excepthook is hook
    assert [row["step"] for row in read_metrics(tmp_path / "losses.csv")] == list("123456")
    assert [float(row["loss"]) for row in read_metrics(tmp_path / "losses.csv")] == [1 / step for step in range(1, 7)]
    assert scalars(tmp_path)["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 7)]


def test_a_disk_that_is_full_from_the_first_loses_nothing_for_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MetricsLog(tmp_path, 0).close()
    with full((tmp_path / "losses.csv").stat().st_size):
        log = MetricsLog(tmp_path, 0)
    assert capsys.readouterr().err.count("waits for room") == 1
    log.log(at(1, 2))
    log.scores(2, {"distance_reduction": 0.5})
    log.close()
    assert set(scalars(tmp_path)) == {"loss", "grad_norm", "lr", "samples a second", "scores/distance_reduction"}


def test_tensorboard_forgets_the_steps_after_the_one_that_is_resumed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.log(at(1, 2, 3, 4))
    log.close()
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.0000000001.before"))  # as an earlier run's is named
    again = MetricsLog(tmp_path, 2)
    again.log(at(3))
    again.close()
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2, 3]


def test_scores_after_the_step_that_is_resumed_are_written_anew(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (2, 4, 6):
        log.scores(step, {"distance_reduction": step / 10, "leak": 0.0})
    log.close()
    again = MetricsLog(tmp_path, 4)
    again.scores(6, {"distance_reduction": 0.7, "leak": 0.0})
    again.close()
    assert table(tmp_path / "scores.csv") == [
        ["step", "distance_reduction", "leak"],
        ["2", "0.2000", "0.0000"],
        ["4", "0.4000", "0.0000"],
        ["6", "0.7000", "0.0000"],
    ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> AdapterTrainingJob:
    """A training of four steps that draws two sheets and is scored twice, run."""
    root = tmp_path_factory.mktemp("follow")
    shown = root / "shown.png"
    Image.new("RGB", (64, 64), "red").save(shown)
    seen: list[Model] = []

    def judge(model: Model) -> Mapping[str, float]:
        seen.append(model)
        assert model.adapter is not None
        assert model.style_adapter is None
        return {
            "heard": float(next(iter(model.adapter.keys.values())).float().square().sum()),
            "times": float(len(seen)),
        }

    asked = AdapterTrainingJob(
        data=str(gallery.tars(root / "data")),
        out=root / "style.safetensors",
        training_config=SETTINGS,
        model=str(model_folder("sdxl")),
        device="cpu",
        feature_config=FeatureConfig(square=True),
        sheet_every=2,
        sheet_prompts=("a cat", "a dog", "a house"),
        sheet_styles=(shown, shown),
        eval_fn=judge,
        eval_every=2,
    )
    assert train_adapter_job(asked) == asked.out
    return asked


def test_scores_come_at_their_interval_and_are_of_the_adapter_as_it_is(job: AdapterTrainingJob) -> None:
    heads, *scored = table(job.folder / "scores.csv")
    assert heads == ["step", "heard", "times"]
    assert [row[0] for row in scored] == ["2", "4"]
    assert [float(row[2]) for row in scored] == [1, 2]
    assert scored[0][1] != scored[1][1], "the average of the weights has moved"
    assert "times: 2.000" in job.out.with_suffix(".md").read_text()


def test_sheets_come_at_their_interval_prompts_by_rows_and_references_by_columns(job: AdapterTrainingJob) -> None:
    sheets = sorted((job.folder / "sheets").iterdir())
    assert [file.name for file in sheets] == ["0000002.png", "0000004.png"]
    both = [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in sheets]
    assert both[0].shape == both[1].shape
    height, width, _ = both[0].shape
    assert height >= 4 * 64, "the references, and a row for each prompt"
    assert width >= 2 * 64
    red = (both[0] == (255, 0, 0)).all(-1)
    above = red[red.any(1).argmax()]
    assert above.sum() >= 2 * 64, "both references stand above their columns"
    assert np.diff(above.astype(int)).tolist().count(1) == 2
    assert np.abs(both[0] - both[1])[height // 3 :].max() > 0, "the adapter has learned meanwhile"


def test_a_sheet_that_cannot_be_written_stops_nothing(
    job: AdapterTrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sheets").write_text("no folder")
    again = replace(
        job, out=tmp_path / "style.safetensors", work=tmp_path, data=str(job.folder / "features"), eval_fn=None
    )
    assert train_adapter_job(again) == again.out
    assert "warning: no sheet at step 2" in capsys.readouterr().err
    assert again.out.read_bytes() == job.out.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not (cache_folder() / "masters-128").is_dir(), reason="the drawings are not here: make world")
def test_the_referees_small_score_is_taken_in_the_emoji_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--score-every` through the command, on the built-in model, with fewer questions."""
    from instantstyle.cli import main
    from instantstyle.evaluate import block_probe

    cases, draw = block_probe.probe_cases, block_probe.draw_cases

    def few(count: int, side: int) -> list[block_probe.ProbeCase]:
        return cases(min(count, 4), side)

    def soon(
        model: Model, questions: Sequence[block_probe.ProbeCase], plan: str | None, seed: int = 7, steps: int = 25
    ) -> object:
        return draw(model, questions, plan, seed, min(steps, 2))

    monkeypatch.setattr(block_probe, "cases", few)
    monkeypatch.setattr(block_probe, "draw", soon)
    argv = ["instantstyle", "train", "adapter", "--data", str(gallery.folder(tmp_path / "pictures")), "--steps", "2"]
    argv += ["--batch", "2", "--sheet-every", "0", "--score-every", "1", "--log-every", "1", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*argv, "--out", str(tmp_path / "style.safetensors")])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code, capsys.readouterr().err
    heads, *scored = table(tmp_path / "style.safetensors.work/scores.csv")
    assert {"step", "lightness", "colour", "content"} <= set(heads)
    assert [row[0] for row in scored] == ["1", "2"]
