"""Flags that say more than one word, or go together, read into the fields of a request."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from instantstyle.errors import InputError


def parse_adapters(given: Sequence[str]) -> str | dict[str, str] | None:
    """A file, or several as `NAME=FILE`.  Raises InputError."""
    if len(given) < 2 and not (given and re.match(r"[\w-]+=", given[0])):
        return given[0] if given else None
    named = [(name, file) for name, equals, file in (each.partition("=") for each in given) if equals and name and file]
    if len(named) < len(given) or len(dict(named)) < len(named):
        raise InputError(
            f"several adapters are given as NAME=FILE, under different names, such as style={given[0].split('=')[-1]}"
        )
    return dict(named)


def parse_memory(text: str) -> Literal["keep", "free", "offload"]:
    """What is to stay on the device.  Raises InputError."""
    match text:
        case "keep" | "free" | "offload":
            return text
        case _:
            raise InputError(f"--memory is keep, free or offload, not {text!r}")


def parse_size(text: str) -> tuple[int, int]:
    """`1024x768` as (width, height); one number is a square.  Raises InputError."""
    match = re.fullmatch(r"(\d{1,6})(?:[xX×*](\d{1,6}))?", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"a size is width x height in pixels such as 1024x768, not {text!r}")
    return int(match[1]), int(match[2] or match[1])


def parse_options(given: Sequence[str]) -> dict[str, bool | int | float | str]:
    """`name=value` each; a value that reads as a number, as true or as false is one.  Raises InputError."""
    options: dict[str, bool | int | float | str] = {}
    for each in given:
        name, equals, text = (part.strip() for part in each.partition("="))
        if not name or not equals:
            raise InputError(f"an option is name=value such as shift=0.5, not {each!r}")
        if name in options:
            raise InputError(f"the option {name} is given twice")
        try:
            value: object = json.loads(text)
        except ValueError:
            value = text
        options[name] = value if isinstance(value, bool | int | float) else text
    return options


def init_of(init: str | None, strength: float | None, mask: str | None) -> dict[str, Any] | None:
    """The fields of the picture to begin from.  Raises InputError when a flag speaks of one that is not there."""
    for flag, given in {"--strength": strength, "--mask": mask}.items():
        if given is not None and init is None:
            raise InputError(
                f"{flag} says something of a picture to begin from, and there is none: give --init as well"
            )
    return None if init is None else {"image": init, "strength": 0.6 if strength is None else strength, "mask": mask}


def controls_of(
    pictures: list[str],
    kinds: list[str],
    weights: list[float],
    window: tuple[float, float] | None,
    models: list[str],
    idle: Mapping[str, object],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The fields of each control, and the ControlNets to load by name.

    Raises InputError when the numbers of flags do not match, or a flag (`idle` are more of them) speaks of none.
    """
    several = {"--control-kind": kinds, "--control-weight": weights, "--control-model": models}
    for flag, given in {**several, **idle}.items():
        if given not in (None, []) and not pictures:
            raise InputError(f"{flag} says something of a picture to follow, and there is none: give --control as well")
    for flag, given in several.items():
        if len(given) > 1 and len(given) != len(pictures):
            raise InputError(
                f"there are {len(pictures)} --control and {len(given)} {flag}: give one for all, or one for each, in "
                "the same order"
            )
    kinds = kinds * len(pictures) if len(kinds) == 1 else kinds or ["canny"] * len(pictures)
    loud: list[float | None] = [*weights] * len(pictures) if len(weights) == 1 else [*weights] or [None] * len(pictures)
    nets: dict[str, str] = {}
    for kind, net in zip(kinds, models * len(pictures) if len(models) == 1 else models, strict=False):
        name = kind.rpartition(":")[2]  # the name that the kind calls its ControlNet by
        if nets.setdefault(name, net) != net:
            raise InputError(
                f"two --control-model are for the kind {kind!r}: tell them apart by a name of their own, as in "
                f"--control-kind {kind}:one --control-kind {kind}:two"
            )
    fields = [
        {"kind": kind, "image": picture, "weight": weight, "window": window}
        for kind, picture, weight in zip(kinds, pictures, loud, strict=True)
    ]
    return [{name: value for name, value in each.items() if value is not None} for each in fields], nets


def with_own(own: Mapping[str, tuple[str, Sequence[str]]], references: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """References with the fields that each has for itself, from flags given once for each.  Raises InputError."""
    for field, (flag, given) in own.items():
        if given and len(given) != len(references):
            raise InputError(f"there are {len(references)} --style and {len(given)} {flag}: give one for each")
        for reference, value in zip(references, given, strict=False):
            reference[field] = value
    return references


def references_of(
    styles: list[str],
    contents: list[str],
    content_weight: float | None,
    weights: list[float],
    masks: list[str],
    idle: Mapping[str, object],
) -> list[dict[str, Any]]:
    """The fields of each reference.

    Raises InputError when the numbers of flags do not match, or a flag (`idle` are more of them) speaks of none.
    """
    about = {"--content": contents or None, "--weight": weights or None, "--style-mask": masks or None, **idle}
    for flag, given in about.items():
        if given is not None and not styles:
            raise InputError(f"{flag} says something of a reference, and there is none: give --style as well")
    if contents and len(styles) > 1 and len(contents) != len(styles):
        raise InputError(
            f"there are {len(styles)} --style and {len(contents)} --content: give one for each, in the same order, "
            "'' where nothing is to be subtracted"
        )
    if len(weights) > 1 and len(weights) != len(styles):
        raise InputError(
            f"there are {len(styles)} --style and {len(weights)} --weight: give one for all, or one for each"
        )
    if masks and len(masks) != len(styles):
        raise InputError(
            f"there are {len(styles)} --style and {len(masks)} --style-mask: give one for each, in the same order, '' "
            "where the reference speaks everywhere"
        )
    # Of a single reference, several --content are several things that it shows.
    said = [tuple(contents)] if len(styles) == 1 and len(contents) > 1 else contents or [None] * len(styles)
    loud = weights * len(styles) if len(weights) == 1 else weights or [None] * len(styles)
    references = [
        {
            "image": path,
            "content": what or None,
            "content_weight": content_weight,
            "weight": weight,
            "mask": mask or None,
        }
        for path, what, weight, mask in zip(styles, said, loud, masks or [None] * len(styles), strict=True)
    ]
    return [{name: value for name, value in fields.items() if value is not None} for fields in references]
