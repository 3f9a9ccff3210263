"""The comparison: every method and control put to the same questions, measured, and written down.

Resumable: pictures are kept by what they were made from, so a second run draws only what is missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    resolve_experiments,
    select_tasks,
)
from instantstyle.evaluate.generation_cache import ImageCache, LoadModelFn, ProgressFn, draw_jobs
from instantstyle.evaluate.metrics import Floats
from instantstyle.evaluate.plots import Line, Panel, Point, curves
from instantstyle.evaluate.results import (
    REFERENCE_COPY,
    VAE_ORACLE,
    MethodResult,
    MetricValidity,
    validate_metrics,
    write_scores,
)
from instantstyle.evaluate.suite import CELLS, baselines, factorial_block, measure, suite_hash, swap_columns
from instantstyle.evaluate.tasks import GUIDANCE, STEPS, Setting, Task
from instantstyle.model import Model
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.images import encode_png, image_grid

__all__ = ["NO_REFERENCE", "VAE_ORACLE", "MethodResult", "MetricValidity", "evaluate", "validate_metrics"]
LogFn = Callable[[str], None]
CostTotals = Mapping[str, tuple[Mapping[str, int], float]]
"""For each name the pictures it was asked for, by what for, and the core seconds they cost."""


def evaluate(
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
    say: LogFn = print,
    watch: ProgressFn | None = None,
) -> Path:
    """Measure methods (by default all there are) on the suite, and write the report.  Returns the path of report.md.

    `count`: at most so many questions a cell.  `pictures`: where drawings are kept, by default beside the report.
    `load` makes the model anew in each of so many `workers`; without it everything is drawn here.
    Raises InputError for a method that does not exist.
    """
    asked = select_tasks(subset, count)
    rows = experiments(asked, subset, methods)
    folder.mkdir(parents=True, exist_ok=True)
    kept = ImageCache(pictures or folder / "pictures", model.weights_fingerprint, steps)
    todo = make_jobs(rows, kept.has)
    if todo:
        say(
            f"{sum(len(job.tasks) for job in todo)} pictures to draw, the work of "
            f"{sum(job.cost for job in todo):.0f} plain ones, in {kept.folder}"
        )
        taken = draw_jobs(kept, todo, model, workers, load, watch)
        say(f"drawn in {taken / 60:.1f} minutes")
    say("measuring")
    bare = kept.get(asked, Setting("none")).pixels
    compared: list[MethodResult] = []
    for name, pixels in baselines(asked, bare, model).items():
        nothing = (0.0, 0.0, 0.0)
        compared.append(MethodResult(name, "control", None, tuple(asked), pixels, *nothing, measure(asked, pixels)))
    drawn = [_entry(kept, row, asked) for row in rows]
    compared = [*(e for e in drawn if e.kind == "control"), *compared, *(e for e in drawn if e.kind == "method")]
    variants = [each for each in drawn if each.kind == "variant"]
    return _write(folder, asked, compared, variants, drawn, _spent(kept, rows), model, steps, subset)


def _entry(kept: ImageCache, row: Experiment, asked: Sequence[Task]) -> MethodResult:
    """A row of the report, measured.  Of the variance block nothing is measured here: it is not about truths."""
    answers = kept.get(row.tasks, row.setting)
    columns: dict[str, Floats] = {}
    if row.kind != "variance":
        columns |= measure(row.tasks, answers.pixels, among=asked)
    if row.swapped:
        places = {q: i for i, q in enumerate(row.tasks)}
        chosen = [places[q] for q in row.swapped]
        swapped = kept.get(row.swapped, replace(row.setting, reference="other")).pixels
        for name, values in swap_columns(row.swapped, answers.pixels[chosen], swapped).items():
            columns[name] = np.full(len(row.tasks), np.nan)
            columns[name][chosen] = values
    fits = [fit for fit in answers.fit_seconds if not np.isnan(fit)]
    cost = answers.seconds, answers.unet_rows, sum(fits) / len(fits) if fits else float("nan")
    return MethodResult(row.name, row.kind, row.setting.sweep_value, row.tasks, answers.pixels, *cost, columns)


def _spent(kept: ImageCache, rows: Sequence[Experiment]) -> CostTotals:
    counted: set[Path] = set()
    spent: dict[str, tuple[dict[str, int], float]] = {}
    for row in rows:
        counts, seconds = spent.get(row.name, ({}, 0.0))
        asked = ((row.kind, row.setting, row.tasks), ("swap", replace(row.setting, reference="other"), row.swapped))
        for kind, way, given in asked:
            for path in {kept.path(q, resolve_experiments(way)) for q in given} - counted:
                counted.add(path)
                own, _, fit = kept.cost(path)
                counts[kind], seconds = counts.get(kind, 0) + 1, seconds + own + (0.0 if np.isnan(fit) else fit)
        spent[row.name] = counts, seconds
    return spent


def _write(
    folder: Path,
    asked: Sequence[Task],
    compared: Sequence[MethodResult],
    variants: Sequence[MethodResult],
    drawn: Sequence[MethodResult],
    spent: CostTotals,
    model: Model,
    steps: int,
    subset: Subset,
) -> Path:
    """Write report.md, report.json, the scores, the curve, and a sheet of pictures for each cell."""
    by_name = {each.name: each.columns for each in compared}
    first = np.array([q.cell == CELLS[0] for q in asked])
    admitted = validate_metrics(by_name, first)
    ranked = [a.measure for a in admitted if a.admitted]
    swept = [each for each in drawn if each.kind == "strength"]
    blocks = [each for each in drawn if each.kind == "variance"]
    fitted = BUDGETS[subset].fitted
    said_in_words = tables.words([*compared, *variants], ranked)
    text = [
        "# The referee's report",
        "",
        f"{len(asked)} questions, set {suite_hash(asked)[:16]}; model {model.source.spec}, weights "
        f"{model.weights_fingerprint[:16]}; {steps} steps, guidance {GUIDANCE:g}. The judge `{HELD_OUT}` was "
        "never used to tune anything. An interval holds 95 of 100 resamplings of whole things and whole styles. "
        "The four cells are never pooled. The way left to the truth is 0 as near as the truth through the "
        "VAE, and 1 as far as without a reference.",
        "",
        "## Which measures may rank methods",
        "",
        "A measure is admitted only if the truth (through the VAE) beats every control on it and copying the reference "
        "does not win it among the controls. Decided in the first cell.",
        "",
        *tables.admission(admitted),
        "",
        f"## In words: {CELLS[0]}",
        "",
        "Differences question by question, with their intervals; one is told only where those of both judges leave out "
        "0. Nothing is corrected for how many are compared.",
        "",
        *said_in_words,
    ]
    if swept:
        write_atomic(folder / "curve.png", encode_png(_curve(compared, swept)))
        text += [
            "",
            "## Every method over its one strength",
            "",
            "The same number of tries for every method, in the first cell. Up is better, left leaks less: by how many "
            "nats the judge finds the reference's content likelier than that of other references.",
            "",
            "![Both right against leakage, for every method over its strength](curve.png)",
            "",
            *tables.sweep(swept),
            "",
            f"At the strength that the judge `strokes` likes most; the figures are those of `{HELD_OUT}`.",
            "",
            *tables.best(swept),
        ]
    if variants:
        own = [
            each for each in compared if each.name in (tables.OURS, tables.THEIRS, NO_REFERENCE, VAE_ORACLE, "truth")
        ]
        text += [
            "",
            "## What subtraction adds, and other plans",
            "",
            f"InstantStyle in the first cell, nothing subtracted in the row `{tables.OURS}`. Content is the true word "
            "for what the reference shows, or with `auto` the one that the model's own CLIP finds.",
            "",
            *tables.right([*own, *variants], CELLS[0], ranked),
            "",
            *tables.leaks([*own, *variants], CELLS[0]),
            *tables.paired([*own, *variants], CELLS[0], ranked),
        ]
    for number, cell in enumerate(CELLS):
        there = [each for each in compared if each.of(cell).any()]
        if not there:
            continue
        name = f"sheet-{number + 1}.png"
        write_atomic(folder / name, encode_png(_sheet(compared, cell)))
        text += ["", f"## {cell}", "", *tables.right(there, cell, ranked), "", *tables.beside(there, cell, ranked)]
        text += ["", *tables.leaks(there, cell)]
        text += [*tables.paired(there, cell, ranked), "", f"![{cell}: what each drew]({name})"]
    if blocks:
        truths = np.stack([q.truth for q in factorial_block()])
        real = MethodResult("truth", "variance", None, tuple(factorial_block()), truths, 0.0, 0.0, 0.0, {})
        text += [
            "",
            "## Whose the variance is",
            "",
            f"Shares (eta squared) of a full factorial block in what the judge `{HELD_OUT}` sees. What is where should "
            "be the words', how it is drawn the style's; the reference's content should have no more than the seed.",
            "",
            *tables.variance([real, *blocks]),
        ]
    text += [
        "",
        "## The budget",
        "",
        f"Methods that are fitted to a reference are asked {fitted[0]} questions of the first cell and {fitted[1]} of "
        "each other, and fits are shared by all strengths. Seconds are of one core, for pictures drawn together.",
        "",
        *tables.budget(spent),
    ]
    scores = write_scores(folder, [*compared, *(e for e in drawn if e.kind in ("variant", "strength"))])
    text += ["", f"Every picture's measures: [{scores.name}]({scores.name})."]
    said = {
        "set": suite_hash(asked),
        "questions": len(asked),
        "model": model.source.spec,
        "weights": model.weights_fingerprint,
        "steps": steps,
        "guidance": GUIDANCE,
        "subset": subset,
        "held out": HELD_OUT,
        "admitted": ranked,
        "words": said_in_words,
        "pairs": tables.pairs(compared),
        "entries": tables.figures([*compared, *variants, *swept], ranked),
        "curve": bool(swept),
    }
    write_atomic(folder / "report.json", f"{json.dumps(said, indent=1)}\n".encode())
    return write_atomic(folder / "report.md", ("\n".join(text) + "\n").encode())


def _curve(compared: Sequence[MethodResult], swept: Sequence[MethodResult]) -> Image.Image:
    """Both right against leakage in the first cell, by two judges."""
    by_name, cell = {each.name: each for each in compared}, CELLS[0]
    panels: list[Panel] = []
    for name in (HELD_OUT, "strokes"):

        def point(each: MethodResult, label: str, name: str = name) -> Point:
            return Point(each.interval(f"excess nats, {name}", cell), each.interval(f"both right, {name}", cell), label)

        lines: list[Line] = []
        for method in dict.fromkeys(each.name for each in swept):
            tried = [each for each in swept if each.name == method]
            ends = (tried[0], tried[-1])
            lines.append(Line(method, [point(e, f"{e.strength:g}" if e in ends else "") for e in tried]))
        ceiling = by_name[VAE_ORACLE].mean(f"both right, {name}", cell)
        panels.append(
            Panel(
                f"the judge {name}{', never used for tuning' if name == HELD_OUT else ''}",
                "leakage: the reference's content above chance, nats",
                "style and content both right",
                lines,
                [point(by_name[NO_REFERENCE], NO_REFERENCE)],
                [("real pictures", ceiling)],
            )
        )
    return curves(panels)


def _sheet(compared: Sequence[MethodResult], cell: str, most: int = 6) -> Image.Image:
    """A row a question, those first that everybody was asked; reference, truth, controls, methods."""
    shown = [each for each in compared if each.name not in (REFERENCE_COPY, VAE_ORACLE, "truth")]
    asked = [q for q in compared[0].tasks if q.cell == cell]
    asked.sort(key=lambda q: -sum(q in each.rows for each in shown))
    styles = list({repr(q.style): q for q in reversed(asked[: 2 * most])}.values())[::-1]
    chosen = [*styles, *(q for q in asked if q not in styles)][:most]
    pictures = [
        [
            Image.fromarray(q.reference),
            Image.fromarray(q.truth),
            *(Image.fromarray(e.pixels[e.rows[q]]) if q in e.rows else None for e in shown),
        ]
        for q in chosen
    ]
    labels = [f"{q.words}\nlike this {q.reference_content}" for q in chosen]
    return image_grid(pictures, rows=labels, columns=["reference", "truth", *(each.name for each in shown)], cell=112)
