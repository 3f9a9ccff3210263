"""What the comparison asks of whom: methods, controls, variants and strengths, each with its questions and its cost.

Every method is asked the same; a method that must be fitted to each reference is asked a stated part, since a fit costs
as much as thirty pictures.  Strengths, variants and the swap of the reference's content are asked in the first cell.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from instantstyle.errors import InputError, did_you_mean
from instantstyle.evaluate.suite import CELLS, evaluation_suite, factorial_block, subsample
from instantstyle.evaluate.tasks import FITTED, Setting, Task
from instantstyle.methods import METHODS

NO_REFERENCE, WRONG_STYLE, GREY_REFERENCE, STYLE_IN_PROMPT = (
    "no reference",
    "reference of a wrong style",
    "blank reference",
    "style named in words",
)
Kind = Literal["control", "method", "variant", "strength", "variance"]
Subset = Literal["all", "small"]
KNOWN = tuple(name for name in METHODS if name != "none")
"""Methods that can be compared."""

CHUNK = 18
"""Pictures a job draws together: half a cell."""


@dataclass(frozen=True)
class Experiment:
    """One row of the report before it is drawn: who is asked what."""

    name: str
    kind: Kind
    setting: Setting
    tasks: tuple[Task, ...]
    swapped: tuple[Task, ...] = ()
    """Those of the questions that are asked again with a reference of other content in the same style."""


@dataclass(frozen=True)
class Budget:
    """How much a subset asks; each number was chosen before anything was measured, for the time it takes."""

    cells: int
    """Questions a cell, at most; 36 are all."""
    fitted: tuple[int, int]
    """Questions of the first cell, and of each other, for methods that are fitted to a reference."""
    strengths: int
    """Strengths of every method's sweep beside the published one."""
    swept: Sequence[str] | None
    """Methods that are swept; None: all."""
    variants: Sequence[str] | None
    """Variants that are asked, by name; None: all."""
    variance: bool


BUDGETS: Mapping[Subset, Budget] = {
    "all": Budget(36, (12, 6), 4, None, None, True),
    "small": Budget(8, (2, 0), 2, ("instantstyle", "ip-adapter"), ("- content (paper 0.5)", "(precise)"), False),
}


def select_tasks(subset: Subset, count: int | None = None) -> list[Task]:
    """The questions of a subset; `count`: at most so many a cell."""
    asked = evaluation_suite(subset == "small")
    return asked if count is None else subsample(asked, count)


def method_variants() -> list[Setting]:
    """InstantStyle with its content taken out by each of the ways, by the true word or by one that CLIP found, and its
    other plans."""
    hows = ("paper", "normalised", "projected", "masked")
    given = [Setting(subtraction=how, content_weight=1.0 if how in ("projected", "masked") else 0.5) for how in hows]
    auto = [replace(way, content="auto") for way in (given[0], given[2])]
    return [*given, *auto, *(Setting(plan=plan) for plan in ("all", "style+layout", "precise"))]


def experiments(
    asked: Sequence[Task], subset: Subset = "all", methods: Sequence[str] | None = None
) -> list[Experiment]:
    """All rows of the report.  Raises InputError for a method that does not exist."""
    for name in methods or ():
        if name not in KNOWN:
            raise InputError(f"there is no method {name!r}: give some of {', '.join(KNOWN)}{did_you_mean(name, KNOWN)}")
    budget, chosen = BUDGETS[subset], list(methods or KNOWN)
    everything, first = tuple(asked), tuple(q for q in asked if q.cell == CELLS[0])
    rows = [
        Experiment(NO_REFERENCE, "control", Setting("none"), everything),
        Experiment(STYLE_IN_PROMPT, "control", Setting("none", style_in_prompt=True), everything),
        Experiment(WRONG_STYLE, "control", Setting(reference="wrong"), everything),
        Experiment(GREY_REFERENCE, "control", Setting(reference="blank"), everything),
    ]
    for name in chosen:
        given = everything if name not in FITTED else _part(asked, *budget.fitted)
        rows.append(Experiment(name, "method", Setting(name), given, tuple(q for q in given if q.cell == CELLS[0])))
    for name in chosen:
        knob, given = METHODS[name].strength, first if name not in FITTED else _part(first, *budget.fitted)
        if knob is None or (budget.swept is not None and name not in budget.swept):
            continue
        others = [value for value in knob.values if value != knob.default]
        # The same number of tries for every method, from hardly any style to more than was published.
        places = np.linspace(0, len(others) - 1, min(budget.strengths, len(others))).round().astype(int)
        for value in sorted({knob.default, *(others[int(i)] for i in places)}):
            rows.append(Experiment(name, "strength", Setting(name, strength=value), given))
    if "instantstyle" in chosen:
        for way in method_variants():
            if budget.variants is None or any(way.name.endswith(name) for name in budget.variants):
                rows.append(Experiment(way.name, "variant", way, first))
    if budget.variance:
        rows += [Experiment(name, "variance", Setting(name), tuple(factorial_block())) for name in chosen]
    return rows


def _part(asked: Sequence[Task], first: int, others: int) -> tuple[Task, ...]:
    """So many questions of the first cell and so many of each other."""
    chosen = {q for cell in CELLS for q in subsample([q for q in asked if q.cell == cell], others)}
    chosen = {q for q in chosen if q.cell != CELLS[0]}
    chosen |= set(subsample([q for q in asked if q.cell == CELLS[0]], first))
    return tuple(q for q in asked if q in chosen)


@dataclass(frozen=True)
class Job:
    """Questions that are put in one way, together."""

    setting: Setting
    tasks: tuple[Task, ...]
    cost: float
    """About how many plain pictures' time they take."""


def make_jobs(rows: Sequence[Experiment], there: Callable[[Task, Setting], bool]) -> list[Job]:
    """What is left to draw: each (question, way) once, those that are there left out, the costliest jobs first.

    Two workers end together when long jobs come first; and what shares a fit comes after the job that makes it.
    """
    wanted: dict[Setting, dict[Task, None]] = {}
    for row in rows:
        for way, given in ((row.setting, row.tasks), (replace(row.setting, reference="other"), row.swapped)):
            wanted.setdefault(resolve_experiments(way), {}).update(dict.fromkeys(given))
    made: list[Job] = []
    fitted: set[tuple[str, object, str]] = set()
    for way, given in wanted.items():
        left = [q for q in given if not there(q, way)]
        size = math.ceil(CHUNK / 6) if way.method in FITTED else CHUNK
        parts = math.ceil(len(left) / size)
        for part in range(parts):
            chunk = tuple(left[part * len(left) // parts : (part + 1) * len(left) // parts])
            cost = METHODS[way.method].cost * len(chunk)
            if way.method in FITTED:
                fits = {
                    (way.method, q.style, q.swap_content if way.reference == "other" else q.reference_content)
                    for q in chunk
                }
                cost += METHODS[way.method].fit_cost * len(fits - fitted)
                fitted |= fits
            made.append(Job(way, chunk, cost))
    return sorted(made, key=lambda job: -job.cost)


def resolve_experiments(way: Setting) -> Setting:
    """The way with its strength said: what is the same to a model is the same way."""
    return replace(way, strength=way.sweep_value)
