"""Request and its parts: references, controls and an init picture, all that decides a picture besides the model."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, field_validator

from instantstyle.blocks import MAX_STRENGTH, plan_to_text
from instantstyle.errors import InputError, PictureError
from instantstyle.request.base import FrozenModel, abbreviate, field, json_context, to_tuple, unchanged
from instantstyle.request.image import (
    MAX_IMAGE_SIZE,
    MAX_REFERENCE_SIZE,
    ImageInput,
    StoredImage,
    coerce_image,
    to_image,
    to_mask,
)
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
"""Characters of a prompt."""
MAX_CONTENTS = 16
"""Phrases of one reference's content: each goes through the text encoder."""
MAX_SIDE = 4096
"""Pixels of a result's side."""
PREPROCESSED_CONTROLS = ("canny", "soft-edge", "lineart", "depth")
"""Kinds of control whose picture is made of the given one; pictures of all other kinds are used as they are."""

UnitFloat = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=MAX_STRENGTH)]
PromptStr = Annotated[str, Field(max_length=MAX_PROMPT)]
SideInt = Annotated[int, Field(ge=8, le=MAX_SIDE)]
OptionValue = bool | int | float | str


def _ordered(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] > window[1]:
        raise InputError(f"a window is its start and its end, 0 to 1 in this order, not {window}")
    return window


Window = Annotated[tuple[UnitFloat, UnitFloat], AfterValidator(_ordered)]
"""The part of the run in which something holds: 0 is its first step, 1 its end."""


def _coerce_reference(given: object) -> StoredImage | StyleCard:
    """A style card by its name, its file or its JSON, or else a picture."""
    if isinstance(given, StyleCard):
        return given
    if isinstance(given, dict) and "sights" in given:
        return StyleCard.model_validate(given)
    if isinstance(given, str | Path) and str(given).endswith(SUFFIX) and not json_context.get():
        return read_card(given)
    if isinstance(given, str) and is_card_name(given) and (json_context.get() or not Path(given).exists()):
        card = find_style_card(given, own=not json_context.get())  # JSON from elsewhere opens no local file
        if card is not None:
            return card
        if not json_context.get():
            raise PictureError(f"there is no picture at {given!r}{unknown_card_hint(given)}")
    return coerce_image(cast("object", given), MAX_REFERENCE_SIZE)


def _check_options(given: object) -> dict[str, OptionValue]:
    """Short names with finite numbers, texts or booleans: what JSON gives back unchanged."""
    if not isinstance(given, Mapping):
        raise InputError(f"options are names and their values, not {abbreviate(given)}")
    for name, value in cast("Mapping[object, object]", given).items():
        if not isinstance(name, str) or len(name) > 100:
            raise InputError(f"the name of an option is a short text, not {abbreviate(name)}")
        number = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**63
        if not number and not isinstance(value, str):
            raise InputError(f"the option {name} must be a number, a text, true or false, not {abbreviate(value)}")
        if isinstance(value, str) and len(value) > MAX_PROMPT:
            raise InputError(f"the option {name} is too long: {len(value):,} characters, and {MAX_PROMPT:,} fit")
    return dict(cast("Mapping[str, OptionValue]", given))


def _plan_text(given: object) -> Any:
    return plan_to_text(given)


# What each field takes, for type checkers, and the function that makes of it what the field holds.
_to_reference = cast("Callable[[ImageInput | StyleCard], StoredImage | StyleCard]", _coerce_reference)
_to_content = cast("Callable[[str | Sequence[str] | None], str | tuple[str, ...] | None]", unchanged)
_to_plan = cast("Callable[[str | Mapping[str, object] | None], str | None]", _plan_text)
_to_options = cast("Callable[[Mapping[str, OptionValue]], Mapping[str, OptionValue]]", _check_options)


class StyleReference(FrozenModel):
    """A picture whose style is wanted, or a style card: its name, its file, or the card itself."""

    image: StoredImage | StyleCard = field(converter=_to_reference)
    content: PromptStr | Annotated[tuple[PromptStr, ...], Field(max_length=MAX_CONTENTS)] | None = field(
        default=None, converter=_to_content
    )
    """What it shows, to be subtracted from it: a phrase, several, or "auto" to pick from the family's vocabulary.
    None: what its style card says."""
    content_weight: Strength = 0.5
    weight: Strength = 1.0
    mask: StoredImage | None = field(default=None, converter=to_mask)
    """Where the reference acts, white on black; transparent counts as black.  None: everywhere."""
    plan: PromptStr | None = field(default=None, converter=_to_plan)
    """The blocks where this reference acts; None: those of the request."""
    adapter: Annotated[str, Field(max_length=200)] | None = None
    """The name of its adapter, where the model has several; None: the first."""

    @property
    def content_phrases(self) -> tuple[str, ...]:
        """The content as a tuple of phrases, empty where nothing is to be subtracted."""
        content = self.content
        if content is None and isinstance(self.image, StyleCard):
            content = self.image.content
        phrases = (content,) if isinstance(content, str) else content or ()
        return tuple(phrase for phrase in phrases if phrase.strip())

    @property
    def effective_plan(self) -> str | None:
        """Its plan, or else the one that its style card is meant for."""
        return self.image.plan if self.plan is None and isinstance(self.image, StyleCard) else self.plan


class Control(FrozenModel):
    """A picture whose edges, lines or depth the result follows."""

    kind: str
    """`canny`, `soft-edge`, `lineart`, `depth`, `image`, or the name of a ControlNet; see `controlnet`."""
    image: StoredImage = field(converter=to_image)
    """Where it is used as it is (PREPROCESSED_CONTROLS), transparent counts as black; else as white."""
    weight: Strength = 0.6
    window: Window = (0.0, 1.0)

    @field_validator("image", mode="before")
    @classmethod
    def _flatten(cls, value: object, info: Any) -> StoredImage:
        """The picture without transparency, by what its kind makes of black and white."""
        kind = str(info.data.get("kind")).partition(":")[0]
        return coerce_image(value, MAX_IMAGE_SIZE, "contrast" if kind in PREPROCESSED_CONTROLS else "black")


class Init(FrozenModel):
    """A picture to begin from instead of noise; `strength` 1 leaves nothing of it, and a mask bounds the change."""

    image: StoredImage = field(converter=to_image)
    strength: UnitFloat
    mask: StoredImage | None = field(default=None, converter=to_mask)
    """Where it is painted anew, white on black; transparent counts as black."""


class Request(FrozenModel):
    """All that decides a picture, besides the model.

    None means: the model's own (size, guidance, sampler), or drawn by chance (seed).  A result's request has all of
    them filled in.
    """

    prompt: PromptStr
    negative: PromptStr = ""
    references: tuple[StyleReference, ...] = field(default=(), converter=to_tuple, max_length=16)
    method: Annotated[str, Field(max_length=100)] = "instantstyle"
    plan: PromptStr | None = field(default=None, converter=_to_plan)
    """A preset, presets joined by `+`, terms such as `up.0.1=1.2`, or diffusers' nested dictionary, kept as its JSON
    text; parsed when the model is known.  None: the method's own place."""
    window: Window = (0.0, 1.0)
    controls: tuple[Control, ...] = field(default=(), converter=to_tuple, max_length=16)
    init: Init | None = None
    size: tuple[SideInt, SideInt] | None = None
    """(width, height) in pixels."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    """Scale of classifier-free guidance; at 1 and below no unconditional row is predicted."""
    sampler: Annotated[str, Field(max_length=100)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    count: Annotated[int, Field(ge=1, le=64)] = 1
    subtraction: Literal["paper", "normalised", "projected", "masked"] = "paper"
    """How a reference's content is subtracted from its embedding; see `methods.content_subtraction`."""
    combine: Literal["concat", "average"] = "concat"
    """Several references: all their tokens, or the tokens of their weighted mean."""
    fit: ResizeMode = "squash"
    """How a reference that is not square meets the square image encoder.  Squashed, nothing of it is lost and no
    bars are added, which an encoder would read as part of the style; colour and stroke survive a change of shape."""
    reading: Literal["plain", "long", "weighted"] = "plain"
    """How prompts are encoded: as they are (refused where too long), in chunks, or in chunks with weighted words."""
    options: Annotated[Mapping[str, OptionValue], Field(max_length=32)] = field(default={}, converter=_to_options)
    """Options of the method by name; each method declares its own and refuses others."""
    guidance_rescale: UnitFloat | None = None
    """How far the guided prediction is brought back to the standard deviation of the conditional one, against
    over-exposure (Lin et al., arXiv 2305.08891, section 3.4: 0.7 for models that begin from pure noise); 0 not at
    all."""
    clip_skip: Annotated[int, Field(ge=1, le=24)] | None = None
    """Which hidden state of the text encoders is read, counted from the end: 1 the last, 2 the last but one; as A1111
    counts.  None: the family's, 1 for SD1.5 and 2 for SDXL."""
    true_guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    """Of models that read `guidance` as a number (Flux dev): scale of classifier-free guidance beside it, with the
    negative prompt, for twice the time.  None: 1, which is without."""

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there is an unconditional row; `guidance` is resolved."""
        assert self.guidance is not None
        return self.guidance > 1
