"""What was measured of each experiment, its intervals and paired differences, and which measures may rank methods."""

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from instantstyle.evaluate.experiments import GREY_REFERENCE, NO_REFERENCE, STYLE_IN_PROMPT, WRONG_STYLE, ExperimentKind
from instantstyle.evaluate.measurements import CLASSIFIERS, COLOUR_BLIND, Columns, measure_bounds
from instantstyle.evaluate.metrics import NO_INTERVAL, Bools, Floats, Interval, Pixels, bootstrap, normalized_distances
from instantstyle.evaluate.suite import GROUND_TRUTH, PALETTE_TRANSFER, REFERENCE_COPY, VAE_ORACLE
from instantstyle.evaluate.tasks import Task
from instantstyle.utils.atomic_files import atomic_write, write_atomic

CONTROLS = (NO_REFERENCE, STYLE_IN_PROMPT, WRONG_STYLE, GREY_REFERENCE, REFERENCE_COPY, PALETTE_TRANSFER)
"""What a measure must rank below the truth to be valid."""
MEASURES = (
    *(f"four-way right, {name}" for name in (*CLASSIFIERS[::-1], "pixels")),
    *(f"both right, {name}" for name in CLASSIFIERS[::-1]),
    *(f"content right, {name}" for name in CLASSIFIERS[::-1]),
    *(f"style right, {name}" for name in (*CLASSIFIERS[::-1], *COLOUR_BLIND)),
)
"""Measures of which more is better, candidates for ranking."""
LEAKS = (
    *(f"{name}, {CLASSIFIERS[0]}" for name in ("excess nats", "excess hit", "swap leak", "four-way copied")),
    "copies",
)
"""Measures of how much of the reference's content comes along; 0 where nothing leaks."""


@dataclass(frozen=True)
class MethodResult:
    """One method at one strength, one variant or one control: its images, their cost, and what was measured."""

    name: str
    kind: ExperimentKind
    strength: float | None
    tasks: tuple[Task, ...]
    pixels: Pixels
    seconds: float
    """Core seconds per image; 0 where nothing was generated."""
    unet_rows: float
    """Batch rows through the UNet per image."""
    fit_seconds: float
    """Core seconds per fit to a reference; 0 where there is none, NaN where it is not known."""
    columns: Columns

    def in_cell(self, cell: str) -> Bools:
        """Which of its tasks are in a cell, [n]."""
        return np.array([task.cell == cell for task in self.tasks])

    @cached_property
    def index(self) -> Mapping[Task, int]:
        """The position of each task."""
        return {task: i for i, task in enumerate(self.tasks)}

    def mean(self, measure: str, cell: str) -> float:
        """The mean over a cell, NaNs left out; NaN where there is nothing."""
        values = self.columns[measure][self.in_cell(cell)] if measure in self.columns else np.array([])
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")

    def interval(self, measure: str, cell: str) -> Interval:
        """The mean over a cell, clustered by content and by style."""
        if measure not in self.columns:
            return NO_INTERVAL
        rows = self.in_cell(cell)
        tasks = [task for task, inside in zip(self.tasks, rows, strict=True) if inside]
        return _clustered(self.columns[measure][rows], tasks, measure_bounds(measure))


def difference(one: MethodResult, other: MethodResult, measure: str, cell: str) -> Interval:
    """By how much `one` is above `other`, paired on the tasks that both have, clustered by content and by style."""
    if measure not in one.columns or measure not in other.columns:
        return NO_INTERVAL
    both = [task for task in one.tasks if task.cell == cell and task in other.index]
    a, b = ([result.index[task] for task in both] for result in (one, other))
    low, high = measure_bounds(measure)
    return _clustered(one.columns[measure][a] - other.columns[measure][b], both, (low - high, high - low))


def distance_interval(
    result: MethodResult, oracle: MethodResult, baseline: MethodResult, feature: str, cell: str
) -> Interval:
    """`normalized_distance` by a classifier's features or by pixels, on the tasks that the result has."""
    measure = f"distance to truth, {feature}"
    tasks = [task for task in result.tasks if task.cell == cell]
    if not tasks or any(measure not in each.columns for each in (result, oracle, baseline)):
        return NO_INTERVAL
    values = (each.columns[measure][[each.index[task] for task in tasks]] for each in (result, oracle, baseline))
    return _clustered(normalized_distances(*values), tasks, (-np.inf, np.inf))


def _clustered(values: Floats, tasks: Sequence[Task], bounds: tuple[float, float]) -> Interval:
    clusters = {"content": [task.target for task in tasks], "style": [repr(task.style) for task in tasks]}
    return bootstrap(values, clusters, bounds)


@dataclass(frozen=True)
class MetricValidity:
    """Whether a measure may rank methods: the truth beats every control on it, and copying is not the best control."""

    measure: str
    truth: float
    controls: Mapping[str, float]

    @property
    def admitted(self) -> bool:
        """Whether it may."""
        best = max(self.controls.values())
        copy = self.controls.get(REFERENCE_COPY, -1.0)
        return self.truth > best and (copy < best or best == 0)


def validate_metrics(columns: Mapping[str, Columns], rows: Bools) -> list[MetricValidity]:
    """The validity of `MEASURES` on the tasks chosen by `rows`; `columns`: of the truth and the controls by name."""

    def mean(name: str, measure: str) -> float:
        values = columns[name][measure][rows]
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")

    truth = VAE_ORACLE if VAE_ORACLE in columns else GROUND_TRUTH
    controls = [name for name in CONTROLS if name in columns]
    return [MetricValidity(m, mean(truth, m), {name: mean(name, m) for name in controls}) for m in MEASURES]


def write_scores(folder: Path, results: Sequence[MethodResult]) -> Path:
    """A row an image and a column a measure: scores.parquet where pyarrow is installed, else scores.csv."""
    names = list(dict.fromkeys(name for result in results for name in result.columns))
    table: dict[str, list[Any]] = {name: [] for name in ("entry", "kind", "strength", *_TASK_COLUMNS, *names)}
    for result in results:
        for i, task in enumerate(result.tasks):
            facts = (result.name, result.kind, result.strength, *_task_row(task))
            values = (float(result.columns[name][i]) if name in result.columns else float("nan") for name in names)
            for column, value in zip(table.values(), (*facts, *values), strict=True):
                column.append(value)
    try:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(table)
        writer.writerows(zip(*([_short(v) for v in column] for column in table.values()), strict=True))
        return write_atomic(folder / "scores.csv", buffer.getvalue().encode())
    file = folder / "scores.parquet"
    with atomic_write(file) as partial:
        parquet.write_table(pyarrow.table(table), partial, compression="zstd")
    return file


_TASK_COLUMNS = ("cell", "thing", "shown", "stratum", "set", "family", "seed")


def _task_row(task: Task) -> tuple[object, ...]:
    style = (task.style.icon_set, task.style.transform.kind)
    return task.cell, task.target, task.reference_content, task.similarity_stratum, *style, task.seed


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value
