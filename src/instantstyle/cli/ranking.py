"""What `generate --best-of` says and keeps of seeds that the meter has ranked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instantstyle.meter import RankedResult


def ranking_line(ranked: "Sequence[RankedResult]") -> str:
    """Seeds with their scores."""
    return ", ".join(f"seed {each.result.request.seed} ({each.reading.score:.3f})" for each in ranked)


def ranking_report(ranked: "Sequence[RankedResult]") -> list[dict[str, Any]]:
    """The same for JSON, with all that the meter read."""
    return [{"seed": each.result.request.seed, **each.reading.as_dict()} for each in ranked]


def save_ranked(ranked: "Sequence[RankedResult]", out: Path, *, metadata: bool) -> list[Path]:
    """Write each picture, several as `name-1.png`, `name-2.png`... in their order.  Raises OutputError."""
    from instantstyle.request import output_paths

    paths = output_paths(out, len(ranked))
    return [each.result.save(path, metadata=metadata)[0] for path, each in zip(paths, ranked, strict=True)]
