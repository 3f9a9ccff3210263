"""Acceptance scores of successive built-in models by training samples, and an extrapolation to the floors.

    python benchmarks/curve.py [--floors benchmarks/results/curve] [--out benchmarks/results/curve.md]

Each file of the folder is written by `python -m instantstyle.evaluate.acceptance --out FOLDER/SAMPLES.md`, its name the
samples of the model's stage `joint`.  Successive models differ in more than samples (see benchmarks/LOG.md), so the
line describes a history and is no scaling law.
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
SCORES = {"treatment family right": 96, "both right": 96, "drawing set right": 48}
"""The scores, and how many tasks are behind each number of the committed files."""
Rows = Mapping[tuple[str, str], Mapping[str, Any]]

HEAD = """# What more training buys

`python benchmarks/curve.py`: the floors of successive models on the same held-out cells, beside those of true
images, with 95 % intervals.  The last column is a straight line through the logarithm of the samples: how many
samples reach the floor if nothing else changes, with the hours that two shared cores need for them (at {speed:.0f}
samples a second, the pace of the last training).  A line through {models} models is a guess, no promise.

![curve](curve.png)

| what | measured by | {heads} | floor | real pictures | a doubling adds | floor reached at |
|---|---|{dashes}---|---|---|---|
"""


def read(folder: Path) -> dict[int, Rows]:
    """The checks of every model, by its samples."""
    models: dict[int, Rows] = {}
    for file in sorted(folder.glob("*.json")):
        rows: Sequence[Mapping[str, Any]] = json.loads(file.read_text("utf-8"))
        models[int(file.stem)] = {(row["what"], row["judge"]): row for row in rows}
    if len(models) < 2:
        raise SystemExit(f"error: {folder} holds the floors of {len(models)} models: a curve needs two at least")
    return models


def fit_log2(samples: Sequence[int], shares: Sequence[float]) -> tuple[float, float]:
    """Least squares of a share on log2(samples): what a doubling adds, and the share at one sample."""
    slope, start = np.polyfit(np.log2(np.array(samples, float)), np.array(shares), 1)
    return float(slope), float(start)


def samples_to_reach(floor: float, slope: float, start: float) -> float:
    """Samples at which the line reaches the floor; infinite where it does not rise."""
    return math.inf if slope <= 0 else 2.0 ** min((floor - start) / slope, 1000.0)


def table(models: Mapping[int, Rows], speed: float) -> str:
    """The page."""
    lines: list[str] = []
    for what in SCORES:
        for classifier in CLASSIFIERS:
            rows = [model[what, classifier] for model in models.values()]
            shares = [float(row["figure"]) for row in rows]
            slope, start = fit_log2(list(models), shares)
            need, last = samples_to_reach(rows[-1]["floor"], slope, start), max(models)
            when = (
                "reached"
                if shares[-1] >= rows[-1]["floor"]
                else "not by more of the same"
                if need > 100 * last
                else f"{need / 1e6:.1f} million, {max(need - last, 0) / speed / 3600:.0f} h more"
            )
            cells = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(
                f"| {what} | {classifier} | {cells} | {rows[-1]['floor']:.2f} | {rows[-1]['ceiling']:.2f} "
                f"| {slope:+.2f} | {when} |"
            )
    heads = " | ".join(f"{count / 1e6:.2f} million" for count in models)
    return HEAD.format(speed=speed, models=len(models), heads=heads, dashes="---|" * len(models)) + "\n".join(lines)


def figure(models: Mapping[int, Rows]) -> list[Panel]:
    """A panel for each score, a line for each classifier, the floors as levels."""
    panels: list[Panel] = []
    for what, count in SCORES.items():
        lines: list[Line] = []
        for classifier in CLASSIFIERS:
            points: list[Point] = []
            for samples, model in models.items():
                share = float(model[what, classifier]["figure"])
                x = Interval(samples / 1e6, samples / 1e6, samples / 1e6)
                points.append(Point(x, Interval(share, *wilson(round(share * count), count))))
            lines.append(Line(classifier, points))
        last = models[max(models)]
        floors = sorted({float(last[what, classifier]["floor"]) for classifier in CLASSIFIERS}, reverse=True)
        levels = [("floor" if number == 0 else "", level) for number, level in enumerate(floors)]
        panels.append(Panel(what, "samples, millions", "share of held-out cells", lines, levels=levels))
    return panels


def main() -> None:
    """Read, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floors", type=Path, default=RESULTS / "curve")
    parser.add_argument("--speed", type=float, default=190.0, help="samples a second, for the hours")
    parser.add_argument("--out", type=Path, default=RESULTS / "curve.md")
    args = parser.parse_args()
    models = read(args.floors)
    write_png(plot_curves(figure(models), (4.4, 4.4)), args.out.with_suffix(".png"))
    write_atomic(args.out, (table(models, args.speed) + "\n").encode())
    print(f"{args.out} and its figure")


if __name__ == "__main__":
    main()
