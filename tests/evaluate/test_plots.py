"""Figures show the numbers they are given: matplotlib's own artists are read back, and images are looked at."""

import math
from typing import Any

import pytest
from PIL import Image

from instantstyle.evaluate import plots
from instantstyle.evaluate.metrics import Interval
from instantstyle.evaluate.plots import COLOURS, Line, Panel, Point, plot_bars, plot_curves, plot_intervals


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are turned into images, in order."""
    drawn: list[Any] = []
    to_image = plots._to_image  # pyright: ignore[reportPrivateUsage]

    def record(figure: Any) -> Image.Image:
        drawn.append(figure)
        return to_image(figure)

    monkeypatch.setattr(plots, "_to_image", record)
    return drawn


def test_curves_connect_their_points_in_the_series_colour_in_every_panel(figures: list[Any]) -> None:
    points = [Point(_exactly(0.1), Interval(0.2, 0.1, 0.4)), Point(_exactly(0.5), Interval(0.9, -math.inf, math.inf))]
    lines = [Line("a", points), Line("b", points[:1])]
    panel = Panel("p", "leakage", "right", lines, [Point(_exactly(0.0), _exactly(0.0), "bare")], [("truth", 0.95)])
    image = plot_curves([panel, Panel("q", "x", "y", lines[1:])])
    assert image.width > image.height > 300
    first, second = figures[0].axes
    assert (first.get_xlabel(), first.get_ylabel(), first.get_title()) == ("leakage", "right", "p")
    named = {line.get_label(): line for line in first.get_lines()}
    assert named["a"].get_xydata().tolist() == [[0.1, 0.2], [0.5, 0.9]]
    assert named["a"].get_color() == COLOURS[0]
    same = {line.get_label(): line for line in second.get_lines()}["b"]
    assert (named["b"].get_color(), named["b"].get_marker()) == (same.get_color(), same.get_marker())
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "b"]
    assert {text.get_text() for text in first.texts} >= {"bare", "truth"}


def test_error_bars_reach_the_ends_of_their_intervals(figures: list[Any]) -> None:
    plot_curves([Panel("p", "x", "y", [Line("a", [Point(Interval(0.5, 0.3, 0.6), Interval(0.2, 0.1, 0.4))])])])
    ends = [segment.round(6).tolist() for bars in figures[0].axes[0].collections for segment in bars.get_segments()]
    assert [[0.3, 0.2], [0.6, 0.2]] in ends
    assert [[0.5, 0.1], [0.5, 0.4]] in ends


def test_bars_are_as_high_as_their_numbers_and_nan_is_none(figures: list[Any]) -> None:
    plot_bars("t", ["one", "two", "three"], [("s", [0.2, 0.8, math.nan]), ("r", [-0.1, 0.0, 0.1])])
    first, second = figures[0].axes
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in first.patches] == [
        pytest.approx((0, 0.2)),
        pytest.approx((1, 0.8)),
    ]
    assert [label.get_text() for label in second.get_xticklabels()] == ["one", "two", "three"]
    assert min(bar.get_y() + bar.get_height() for bar in second.patches) < 0


def test_intervals_have_a_row_each(figures: list[Any]) -> None:
    found = [Interval(0.5, 0.4, 0.7), Interval(math.nan, math.nan, math.nan), _exactly(0.1)]
    plot_intervals(["x", "y", "z"], {f"measure {i}": found for i in range(4)})
    drawn = [ax for ax in figures[0].axes if ax.axison]
    assert len(drawn) == 4
    assert [label.get_text() for label in drawn[0].get_yticklabels()] == ["x", "y", "z"]
    segments = [s.round(6).tolist() for bars in drawn[0].collections for s in bars.get_segments()]
    assert segments[0] == [[0.4, 0.0], [0.7, 0.0]]
    assert len(segments) == 2, "nothing for NaN"
