"""The comparison: every method and control runs the same tasks, is measured, and a report is written.

Resumable: images are cached by what they were made from, so a second run generates only what is missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from instantstyle.evaluate import tables
from instantstyle.evaluate.classifiers import HELD_OUT
from instantstyle.evaluate.experiments import (
    BUDGETS,
    NO_REFERENCE,
    Experiment,
    Subset,
    experiments,
    make_jobs,
    select_tasks,
)
from instantstyle.evaluate.generation_cache import ImageCache, LoadModelFn, ProgressFn, run_jobs
from instantstyle.evaluate.measurements import CLASSIFIERS, measure_images, swap_columns
from instantstyle.evaluate.metrics import Floats, Interval
from instantstyle.evaluate.plots import Line, Panel, Point, plot_curves
from instantstyle.evaluate.results import MethodResult, validate_metrics, write_scores
from instantstyle.evaluate.suite import (
    CELLS,
    GROUND_TRUTH,
    REFERENCE_COPY,
    VAE_ORACLE,
    baselines,
    factorial_block,
    suite_hash,
)
from instantstyle.evaluate.tasks import GUIDANCE, STEPS, Setting, Task
from instantstyle.methods import METHODS
from instantstyle.model import Model
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.extras import import_extra
from instantstyle.utils.images import encode_png, image_grid

LogFn = Callable[[str], None]
CostTotals = Mapping[str, tuple[Mapping[str, int], float]]
"""By experiment the number of images of each kind, and the core seconds they cost."""


def run_evaluation(
    model: Model,
    folder: Path,
    *,
    subset: Subset = "all",
    count: int | None = None,
    methods: Sequence[str] | None = None,
    steps: int = STEPS,
    pictures: Path | None = None,
    workers: int = 1,
    load: LoadModelFn | None = None,
    log: LogFn = print,
    on_progress: ProgressFn | None = None,
) -> Path:
    """Measure methods (by default all) on the suite, and write the report.  Returns the path of report.md.

    `count`: at most so many tasks a cell.  `pictures`: where generated images are cached, by default beside the report.
    `load` makes the model again in each of so many `workers`; without it everything runs in this process.
    Raises InputError for a method that does not exist, and where the extra `evaluate` is not installed.
    """
    for module in ("matplotlib", "scipy.special"):
        import_extra(module, "evaluate")  # before hours of drawing, not after
    tasks = select_tasks(subset, count)
    rows = experiments(tasks, subset, methods)
    folder.mkdir(parents=True, exist_ok=True)
    cache = ImageCache(pictures or folder / "pictures", model.weights_fingerprint, steps)
    jobs = make_jobs(rows, cache.has)
    if jobs:
        log(
            f"{sum(len(job.tasks) for job in jobs)} pictures to draw, the work of "
            f"{sum(job.cost for job in jobs):.0f} plain ones, in {cache.folder}"
        )
        seconds = run_jobs(cache, jobs, model, workers, load, on_progress)
        log(f"drawn in {seconds / 60:.1f} minutes")
    log("measuring")
    without_reference = cache.get(tasks, Setting("none")).pixels
    controls = [
        MethodResult(name, "control", None, tuple(tasks), pixels, 0.0, 0.0, 0.0, measure_images(tasks, pixels))
        for name, pixels in baselines(tasks, without_reference, model).items()
    ]
    generated = [_measured(cache, row, tasks) for row in rows]
    kinds = {kind: [r for r in generated if r.kind == kind] for kind in ("control", "method", "variant", "strength")}
    report = _Report(
        tasks=tasks,
        compared=[*kinds["control"], *controls, *kinds["method"]],
        variants=kinds["variant"],
        swept=kinds["strength"],
        blocks=[result for result in generated if result.kind == "variance"],
        costs=_costs(cache, rows),
        model=model,
        steps=steps,
        subset=subset,
    )
    return report.write(folder)


def _measured(cache: ImageCache, row: Experiment, suite: Sequence[Task]) -> MethodResult:
    """An experiment's result.  The variance block is not measured here: it is not about ground truths."""
    outputs = cache.get(row.tasks, row.setting)
    columns: dict[str, Floats] = {}
    if row.kind != "variance":
        columns |= measure_images(row.tasks, outputs.pixels, suite=suite)
    if row.swapped:
        index = {task: i for i, task in enumerate(row.tasks)}
        chosen = [index[task] for task in row.swapped]
        swapped = cache.get(row.swapped, replace(row.setting, reference="other")).pixels
        for name, values in swap_columns(row.swapped, outputs.pixels[chosen], swapped).items():
            columns[name] = np.full(len(row.tasks), np.nan)
            columns[name][chosen] = values
    fits = [seconds for seconds in outputs.fit_seconds if not np.isnan(seconds)]
    cost = outputs.seconds, outputs.unet_rows, sum(fits) / len(fits) if fits else float("nan")
    return MethodResult(row.name, row.kind, row.setting.sweep_value, row.tasks, outputs.pixels, *cost, columns)


def _costs(cache: ImageCache, rows: Sequence[Experiment]) -> CostTotals:
    counted: set[Path] = set()
    totals: dict[str, tuple[dict[str, int], float]] = {}
    for row in rows:
        counts, seconds = totals.get(row.name, ({}, 0.0))
        swap = ("swap", replace(row.setting, reference="other"), row.swapped)
        for kind, setting, tasks in ((row.kind, row.setting, row.tasks), swap):
            for path in {cache.path(task, setting) for task in tasks} - counted:
                counted.add(path)
                own, _, fit = cache.cost(path)
                counts[kind], seconds = counts.get(kind, 0) + 1, seconds + own + (0.0 if np.isnan(fit) else fit)
        totals[row.name] = counts, seconds
    return totals


@dataclass(frozen=True)
class _Report:
    """What report.md, report.json, the scores, the curve and the sheets are written from."""

    tasks: Sequence[Task]
    compared: Sequence[MethodResult]
    """Controls and methods."""
    variants: Sequence[MethodResult]
    swept: Sequence[MethodResult]
    """Methods over their strength."""
    blocks: Sequence[MethodResult]
    """Methods on the variance block."""
    costs: CostTotals
    model: Model
    steps: int
    subset: Subset

    def write(self, folder: Path) -> Path:
        """Write all files; returns report.md, which comes last."""
        by_name = {result.name: result for result in self.compared}
        first = np.array([task.cell == CELLS[0] for task in self.tasks])
        validity = validate_metrics({name: result.columns for name, result in by_name.items()}, first)
        ranking = [v.measure for v in validity if v.admitted]
        findings = tables.findings([*self.compared, *self.variants], ranking)
        scores = write_scores(folder, [*self.compared, *self.variants, *self.swept])
        text = [
            *self._introduction(),
            *tables.validity_table(validity),
            "",
            f"## In words: {CELLS[0]}",
            "",
            "Differences task by task, with their intervals; one is told only where those of both classifiers leave "
            "out 0. Nothing is corrected for how many are compared.",
            "",
            *findings,
            *self._sweep(folder),
            *self._variants(ranking),
            *(line for number, cell in enumerate(CELLS) for line in self._cell(folder, number, cell, ranking)),
            *self._variance(),
            *self._budget(),
            "",
            f"Every picture's measures: [{scores.name}]({scores.name}).",
        ]
        data = {
            "set": suite_hash(self.tasks),
            "questions": len(self.tasks),
            "model": self.model.source.spec,
            "weights": self.model.weights_fingerprint,
            "steps": self.steps,
            "guidance": GUIDANCE,
            "subset": self.subset,
            "held out": HELD_OUT,
            "admitted": ranking,
            "words": findings,
            "pairs": tables.pairs_data(self.compared),
            "entries": tables.results_data([*self.compared, *self.variants, *self.swept], by_name, ranking),
            "curve": bool(self.swept),
        }
        write_atomic(folder / "report.json", f"{json.dumps(data, indent=1)}\n".encode())
        return write_atomic(folder / "report.md", ("\n".join(text) + "\n").encode())

    def _introduction(self) -> list[str]:
        return [
            "# Benchmark report",
            "",
            f"{len(self.tasks)} tasks, set {suite_hash(self.tasks)[:16]}; model {self.model.source.spec}, weights "
            f"{self.model.weights_fingerprint[:16]}; {self.steps} steps, guidance {GUIDANCE:g}. The classifier "
            f"`{HELD_OUT}` was never used to tune anything. Intervals are 95 %, clustered by content and by style. The "
            "four cells are never pooled. The normalized distance is 0 as near to the truth as the truth through the "
            "VAE, and 1 as far as without a reference.",
            "",
            "## Which measures may rank methods",
            "",
            "A measure is admitted only if the truth (through the VAE) beats every control on it and copying the "
            "reference does not win it among the controls. Decided in the first cell.",
            "",
        ]

    def _sweep(self, folder: Path) -> list[str]:
        if not self.swept:
            return []
        write_atomic(folder / "curve.png", encode_png(_curve(self.compared, self.swept)))
        return [
            "",
            "## Every method over its one strength",
            "",
            "The same number of tries for every method, in the first cell. Up is better, left leaks less: by how many "
            "nats the classifier finds the reference's content likelier than that of other references. Bars are the "
            "intervals at the published strengths.",
            "",
            "![Both right against leakage, for every method over its strength](curve.png)",
            "",
            *tables.sweep_table(self.swept),
            "",
            f"At the strength that the classifier `strokes` scores best; the figures are those of `{HELD_OUT}`.",
            "",
            *tables.best_strength_table(self.swept),
        ]

    def _variants(self, ranking: Sequence[str]) -> list[str]:
        if not self.variants:
            return []
        beside = (tables.OURS, tables.THEIRS, NO_REFERENCE, VAE_ORACLE, GROUND_TRUTH)
        results = [*(result for result in self.compared if result.name in beside), *self.variants]
        return [
            "",
            "## What subtraction adds, and other plans",
            "",
            f"InstantStyle in the first cell, nothing subtracted in the row `{tables.OURS}`. Content is the true word "
            "for what the reference shows, or with `auto` the one that the model's own CLIP finds.",
            "",
            *tables.score_table(results, CELLS[0], ranking),
            "",
            *tables.leakage_table(results, CELLS[0]),
            *tables.paired_tables(results, CELLS[0], ranking),
        ]

    def _cell(self, folder: Path, number: int, cell: str, ranking: Sequence[str]) -> list[str]:
        if not any(task.cell == cell for task in self.tasks):
            return []
        name = f"sheet-{number + 1}.png"
        write_atomic(folder / name, encode_png(_sheet(self.compared, cell)))
        return [
            "",
            f"## {cell}",
            "",
            *tables.score_table(self.compared, cell, ranking),
            "",
            *tables.not_ranking_table(self.compared, cell, ranking),
            "",
            *tables.leakage_table(self.compared, cell),
            *tables.paired_tables(self.compared, cell, ranking),
            "",
            f"![{cell}: what each drew]({name})",
        ]

    def _variance(self) -> list[str]:
        if not self.blocks:
            return []
        tasks = tuple(factorial_block())
        truths = np.stack([task.truth for task in tasks])
        truth = MethodResult(GROUND_TRUTH, "variance", None, tasks, truths, 0.0, 0.0, 0.0, {})
        return [
            "",
            "## Variance shares",
            "",
            f"Shares (eta squared) of a full factorial block in the features of the classifier `{HELD_OUT}`. Content "
            "features should vary with the words, style features with the style; the reference's content should have "
            "no more than the seed.",
            "",
            *tables.variance_table([truth, *self.blocks]),
        ]

    def _budget(self) -> list[str]:
        first, others = BUDGETS[self.subset].fitted
        return [
            "",
            "## The budget",
            "",
            f"Methods that are fitted to a reference have {first} tasks of the first cell and {others} of each other, "
            "and fits are shared by all strengths. Seconds are of one core, for pictures drawn together.",
            "",
            *tables.budget_table(self.costs),
        ]


def _curve(compared: Sequence[MethodResult], swept: Sequence[MethodResult]) -> Image.Image:
    """Both right against leakage in the first cell, by two classifiers; intervals at the published strengths."""
    by_name, cell = {result.name: result for result in compared}, CELLS[0]
    panels: list[Panel] = []
    for name in CLASSIFIERS:

        def point(result: MethodResult, label: str, name: str = name) -> Point:
            intervals = [result.interval(f"{m}, {name}", cell) for m in ("excess nats", "both right")]
            sweep = METHODS[result.name].strength if result.kind == "strength" else None
            if sweep is not None and result.strength != sweep.default:
                intervals = [Interval(i.mean, i.mean, i.mean) for i in intervals]  # all of them would hide the curves
            return Point(intervals[0], intervals[1], label)

        lines: list[Line] = []
        for method in dict.fromkeys(result.name for result in swept):
            tried = [result for result in swept if result.name == method]
            ends = (tried[0], tried[-1])
            lines.append(Line(method, [point(r, f"{r.strength:g}" if r in ends else "") for r in tried]))
        panels.append(
            Panel(
                f"classifier {name}{' (never used for tuning)' if name == HELD_OUT else ''}",
                "leakage of the reference's content, nats above chance",
                "share with content and style right",
                lines,
                [point(by_name[NO_REFERENCE], NO_REFERENCE)],
                [("ground truth through the VAE", by_name[VAE_ORACLE].mean(f"both right, {name}", cell))],
            )
        )
    return plot_curves(panels)


def _sheet(compared: Sequence[MethodResult], cell: str, most: int = 6) -> Image.Image:
    """A row a task, those first that every method has, of different styles: reference, truth, controls, methods."""
    columns = [result for result in compared if result.name not in (REFERENCE_COPY, VAE_ORACLE, GROUND_TRUTH)]
    tasks = [task for task in compared[0].tasks if task.cell == cell]
    tasks.sort(key=lambda task: -sum(task in result.index for result in columns))
    styles = list({repr(task.style): task for task in reversed(tasks[: 2 * most])}.values())[::-1]
    chosen = [*styles, *(task for task in tasks if task not in styles)][:most]
    images = [
        [
            Image.fromarray(task.reference),
            Image.fromarray(task.truth),
            *(Image.fromarray(r.pixels[r.index[task]]) if task in r.index else None for r in columns),
        ]
        for task in chosen
    ]
    labels = [f"{task.prompt}\nlike this {task.reference_content}" for task in chosen]
    names = ["reference", "truth", *(result.name for result in columns)]
    return image_grid(images, rows=labels, columns=names, cell=112)
