"""What more training bought, and what more would buy: the floors of successive built-in models by samples seen.

    python benchmarks/curve.py [--floors benchmarks/results/curve] [--out benchmarks/results/curve.md]

Each file of the folder is what `python -m instantstyle.evaluate.acceptance --out FOLDER/SAMPLES.md` says of a model,
its name the samples of the stage `joint` behind it.  Models in a row differ in more than samples (benchmarks/LOG.md
says in what), so the line is what a day's work bought and no law.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instantstyle.evaluate.acceptance import CLASSIFIERS
from instantstyle.evaluate.metrics import Interval, wilson
from instantstyle.evaluate.plots import Line, Panel, Point, plot_curves
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.images import write_png

RESULTS = Path(__file__).resolve().parent / "results"
QUESTIONS = {"treatment family right": 96, "both right": 96, "drawing set right": 48}
"""What is followed, and how many questions stand behind each figure of the committed floors."""
Rows = Mapping[tuple[str, str], Mapping[str, Any]]

HEAD = """# What more training buys

`python benchmarks/curve.py`: the floors of successive models on the same held-out cells, beside what the judge says of
real pictures, with 95 % intervals.  The last column is a straight line through the logarithm of the samples: how many
samples reach the floor if nothing else changes, with the hours that two shared cores need for them (at {speed:.0f}
samples a second, the pace of the last training).  A line through {models} models is a guess, no promise.

![curve](curve.png)

| what | judge | {heads} | floor | real pictures | a doubling adds | floor reached at |
|---|---|{dashes}---|---|---|---|
"""


def read(folder: Path) -> dict[int, Rows]:
    """Of every model, by its samples: the rows of its floors."""
    models: dict[int, Rows] = {}
    for file in sorted(folder.glob("*.json")):
        rows: Sequence[Mapping[str, Any]] = json.loads(file.read_text("utf-8"))
        models[int(file.stem)] = {(row["what"], row["judge"]): {"value": row.get("figure"), **row} for row in rows}
    if len(models) < 2:
        raise SystemExit(f"error: {folder} holds the floors of {len(models)} models: a curve needs two at least")
    return models


def doubling(samples: Sequence[int], shares: Sequence[float]) -> tuple[float, float]:
    """Least squares of a share on log2(samples): what a doubling adds, and the share at one sample."""
    slope, start = np.polyfit(np.log2(np.array(samples, float)), np.array(shares), 1)
    return float(slope), float(start)


def reached(floor: float, slope: float, start: float) -> float:
    """Samples at which the line meets the floor; infinite where it does not rise."""
    return math.inf if slope <= 0 else 2.0 ** min((floor - start) / slope, 1000.0)


def table(models: Mapping[int, Rows], speed: float) -> str:
    """The page."""
    lines: list[str] = []
    for what in QUESTIONS:
        for judge in CLASSIFIERS:
            rows = [model[what, judge] for model in models.values()]
            shares = [float(row["value"]) for row in rows]
            slope, start = doubling(list(models), shares)
            need, last = reached(rows[-1]["floor"], slope, start), max(models)
            when = (
                "reached"
                if shares[-1] >= rows[-1]["floor"]
                else "not by more of the same"
                if need > 100 * last
                else f"{need / 1e6:.1f} million, {max(need - last, 0) / speed / 3600:.0f} h more"
            )
            cells = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(
                f"| {what} | {judge} | {cells} | {rows[-1]['floor']:.2f} | {rows[-1]['ceiling']:.2f} "
                f"| {slope:+.2f} | {when} |"
            )
    heads = " | ".join(f"{count / 1e6:.2f} million" for count in models)
    return HEAD.format(speed=speed, models=len(models), heads=heads, dashes="---|" * len(models)) + "\n".join(lines)


def figure(models: Mapping[int, Rows]) -> list[Panel]:
    """A panel for each measure, a line for each judge, the floors across."""
    panels: list[Panel] = []
    for what, count in QUESTIONS.items():
        lines: list[Line] = []
        for judge in CLASSIFIERS:
            points: list[Point] = []
            for samples, model in models.items():
                share = float(model[what, judge]["value"])
                x = Interval(samples / 1e6, samples / 1e6, samples / 1e6)
                points.append(Point(x, Interval(share, *wilson(round(share * count), count))))
            lines.append(Line(judge, points))
        last = models[max(models)]
        floors = sorted({float(last[what, judge]["floor"]) for judge in CLASSIFIERS}, reverse=True)
        levels = [("floor" if number == 0 else "", level) for number, level in enumerate(floors)]
        panels.append(Panel(what, "samples, millions", "share of held-out cells", lines, levels=levels))
    return panels


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floors", type=Path, default=RESULTS / "curve")
    parser.add_argument("--speed", type=float, default=190.0, help="samples a second, for the hours")
    parser.add_argument("--out", type=Path, default=RESULTS / "curve.md")
    given = parser.parse_args()
    models = read(given.floors)
    write_png(plot_curves(figure(models), (4.4, 4.4)), given.out.with_suffix(".png"))
    write_atomic(given.out, (table(models, given.speed) + "\n").encode())
    print(f"{given.out} and its figure")


if __name__ == "__main__":
    main()
