"""The report's tables and sentences, as Markdown, from what was measured."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from instantstyle.evaluate.classifiers import HELD_OUT, load_classifier, predict
from instantstyle.evaluate.experiments import NO_REFERENCE, STYLE_IN_PROMPT
from instantstyle.evaluate.metrics import Interval, correlation, variance_shares
from instantstyle.evaluate.results import (
    LEAKS,
    MEASURES,
    VAE_ORACLE,
    MethodResult,
    MetricValidity,
    difference,
    distance_interval,
)
from instantstyle.evaluate.suite import BLOCK, CELLS, FACTORS

OURS, THEIRS = "instantstyle", "ip-adapter"
BOTH, FOUR, NATS = f"both right, {HELD_OUT}", f"four-way right, {HELD_OUT}", f"excess nats, {HELD_OUT}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number, or nothing where there is none."""
    return "" if math.isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def spread(interval: Interval, sign: bool = False) -> str:
    """A mean and its interval; a difference whose interval leaves out 0 is bold."""
    if math.isnan(interval.mean):
        return ""
    low, high, mean = (number(each, sign=sign) for each in (interval.low, interval.high, interval.mean))
    bold = "**" if sign and (interval.low > 0 or interval.high < 0) else ""
    return f"{bold}{mean}{bold} ({low} to {high})"


def admission(admitted: Sequence[MetricValidity]) -> list[str]:
    """Which measures may rank."""
    names = list(admitted[0].controls)
    rows = [
        [a.measure, number(a.truth), *(number(v) for v in a.controls.values()), "yes" if a.admitted else "no"]
        for a in admitted
    ]
    return table(["measure", "truth", *names, "admitted"], rows)


def right(compared: Sequence[MethodResult], cell: str, ranked: Sequence[str]) -> list[str]:
    """Admitted measures with intervals; entries that were not asked in this cell are left out."""
    there = [each for each in compared if each.of(cell).any()]
    shown = [m for m in ranked if any(not math.isnan(each.mean(m, cell)) for each in there)]
    rows = [[e.name, str(int(e.of(cell).sum())), *(spread(e.interval(m, cell)) for m in shown)] for e in there]
    return table(["", "questions", *shown], rows)


def beside(compared: Sequence[MethodResult], cell: str, ranked: Sequence[str]) -> list[str]:
    """What may not rank, for whoever wants to see it: thing, style and both right by the judges and their twins."""
    rest = [m for m in MEASURES if m not in ranked]
    if not rest:
        return []
    return ["Not admitted, so for looking at and not for ranking:", "", *right(compared, cell, rest)]


def leaks(compared: Sequence[MethodResult], cell: str) -> list[str]:
    """What comes along, how far the truth is, whether grounds follow, and what a picture costs."""
    by_name = {each.name: each for each in compared}
    there = [each for each in compared if each.of(cell).any()]
    shown = [m for m in LEAKS if any(not math.isnan(each.mean(m, cell)) for each in there)]
    rows = [
        [
            each.name,
            *(spread(each.interval(m, cell)) for m in shown),
            *(spread(left) for left in _ways_left(each, by_name, cell)),
            *(number(r) for r in _grounds(each, cell)),
            *cost(each),
        ]
        for each in there
    ]
    heads = ["", *shown, *(f"way left to the truth, {name}" for name in DISTANCES), "ground L r", "ground ab r"]
    return table([*heads, "core seconds", "UNet rows", "fit, core seconds"], rows)


def cost(each: MethodResult) -> list[str]:
    """Seconds, UNet rows and fit time of a picture; nothing for what is not drawn."""
    if not each.unet_rows:
        return ["", "", ""]
    return [number(each.seconds), f"{each.unet_rows:.0f}", number(each.fit_seconds, 1) or "not measured"]


DISTANCES = (HELD_OUT, "strokes", "pixels")
"""By what the way left to the truth is measured."""


def _ways_left(each: MethodResult, by_name: Mapping[str, MethodResult], cell: str) -> list[Interval]:
    oracle = by_name.get(VAE_ORACLE, by_name["truth"])
    return [distance_interval(each, oracle, by_name[NO_REFERENCE], name, cell) for name in DISTANCES]


def _grounds(each: MethodResult, cell: str) -> tuple[float, float]:
    c, rows = each.columns, each.of(cell)
    light = correlation(c["ground L"][rows], c["reference ground L"][rows])
    tint = correlation(*(np.stack([c[f"{p} {x}"][rows] for x in "ab"]) for p in ("ground", "reference ground")))
    return light, tint


PAIRED = (BOTH, FOUR, "both right, strokes", "four-way right, strokes", "four-way right, pixels")
"""Of which differences are taken, where they are admitted; leakage always."""


def paired(compared: Sequence[MethodResult], cell: str, ranked: Sequence[str]) -> list[str]:
    """Differences question by question: InstantStyle to each other, and each to IP-Adapter and to no reference."""
    by_name = {each.name: each for each in compared}
    there = [each for each in compared if each.of(cell).any()]
    methods = [each for each in there if each.kind in ("method", "variant")]
    measures = [*(m for m in PAIRED if m in ranked), NATS]
    measures = [m for m in measures if any(not math.isnan(each.mean(m, cell)) for each in methods)]
    lines: list[str] = []

    def rows(pairs: Sequence[tuple[str, MethodResult, MethodResult]]) -> list[list[str]]:
        return [[name, *(spread(difference(a, b, m, cell), sign=True) for m in measures)] for name, a, b in pairs]

    if OURS in by_name and by_name[OURS].of(cell).any():
        ours = by_name[OURS]
        others = [
            each
            for each in there
            if each is not ours and (each in methods or each.name in (NO_REFERENCE, STYLE_IN_PROMPT))
        ]
        lines += ["", *table([f"{OURS} less", *measures], rows([(each.name, ours, each) for each in others]))]
    for to in (THEIRS, NO_REFERENCE):
        if to in by_name:
            pairs = [(each.name, each, by_name[to]) for each in methods if each.name != to]
            lines += ["", *table([f"less {to}", *measures], rows(pairs))]
    return lines


def sweep(swept: Sequence[MethodResult]) -> list[str]:
    """Every method over its one strength."""
    heads = (BOTH, "both right, strokes", FOUR, NATS, f"four-way copied, {HELD_OUT}", "copies")
    rows = [[each.name, f"{each.strength:g}", *(spread(each.interval(m, CELLS[0])) for m in heads)] for each in swept]
    return table(["method", "strength", *heads], rows)


def best(swept: Sequence[MethodResult]) -> list[str]:
    """Every method at the strength that the judge `strokes` likes most, said by the judge that had no part in it."""
    rows: list[list[str]] = []
    for name in dict.fromkeys(each.name for each in swept):
        tried = [each for each in swept if each.name == name]
        chosen = max(tried, key=lambda each: np.nan_to_num(each.mean("both right, strokes", CELLS[0]), nan=-1.0))
        shown = (chosen.interval(m, CELLS[0]) for m in (BOTH, FOUR, NATS))
        rows.append([name, f"{chosen.strength:g}", *(spread(each) for each in shown)])
    return table(["method", "strength", BOTH, FOUR, NATS], rows)


def variance(blocks: Sequence[MethodResult]) -> list[str]:
    """Shares of variance in what the held-out judge sees of a full factorial block: of what is where, and of how."""
    heads = [f"{sight}: {factor}" for sight in ("what", "how") for factor in (*FACTORS, "interaction")]
    rows: list[list[str]] = []
    for each in blocks:
        seen = predict(load_classifier(HELD_OUT), each.pixels)
        both = (variance_shares(x.reshape(*BLOCK, -1).astype(np.float64), FACTORS) for x in (seen.what, seen.how))
        rows.append([each.name, *(number(share) for shares in both for share in shares.values())])
    return table(["", *heads], rows)


def budget(spent: Mapping[str, tuple[Mapping[str, int], float]]) -> list[str]:
    """How many pictures each was asked for, by what for, and what they cost; pictures of two purposes count once."""
    kinds = list(dict.fromkeys(kind for counts, _ in spent.values() for kind in counts))
    rows = [
        [name, *(str(counts.get(kind, "")) for kind in kinds), str(sum(counts.values())), f"{seconds:.0f}"]
        for name, (counts, seconds) in spent.items()
    ]
    return table(["", *kinds, "pictures", "core seconds, fits included"], rows)


def words(compared: Sequence[MethodResult], ranked: Sequence[str]) -> list[str]:
    """What may be said of InstantStyle in the first cell: a difference counts when both judges' intervals agree."""
    by_name = {each.name: each for each in compared}
    if OURS not in by_name:
        return []
    ours, lines, told = by_name[OURS], list[str](), dict[str, list[str]]()
    for each in compared:
        if each is ours or (each.kind == "control" and each.name not in (NO_REFERENCE, STYLE_IN_PROMPT)):
            continue
        one, other = (each, ours) if each.kind == "variant" else (ours, each)
        said = [_told(one, other, what, ranked) for what in ("four-way right", "both right", "excess nats")]
        lines.append(f"- {one.name} against {other.name}: {'; '.join(said)}.")
        if each.kind != "variant":
            told.setdefault(_verdict(ours, each, "four-way right"), []).append(each.name)
    joined = {APART: "from", "not measured": "against"}
    short = [f"{verdict} {joined.get(verdict, 'than')} {', '.join(names)}" for verdict, names in told.items()]
    return [f"- Nearest to the truth of four, {OURS} is {'; '.join(short)}.", *lines] if told else lines


APART = "not told apart"


def _verdict(one: MethodResult, other: MethodResult, what: str) -> str:
    """Whether one is above the other by both judges, on the questions that both were asked."""
    both = [difference(one, other, f"{what}, {name}", CELLS[0]) for name in (HELD_OUT, "strokes")]
    if any(math.isnan(each.mean) for each in both):
        return "not measured"
    return "higher" if all(e.low > 0 for e in both) else "lower" if all(e.high < 0 for e in both) else APART


def _told(one: MethodResult, other: MethodResult, what: str, ranked: Sequence[str]) -> str:
    """One difference in words and numbers.  `one` and `other` on the questions that both were asked."""
    judges = (HELD_OUT, "strokes")
    name = {"excess nats": "leakage"}.get(what, what)
    if what != "excess nats" and any(f"{what}, {judge}" not in ranked for judge in judges):
        name += " (which may not rank)"
    verdict = _verdict(one, other, what)
    if verdict == "not measured":
        return f"{name} {verdict}"
    by = (f"{spread(difference(one, other, f'{what}, {judge}', CELLS[0]), sign=True)} by {judge}" for judge in judges)
    return f"{name} {verdict}: {', '.join(by)}"


def pairs(compared: Sequence[MethodResult]) -> list[dict[str, object]]:
    """InstantStyle less each method, no reference and words, for a program: an object an entry and cell."""
    by_name, said = {each.name: each for each in compared}, list[dict[str, object]]()
    if OURS not in by_name:
        return []
    ours = by_name[OURS]
    for each in compared:
        if each is ours or not (each.kind == "method" or each.name in (NO_REFERENCE, STYLE_IN_PROMPT)):
            continue
        for cell in CELLS:
            if each.of(cell).any() and ours.of(cell).any():
                measures = {m: _plain(difference(ours, each, m, cell)) for m in (*PAIRED, NATS)}
                row: dict[str, object] = {"one": OURS, "other": each.name, "cell": cell, "measures": measures}
                if cell == CELLS[0]:
                    row["verdict"] = _verdict(ours, each, "four-way right")
                said.append(row)
    return said


def figures(entries: Sequence[MethodResult], ranked: Sequence[str]) -> list[dict[str, object]]:
    """The report's numbers for a program: an object an entry and cell."""
    measures = list(dict.fromkeys((*ranked, BOTH, FOUR, f"content right, {HELD_OUT}", *LEAKS)))
    said: list[dict[str, object]] = []
    for each in entries:
        for cell in CELLS:
            if each.of(cell).any():
                row: dict[str, object] = {"entry": each.name, "kind": each.kind, "strength": each.strength}
                row |= {"cell": cell, "questions": int(each.of(cell).sum())}
                row |= {"seconds": each.seconds, "rows": each.unet_rows, "fit": each.fit_seconds}
                row["measures"] = {m: _plain(each.interval(m, cell)) for m in measures}
                said.append(_without_nan(row))
    return said


def _plain(interval: Interval) -> list[float] | None:
    whole = [interval.mean, interval.low, interval.high]
    return None if math.isnan(interval.mean) else [round(each, 4) for each in whole]


def _without_nan(row: dict[str, object]) -> dict[str, object]:
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}
