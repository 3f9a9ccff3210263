"""What commands print: characters that a console cannot encode are escaped, and a console that fails loses no work."""

import codecs
import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from instantstyle.errors import OutputError


def print_result(text: str) -> None:
    """Print what a command was run for.  Raises OutputError when stdout does not take it."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # so Python does where it is closed
        raise OutputError("cannot write to standard output: it is closed")
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except (OSError, ValueError) as refused:
        _discard(sys.stdout)
        raise OutputError(f"cannot write to standard output: {refused}") from refused


def print_done(text: str) -> None:
    """Print what is done already, such as the names of written files: a stdout that fails is a note on stderr."""
    try:
        print_result(text)
    except OutputError as refused:
        print_note(f"note: {refused}; it would have said: {text[:2000]}")


def print_note(text: str) -> None:
    """Print a line to stderr; one that fails is let be."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def to_json(value: Any) -> str:
    """JSON in ASCII, which every console can encode."""
    return json.dumps(value)


def _discard(stream: Any) -> None:
    """Send what is left in the buffer of a failed stream nowhere: when Python ends it flushes, and exits with 120."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of file names that are not UTF-8 as they were given, every other character as Python's escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    encoded = (
        bytes([ord(each) - 0xDC00]) if "\udc80" <= each <= "\udcff" else each.encode("ascii", "backslashreplace")
        for each in characters
    )
    return b"".join(encoded), error.end


class _TolerantStream:
    """A text stream whose failures to write are let be: a full disk behind stderr does not end a run."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def robust_streams() -> Generator[None]:
    """Let stdout escape what it cannot encode, and let failures of stderr be."""
    codecs.register_error("instantstyle-escape", _escape)
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="instantstyle-escape")
    stderr: Any = sys.stderr
    if stderr is not None:
        sys.stderr = _TolerantStream(stderr)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        sys.stderr = stderr
        if stderr is not None:
            try:
                stderr.flush()
            except (OSError, ValueError):
                _discard(stderr)
