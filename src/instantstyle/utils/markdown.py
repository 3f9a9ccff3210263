"""Markdown tables: the one place that writes them."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; `|` inside a cell is escaped.  Every row has as many cells as the header."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"every row of the table must have {len(header)} cells: {header}")
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, *rows)]
    return [f"| {lines[0]} |", "|" + "---|" * len(header), *(f"| {line} |" for line in lines[1:])]
