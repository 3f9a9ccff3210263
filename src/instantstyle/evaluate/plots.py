# pyright: reportUnknownMemberType=false
"""Figures of the report, drawn by matplotlib: curves with error bars, bars, and intervals.

Every series keeps its colour and marker by its place in the list, so that a method looks the same in all panels.
Numbers that are NaN are left out.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from instantstyle.evaluate.metrics import Interval
from instantstyle.utils.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a3fa0", "#8c6d1f", "#555555")
"""Okabe and Ito's colours (jfly.uni-koeln.de/color), told apart with colour vision deficiency, and three more."""
MARKERS = ("o", "s", "D", "^", "v", "p", "h", "<", ">")
DPI = 150
_STYLE = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e2e2e2",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Point:
    """A point with the intervals of both coordinates."""

    x: Interval
    y: Interval
    label: str = ""
    """Text beside the marker."""


@dataclass(frozen=True)
class Line:
    """Points of one series, connected in their order."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One plot: lines, single points, and horizontal levels by name."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    points: Sequence[Point] = ()
    levels: Sequence[tuple[str, float]] = ()


def plot_curves(panels: Sequence[Panel], panel_size: tuple[float, float] = (6.2, 5.2)) -> Image.Image:
    """Panels side by side with one legend at the right; `panel_size` is width and height of each in inches."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    with _style():
        figure, axes = _figure(1, len(panels), (panel_size[0] * len(panels) + 1.6, panel_size[1]))
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, names)
        handles = {h.get_label(): h for ax in axes for h in ax.get_legend_handles_labels()[0]}
        figure.legend([handles[name] for name in names if name in handles], names, loc="outside right center")
        return _to_image(figure)


def _draw_panel(ax: "Axes", panel: Panel, names: Sequence[str]) -> None:
    ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    for name, level in panel.levels:
        if not math.isnan(level):
            ax.axhline(level, color="#222222", linestyle="--", linewidth=0.9)
            ax.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    for line in panel.lines:
        index = names.index(line.name)
        colour, points = COLOURS[index % len(COLOURS)], _known(line.points)
        _error_bars(ax, points, ecolor=colour, fmt="none", elinewidth=1.2, alpha=0.4)
        x, y = [p.x.mean for p in points], [p.y.mean for p in points]
        marker = MARKERS[index % len(MARKERS)]
        ax.plot(x, y, color=colour, marker=marker, markersize=6, markeredgecolor="white", label=line.name)
        _annotate(ax, points, colour)
    points = _known(panel.points)
    _error_bars(ax, points, color="#222222", fmt="x", markersize=7, elinewidth=0.8, alpha=0.8)
    _annotate(ax, points, "#222222")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))  # shares: without 0 their differences look larger than they are


def _error_bars(ax: "Axes", points: Sequence[Point], **style: Any) -> None:
    """Crosses of the points' intervals; an infinite end is drawn as none."""

    def ends(intervals: Sequence[Interval]) -> list[list[float]]:
        both = [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
        return [[each if math.isfinite(each) else 0.0 for each in side] for side in both]

    if points:
        xs, ys = [p.x for p in points], [p.y for p in points]
        ax.errorbar([x.mean for x in xs], [y.mean for y in ys], xerr=ends(xs), yerr=ends(ys), **style)


def _annotate(ax: "Axes", points: Sequence[Point], colour: str) -> None:
    halo = import_extra("matplotlib.patheffects", "evaluate").withStroke(linewidth=2, foreground="white")
    for point in points:
        if point.label:
            ax.annotate(
                point.label,
                (point.x.mean, point.y.mean),
                xytext=(6, 5),
                textcoords="offset points",
                color=colour,
                fontsize=8.5,
                path_effects=[halo],
            )


def _known(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if not math.isnan(p.x.mean + p.y.mean)]


def plot_bars(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> Image.Image:
    """One plot a series, below each other, with a bar for each group."""
    with _style():
        figure, axes = _figure(len(series), 1, (max(4.5, 1.2 + 0.7 * len(groups)), 0.8 + 1.9 * len(series)))
        for number, (ax, (name, values)) in enumerate(zip(axes, series, strict=True)):
            known = [(i, value) for i, value in enumerate(values) if not math.isnan(value)]
            bars = ax.bar([i for i, _ in known], [value for _, value in known], 0.66, color=COLOURS[number])
            ax.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
            ax.axhline(0, color="#222222", linewidth=0.9)
            ax.margins(y=0.2)
            ax.set_title(name, loc="left", fontsize=10)
            ax.grid(False, axis="x")
            rotation = 0 if len(groups) <= 14 else 90
            ax.set_xticks(range(len(groups)), groups if ax is axes[-1] else [""] * len(groups), rotation=rotation)
            ax.set_xlim(-0.6, len(groups) - 0.4)
        figure.suptitle(title)
        return _to_image(figure)


def plot_intervals(rows: Sequence[str], plots: Mapping[str, Sequence[Interval]], columns: int = 3) -> Image.Image:
    """Small plots, `columns` side by side: for each row a horizontal interval with its mean marked."""
    count = math.ceil(len(plots) / columns)
    with _style():
        figure, axes = _figure(count, min(columns, len(plots)), (3.4 * min(columns, len(plots)) + 0.6, 2.9 * count))
        for ax, (title, images) in zip(axes, plots.items(), strict=False):
            for row, each in enumerate(images):
                if not math.isnan(each.mean):
                    style: dict[str, Any] = {
                        "color": COLOURS[row % len(COLOURS)],
                        "marker": MARKERS[row % len(MARKERS)],
                    }
                    ends = [[each.mean - each.low], [each.high - each.mean]]
                    ax.errorbar([each.mean], [row], xerr=ends, linestyle="none", elinewidth=2, **style)
            ax.set_title(title, fontsize=11)
            ax.set_yticks(range(len(rows)), rows)
            ax.set_ylim(len(rows) - 0.5, -0.5)
        for ax in axes[len(plots) :]:
            ax.set_axis_off()
        return _to_image(figure)


def _style() -> Any:
    return import_extra("matplotlib", "evaluate").rc_context(_STYLE)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure without pyplot, which would keep it in a global list, and its axes in reading order."""
    figure: Figure = import_extra("matplotlib.figure", "evaluate").Figure(size, dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()


def _to_image(figure: "Figure") -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        return image.convert("RGB")
