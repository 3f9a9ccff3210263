"""What was measured, entry by entry: which measures may rank, intervals, paired differences, all in one file."""

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instantstyle.evaluate.classifiers import HELD_OUT
from instantstyle.evaluate.experiments import GREY_REFERENCE, NO_REFERENCE, STYLE_IN_PROMPT, WRONG_STYLE, Kind
from instantstyle.evaluate.ground_truth import Pixels
from instantstyle.evaluate.metrics import Floats, Interval, bootstrap, normalized_distances
from instantstyle.evaluate.suite import Columns
from instantstyle.evaluate.tasks import Task
from instantstyle.utils.atomic_files import atomic_write, write_atomic

REFERENCE_COPY, PALETTE_TRANSFER = "copy of the reference", "palette alone"
CONTROLS = (NO_REFERENCE, STYLE_IN_PROMPT, WRONG_STYLE, GREY_REFERENCE, REFERENCE_COPY, PALETTE_TRANSFER)
"""What a measure must rank below the truth to be admitted."""
VAE_ORACLE = "truth through the VAE"
MEASURES = (
    *(f"four-way right, {name}" for name in ("strokes", HELD_OUT, "pixels")),
    *(f"both right, {name}" for name in ("strokes", HELD_OUT)),
    *(f"content right, {name}" for name in ("strokes", HELD_OUT)),
    *(f"style right, {name}" for name in ("strokes", HELD_OUT, "grey", "edge")),
)
"""Measures of which more is better, candidates for admission."""
LEAKS = (
    f"excess nats, {HELD_OUT}",
    f"excess hit, {HELD_OUT}",
    f"swap leak, {HELD_OUT}",
    f"four-way copied, {HELD_OUT}",
    "copies",
)
"""Measures of how much of the reference's content comes along; none leaks at 0."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MethodResult:
    """One method at one strength, one variant or one control: its pictures, what they cost, and what was measured."""

    name: str
    kind: Kind
    strength: float | None
    tasks: tuple[Task, ...]
    pixels: Pixels
    seconds: float
    """Of one core a picture; 0 where nothing was drawn."""
    unet_rows: float
    """Rows through the UNet a picture."""
    fit_seconds: float
    """Seconds of one core for the fit to a reference; 0 where there is none, NaN where it is not known."""
    columns: Columns

    def of(self, cell: str) -> Bools:
        """Which of its questions are of a cell."""
        return np.array([q.cell == cell for q in self.tasks])

    @cached_property
    def rows(self) -> Mapping[Task, int]:
        """The row of each question."""
        return {q: i for i, q in enumerate(self.tasks)}

    def mean(self, measure: str, cell: str) -> float:
        """The mean over a cell, NaNs left out; NaN where there is nothing."""
        values = self.columns[measure][self.of(cell)] if measure in self.columns else np.array([])
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")

    def interval(self, measure: str, cell: str) -> Interval:
        """The mean over a cell, clustered by thing and by style."""
        if measure not in self.columns:
            return Interval(float("nan"), float("nan"), float("nan"))
        rows = self.of(cell)
        kept = [q for q, there in zip(self.tasks, rows, strict=True) if there]
        return _clustered(self.columns[measure][rows], kept)


def difference(one: MethodResult, other: MethodResult, measure: str, cell: str) -> Interval:
    """By how much one is above the other on the questions that both were asked, pair by pair, clustered as ever."""
    if measure not in one.columns or measure not in other.columns:
        return Interval(float("nan"), float("nan"), float("nan"))
    both = [q for q in one.tasks if q.cell == cell and q in other.rows]
    a, b = ([each.rows[q] for q in both] for each in (one, other))
    return _clustered(one.columns[measure][a] - other.columns[measure][b], both)


def distance_interval(
    each: MethodResult, oracle: MethodResult, without: MethodResult, judge: str, cell: str
) -> Interval:
    """`towards_truth` by a judge, all three over the questions that the entry was asked."""
    far = f"distance to truth, {judge}"
    asked = [q for q in each.tasks if q.cell == cell]
    if not asked or any(far not in e.columns for e in (each, oracle, without)):
        return Interval(float("nan"), float("nan"), float("nan"))
    return _clustered(
        normalized_distances(*(e.columns[far][[e.rows[q] for q in asked]] for e in (each, oracle, without))), asked
    )


def _clustered(values: Floats, questions: Sequence[Task]) -> Interval:
    return bootstrap(values, {"thing": [q.target for q in questions], "style": [repr(q.style) for q in questions]})


@dataclass(frozen=True)
class MetricValidity:
    """Whether a measure may rank methods: the truth beats every control on it, and copying is not the best of them."""

    measure: str
    truth: float
    controls: Mapping[str, float]

    @property
    def admitted(self) -> bool:
        """Whether it may."""
        best = max(self.controls.values())
        copied = self.controls.get(REFERENCE_COPY, -1.0)
        return self.truth > best and (copied < best or best == 0)


def validate_metrics(entries: Mapping[str, Columns], rows: Bools) -> list[MetricValidity]:
    """The admission table, over the questions chosen by `rows`; `entries` are the truth and the controls by name."""

    def mean(name: str, measure: str) -> float:
        values = entries[name][measure][rows]
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")

    truth = VAE_ORACLE if VAE_ORACLE in entries else "truth"
    there = [name for name in CONTROLS if name in entries]
    return [MetricValidity(m, mean(truth, m), {name: mean(name, m) for name in there}) for m in MEASURES]


def write_scores(folder: Path, entries: Sequence[MethodResult]) -> Path:
    """A row a picture and a column a measure: scores.parquet where pyarrow is installed, else scores.csv."""
    table: dict[str, list[Any]] = {name: [] for name in ("entry", "kind", "strength", *_QUESTION)}
    names = list(dict.fromkeys(name for each in entries for name in each.columns))
    table |= {name: [] for name in names}
    for each in entries:
        for i, q in enumerate(each.tasks):
            said = (each.name, each.kind, each.strength, *_asked(q))
            measured = (float(each.columns[name][i]) if name in each.columns else float("nan") for name in names)
            for column, value in zip(table.values(), (*said, *measured), strict=True):
                column.append(value)
    try:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        buffer = io.StringIO()
        rows = csv.writer(buffer)
        rows.writerow(table)
        rows.writerows(zip(*([_short(v) for v in column] for column in table.values()), strict=True))
        return write_atomic(folder / "scores.csv", buffer.getvalue().encode())
    file = folder / "scores.parquet"
    with atomic_write(file) as partial:
        parquet.write_table(pyarrow.table(table), partial, compression="zstd")
    return file


_QUESTION = ("cell", "thing", "shown", "stratum", "set", "family", "seed")


def _asked(q: Task) -> tuple[object, ...]:
    return q.cell, q.target, q.reference_content, q.similarity_stratum, q.style.icon_set, q.style.transform.kind, q.seed


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value
