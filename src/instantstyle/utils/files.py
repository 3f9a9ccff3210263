"""Paths that people type and small text files that others wrote, read within bounds.

What is wrong with a file is a ValueError that says so; readers know what the file is for, and make a sentence of it.
"""

import json
from pathlib import Path
from typing import Any

from instantstyle.errors import InputError, InstantStyleError, abbreviate

MAX_TEXT_BYTES = 16 * 2**20
"""Of a text file.  The largest that people have are lists of a training set's pictures, which are read with their own
limit."""


def local_path(spec: str | Path, error: type[InstantStyleError] = InputError) -> Path:
    """A path as people type it, with `~` expanded; whether anything is there is not asked.

    Raises `error` for what no system takes for a path: a null byte, a name too long, the home of nobody, a link in a
    circle.
    """
    try:
        path = Path(spec).expanduser()
    except RuntimeError:
        raise error(f"{abbreviate(str(spec))} is no path: nobody here has that home folder") from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, ValueError) as refused:
        reason = refused.strerror if isinstance(refused, OSError) and refused.strerror else str(refused)
        raise error(f"{abbreviate(str(spec))} is no path to a file: {reason.lower()}") from None
    return path


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A file's UTF-8 text.  Raises ValueError when it is missing, a pipe or a device, too large, or no UTF-8."""
    try:
        if not path.is_file():
            raise ValueError("there is no such file" if not path.exists() else "it is no regular file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as refused:
        raise ValueError((refused.strerror or str(refused)).lower()) from refused
    if len(content) > limit:
        raise ValueError(f"it is too large: more than {limit:,} bytes are not read")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise ValueError(f"it is no UTF-8 text: byte {wrong.start:,} cannot be read") from wrong


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """What a JSON text holds.  Raises ValueError; with `unique`, also when an object says one thing twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, limit: int = MAX_TEXT_BYTES, *, unique: bool = False) -> Any:
    """What a JSON file holds.  Raises ValueError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, limit), unique=unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {abbreviate(twice)} twice")
    return given
