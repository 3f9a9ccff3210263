"""Options of methods: the name, range and meaning of each, and reading `Request.options` by them.  No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from instantstyle.errors import InputError, did_you_mean

Value = bool | int | float | str


@dataclass(frozen=True)
class Option:
    """One option; the type of its default is its type: true or false, a number in a range, one of some words, a text.

    Raises InputError from `parse` for a value of another type or outside of the range.
    """

    default: Value
    help: str
    """What it does, for help pages."""
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()
    former_name: str | None = None
    """The name it had in version 0.1.0, which is still read."""
    former_choices: Mapping[str, str] = field(default_factory=dict[str, str])
    """Choices of version 0.1.0, by their present names."""

    def parse(self, name: str, value: Value) -> Value:
        """The value as the method takes it.  Raises InputError, a sentence."""
        if isinstance(self.default, str):
            value = self.former_choices.get(str(value), value)
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


def resolve_options(method: str, given: Mapping[str, Value], known: Options) -> Mapping[str, Value]:
    """Every option of a method: as given, else its default.

    Raises InputError for an option that the method does not have, that is given under two names, or out of range.
    """
    present = {option.former_name: name for name, option in known.items() if option.former_name is not None}
    named: dict[str, Value] = {}
    for typed, value in given.items():
        name = present.get(typed, typed)
        if name not in known:
            has = f"it has {', '.join(known)}{did_you_mean(name, known)}" if known else "it has none"
            raise InputError(f"method {method!r} has no option {name!r}: {has}")
        if name in named:
            raise InputError(f"the option {name} is given twice, once as {typed!r}: give it once")
        named[name] = value
    return {name: option.parse(name, named.get(name, option.default)) for name, option in known.items()}
