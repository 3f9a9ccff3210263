"""The report's tables and sentences, as Markdown, from what was measured."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from instantstyle.evaluate.entries import BARE
from instantstyle.evaluate.judges import HELD_OUT, judge, shipped
from instantstyle.evaluate.metrics import Interval, correlation, towards_truth, variance_shares
from instantstyle.evaluate.scores import CEILING, LEAKS, Admission, Entry, difference
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


def admission(admitted: Sequence[Admission]) -> list[str]:
    """Which measures may rank."""
    names = list(admitted[0].controls)
    rows = [
        [a.measure, number(a.truth), *(number(v) for v in a.controls.values()), "yes" if a.admitted else "no"]
        for a in admitted
    ]
    return table(["measure", "truth", *names, "admitted"], rows)


def right(compared: Sequence[Entry], cell: str, ranked: Sequence[str]) -> list[str]:
    """Admitted measures with intervals; entries that were not asked in this cell are left out."""
    there = [each for each in compared if each.of(cell).any()]
    shown = [m for m in ranked if any(not math.isnan(each.mean(m, cell)) for each in there)]
    rows = [[e.name, str(int(e.of(cell).sum())), *(spread(e.interval(m, cell)) for m in shown)] for e in there]
    return table(["", "questions", *shown], rows)


def leaks(compared: Sequence[Entry], cell: str) -> list[str]:
    """What comes along, how far the truth is, whether grounds follow, and what a picture costs."""
    by_name = {each.name: each for each in compared}
    there = [each for each in compared if each.of(cell).any()]
    shown = [m for m in LEAKS if any(not math.isnan(each.mean(m, cell)) for each in there)]
    rows = [
        [
            each.name,
            *(spread(each.interval(m, cell)) for m in shown),
            number(_way_left(each, by_name, cell)),
            *(number(r) for r in _grounds(each, cell)),
            *cost(each),
        ]
        for each in there
    ]
    heads = ["", *shown, "way left to the truth", "ground L r", "ground ab r"]
    return table([*heads, "core seconds", "UNet rows", "fit, core seconds"], rows)


def cost(each: Entry) -> list[str]:
    """Seconds, UNet rows and fit time of a picture; nothing for what is not drawn."""
    if not each.evaluations:
        return ["", "", ""]
    return [number(each.seconds), f"{each.evaluations:.0f}", number(each.fits, 1) or "not measured"]


def _way_left(each: Entry, by_name: Mapping[str, Entry], cell: str) -> float:
    """`towards_truth`, all three over the questions that the entry was asked."""
    far = f"distance to truth, {HELD_OUT}"
    asked = [q for q in each.questions if q.cell == cell]
    oracle = by_name.get(CEILING, by_name["truth"])
    return towards_truth(*(e.columns[far][[e.rows[q] for q in asked]] for e in (each, oracle, by_name[BARE])))


def _grounds(each: Entry, cell: str) -> tuple[float, float]:
    c, rows = each.columns, each.of(cell)
    light = correlation(c["ground L"][rows], c["reference ground L"][rows])
    tint = correlation(*(np.stack([c[f"{p} {x}"][rows] for x in "ab"]) for p in ("ground", "reference ground")))
    return light, tint


def paired(compared: Sequence[Entry], cell: str, ranked: Sequence[str]) -> list[str]:
    """Differences to IP-Adapter and to no reference, question by question."""
    by_name = {each.name: each for each in compared}
    methods = [each for each in compared if each.kind in ("method", "variant") and each.of(cell).any()]
    measures = [m for m in (BOTH, FOUR, "four-way right, strokes", "four-way right, pixels") if m in ranked]
    measures = [m for m in (*measures, NATS) if any(not math.isnan(each.mean(m, cell)) for each in methods)]
    lines: list[str] = []
    for to in (THEIRS, BARE):
        if to in by_name:
            rows = [
                [e.name, *(spread(difference(e, by_name[to], m, cell), sign=True) for m in measures)]
                for e in methods
                if e.name != to
            ]
            lines += ["", *table([f"less {to}", *measures], rows)]
    return lines


def sweep(swept: Sequence[Entry]) -> list[str]:
    """Every method over its one strength."""
    heads = (BOTH, "both right, strokes", FOUR, NATS, f"four-way copied, {HELD_OUT}", "copies")
    rows = [[each.name, f"{each.strength:g}", *(spread(each.interval(m, CELLS[0])) for m in heads)] for each in swept]
    return table(["method", "strength", *heads], rows)


def best(swept: Sequence[Entry]) -> list[str]:
    """Every method at the strength that the judge `strokes` likes most, said by the judge that had no part in it."""
    rows: list[list[str]] = []
    for name in dict.fromkeys(each.name for each in swept):
        tried = [each for each in swept if each.name == name]
        chosen = max(tried, key=lambda each: np.nan_to_num(each.mean("both right, strokes", CELLS[0]), nan=-1.0))
        shown = (chosen.interval(m, CELLS[0]) for m in (BOTH, FOUR, NATS))
        rows.append([name, f"{chosen.strength:g}", *(spread(each) for each in shown)])
    return table(["method", "strength", BOTH, FOUR, NATS], rows)


def variance(blocks: Sequence[Entry]) -> list[str]:
    """Shares of variance in what the held-out judge sees of a full factorial block: of what is where, and of how."""
    heads = [f"{sight}: {factor}" for sight in ("what", "how") for factor in (*FACTORS, "interaction")]
    rows: list[list[str]] = []
    for each in blocks:
        seen = judge(shipped(HELD_OUT), each.pixels)
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


def words(compared: Sequence[Entry]) -> list[str]:
    """What may be said of InstantStyle in the first cell: a difference counts when both judges' intervals agree."""
    by_name = {each.name: each for each in compared}
    if OURS not in by_name:
        return []
    ours, lines = by_name[OURS], list[str]()
    for each in compared:
        if each is ours or (each.kind == "control" and each.name != BARE):
            continue
        one, other = (each, ours) if each.kind == "variant" else (ours, each)
        said = [_told(one, other, what) for what in ("both right", "four-way right", "excess nats")]
        lines.append(f"- {one.name} against {other.name}: {'; '.join(said)}.")
    return lines


def _told(one: Entry, other: Entry, what: str) -> str:
    """One difference in words.  `one` and `other` on the questions that both were asked."""
    both = [difference(one, other, f"{what}, {name}", CELLS[0]) for name in (HELD_OUT, "strokes")]
    name = {"excess nats": "leakage"}.get(what, what)
    if any(math.isnan(each.mean) for each in both):
        return f"{name} not measured"
    above, below = all(each.low > 0 for each in both), all(each.high < 0 for each in both)
    verdict = "higher" if above else "lower" if below else "cannot be told apart"
    return f"{name} {verdict} ({', '.join(f'{each.mean:+.2f}' for each in both)} by {HELD_OUT} and strokes)"


def figures(entries: Sequence[Entry], ranked: Sequence[str]) -> list[dict[str, object]]:
    """The report's numbers for a program: an object an entry and cell."""
    measures = list(dict.fromkeys((*ranked, BOTH, FOUR, f"content right, {HELD_OUT}", *LEAKS)))
    said: list[dict[str, object]] = []
    for each in entries:
        for cell in CELLS:
            if each.of(cell).any():
                row: dict[str, object] = {"entry": each.name, "kind": each.kind, "strength": each.strength}
                row |= {"cell": cell, "questions": int(each.of(cell).sum())}
                row |= {"seconds": each.seconds, "rows": each.evaluations, "fit": each.fits}
                row["measures"] = {m: _plain(each.interval(m, cell)) for m in measures}
                said.append(_without_nan(row))
    return said


def _plain(interval: Interval) -> list[float] | None:
    whole = [interval.mean, interval.low, interval.high]
    return None if math.isnan(interval.mean) else [round(each, 4) for each in whole]


def _without_nan(row: dict[str, object]) -> dict[str, object]:
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}
