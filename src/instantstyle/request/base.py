"""What every value of a request is made of: frozen fields, read from JSON, their errors sentences."""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from instantstyle.errors import InputError, did_you_mean

json_context: ContextVar[bool] = ContextVar("json_context", default=False)
"""Whether what is validated came from JSON, in which a text is never a path."""

_Model = TypeVar("_Model", bound="FrozenModel")


class FrozenModel(BaseModel):
    """A frozen value whose fields may be given by position, and whose errors are sentences (InputError)."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    if (
        not TYPE_CHECKING
    ):  # each noun below tells type checkers its own signature; the defaults that hold are the fields'

        def __init__(self, /, *args: Any, **fields: Any) -> None:
            names = tuple(type(self).model_fields)
            if len(args) > len(names):
                raise InputError(f"{type(self).__name__} takes at most {len(names)} values: {', '.join(names)}")
            given = dict(zip(names, args, strict=False))
            if twice := given.keys() & fields.keys():
                raise InputError(f"{', '.join(sorted(twice))} is given twice to {type(self).__name__}")
            try:
                super().__init__(**given, **fields)
            except ValidationError as invalid:
                raise InputError(_sentence(type(self), invalid)) from None

    def to_json(self) -> str:
        """All fields as JSON text, pictures as base64 PNG."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls: type[_Model], text: str | bytes) -> _Model:
        """Read `to_json`'s text again.  A path is no picture here: text from elsewhere opens no file of ours.

        Raises InputError.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as invalid:
            raise InputError(f"this is not JSON: {invalid}") from None
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls: type[_Model], fields: object) -> _Model:
        """The same from JSON that is parsed already."""
        if not isinstance(fields, dict):
            raise InputError(f"a {cls.__name__} is a JSON object, not {abbreviate(fields)}")
        token = json_context.set(True)
        try:
            return cls.model_validate(fields)  # comes by way of __init__
        finally:
            json_context.reset(token)


def abbreviate(value: object) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sentence(noun: type[FrozenModel], invalid: ValidationError) -> str:
    """The first thing wrong: the field, what it must be, and what was given."""
    errors = invalid.errors(include_url=False)
    # Of a value that may be of several types, what is wrong with it as the type it is.
    error = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    place = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part.isidentifier())
    limits: Mapping[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return f"a {noun.__name__} needs its {place}, and it is missing"
        case "extra_forbidden":
            known = noun.model_fields
            return f"a {noun.__name__} has no {place!r}, but {', '.join(known)}{did_you_mean(place, known)}"
        case "greater_than_equal":
            return f"{place} must be at least {limits['ge']:g}, not {abbreviate(error['input'])}"
        case "less_than_equal":
            return f"{place} must be at most {limits['le']:,}, not {abbreviate(error['input'])}"
        case "string_too_long":
            return f"{place} is too long: {len(error['input']):,} characters, and at most {limits['max_length']:,} fit"
        case "too_long":
            return f"{place} is too many: {limits['actual_length']:,}, and at most {limits['max_length']:,} fit"
        case _:
            wanted = error["msg"].removeprefix("Input ").replace("should be", "must be")
            return f"{place} {wanted[:1].lower() + wanted[1:]}, not {abbreviate(error['input'])}"
