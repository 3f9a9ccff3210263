"""Figures without a plotting library: curves with error bars, bars, and intervals, drawn large and made smaller so that
they are smooth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from instantstyle.evaluate.metrics import Interval

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a3fa0", "#8c6d1f", "#555555")
"""Okabe and Ito's, which people who see fewer colours tell apart, and three more."""
INK, FAINT = "#222222", "#dddddd"
_UP = 3
"""How much larger everything is drawn."""
Number = int | float
Xy = tuple[Number, Number]


@dataclass(frozen=True)
class Point:
    """A place with the intervals that hold it, and a word beside it."""

    x: Interval
    y: Interval
    label: str = ""


@dataclass(frozen=True)
class Line:
    """Points that belong together, in their order."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One plot: lines, single places, and levels that go across."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    places: Sequence[Point] = ()
    levels: Sequence[tuple[str, float]] = field(default_factory=list[tuple[str, float]])


class _Paper:
    """A picture drawn `_UP` times too large; numbers given are pixels of the result."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _UP, height * _UP), "white")
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[Xy], colour: str = INK, width: Number = 1) -> None:
        self.pen.line([(x * _UP, y * _UP) for x, y in points], colour, max(1, round(width * _UP)), "curve")

    def text(self, at: Xy, said: str, size: Number = 12, colour: str = INK, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * _UP)
        self.pen.text((at[0] * _UP, at[1] * _UP), said, colour, font, anchor=anchor)

    def upright(self, at: Xy, said: str, size: Number = 12) -> None:
        """Text that is read from below, its middle at a place."""
        font = ImageFont.load_default(size * _UP)
        strip = Image.new("RGB", (int(font.getlength(said)) + _UP, round(size * 1.5 * _UP)), "white")
        ImageDraw.Draw(strip).text((0, strip.height // 2), said, INK, font, anchor="lm")
        turned = strip.rotate(90, expand=True)
        self.image.paste(turned, (round(at[0] * _UP - turned.width / 2), round(at[1] * _UP - turned.height / 2)))

    def mark(self, at: Xy, number: int, colour: str, radius: Number = 4) -> None:
        """A disc, a square, a diamond or a triangle, by the number, so that nobody needs the colour."""
        x, y, r = at[0] * _UP, at[1] * _UP, radius * _UP
        match number % 4:
            case 0:
                self.pen.ellipse((x - r, y - r, x + r, y + r), colour, "white")
            case 1:
                self.pen.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), colour, "white")
            case 2:
                corners = [(x, y - r * 1.2), (x + r * 1.2, y), (x, y + r * 1.2), (x - r * 1.2, y)]
                self.pen.polygon(corners, colour, "white")
            case _:
                corners = [(x, y - r * 1.2), (x + r * 1.15, y + r * 0.9), (x - r * 1.15, y + r * 0.9)]
                self.pen.polygon(corners, colour, "white")

    def bar(self, box: tuple[Number, Number, Number, Number], colour: str) -> None:
        left, top, right, bottom = (each * _UP for each in box)
        self.pen.rectangle((left, min(top, bottom), right, max(top, bottom)), colour)

    def done(self) -> Image.Image:
        return self.image.resize((self.image.width // _UP, self.image.height // _UP), Image.Resampling.LANCZOS)


def ticks(low: Number, high: Number, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[Number]) -> tuple[float, float]:
    known = [value for value in values if not math.isnan(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = (high - low) * 0.08 or 0.1
    return low - room, high + room


def curves(panels: Sequence[Panel], width: int = 560, height: int = 460) -> Image.Image:
    """Panels side by side, one legend at the right.  A line's marks are its points, thin crosses their intervals."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    paper = _Paper(width * len(panels) + 150, height)
    for number, panel in enumerate(panels):
        _panel(paper, panel, names, (number * width + 68, 40, (number + 1) * width - 16, height - 58))
    left = width * len(panels) + 6
    for number, name in enumerate(names):
        y, colour = 60 + 24 * number, COLOURS[number % len(COLOURS)]
        paper.line([(left, y), (left + 22, y)], colour, 2)
        paper.mark((left + 11, y), number, colour)
        paper.text((left + 30, y), name)
    return paper.done()


def _panel(paper: _Paper, panel: Panel, names: Sequence[str], box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    points = [*(point for line in panel.lines for point in line.points), *panel.places]
    low_x, high_x = _range([each for p in points for each in (p.x.low, p.x.high, p.x.mean)])
    known = [(name, level) for name, level in panel.levels if not math.isnan(level)]
    levels = [level for _, level in known]
    low_y, high_y = _range([0.0, *levels, *(each for p in points for each in (p.y.low, p.y.high, p.y.mean))])

    def place(x: Number, y: Number) -> Xy:
        across, up = (x - low_x) / (high_x - low_x), (y - low_y) / (high_y - low_y)
        return left + across * (right - left), bottom - up * (bottom - top)

    for x in ticks(low_x, high_x):
        at = place(x, low_y)[0]
        paper.line([(at, top), (at, bottom)], FAINT, 0.7)
        paper.text((at, bottom + 12), f"{x:g}", 11, anchor="mm")
    for y in ticks(low_y, high_y):
        at = place(low_x, y)[1]
        paper.line([(left, at), (right, at)], FAINT, 0.7)
        paper.text((left - 8, at), f"{y:g}", 11, anchor="rm")
    paper.line([(left, top), (left, bottom), (right, bottom)], INK, 1)
    paper.text(((left + right) / 2, top - 20), panel.title, 14, anchor="mm")
    paper.text(((left + right) / 2, bottom + 34), panel.x, 12, anchor="mm")
    paper.upright((left - 50, (top + bottom) / 2), panel.y)
    for name, level in known:
        at = place(low_x, level)[1]
        for x in range(left, right, 10):
            paper.line([(x, at), (min(x + 5, right), at)], INK, 0.8)
        paper.text((right - 4, at - 9), name, 11, anchor="rm")
    for line in panel.lines:
        number = names.index(line.name)
        colour = COLOURS[number % len(COLOURS)]
        there = [p for p in line.points if not math.isnan(p.x.mean + p.y.mean)]
        for p in there:
            pale = _paler(colour)
            paper.line([place(p.x.low, p.y.mean), place(p.x.high, p.y.mean)], pale, 0.8)
            paper.line([place(p.x.mean, p.y.low), place(p.x.mean, p.y.high)], pale, 0.8)
    for line in panel.lines:
        number = names.index(line.name)
        colour = COLOURS[number % len(COLOURS)]
        there = [p for p in line.points if not math.isnan(p.x.mean + p.y.mean)]
        if len(there) > 1:
            paper.line([place(p.x.mean, p.y.mean) for p in there], colour, 1.6)
        for p in there:
            x, y = place(p.x.mean, p.y.mean)
            paper.mark((x, y), number, colour)
            paper.text((x + 7, y - 8), p.label, 9.5, colour)
    for p in panel.places:
        if math.isnan(p.x.mean + p.y.mean):
            continue
        x, y = place(p.x.mean, p.y.mean)
        paper.line([(x - 5, y - 5), (x + 5, y + 5)], INK, 1.6)
        paper.line([(x - 5, y + 5), (x + 5, y - 5)], INK, 1.6)
        paper.text((x + 8, y + 9), p.label, 11)


def bars(
    title: str, rows: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], height: int = 150
) -> Image.Image:
    """For each row a group of bars in each of several small plots, one a series, under each other; NaN draws none."""
    step = 62
    width = 90 + step * len(rows)
    paper = _Paper(width, 44 + (height + 38) * len(series) + 40)
    paper.text((width / 2, 20), title, 14, anchor="mm")
    for number, (name, values) in enumerate(series):
        top = 44 + number * (height + 38)
        left, right, bottom = 64, width - 12, top + height
        low, high = _range([0.0, *values])
        low, high = (0.0 if min([0.0, *values]) >= 0 else low), high

        def place(y: Number, low: Number = low, high: Number = high, top: int = top, bottom: int = bottom) -> float:
            return bottom - (y - low) / (high - low) * (bottom - top)

        for y in ticks(low, high, 4):
            paper.line([(left, place(y)), (right, place(y))], FAINT, 0.7)
            paper.text((left - 6, place(y)), f"{y:g}", 11, anchor="rm")
        colour = COLOURS[number % len(COLOURS)]
        for i, value in enumerate(values):
            middle = left + step * (i + 0.5)
            if not math.isnan(value):
                paper.bar((middle - 20, place(value), middle + 20, place(0)), colour)
                paper.text((middle, place(max(value, 0)) - 8), f"{value:.2f}", 10, anchor="mm")
        paper.line([(left, place(0)), (right, place(0))], INK, 1)
        paper.text((left, top - 14), name, 12, colour)
    for i, row in enumerate(rows):
        paper.text((64 + step * (i + 0.5), 44 + (height + 38) * len(series) + 6), row, 10.5, anchor="mm")
    return paper.done()


def intervals(rows: Sequence[str], plots: Mapping[str, Sequence[Interval]], across: int = 3) -> Image.Image:
    """Small plots, `across` in a line: of each row's interval a bar that lies, its mean a mark; NaN draws none."""
    step, width, names = 24, 250, 90
    height = 74 + step * len(rows)
    paper = _Paper(names + width * min(across, len(plots)) + 12, height * math.ceil(len(plots) / across))
    for number, (title, found) in enumerate(plots.items()):
        left, top = names + width * (number % across) + 8, height * (number // across) + 40
        right, bottom = left + width - 24, top + step * len(rows)
        low, high = _range([each for i in found for each in (i.low, i.high, i.mean)])

        def place(x: Number, low: float = low, high: float = high, left: int = left, right: int = right) -> float:
            return left + (x - low) / (high - low) * (right - left)

        paper.text(((left + right) / 2, top - 18), title, 13, anchor="mm")
        for x in ticks(low, high, 4):
            paper.line([(place(x), top), (place(x), bottom)], FAINT, 0.7)
            paper.text((place(x), bottom + 12), f"{x:g}", 11, anchor="mm")
        paper.line([(left, bottom), (right, bottom)], INK, 1)
        for row, each in enumerate(found):
            y, colour = top + step * (row + 0.5), COLOURS[row % len(COLOURS)]
            if number % across == 0:
                paper.text((left - 10, y), rows[row], 12, anchor="rm")
            if not math.isnan(each.mean):
                paper.line([(place(each.low), y), (place(each.high), y)], colour, 2)
                paper.mark((place(each.mean), y), row, colour)
    return paper.done()


def _paler(colour: str) -> str:
    """Half way to white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{(each + 255) // 2:02x}" for each in parts)
