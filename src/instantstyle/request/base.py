"""FrozenModel: the base of requests, results and style cards.  Fields are declared once and may be positional."""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, dataclass_transform

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from instantstyle.errors import InputError, abbreviate, did_you_mean
from instantstyle.utils.files import parse_json

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

json_context: ContextVar[bool] = ContextVar("json_context", default=False)
"""Whether the value being validated came from JSON, where a string is never a path."""

_Model = TypeVar("_Model", bound="FrozenModel")
_Item = TypeVar("_Item")


def field(
    *,
    default: Any = ...,
    default_factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | None = None,
    **constraints: Any,
) -> Any:
    """A field of a FrozenModel: pydantic's `Field` with a converter.

    `converter` runs before validation; type checkers take the type of its argument for the field's parameter in
    `__init__`.  `constraints` are those of `pydantic.Field` (ge, le, max_length, pattern...).
    """
    if default_factory is None:
        info: Any = Field(default, **constraints)
    else:
        info = Field(default_factory=default_factory, **constraints)
    if converter is not None:
        info.metadata.append(BeforeValidator(converter))
    return info


def unchanged(value: Any) -> Any:
    """Converter of fields whose inputs pydantic converts by itself; its annotation tells type checkers of them."""
    return value


if TYPE_CHECKING:

    def to_tuple(values: Iterable[_Item]) -> tuple[_Item, ...]:
        """Converter of fields that take any sequence and keep a tuple."""
        ...
else:
    to_tuple = None  # pydantic itself makes tuples of sequences, and refuses what is none


@dataclass_transform(kw_only_default=False, frozen_default=True, field_specifiers=(field,))
class _PositionalModelMetaclass(ModelMetaclass):
    """Pydantic's metaclass; type checkers are told that fields are positional parameters in their order."""


class FrozenModel(BaseModel, metaclass=_PositionalModelMetaclass):
    """A frozen pydantic model whose fields may be given by position; what is invalid raises InputError."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    positional_fields: ClassVar[tuple[str, ...]] = ()
    """Fields in the order in which they may be given by position: all but those of classes that are `kw_only`."""

    def __init_subclass__(cls, **config: Any) -> None:
        """Takes what `__pydantic_init_subclass__` takes, which pydantic calls once the fields are known."""

    @classmethod
    def __pydantic_init_subclass__(cls, *, kw_only: bool = False, **config: Any) -> None:
        own = () if kw_only else tuple(name for name in cls.model_fields if name in cls.__annotations__)
        cls.positional_fields = (*cls.positional_fields, *own)

    if not TYPE_CHECKING:  # type checkers make the signature from the fields

        def __init__(self, /, *args: Any, **fields: Any) -> None:
            names = self.positional_fields
            if len(args) > len(names):
                raise InputError(f"{type(self).__name__} takes at most {len(names)} values: {', '.join(names)}")
            given = dict(zip(names, args, strict=False))
            if repeated := given.keys() & fields.keys():
                raise InputError(f"{', '.join(sorted(repeated))} is given twice to {type(self).__name__}")
            try:
                super().__init__(**given, **fields)
            except ValidationError as invalid:
                raise InputError(_sentence(type(self), invalid)) from None

    def to_json(self) -> str:
        """All fields as JSON text, pictures as base64 PNG."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls: type[_Model], text: str | bytes) -> _Model:
        """The value of `to_json`'s text.  A path is no picture here: JSON from elsewhere opens no local file.

        Raises InputError.
        """
        try:
            fields = parse_json(text, unique=True)
        except ValueError as invalid:
            raise InputError(f"this is not JSON: {invalid}") from None
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls: type[_Model], fields: object) -> _Model:
        """The same as `from_json`, from parsed JSON."""
        if not isinstance(fields, dict):
            raise InputError(f"a {cls.__name__} is a JSON object, not {abbreviate(fields)}")
        token = json_context.set(True)
        try:
            return cls.model_validate(fields)  # comes by way of __init__
        finally:
            json_context.reset(token)


def decode_base64(value: object) -> object:
    """The bytes of base64 text in JSON; anything else unchanged.  Raises InputError."""
    if not (isinstance(value, str) and json_context.get()):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise InputError(f"bytes in JSON are base64 text, and this is not: {broken}") from None


Base64Bytes = Annotated[
    bytes,
    BeforeValidator(decode_base64),
    PlainSerializer(lambda content: base64.b64encode(content).decode(), return_type=str, when_used="json"),
]
"""Bytes; in JSON base64 text."""


def _sentence(model: type[FrozenModel], invalid: ValidationError) -> str:
    """The first error in words: the field, what it must be, and what was given."""
    errors = invalid.errors(include_url=False)
    # For a union, the error of the member whose type the value has.
    error = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    place = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part.isidentifier())
    limits: Mapping[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return f"a {model.__name__} needs its {place}, and it is missing"
        case "extra_forbidden":
            known = model.model_fields
            return f"a {model.__name__} has no {place!r}, but {', '.join(known)}{did_you_mean(place, known)}"
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
