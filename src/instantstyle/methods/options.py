"""Knobs of methods: what each is called, what it may be, and reading a request's options by them."""

from collections.abc import Mapping
from dataclasses import dataclass

from instantstyle.errors import InputError, did_you_mean
from instantstyle.request import Request

Value = bool | int | float | str


@dataclass(frozen=True)
class Option:
    """One knob.  Its default says what it is: yes or no, a number between two others, one of some words, any text."""

    default: Value
    help: str
    """What it does, for help pages."""
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()

    def parse(self, name: str, value: Value) -> Value:
        """The value as the method takes it.  Raises InputError, a sentence, when it is none."""
        if isinstance(self.default, str):
            if self.choices and value not in self.choices:
                near = did_you_mean(str(value), self.choices)
                raise InputError(f"the option {name} is one of {', '.join(self.choices)}, not {value!r}{near}")
            return str(value)
        if isinstance(self.default, bool):
            if value not in (0, 1):
                raise InputError(f"the option {name} is true or false, not {value!r}")
            return bool(value)
        if isinstance(value, bool | str) or not self.low <= value <= self.high:
            raise InputError(f"the option {name} is a number from {self.low:g} to {self.high:g}, not {value!r}")
        return float(value)


Options = Mapping[str, Option]


def resolve_options(request: Request, known: Options) -> Mapping[str, Value]:
    """All knobs of the request's method, those that are not given at their defaults.

    Raises InputError when the request turns a knob that the method does not have, or to where it does not go.
    """
    for name in request.options:
        if name not in known:
            has = f"it has {', '.join(known)}{did_you_mean(name, known)}" if known else "it has none"
            raise InputError(f"method {request.method!r} has no option {name!r}: {has}")
    given = {name: request.options.get(name, option.default) for name, option in known.items()}
    return {name: known[name].parse(name, value) for name, value in given.items()}
