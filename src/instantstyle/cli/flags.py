"""Flags that are parsed, or that go together, as the fields of a request; flags that nothing uses are refused."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from instantstyle.errors import InputError

if TYPE_CHECKING:
    from instantstyle.request import StyleReference


_Value = TypeVar("_Value")

ModelOption = Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout, a file or a hub id.")]

DEFAULT_INIT_STRENGTH = 0.6
"""Where --strength is not given; `Init` itself has no default."""
DEFAULT_CONTROL_KIND = "canny"

REFERENCE_FLAGS = (
    *("content", "content_weight", "weight", "style_mask", "plan", "window", "subtraction", "combine", "fit"),
    *("adapter", "through", "style_plan", "re_embed", "image_encoder", "content_encoder", "best_of"),
)
INIT_FLAGS = ("strength", "mask")
CONTROL_FLAGS = ("control_kind", "control_weight", "control_window", "control_model", "depth_model", "save_control")


def refuse_unused(values: Mapping[str, Any]) -> None:
    """Raise InputError for a flag about a reference, an init picture or a control where there is none."""
    owners = (
        ("style", "a reference", REFERENCE_FLAGS),
        ("init", "a picture to begin from", INIT_FLAGS),
        ("control", "a picture to follow", CONTROL_FLAGS),
    )
    for owner, what, names in owners:
        if values.get(owner):
            continue
        for name in names:
            # A method may make its reference itself, by an option.
            if values.get(name) in (None, [], False) or (name in ("plan", "window") and values.get("options")):
                continue
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} says something of {what}, and there is none: give --{owner} as well")


def refuse_unused_by(values: Mapping[str, Any], references: Sequence["StyleReference"]) -> None:
    """Raise InputError for a flag about contents, several references or cards where the references have none."""
    from instantstyle.request.style_card import StyleCard

    cards = [isinstance(each.image, StyleCard) for each in references]
    contents = any(each.content_phrases for each in references)
    wanted = (
        (("content_weight", "subtraction", "content_encoder"), contents, "a content to subtract", "--content"),
        (("combine",), len(references) > 1, "several references", "--style twice"),
        (("re_embed",), any(cards), "style cards", "--style CARD"),
        (("fit",), not all(cards) or values.get("re_embed"), "pictures", "--style PICTURE"),
    )
    for names, there, what, remedy in wanted:
        for name in names:
            if references and not there and values.get(name) not in (None, False):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} says something of {what}, and there is none: give {remedy} as well")


def parse_adapters(texts: Sequence[str]) -> str | dict[str, str] | None:
    """A file, or several as `NAME=FILE`.  Raises InputError."""
    if len(texts) < 2 and not (texts and re.match(r"[\w-]+=", texts[0])):
        return texts[0] if texts else None
    pairs = [(name, file) for name, equals, file in (text.partition("=") for text in texts) if equals and name and file]
    if len(pairs) < len(texts) or len(dict(pairs)) < len(pairs):
        raise InputError(
            f"several adapters are given as NAME=FILE, under different names, such as style={texts[0].split('=')[-1]}"
        )
    return dict(pairs)


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


def parse_options(texts: Sequence[str]) -> dict[str, bool | int | float | str]:
    """`name=value` each; a value that reads as a number, as true or as false is one.  Raises InputError."""
    options: dict[str, bool | int | float | str] = {}
    for each in texts:
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


def init_fields(init: str | None, strength: float | None, mask: str | None) -> dict[str, Any] | None:
    """The fields of the picture to begin from."""
    if init is None:
        return None
    return {"image": init, "strength": DEFAULT_INIT_STRENGTH if strength is None else strength, "mask": mask}


def control_fields(
    pictures: Sequence[str],
    kinds: Sequence[str],
    weights: Sequence[float],
    window: tuple[float, float] | None,
    models: Sequence[str],
    depth_model: str | None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The fields of each control, and the ControlNets to load by name.

    Raises InputError when the numbers of flags do not match, or two models are for one kind.
    """
    per_picture = {"--control-kind": kinds, "--control-weight": weights, "--control-model": models}
    for flag, values in per_picture.items():
        if len(values) > 1 and len(values) != len(pictures):
            raise InputError(
                f"there are {len(pictures)} --control and {len(values)} {flag}: give one for all, or one for each, in "
                "the same order"
            )
    kinds = _broadcast(kinds or [DEFAULT_CONTROL_KIND], len(pictures))
    if depth_model is not None and not any(kind.partition(":")[0] == "depth" for kind in kinds):
        raise InputError(
            "--depth-model says what makes depth pictures, and none is made: give --control-kind depth as well"
        )
    models_by_name: dict[str, str] = {}
    for kind, model in zip(kinds, _broadcast(models, len(pictures)), strict=False):
        name = kind.rpartition(":")[2]  # the name that the kind calls its ControlNet by
        if models_by_name.setdefault(name, model) != model:
            raise InputError(
                f"two --control-model are for the kind {kind!r}: tell them apart by a name of their own, as in "
                f"--control-kind {kind}:one --control-kind {kind}:two"
            )
    weights = _broadcast(weights, len(pictures))
    return [
        given(image=picture, kind=kind, weight=weights[i] if weights else None, window=window)
        for i, (picture, kind) in enumerate(zip(pictures, kinds, strict=True))
    ], models_by_name


def reference_fields(
    styles: Sequence[str],
    contents: Sequence[str],
    content_weight: float | None,
    weights: Sequence[float],
    **per_style: tuple[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """The fields of each reference; `per_style` are fields with their flag and a value for each reference.

    Raises InputError when the numbers of flags do not match.
    """
    if contents and len(styles) > 1 and len(contents) != len(styles):
        raise InputError(
            f"there are {len(styles)} --style and {len(contents)} --content: give one for each, in the same order, "
            "'' where nothing is to be subtracted"
        )
    if len(weights) > 1 and len(weights) != len(styles):
        raise InputError(
            f"there are {len(styles)} --style and {len(weights)} --weight: give one for all, or one for each"
        )
    for flag, values in per_style.values():
        if values and len(values) != len(styles):
            raise InputError(
                f"there are {len(styles)} --style and {len(values)} {flag}: give one for each, in the same order, '' "
                "for a reference that has none"
            )
    # Of a single reference, several --content are several things that it shows.
    several = len(styles) == 1 and len(contents) > 1
    weights = _broadcast(weights, len(styles))
    return [
        given(
            image=style,
            content=tuple(contents) if several else (contents[i] or None) if contents else None,
            content_weight=content_weight,
            weight=weights[i] if weights else None,
            **{field: values[i] or None for field, (_, values) in per_style.items() if values},
        )
        for i, style in enumerate(styles)
    ]


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given, so that the others keep the defaults of their model."""
    return {name: value for name, value in fields.items() if value is not None}


def _broadcast(values: Sequence[_Value], count: int) -> list[_Value]:
    """One value for all, or one for each."""
    return [*values] * count if len(values) == 1 else [*values]
