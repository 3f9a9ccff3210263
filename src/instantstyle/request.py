"""What is asked for and what comes back, as frozen values that survive JSON.  No torch here.

One type is the command line's flags, the HTTP body, an evaluation case and a picture's metadata: `Request`.  A picture
inside it is not a path but the picture itself, bounded and as PNG bytes, with the hash of the file it came from: what
is generated from is exactly what is remembered.
"""

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from instantstyle import pictures, whole
from instantstyle.blocks import MAX_STRENGTH, plan_text
from instantstyle.card import SUFFIX, StyleCard, hint, is_name, named_card, read_card
from instantstyle.errors import InputError, PictureError
from instantstyle.noun import Noun, reading_json, short
from instantstyle.pictures import Fit

MAX_PROMPT = 2000
MAX_CONTENTS = 16
"""Phrases of one reference's content: each goes through the text encoder."""
MAX_SIDE = 4096
REFERENCE_SIDE = 512
"""Longest side of a remembered reference.  Image encoders see at most 336 pixels; more would only swell metadata."""
PICTURE_SIDE = 2048
"""Longest side of a remembered control, init or mask picture, which a result follows pixel by pixel."""


@cache
def version() -> str:
    """This package's version, as results remember it."""
    try:
        return installed.version("instantstyle")
    except installed.PackageNotFoundError:  # run from a source tree that was never installed
        return "source"


def _unbase64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise PictureError(f"a picture in JSON is base64 text of a PNG, and this is not: {broken}") from None


def _plain_png(content: bytes) -> bytes:
    """The bytes themselves where they are an RGB PNG without surprises, else such a PNG of the same picture."""
    picture = pictures.read(content)
    with Image.open(io.BytesIO(content)) as opened:
        plain = opened.format == "PNG" and opened.mode == "RGB" and max(opened.size) <= PICTURE_SIDE and not opened.info
    return content if plain else pictures.png(picture, longest=PICTURE_SIDE)


class Picture(Noun):
    """A picture as a request remembers it: RGB PNG bytes of bounded size, and the hash of the file it came from."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    png: Annotated[
        bytes,
        BeforeValidator(_unbase64),
        AfterValidator(_plain_png),
        PlainSerializer(lambda content: base64.b64encode(content).decode(), return_type=str, when_used="json"),
    ]

    if TYPE_CHECKING:

        def __init__(self, sha256: str, png: bytes) -> None: ...

    def open(self) -> Image.Image:
        """The picture in RGB."""
        return pictures.read(self.png)

    def __repr__(self) -> str:
        return f"Picture({self.sha256[:12]}, {len(self.png):,} bytes)"


PictureLike = str | Path | bytes | Image.Image | Picture
"""What a picture may be given as: a path, the bytes of a file, a PIL image, or one that is remembered already."""


def remember(source: PictureLike, longest: int = REFERENCE_SIDE) -> Picture:
    """Read a picture safely and bound its longer side.  Raises PictureError."""
    if isinstance(source, Picture):
        small = source.open()
        return source if max(small.size) <= longest else Picture(source.sha256, pictures.png(small, longest=longest))
    if isinstance(source, Image.Image):
        picture = pictures.read(source)
        content = pictures.png(picture)
    elif isinstance(source, bytes):
        picture, content = pictures.read(source), source
    else:  # read once, so that the hash is that of the very bytes that were decoded
        content = pictures.file_bytes(source)
        picture = pictures.read(content, repr(str(source)))
    return Picture(hashlib.sha256(content).hexdigest(), pictures.png(picture, longest=longest))


def _picture(value: object, longest: int) -> object:
    if isinstance(value, dict):
        value = Picture.model_validate(value)
    if isinstance(value, str | Path) and reading_json.get():
        raise PictureError(f"a picture in JSON is an object with sha256 and png, not the path {short(value)}")
    if isinstance(value, str | Path | bytes | Image.Image | Picture):
        return remember(value, longest)
    raise PictureError(f"a picture is a path, the bytes of a file or a PIL image, not {short(value)}")


def _reference(value: object) -> object:
    """A style card by its name, its file or its JSON, or else a picture."""
    if isinstance(value, StyleCard):
        return value
    if isinstance(value, dict) and "sights" in value:
        return StyleCard.model_validate(value)
    if isinstance(value, str | Path) and str(value).endswith(SUFFIX) and not reading_json.get():
        return read_card(value)
    if isinstance(value, str) and is_name(value) and (reading_json.get() or not Path(value).exists()):
        card = named_card(value, own=not reading_json.get())  # text from elsewhere opens no file of ours
        if card is not None:
            return card
        if not reading_json.get():
            raise PictureError(f"there is no picture at {value!r}{hint(value)}")
    return _picture(cast("object", value), REFERENCE_SIDE)


Reference = Annotated[Picture | StyleCard, BeforeValidator(_reference)]
Guide = Annotated[Picture, BeforeValidator(lambda value: _picture(value, PICTURE_SIDE))]
Unit = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=MAX_STRENGTH)]
Words = Annotated[str, Field(max_length=MAX_PROMPT)]
Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _ordered(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] > window[1]:
        raise InputError(f"a window is its start and its end, 0 to 1 in this order, not {window}")
    return window


Window = Annotated[tuple[Unit, Unit], AfterValidator(_ordered)]
"""The part of the run something holds for: 0 is its first step, 1 its end."""


def _options(options: object) -> object:
    """Names and finite numbers, texts or yes and no: what JSON gives back as it was."""
    if not isinstance(options, Mapping):
        raise InputError(f"options are names and their values, not {short(options)}")
    for name, value in cast("Mapping[object, object]", options).items():
        if not isinstance(name, str) or len(name) > 100:
            raise InputError(f"the name of an option is a short text, not {short(name)}")
        number = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**63
        if not number and not isinstance(value, str):
            raise InputError(f"the option {name} must be a number, a text, true or false, not {short(value)}")
        if isinstance(value, str) and len(value) > MAX_PROMPT:
            raise InputError(f"the option {name} is too long: {len(value):,} characters, and {MAX_PROMPT:,} fit")
    return dict(cast("Mapping[str, object]", options))


class StyleReference(Noun):
    """A picture whose style is wanted, or a style card: its name, its file, or the card itself.

    `content` says what it shows, so that this can be subtracted from it; a card may say so itself.  It may be several
    words or phrases, and "auto" picks it from the family's vocabulary.
    """

    image: Reference
    content: Words | Annotated[tuple[Words, ...], Field(max_length=MAX_CONTENTS)] | None = None
    content_weight: Strength = 0.5
    weight: Strength = 1.0
    mask: Guide | None = None
    plan: Annotated[Words | None, BeforeValidator(plan_text)] = None
    """Where this reference speaks; None: where the request says."""
    adapter: Annotated[str, Field(max_length=200)] | None = None
    """The name of the adapter it speaks through, where the model has several; None: the first."""

    if TYPE_CHECKING:

        def __init__(
            self,
            image: PictureLike | StyleCard,
            content: str | Sequence[str] | None = None,
            content_weight: float = 0.5,
            weight: float = 1.0,
            mask: PictureLike | None = None,
            plan: str | Mapping[str, object] | None = None,
            adapter: str | None = None,
        ) -> None: ...

    @property
    def contents(self) -> tuple[str, ...]:
        """The content as a tuple of phrases, empty where nothing is to be subtracted."""
        said = self.content
        if said is None and isinstance(self.image, StyleCard):
            said = self.image.content
        given = (said,) if isinstance(said, str) else said or ()
        return tuple(phrase for phrase in given if phrase.strip())

    @property
    def own_plan(self) -> str | None:
        """Its plan, or else the one that its style card is meant for."""
        return self.image.plan if self.plan is None and isinstance(self.image, StyleCard) else self.plan


class Control(Noun):
    """A picture whose edges, lines or depth the result follows."""

    kind: str
    image: Guide
    weight: Strength = 0.6
    window: Window = (0.0, 1.0)

    if TYPE_CHECKING:

        def __init__(
            self, kind: str, image: PictureLike, weight: float = 0.6, window: tuple[float, float] = (0.0, 1.0)
        ) -> None: ...


class Init(Noun):
    """A picture to begin from instead of noise; `strength` 1 leaves nothing of it, and a mask bounds the change."""

    image: Guide
    strength: Unit
    mask: Guide | None = None

    if TYPE_CHECKING:

        def __init__(self, image: PictureLike, strength: float, mask: PictureLike | None = None) -> None: ...


class Request(Noun):
    """All that decides a picture, besides the model.

    None means: the model's own (size, sampler), or drawn by chance (seed).  A result's request has both filled in.
    """

    prompt: Words
    negative: Words = ""
    references: tuple[StyleReference, ...] = Field((), max_length=16)
    method: str = Field("instantstyle", max_length=100)
    plan: Annotated[str, BeforeValidator(plan_text)] = Field("style", max_length=MAX_PROMPT)
    """A preset, presets joined by `+`, terms such as `up.0.1=1.2`, or diffusers' nested dictionary, kept as its JSON
    text; read when the model is known."""
    window: Window = (0.0, 1.0)
    controls: tuple[Control, ...] = Field((), max_length=16)
    init: Init | None = None
    size: tuple[Side, Side] | None = None
    """(width, height) in pixels."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    guidance: Annotated[float, Field(ge=0, le=50)] = 5.0
    sampler: Annotated[str, Field(max_length=100)] | None = None
    seed: Seed | None = None
    count: Annotated[int, Field(ge=1, le=64)] = 1
    subtraction: Literal["paper", "normalised", "projected", "masked"] = "paper"
    """How a reference's content is taken out of its embedding; see `features`."""
    combine: Literal["concat", "average"] = "concat"
    """Several references: all their tokens, or the tokens of their weighted mean."""
    fit: Fit = "squash"
    """How a reference that is not square meets the square image encoder.  Squashed, nothing of it is lost and no
    bars are added, which an encoder would read as part of the style; colour and stroke survive a change of shape."""
    reading: Literal["plain", "long", "weighted"] = "plain"
    """How prompts are read: as they stand (refused where too long), in chunks, or with compel's weights."""
    options: Annotated[Mapping[str, bool | int | float | str], BeforeValidator(_options), Field(max_length=32)] = {}
    """Knobs of the method by name; the method knows which there are (`methods.OPTIONS`) and refuses others."""

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
            guidance: float = 5.0,
            sampler: str | None = None,
            seed: int | None = None,
            count: int = 1,
            subtraction: Literal["paper", "normalised", "projected", "masked"] = "paper",
            combine: Literal["concat", "average"] = "concat",
            fit: Fit = "squash",
            reading: Literal["plain", "long", "weighted"] = "plain",
            options: Mapping[str, float | int | str | bool] = {},
        ) -> None: ...


class Memory(Noun):
    """What a picture's metadata holds: enough to make it again, and to know whether the same model does."""

    request: Request
    index: Annotated[int, Field(ge=0)] = 0
    """Which of the request's `count` pictures this is."""
    model: str = ""
    adapter: str | Mapping[str, str] | None = None
    identity: str = ""
    """The hash of the model's weights."""
    device: str = "auto"
    dtype: str = "auto"
    version: str = Field(default_factory=version)
    controls: Mapping[str, str] = {}
    """ControlNets by kind, beside those that come with the model."""
    depth: str | None = None
    """The depth model."""
    image_encoder: str | None = None
    content_encoder: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    """LoRA files and how much of each."""

    if TYPE_CHECKING:

        def __init__(
            self,
            request: Request,
            index: int = 0,
            model: str = "",
            adapter: str | Mapping[str, str] | None = None,
            identity: str = "",
            device: str = "auto",
            dtype: str = "auto",
            version: str = "",
            controls: Mapping[str, str] = {},
            depth: str | None = None,
            image_encoder: str | None = None,
            content_encoder: str | None = None,
            loras: Sequence[tuple[str, float]] = (),
        ) -> None: ...

    def parameters(self) -> str:
        """The line that A1111 began and others read: prompt, negative prompt, then names and values."""
        r = self.request
        negative = [f"Negative prompt: {r.negative}"] if r.negative else []
        values: dict[str, object] = {"Steps": r.steps, "Sampler": r.sampler, "CFG scale": f"{r.guidance:g}"}
        values |= {"Seed": r.seed, "Size": f"{r.size[0]}x{r.size[1]}" if r.size else None}
        values |= {"Model hash": self.identity[:10], "Model": self.model.replace(",", " ")}
        for number, control in enumerate(r.controls):
            about = {"Module": control.kind.replace(",", " "), "Weight": f"{control.weight:g}"}
            about |= {"Guidance Start": f"{control.window[0]:g}", "Guidance End": f"{control.window[1]:g}"}
            values[f"ControlNet {number}"] = json.dumps(", ".join(f"{name}: {value}" for name, value in about.items()))
        values |= {"Version": f"instantstyle {self.version}"}
        return "\n".join(
            [r.prompt, *negative, ", ".join(f"{k}: {v}" for k, v in values.items() if v not in (None, ""))]
        )


def _image(value: object) -> object:
    if isinstance(value, str) and reading_json.get():
        content = _unbase64(value)
        assert isinstance(content, bytes)
        return pictures.read(content)  # of whatever size: a result is as large as it was made
    return value


RemadeImage = Annotated[
    Image.Image,
    BeforeValidator(_image),
    PlainSerializer(lambda image: base64.b64encode(pictures.png(image)).decode(), return_type=str, when_used="json"),
]


class Result(Noun):
    """The pictures of one request, and all that is needed to make them again."""

    images: tuple[RemadeImage, ...]
    request: Request
    """With every default filled in: seed, size and sampler are those that were used."""
    model: str = ""
    adapter: str | Mapping[str, str] | None = None
    identity: str = ""
    device: str = "auto"
    dtype: str = "auto"
    seconds: float = 0.0
    version: str = Field(default_factory=version)
    warnings: tuple[str, ...] = ()
    """What of the request the model cannot do as it was said, a sentence each."""
    controls: Mapping[str, str] = {}
    depth: str | None = None
    image_encoder: str | None = None
    content_encoder: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    """LoRA files and how much of each."""

    if TYPE_CHECKING:

        def __init__(
            self,
            images: Sequence[Image.Image],
            request: Request,
            model: str = "",
            adapter: str | Mapping[str, str] | None = None,
            identity: str = "",
            device: str = "auto",
            dtype: str = "auto",
            seconds: float = 0.0,
            version: str = "",
            warnings: Sequence[str] = (),
            controls: Mapping[str, str] = {},
            depth: str | None = None,
            image_encoder: str | None = None,
            content_encoder: str | None = None,
            loras: Sequence[tuple[str, float]] = (),
        ) -> None: ...

    def memory(self, index: int = 0) -> Memory:
        """What the picture of this index remembers."""
        shared = {name: getattr(self, name) for name in Memory.model_fields if name in Result.model_fields}
        return Memory(index=index, **shared)

    def save(self, path: str | Path, *, metadata: bool = True) -> tuple[Path, ...]:
        """Write each picture as PNG, several as `name-1.png`, `name-2.png`...; returns the paths.

        Raises OutputError, having written nothing, when a name cannot be written.
        """
        paths = numbered(path, len(self.images))
        for each in paths:
            whole.check_writable(each)
        for index, (image, each) in enumerate(zip(self.images, paths, strict=True)):
            memory = self.memory(index) if metadata else None
            pictures.write_png(
                image, each, memory.to_json() if memory else None, memory.parameters() if memory else None
            )
        return paths


def numbered(path: str | Path, count: int) -> tuple[Path, ...]:
    """The file names of a result of `count` pictures.  Raises InputError when the name is not a PNG's."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"results are PNG files, so {str(path)!r} must end in .png")
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count))


def recall(path: str | Path) -> Memory:
    """What a picture file of ours remembers.  Raises PictureError when it is no picture or remembers nothing."""
    text = pictures.read_metadata(path)
    if text is None:
        raise PictureError(f"{str(path)!r} does not remember how it was made: it has no {pictures.CHUNK!r} text chunk")
    try:
        return Memory.from_json(text)
    except InputError as unreadable:
        raise PictureError(f"what {str(path)!r} remembers cannot be read: {unreadable}") from None
