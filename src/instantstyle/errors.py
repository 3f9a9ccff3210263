"""The tree of what can go wrong.  Every message is a sentence: what was given, what is known, what to do."""

import difflib
from collections.abc import Iterable

MAX_MESSAGE = 1200
"""Characters of a message; of a longer one the middle is left out."""


class InstantStyleError(Exception):
    """Anything this library refuses or fails at; the message is meant for a person.

    Messages quote names and texts of files, which may be of any length and hold what a terminal obeys: the message is
    shortened, and characters that do not print are escaped.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """A text of any origin as it may be shown: shortened, and with escapes for what does not print."""
    return _shortened("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in _shortened(text)))


def _shortened(text: str) -> str:
    third = MAX_MESSAGE // 3
    return text if len(text) <= MAX_MESSAGE else f"{text[: 2 * third]} [...] {text[-third:]}"


class InputError(InstantStyleError):
    """The request asks for something that does not exist or does not fit (exit code 2)."""


class PlanError(InputError):
    """A block plan that cannot be read, or that names a block the model does not have."""


class PictureError(InputError):
    """A picture that cannot be read safely."""


class WeightsError(InstantStyleError):
    """A weight file that is missing, damaged, or made for another model (exit code 1)."""


class OutputError(InstantStyleError):
    """A result that cannot be written (exit code 1)."""


class Cancelled(InstantStyleError):
    """The run was asked to stop at a step boundary."""


def abbreviate(value: object) -> str:
    """A value as messages show it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, a number of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when some known word is close to the given one, else an empty string."""
    close = closest_match(given, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def closest_match(given: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is spelt most like the given one, if one is at all: 1 is the same, 0 has no letter of it."""
    return next(iter(difflib.get_close_matches(given, list(known), n=1, cutoff=cutoff)), None)
