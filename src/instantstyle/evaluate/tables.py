"""The report's tables and sentences as Markdown, and its numbers as plain data, from the results."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from instantstyle.evaluate.classifiers import HELD_OUT, load_classifier, predict
from instantstyle.evaluate.experiments import NO_REFERENCE, STYLE_IN_PROMPT
from instantstyle.evaluate.measurements import CLASSIFIERS
from instantstyle.evaluate.metrics import Interval, correlation, variance_shares
from instantstyle.evaluate.results import LEAKS, MEASURES, MethodResult, MetricValidity, difference, distance_interval
from instantstyle.evaluate.suite import BLOCK, CELLS, FACTORS, GROUND_TRUTH, VAE_ORACLE
from instantstyle.utils.markdown import markdown_table

OURS, THEIRS = "instantstyle", "ip-adapter"
BOTH, FOUR_WAY, NATS = f"both right, {HELD_OUT}", f"four-way right, {HELD_OUT}", f"excess nats, {HELD_OUT}"
PAIRED = (BOTH, FOUR_WAY, "both right, strokes", "four-way right, strokes", "four-way right, pixels")
"""Measures of which paired differences are reported, where they may rank; leakage always."""
DISTANCES = (*CLASSIFIERS, "pixels")
"""Features by which the normalized distance to the truth is measured."""
APART = "not told apart"
"""The verdict on methods whose difference may be chance."""


def format_number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number, or nothing where it is NaN."""
    return "" if math.isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def format_interval(interval: Interval, sign: bool = False) -> str:
    """A mean with its interval; with `sign`, a difference whose interval excludes 0 is bold."""
    if math.isnan(interval.mean):
        return ""
    low, high, mean = (format_number(value, sign=sign) for value in (interval.low, interval.high, interval.mean))
    if not math.isfinite(interval.high - interval.low):
        return f"{mean} (no interval)"
    bold = "**" if sign and interval.excludes_zero else ""
    return f"{bold}{mean}{bold} ({low} to {high})"


def validity_table(validity: Sequence[MetricValidity]) -> list[str]:
    """Which measures may rank."""
    header = ["measure", "truth", *validity[0].controls, "admitted"]
    rows = [
        [v.measure, *map(format_number, (v.truth, *v.controls.values())), "yes" if v.admitted else "no"]
        for v in validity
    ]
    return markdown_table(header, rows)


def score_table(results: Sequence[MethodResult], cell: str, measures: Sequence[str]) -> list[str]:
    """Measures with intervals; results without tasks in this cell are left out."""
    results = _in_cell(results, cell)
    measures = _measured(results, measures, cell)
    rows = [
        [r.name, str(int(r.in_cell(cell).sum())), *(format_interval(r.interval(m, cell)) for m in measures)]
        for r in results
    ]
    return markdown_table(["", "questions", *measures], rows)


def not_ranking_table(results: Sequence[MethodResult], cell: str, ranking: Sequence[str]) -> list[str]:
    """The measures that may not rank, for information."""
    others = [m for m in MEASURES if m not in ranking]
    if not others:
        return []
    return ["Not admitted, so for looking at and not for ranking:", "", *score_table(results, cell, others)]


def leakage_table(results: Sequence[MethodResult], cell: str) -> list[str]:
    """Leakage, normalized distance to the truth, correlation of backgrounds, and the cost of an image."""
    by_name = {result.name: result for result in results}
    results = _in_cell(results, cell)
    measures = _measured(results, LEAKS, cell)
    rows = [
        [
            result.name,
            *(format_interval(result.interval(m, cell)) for m in measures),
            *(format_interval(interval) for interval in normalized_distance_intervals(result, by_name, cell).values()),
            *map(format_number, _background_correlation(result, cell)),
            *_cost_cells(result),
        ]
        for result in results
    ]
    distances = (f"normalized distance, {name}" for name in DISTANCES)
    costs = ("core seconds", "UNet rows", "fit, core seconds")
    return markdown_table(["", *measures, *distances, "ground L r", "ground ab r", *costs], rows)


def _in_cell(results: Sequence[MethodResult], cell: str) -> list[MethodResult]:
    return [result for result in results if result.in_cell(cell).any()]


def _measured(results: Sequence[MethodResult], measures: Sequence[str], cell: str) -> list[str]:
    return [m for m in measures if any(not math.isnan(result.mean(m, cell)) for result in results)]


def _cost_cells(result: MethodResult) -> list[str]:
    if not result.unet_rows:
        return ["", "", ""]
    fit = format_number(result.fit_seconds, 1) or "not measured"
    return [format_number(result.seconds), f"{result.unet_rows:.0f}", fit]


def normalized_distance_intervals(
    result: MethodResult, by_name: Mapping[str, MethodResult], cell: str
) -> dict[str, Interval]:
    """By each of `DISTANCES`: 0 as near to the truth as its VAE reconstruction, 1 as far as without a reference."""
    oracle = by_name.get(VAE_ORACLE, by_name[GROUND_TRUTH])
    return {name: distance_interval(result, oracle, by_name[NO_REFERENCE], name, cell) for name in DISTANCES}


def _background_correlation(result: MethodResult, cell: str) -> tuple[float, float]:
    columns, rows = result.columns, result.in_cell(cell)
    lab = [[columns[f"{name} {axis}"][rows] for axis in "Lab"] for name in ("ground", "reference ground")]
    lightness = correlation(lab[0][0], lab[1][0])
    return lightness, correlation(np.stack(lab[0][1:]), np.stack(lab[1][1:]))


def paired_tables(results: Sequence[MethodResult], cell: str, ranking: Sequence[str]) -> list[str]:
    """Paired differences: InstantStyle less each other, and each less IP-Adapter and less no reference."""
    by_name = {result.name: result for result in results}
    results = _in_cell(results, cell)
    methods = [result for result in results if result.kind in ("method", "variant")]
    measures = _measured(methods, [*(m for m in PAIRED if m in ranking), NATS], cell)
    lines: list[str] = []

    def add(header: str, pairs: Sequence[tuple[str, MethodResult, MethodResult]]) -> None:
        rows = [
            [name, *(format_interval(difference(a, b, m, cell), sign=True) for m in measures)] for name, a, b in pairs
        ]
        lines.extend(["", *markdown_table([header, *measures], rows)])

    if OURS in by_name and by_name[OURS] in results:
        ours = by_name[OURS]
        others = [r for r in results if r in methods or r.name in (NO_REFERENCE, STYLE_IN_PROMPT)]
        add(f"{OURS} less", [(other.name, ours, other) for other in others if other is not ours])
    for name in (THEIRS, NO_REFERENCE):
        if name in by_name:
            add(f"less {name}", [(r.name, r, by_name[name]) for r in methods if r.name != name])
    return lines


def sweep_table(results: Sequence[MethodResult]) -> list[str]:
    """Every method over its strength, in the first cell."""
    measures = (BOTH, "both right, strokes", FOUR_WAY, NATS, f"four-way copied, {HELD_OUT}", "copies")
    rows = [[r.name, f"{r.strength:g}", *(format_interval(r.interval(m, CELLS[0])) for m in measures)] for r in results]
    return markdown_table(["method", "strength", *measures], rows)


def best_strength_table(results: Sequence[MethodResult]) -> list[str]:
    """Every method at the strength that the classifier `strokes` scores best, measured by the held-out one."""
    rows: list[list[str]] = []
    for name in dict.fromkeys(result.name for result in results):
        tried = [result for result in results if result.name == name]
        best = max(tried, key=lambda r: np.nan_to_num(r.mean("both right, strokes", CELLS[0]), nan=-1.0))
        intervals = (best.interval(m, CELLS[0]) for m in (BOTH, FOUR_WAY, NATS))
        rows.append([name, f"{best.strength:g}", *map(format_interval, intervals)])
    return markdown_table(["method", "strength", BOTH, FOUR_WAY, NATS], rows)


def variance_table(results: Sequence[MethodResult]) -> list[str]:
    """Shares of variance in the held-out classifier's content and style features of a full factorial block."""
    rows: list[list[str]] = []
    for result in results:
        predictions = predict(load_classifier(HELD_OUT), result.pixels)
        features = (predictions.content_features, predictions.style_features)
        shares = [variance_shares(x.reshape(*BLOCK, -1).astype(np.float64), FACTORS) for x in features]
        rows.append([result.name, *(format_number(share) for each in shares for share in each.values())])
    header = [f"{name}: {factor}" for name in ("content", "style") for factor in (*FACTORS, "interaction")]
    return markdown_table(["", *header], rows)


def budget_table(costs: Mapping[str, tuple[Mapping[str, int], float]]) -> list[str]:
    """Images by what they were generated for, and core seconds; images of two purposes count once."""
    kinds = list(dict.fromkeys(kind for counts, _ in costs.values() for kind in counts))
    rows = [
        [name, *(str(counts.get(kind, "")) for kind in kinds), str(sum(counts.values())), f"{seconds:.0f}"]
        for name, (counts, seconds) in costs.items()
    ]
    return markdown_table(["", *kinds, "pictures", "core seconds, fits included"], rows)


def findings(results: Sequence[MethodResult], ranking: Sequence[str]) -> list[str]:
    """What may be said of InstantStyle in the first cell, as a Markdown list.

    A difference counts when the intervals of both classifiers exclude 0 on the same side.
    """
    by_name = {result.name: result for result in results}
    if OURS not in by_name:
        return []
    ours, lines, by_verdict = by_name[OURS], list[str](), dict[str, list[str]]()
    for result in results:
        control = result.kind == "control" and result.name not in (NO_REFERENCE, STYLE_IN_PROMPT)
        if result is ours or control:
            continue
        one, other = (result, ours) if result.kind == "variant" else (ours, result)
        parts = [_finding(one, other, what, ranking) for what in ("four-way right", "both right", "excess nats")]
        lines.append(f"- {one.name} against {other.name}: {'; '.join(parts)}.")
        if result.kind != "variant":
            by_verdict.setdefault(_verdict(ours, result, "four-way right"), []).append(result.name)
    words = {APART: "from", "not measured": "against"}
    summary = [f"{verdict} {words.get(verdict, 'than')} {', '.join(names)}" for verdict, names in by_verdict.items()]
    return [f"- Nearest to the truth of four, {OURS} is {'; '.join(summary)}.", *lines] if summary else lines


def _verdict(one: MethodResult, other: MethodResult, what: str) -> str:
    """Whether one is above the other by both classifiers, on the tasks that both have."""
    differences = [difference(one, other, f"{what}, {name}", CELLS[0]) for name in CLASSIFIERS]
    if any(math.isnan(d.mean) for d in differences):
        return "not measured"
    return (
        "higher" if all(d.low > 0 for d in differences) else "lower" if all(d.high < 0 for d in differences) else APART
    )


def _finding(one: MethodResult, other: MethodResult, what: str, ranking: Sequence[str]) -> str:
    """One difference in words and numbers, on the tasks that both have."""
    name = "leakage" if what == "excess nats" else what
    if what != "excess nats" and any(f"{what}, {each}" not in ranking for each in CLASSIFIERS):
        name += " (which may not rank)"
    verdict = _verdict(one, other, what)
    if verdict == "not measured":
        return f"{name} {verdict}"
    differences = {each: difference(one, other, f"{what}, {each}", CELLS[0]) for each in CLASSIFIERS}
    parts = (f"{format_interval(d, sign=True)} by {each}" for each, d in differences.items())
    return f"{name} {verdict}: {', '.join(parts)}"


def pairs_data(results: Sequence[MethodResult]) -> list[dict[str, object]]:
    """InstantStyle less each method, no reference and style in the prompt: an object a result and cell, for JSON."""
    by_name, data = {result.name: result for result in results}, list[dict[str, object]]()
    if OURS not in by_name:
        return []
    ours = by_name[OURS]
    for other in results:
        if other is ours or not (other.kind == "method" or other.name in (NO_REFERENCE, STYLE_IN_PROMPT)):
            continue
        for cell in CELLS:
            if other.in_cell(cell).any() and ours.in_cell(cell).any():
                measures = {m: _interval_data(difference(ours, other, m, cell)) for m in (*PAIRED, NATS)}
                row: dict[str, object] = {"one": OURS, "other": other.name, "cell": cell, "measures": measures}
                if cell == CELLS[0]:
                    row["verdict"] = _verdict(ours, other, "four-way right")
                data.append(row)
    return data


def results_data(
    results: Sequence[MethodResult], controls: Mapping[str, MethodResult], ranking: Sequence[str]
) -> list[dict[str, object]]:
    """The report's numbers: an object a result and cell, for JSON.  `controls`: the oracle and no reference by name."""
    measures = list(dict.fromkeys((*ranking, BOTH, FOUR_WAY, f"content right, {HELD_OUT}", *LEAKS)))
    data: list[dict[str, object]] = []
    for result in results:
        for cell in CELLS:
            if not result.in_cell(cell).any():
                continue
            intervals = {m: result.interval(m, cell) for m in measures}
            distances = normalized_distance_intervals(result, controls, cell)
            intervals |= {f"normalized distance, {name}": interval for name, interval in distances.items()}
            fit = None if math.isnan(result.fit_seconds) else result.fit_seconds
            data.append(
                {
                    **{"entry": result.name, "kind": result.kind, "strength": result.strength, "cell": cell},
                    **{"questions": int(result.in_cell(cell).sum()), "seconds": result.seconds},
                    **{"rows": result.unet_rows, "fit": fit},
                    "measures": {m: _interval_data(interval) for m, interval in intervals.items()},
                }
            )
    return data


def _interval_data(interval: Interval) -> list[float | None] | None:
    """Mean, low and high; null where nothing was measured, and null ends where one cluster gives no interval."""
    if math.isnan(interval.mean):
        return None
    return [round(x, 4) if math.isfinite(x) else None for x in (interval.mean, interval.low, interval.high)]
