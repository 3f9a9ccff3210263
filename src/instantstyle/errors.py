"""The tree of what can go wrong.  Every message is a sentence: what was given, what is known, what to do."""

import difflib
from collections.abc import Iterable


class InstantStyleError(Exception):
    """Anything this library refuses or fails at; the message is meant for a person."""


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


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when some known word is close to the given one, else an empty string."""
    close = closest_match(given, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def closest_match(given: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is spelt most like the given one, if one is at all: 1 is the same, 0 has no letter of it."""
    return next(iter(difflib.get_close_matches(given, list(known), n=1, cutoff=cutoff)), None)
