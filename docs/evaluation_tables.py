"""Tables of docs/evaluation.md and README.md, from the data of the committed evaluation report."""

from typing import Any

CONTROLS = ("truth through the VAE", "no reference", "style named in words", "copy of the reference")
"""Entries without a method that stand beside the methods."""
HEADS = {
    "four-way right": "nearest to the truth",
    "both right": "content and style right",
    "excess nats": "leakage, nats",
}


def selected(report: dict[str, Any], cell: str) -> dict[str, dict[str, Any]]:
    """The report's controls and methods at their default strength, in one cell, by name."""
    of_cell = {
        entry["entry"]: entry
        for entry in report["entries"]
        if entry["cell"] == cell and (entry["kind"] == "method" or entry["entry"] in CONTROLS)
    }
    return {name: of_cell[name] for name in (*CONTROLS, *of_cell) if name in of_cell}


def judges(rows: list[dict[str, Any]], measure: str) -> list[str]:
    """The judges by whom a measure was taken, in the report's entries or pairs."""
    names = [name for row in rows for name in row["measures"]]
    return list(dict.fromkeys(name.partition(", ")[2] for name in names if name.startswith(f"{measure}, ")))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def summary(report: dict[str, Any]) -> str:
    """README's table: means of the first cell by every judge, without intervals."""
    cell = report["entries"][0]["cell"]
    heads = {"four-way right": "nearest", "both right": "right"}
    columns = [(m, judge) for m in heads for judge in judges(report["entries"], m)]
    rows = [
        [name, str(entry["questions"]), *(_mean(entry["measures"].get(f"{m}, {judge}")) for m, judge in columns)]
        for name, entry in selected(report, cell).items()
    ]
    return table(["", "questions", *(f"{heads[m]}, {judge}" for m, judge in columns)], rows)


def section(report: dict[str, Any]) -> str:
    """The results of docs/evaluation.md: the first cell, differences from InstantStyle, all cells, costs."""
    entries: list[dict[str, Any]] = report["entries"]
    cells = list(dict.fromkeys(entry["cell"] for entry in entries))
    first = selected(report, cells[0])
    parts = [
        f"{report['questions']} questions (set {report['set'][:16]}), model `{report['model']}`, weights "
        f"{report['weights'][:12]}, {report['steps']} steps, guidance {report['guidance']:g}. The judge "
        f"`{report['held out']}` was used for no choice.",
    ]
    for measure in HEADS:
        names = judges(entries, measure)
        rows = [
            [name, str(entry["questions"]), *(_interval(entry["measures"].get(f"{measure}, {j}")) for j in names)]
            for name, entry in first.items()
        ]
        parts += [f"### {HEADS[measure].capitalize()}: {cells[0]}", table(["", "questions", *names], rows)]
    parts += differences(report, cells[0])
    for judge in judges(entries, "four-way right"):
        rows = [
            [name, *(_interval(_measure(report, name, cell, f"four-way right, {judge}")) for cell in cells)]
            for name in first
        ]
        parts += [f"### Nearest to the truth in the four cells, by {judge}", table(["", *cells], rows)]
    costs = [
        [name, f"{entry['seconds']:.2f}", f"{entry['rows']:.0f}", f"{entry['fit']:.1f}"]
        for name, entry in first.items()
        if entry["rows"]
    ]
    parts += ["### Cost of a picture", table(["", "core seconds", "UNet rows", "training, s"], costs)]
    return "\n\n".join(parts)


def differences(report: dict[str, Any], cell: str) -> list[str]:
    """InstantStyle minus each other method, question by question; nothing for a report that was made without pairs."""
    pairs: list[dict[str, Any]] = [pair for pair in report.get("pairs", []) if pair["cell"] == cell]
    if not pairs:
        return []
    columns = [(m, judge) for m in ("four-way right", "both right") for judge in judges(pairs, m)]
    rows = [
        [pair["other"], *(signed(pair["measures"].get(f"{m}, {j}")) for m, j in columns), pair["verdict"]]
        for pair in pairs
    ]
    return [
        f"### InstantStyle minus each other: {cell}",
        "Question by question, bold where the interval excludes 0. The last column names a winner in the first measure "
        "only where two judges' intervals exclude 0.",
        table(["", *(f"{HEADS[m]}, {j}" for m, j in columns), "InstantStyle is"], rows),
    ]


def _measure(report: dict[str, Any], name: str, cell: str, measure: str) -> list[float] | None:
    entry = selected(report, cell).get(name)
    return None if entry is None else entry["measures"].get(measure)


def signed(values: list[float] | None) -> str:
    """A difference with its interval, bold where that excludes 0."""
    if values is None:
        return ""
    bold = "**" if values[1] > 0 or values[2] < 0 else ""
    return f"{bold}{values[0]:+.2f}{bold} ({values[1]:+.2f} to {values[2]:+.2f})"


def _interval(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def _mean(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f}"
