"""What is asked for: references, controls, a picture to begin from, and all else that decides a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field

from instantstyle.blocks import MAX_STRENGTH, plan_to_text
from instantstyle.errors import InputError, PictureError
from instantstyle.request.base import FrozenModel, abbreviate, json_context
from instantstyle.request.image import MAX_IMAGE_SIZE, MAX_REFERENCE_SIZE, ImageInput, StoredImage, coerce_image
from instantstyle.request.style_card import (
    SUFFIX,
    StyleCard,
    find_style_card,
    is_card_name,
    read_card,
    unknown_card_hint,
)
from instantstyle.utils.images import ResizeMode

MAX_PROMPT = 2000
MAX_CONTENTS = 16
"""Phrases of one reference's content: each goes through the text encoder."""
MAX_SIDE = 4096


def _reference(value: object) -> object:
    """A style card by its name, its file or its JSON, or else a picture."""
    if isinstance(value, StyleCard):
        return value
    if isinstance(value, dict) and "sights" in value:
        return StyleCard.model_validate(value)
    if isinstance(value, str | Path) and str(value).endswith(SUFFIX) and not json_context.get():
        return read_card(value)
    if isinstance(value, str) and is_card_name(value) and (json_context.get() or not Path(value).exists()):
        card = find_style_card(value, own=not json_context.get())  # text from elsewhere opens no file of ours
        if card is not None:
            return card
        if not json_context.get():
            raise PictureError(f"there is no picture at {value!r}{unknown_card_hint(value)}")
    return coerce_image(cast("object", value), MAX_REFERENCE_SIZE)


Reference = Annotated[StoredImage | StyleCard, BeforeValidator(_reference)]
ConditioningImage = Annotated[StoredImage, BeforeValidator(lambda value: coerce_image(value, MAX_IMAGE_SIZE))]
UnitFloat = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=MAX_STRENGTH)]
PromptStr = Annotated[str, Field(max_length=MAX_PROMPT)]
SideInt = Annotated[int, Field(ge=8, le=MAX_SIDE)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _ordered(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] > window[1]:
        raise InputError(f"a window is its start and its end, 0 to 1 in this order, not {window}")
    return window


Window = Annotated[tuple[UnitFloat, UnitFloat], AfterValidator(_ordered)]
"""The part of the run something holds for: 0 is its first step, 1 its end."""


def _options(options: object) -> object:
    """Names and finite numbers, texts or yes and no: what JSON gives back as it was."""
    if not isinstance(options, Mapping):
        raise InputError(f"options are names and their values, not {abbreviate(options)}")
    for name, value in cast("Mapping[object, object]", options).items():
        if not isinstance(name, str) or len(name) > 100:
            raise InputError(f"the name of an option is a short text, not {abbreviate(name)}")
        number = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**63
        if not number and not isinstance(value, str):
            raise InputError(f"the option {name} must be a number, a text, true or false, not {abbreviate(value)}")
        if isinstance(value, str) and len(value) > MAX_PROMPT:
            raise InputError(f"the option {name} is too long: {len(value):,} characters, and {MAX_PROMPT:,} fit")
    return dict(cast("Mapping[str, object]", options))


class StyleReference(FrozenModel):
    """A picture whose style is wanted, or a style card: its name, its file, or the card itself.

    `content` says what it shows, so that this can be subtracted from it; a card may say so itself.  It may be several
    words or phrases, and "auto" picks it from the family's vocabulary.
    """

    image: Reference
    content: PromptStr | Annotated[tuple[PromptStr, ...], Field(max_length=MAX_CONTENTS)] | None = None
    content_weight: Strength = 0.5
    weight: Strength = 1.0
    mask: ConditioningImage | None = None
    plan: Annotated[PromptStr | None, BeforeValidator(plan_to_text)] = None
    """Where this reference speaks; None: where the request says."""
    adapter: Annotated[str, Field(max_length=200)] | None = None
    """The name of the adapter it speaks through, where the model has several; None: the first."""

    if TYPE_CHECKING:

        def __init__(
            self,
            image: ImageInput | StyleCard,
            content: str | Sequence[str] | None = None,
            content_weight: float = 0.5,
            weight: float = 1.0,
            mask: ImageInput | None = None,
            plan: str | Mapping[str, object] | None = None,
            adapter: str | None = None,
        ) -> None: ...

    @property
    def content_phrases(self) -> tuple[str, ...]:
        """The content as a tuple of phrases, empty where nothing is to be subtracted."""
        said = self.content
        if said is None and isinstance(self.image, StyleCard):
            said = self.image.content
        given = (said,) if isinstance(said, str) else said or ()
        return tuple(phrase for phrase in given if phrase.strip())

    @property
    def effective_plan(self) -> str | None:
        """Its plan, or else the one that its style card is meant for."""
        return self.image.plan if self.plan is None and isinstance(self.image, StyleCard) else self.plan


class Control(FrozenModel):
    """A picture whose edges, lines or depth the result follows."""

    kind: str
    image: ConditioningImage
    weight: Strength = 0.6
    window: Window = (0.0, 1.0)

    if TYPE_CHECKING:

        def __init__(
            self, kind: str, image: ImageInput, weight: float = 0.6, window: tuple[float, float] = (0.0, 1.0)
        ) -> None: ...


class Init(FrozenModel):
    """A picture to begin from instead of noise; `strength` 1 leaves nothing of it, and a mask bounds the change."""

    image: ConditioningImage
    strength: UnitFloat
    mask: ConditioningImage | None = None

    if TYPE_CHECKING:

        def __init__(self, image: ImageInput, strength: float, mask: ImageInput | None = None) -> None: ...


class Request(FrozenModel):
    """All that decides a picture, besides the model.

    None means: the model's own (size, guidance, sampler), or drawn by chance (seed).  A result's request has all of
    them filled in.
    """

    prompt: PromptStr
    negative: PromptStr = ""
    references: tuple[StyleReference, ...] = Field((), max_length=16)
    method: str = Field("instantstyle", max_length=100)
    plan: Annotated[str, BeforeValidator(plan_to_text)] = Field("style", max_length=MAX_PROMPT)
    """A preset, presets joined by `+`, terms such as `up.0.1=1.2`, or diffusers' nested dictionary, kept as its JSON
    text; read when the model is known."""
    window: Window = (0.0, 1.0)
    controls: tuple[Control, ...] = Field((), max_length=16)
    init: Init | None = None
    size: tuple[SideInt, SideInt] | None = None
    """(width, height) in pixels."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    """How strongly the prompt is followed; at 1 and below no unconditional row is predicted."""
    sampler: Annotated[str, Field(max_length=100)] | None = None
    seed: Seed | None = None
    count: Annotated[int, Field(ge=1, le=64)] = 1
    subtraction: Literal["paper", "normalised", "projected", "masked"] = "paper"
    """How a reference's content is taken out of its embedding; see `features`."""
    combine: Literal["concat", "average"] = "concat"
    """Several references: all their tokens, or the tokens of their weighted mean."""
    fit: ResizeMode = "squash"
    """How a reference that is not square meets the square image encoder.  Squashed, nothing of it is lost and no
    bars are added, which an encoder would read as part of the style; colour and stroke survive a change of shape."""
    reading: Literal["plain", "long", "weighted"] = "plain"
    """How prompts are read: as they stand (refused where too long), in chunks, or with compel's weights."""
    options: Annotated[Mapping[str, bool | int | float | str], BeforeValidator(_options), Field(max_length=32)] = {}
    """Knobs of the method by name; the method knows which there are (`methods.OPTIONS`) and refuses others."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] | None = None
    """How far the guided prediction is brought back to the spread of the conditional one, against glaring colours (Lin
    et al., arXiv 2305.08891, section 3.4: 0.7 for models that begin from pure noise); 0 not at all."""

    if TYPE_CHECKING:

        def __init__(
            self,
            prompt: str,
            negative: str = "",
            references: Sequence[StyleReference] = (),
            method: str = "instantstyle",
            plan: str | Mapping[str, object] = "style",
            window: tuple[float, float] = (0.0, 1.0),
            controls: Sequence[Control] = (),
            init: Init | None = None,
            size: tuple[int, int] | None = None,
            steps: int = 30,
            guidance: float | None = None,
            sampler: str | None = None,
            seed: int | None = None,
            count: int = 1,
            subtraction: Literal["paper", "normalised", "projected", "masked"] = "paper",
            combine: Literal["concat", "average"] = "concat",
            fit: ResizeMode = "squash",
            reading: Literal["plain", "long", "weighted"] = "plain",
            options: Mapping[str, float | int | str | bool] = {},
            guidance_rescale: float | None = None,
        ) -> None: ...

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there is an unconditional row to push away from; `guidance` is settled."""
        assert self.guidance is not None
        return self.guidance > 1
