"""README.md's table of the referee, from the data of the committed report in benchmarks/results/referee."""

import json
from pathlib import Path
from typing import Any

HERE = "benchmarks/results/referee"
SHOWN = ("truth through the VAE", "no reference", "copy of the reference", "style named in words")
"""Controls that stand beside the methods."""


def section(root: Path) -> str | None:
    """What stands between README's marks; None where no report has been committed."""
    file = root / HERE / "report.json"
    if not file.is_file():
        return None
    said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = [each for each in said["entries"] if each["kind"] in ("control", "method")]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    names = [*(n for n in SHOWN if any(r["entry"] == n for r in rows))]
    names += list(dict.fromkeys(row["entry"] for row in rows if row["kind"] == "method"))
    by = {(row["entry"], row["cell"]): row for row in rows}
    judge, first = said["held out"], cells[0]
    heads = {"both right": "right", "four-way right": "nearest to the truth, of four"}
    not_admitted = [head for m, head in heads.items() if f"{m}, {judge}" not in said["admitted"]]
    lines = [
        f"{said['questions']} questions whose truth was never trained on (set {said['set'][:16]}), {said['steps']} "
        f"steps, guidance {said['guidance']:g}. First {first}; the judge `{judge}` was never used to tune anything, "
        "intervals are 95 %, by whole things and whole styles. A method is right when both the thing and the "
        "treatment are; leakage is by how much likelier than by chance the judge finds the reference's content.",
        *([f"Not admitted to rank, for a control does as well: {', '.join(not_admitted)}."] if not_admitted else []),
        "",
        "| | questions | right | nearest to the truth, of four | leakage, nats | core seconds | UNet rows | fit, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row = by.get((name, first))
        if row is None:
            continue
        measured = (
            _spread(row["measures"].get(f"{m}, {judge}")) for m in ("both right", "four-way right", "excess nats")
        )
        drawn = bool(row["rows"])
        cost = [_number(row["seconds"]), f"{row['rows']:.0f}", _number(row["fit"], 1)] if drawn else ["", "", ""]
        lines.append(f"| {' | '.join([name, str(row['questions']), *measured, *cost])} |")
    lines += _pairs(said, first, judge)
    lines += [
        "",
        f"Nearest to the truth, of four pictures (by chance .25), by `{judge}`, in the four cells, never pooled:",
        "",
        f"| | {' | '.join(cells)} |",
        "|---|" + "---|" * len(cells),
    ]
    for name in names:
        each = (
            by[name, cell]["measures"].get(f"four-way right, {judge}") if (name, cell) in by else None for cell in cells
        )
        lines.append(f"| {name} | {' | '.join(_spread(one) for one in each)} |")
    if said["curve"]:
        lines += ["", f"![Both right against leakage, for every method over its strength]({HERE}/curve.png)"]
    lines += ["", f"Which measures may rank, every strength, pairs, costs, pictures: [the report]({HERE}/report.md)."]
    return "\n".join(lines) + "\n"


def _pairs(said: dict[str, Any], first: str, judge: str) -> list[str]:
    """InstantStyle less each other, in the first cell; nothing for a report that was made without."""
    rows: list[dict[str, Any]] = [each for each in said.get("pairs", []) if each["cell"] == first]
    if not rows:
        return []
    lines = [
        "",
        f"InstantStyle less each other, {first}, question by question by `{judge}`; bold where the interval leaves out "
        "0. The last column says who is nearer to the truth where a second judge's interval leaves out 0 as well.",
        "",
        "| InstantStyle less | nearest to the truth, of four | right | leakage, nats | InstantStyle is |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        shown = (_signed(row["measures"].get(f"{m}, {judge}")) for m in ("four-way right", "both right", "excess nats"))
        lines.append(f"| {' | '.join([row['other'], *shown, row['verdict']])} |")
    return lines


def _signed(values: list[float] | None) -> str:
    if values is None:
        return ""
    bold = "**" if values[1] > 0 or values[2] < 0 else ""
    return f"{bold}{values[0]:+.2f}{bold} ({values[1]:+.2f} to {values[2]:+.2f})"


def _spread(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
