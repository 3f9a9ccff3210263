"""The page of `claim.py`: which measures are compared, their intervals and paired differences, and the figure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from instantstyle.evaluate.classifiers import HELD_OUT
from instantstyle.evaluate.measurements import measure_bounds
from instantstyle.evaluate.metrics import Interval, bootstrap
from instantstyle.evaluate.plots import plot_intervals
from instantstyle.evaluate.tables import format_interval
from instantstyle.evaluate.tasks import Task
from instantstyle.utils.markdown import markdown_table

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, Floats]
"""The measures of one training, [tasks] each."""

ARMS: Mapping[str, tuple[str, Literal["same", "paired"]]] = {
    "mute": ("all", "same"),
    "style": ("style", "same"),
    "paired": ("style", "paired"),
}
"""The trained blocks and the reference of each training sample, by arm."""
MEASURES = {
    f"content right, {HELD_OUT}": "content right",
    f"style right, {HELD_OUT}": "treatment right",
    f"four-way right, {HELD_OUT}": "four-way right",
    "ground lightness off": "lightness off",
    "ground colour off": "colour off",
    f"excess nats, {HELD_OUT}": "leak, nats",
}
"""What is compared, by the measure's name and the page's.  The last three are better when smaller."""


def compared(columns: Mapping[str, npt.NDArray[Any]]) -> Columns:
    """The compared measures, from all measures of the suite."""
    error = {axis: columns[f"ground {axis}"] - columns[f"reference ground {axis}"] for axis in "Lab"}
    errors = {"ground lightness off": np.abs(error["L"]), "ground colour off": np.hypot(error["a"], error["b"])}
    every = {**columns, **errors}
    return {name: np.asarray(every[name], np.float64) for name in MEASURES}


def interval(values: Sequence[Floats], tasks: Sequence[Task], bounds: tuple[float, float]) -> Interval:
    """The mean over seeds and tasks, clustered by content, style and seed."""
    seeds = len(values)
    clusters: dict[str, Sequence[object]] = {
        "content": [task.target for _ in range(seeds) for task in tasks],
        "style": [repr(task.style) for _ in range(seeds) for task in tasks],
    }
    if seeds > 1:
        clusters["seed"] = [seed for seed in range(seeds) for _ in tasks]
    return bootstrap(np.concatenate(values), clusters, bounds)


def means(scores: Mapping[str, Sequence[Columns]], tasks: Sequence[Task]) -> Mapping[str, Mapping[str, Interval]]:
    """Each arm's measures with their intervals."""
    return {
        arm: {m: interval([each[m] for each in found], tasks, measure_bounds(m)) for m in MEASURES}
        for arm, found in scores.items()
    }


def figure(scores: Mapping[str, Sequence[Columns]], tasks: Sequence[Task]) -> Image.Image:
    """The same as a figure: a small plot a measure, an interval an arm."""
    found = means(scores, tasks)
    return plot_intervals(list(found), {MEASURES[m]: [each[m] for each in found.values()] for m in MEASURES})


def page(scores: Mapping[str, Sequence[Columns]], tasks: Sequence[Task], notes: Sequence[str]) -> str:
    """The page's tables: each arm's intervals, their paired differences to `mute`, and each seed."""
    header = ["", *MEASURES.values()]
    rows = [[arm, *map(str, each.values())] for arm, each in means(scores, tasks).items()]
    single = [
        [f"{arm} {seed}", *(f"{np.nanmean(each[m]):.2f}" for m in MEASURES)]
        for arm, found in scores.items()
        if arm in (*ARMS, "loud")
        for seed, each in enumerate(found)
    ]
    differences = {
        arm: {
            m: interval(
                [a[m] - b[m] for a, b in zip(scores[arm], scores["mute"], strict=True)],
                tasks,
                (measure_bounds(m)[0] - measure_bounds(m)[1], measure_bounds(m)[1] - measure_bounds(m)[0]),
            )
            for m in MEASURES
        }
        for arm in ("style", "paired", "loud")
    }
    difference_rows = [
        [f"{arm} - mute", *(format_interval(i, sign=True) for i in found.values())]
        for arm, found in differences.items()
    ]
    return "\n".join(
        [
            "# All blocks then mute, or the style blocks alone?",
            "",
            *notes,
            "",
            "Means and 95 % intervals over questions and seeds; things, styles and seeds are resampled, and of seeds "
            "there are few. Of the first three measures more is better, of the others less: *off* is how far the "
            "background is from the reference's, in Lab; *leak* how much likelier the classifier finds what the "
            "reference shows than what other references show.",
            "",
            *markdown_table(header, rows),
            "",
            "## Apart from `mute`, question by question",
            "",
            *markdown_table(header, difference_rows),
            "",
            *(f"- {arm}: {_verdict(found)}" for arm, found in differences.items()),
            "",
            "## Seed by seed",
            "",
            *markdown_table(header, single),
            "",
        ]
    )


def _verdict(found: Mapping[str, Interval]) -> str:
    different = [f"{MEASURES[m]} {each.mean:+.2f}" for m, each in found.items() if each.excludes_zero]
    alike = [MEASURES[m] for m, each in found.items() if each.low <= 0 <= each.high]
    return f"told apart by {', '.join(different) or 'nothing'}; not told apart by {', '.join(alike) or 'nothing'}"
