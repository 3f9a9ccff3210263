"""The comparison's experiments: methods, controls, variants and strengths, each with its tasks and its cost.

Every method gets the same tasks; one that is fitted to each reference gets a stated part of them, since a fit costs as
much as thirty images.  Strengths, variants and the counterfactual swap are run in the first cell.
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
"""Names of the controls that are generated, as reports have them."""
ExperimentKind = Literal["control", "method", "variant", "strength", "variance"]
Subset = Literal["all", "small"]
KNOWN = tuple(name for name in METHODS if name != "none")
"""Methods that can be compared."""

JOB_SIZE = 18
"""Images a job generates together: half a cell."""


@dataclass(frozen=True)
class Experiment:
    """One row of the report before it is run: a setting and its tasks."""

    name: str
    kind: ExperimentKind
    setting: Setting
    tasks: tuple[Task, ...]
    swapped: tuple[Task, ...] = ()
    """Those of the tasks that are also run with a reference of other content in the same style."""


@dataclass(frozen=True)
class Budget:
    """How much a subset runs; each number was chosen for its time before anything was measured."""

    fitted: tuple[int, int]
    """Tasks of the first cell, and of each other, for methods that are fitted to a reference."""
    strengths: int
    """Strengths of every method's sweep beside the published one."""
    swept: Sequence[str] | None
    """Methods whose strength is swept; None: all."""
    variants: Sequence[str] | None
    """Variants by the end of their names; None: all."""
    variance: bool
    """Whether the variance block is run."""


BUDGETS: Mapping[Subset, Budget] = {
    "all": Budget((12, 6), 4, None, None, True),
    "small": Budget((2, 0), 2, ("instantstyle", "ip-adapter"), ("- content (paper 0.5)", "(precise)"), False),
}


def select_tasks(subset: Subset, count: int | None = None) -> list[Task]:
    """The tasks of a subset; `count`: at most so many a cell."""
    tasks = evaluation_suite(subset == "small")
    return tasks if count is None else subsample(tasks, count)


def method_variants() -> list[Setting]:
    """InstantStyle with content subtracted by each variant, of the true content or of what CLIP finds, and with its
    other plans."""
    variants = ("paper", "normalised", "projected", "masked")
    given = [Setting(subtraction=v, content_weight=1.0 if v in ("projected", "masked") else 0.5) for v in variants]
    auto = [replace(setting, content="auto") for setting in (given[0], given[2])]
    return [*given, *auto, *(Setting(plan=plan) for plan in ("all", "style+layout", "precise"))]


def experiments(
    tasks: Sequence[Task], subset: Subset = "all", methods: Sequence[str] | None = None
) -> list[Experiment]:
    """All experiments of the report.  Raises InputError for a method that does not exist."""
    for name in methods or ():
        if name not in KNOWN:
            raise InputError(f"there is no method {name!r}: give some of {', '.join(KNOWN)}{did_you_mean(name, KNOWN)}")
    budget, chosen = BUDGETS[subset], list(methods or KNOWN)
    every, first = tuple(tasks), tuple(task for task in tasks if task.cell == CELLS[0])
    experiments = [
        Experiment(NO_REFERENCE, "control", Setting("none"), every),
        Experiment(STYLE_IN_PROMPT, "control", Setting("none", style_in_prompt=True), every),
        Experiment(WRONG_STYLE, "control", Setting(reference="wrong"), every),
        Experiment(GREY_REFERENCE, "control", Setting(reference="blank"), every),
    ]
    for name in chosen:
        own = every if name not in FITTED else _fitted_part(tasks, *budget.fitted)
        swapped = tuple(task for task in own if task.cell == CELLS[0])
        experiments.append(Experiment(name, "method", Setting(name), own, swapped))
    for name in chosen:
        if METHODS[name].strength is not None and (budget.swept is None or name in budget.swept):
            own = first if name not in FITTED else _fitted_part(first, *budget.fitted)
            for value in _strengths(name, budget.strengths):
                experiments.append(Experiment(name, "strength", Setting(name, strength=value), own))
    if "instantstyle" in chosen:
        for setting in method_variants():
            if budget.variants is None or any(setting.name.endswith(name) for name in budget.variants):
                experiments.append(Experiment(setting.name, "variant", setting, first))
    if budget.variance:
        experiments += [Experiment(name, "variance", Setting(name), tuple(factorial_block())) for name in chosen]
    return experiments


def _strengths(method: str, count: int) -> list[float]:
    """The published strength and `count` others, the same number for every method."""
    sweep = METHODS[method].strength
    assert sweep is not None
    others = [value for value in sweep.values if value != sweep.default]
    places = np.linspace(0, len(others) - 1, min(count, len(others))).round().astype(int)
    return sorted({sweep.default, *(others[int(i)] for i in places)})


def _fitted_part(tasks: Sequence[Task], first: int, others: int) -> tuple[Task, ...]:
    """At most `first` tasks of the first cell and `others` of each other."""
    chosen = {task for task in subsample(tasks, others) if task.cell != CELLS[0]}
    chosen |= {task for task in subsample(tasks, first) if task.cell == CELLS[0]}
    return tuple(task for task in tasks if task in chosen)


@dataclass(frozen=True)
class Job:
    """Tasks that are run together in one setting."""

    setting: Setting
    tasks: tuple[Task, ...]
    cost: float
    """Estimated, in plain images."""


def make_jobs(experiments: Sequence[Experiment], is_cached: Callable[[Task, Setting], bool]) -> list[Job]:
    """What is left to run: each (task, setting) once, cached ones left out, the costliest jobs first.

    Workers end at about the same time when long jobs come first; and jobs that share a fit come after the one that
    makes it.
    """
    wanted: dict[Setting, dict[Task, None]] = {}
    for experiment in experiments:
        for setting, tasks in (
            (experiment.setting, experiment.tasks),
            (replace(experiment.setting, reference="other"), experiment.swapped),
        ):
            wanted.setdefault(setting.resolved(), {}).update(dict.fromkeys(tasks))
    jobs: list[Job] = []
    fitted: set[tuple[str, object, str]] = set()
    for setting, tasks in wanted.items():
        left = [task for task in tasks if not is_cached(task, setting)]
        size = math.ceil(JOB_SIZE / 6) if setting.method in FITTED else JOB_SIZE
        parts = math.ceil(len(left) / size)
        for part in range(parts):
            chunk = tuple(left[part * len(left) // parts : (part + 1) * len(left) // parts])
            cost = METHODS[setting.method].cost * len(chunk)
            if setting.method in FITTED:
                other = setting.reference == "other"
                fits = {
                    (setting.method, task.style, task.swap_content if other else task.reference_content)
                    for task in chunk
                }
                cost += METHODS[setting.method].fit_cost * len(fits - fitted)
                fitted |= fits
            jobs.append(Job(setting, chunk, cost))
    return sorted(jobs, key=lambda job: -job.cost)
