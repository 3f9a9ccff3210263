"""Figures say what they are given: ticks are round, marks stand where their numbers are, bars are as high."""

import math

import numpy as np
import pytest

from instantstyle.evaluate.metrics import Interval
from instantstyle.evaluate.plots import COLOURS, Line, Panel, Point, bars, curves, ticks


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


def _of(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a colour is, [n, (row, column)]."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.argwhere(np.abs(picture.astype(int) - rgb).max(-1) < 6)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-0.3, 0.7, [-0.2, 0, 0.2, 0.4, 0.6]), (3, 47, [10, 20, 30, 40])],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)


def test_marks_stand_in_the_order_of_their_numbers() -> None:
    """Three methods of one point each: further right is larger x, further up is larger y."""
    places = {"a": (0.1, 0.2), "b": (0.5, 0.9), "c": (0.9, 0.5)}
    lines = [Line(name, [Point(_exactly(x), _exactly(y))]) for name, (x, y) in places.items()]
    drawn = np.asarray(curves([Panel("p", "x", "y", lines)], width=400, height=300))[:, :396]  # without the legend
    middles = {name: _of(drawn, colour).mean(0) for name, colour in zip(places, COLOURS, strict=False)}
    assert middles["a"][1] < middles["b"][1] < middles["c"][1]
    assert middles["b"][0] < middles["c"][0] < middles["a"][0]
    across = (middles["b"][1] - middles["a"][1]) / (middles["c"][1] - middles["a"][1])
    assert across == pytest.approx(0.5, abs=0.03)


def test_bars_are_as_high_as_their_numbers_and_nan_is_none() -> None:
    drawn = np.asarray(bars("t", ["one", "two", "three"], [("s", [0.2, 0.8, math.nan])]))
    places = _of(drawn, COLOURS[0])
    places = places[places[:, 0] > 70]  # the series' name stands above, in its colour
    low, high = (places[places[:, 1] // 62 == column][:, 0] for column in (1, 2))
    assert np.ptp(high) / np.ptp(low) == pytest.approx(4, rel=0.1)
    assert not (places[:, 1] > 64 + 2 * 62 + 10).any()
