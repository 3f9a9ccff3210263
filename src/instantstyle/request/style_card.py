"""Style cards: a style kept as what image encoders saw of it, with its picture, its words and its licence.

A card is one `.style.safetensors` file: the embeddings of its pictures for each encoder it was made with, small copies
of the pictures, and a JSON text.  Nothing in it can run.  Cards of a name are those shipped with the package and one's
own.  No torch here: a request holds its cards themselves, so they are read where requests are.
"""

import base64
import binascii
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from safetensors import SafetensorError
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as write_safetensors

from instantstyle.errors import InputError, WeightsError, closest_match
from instantstyle.request.base import FrozenModel, json_context
from instantstyle.utils import atomic_files
from instantstyle.utils import images as pictures

SUFFIX = ".style.safetensors"
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "styles"
MAX_BYTES = 32 * 2**20
"""Of a card's file; a card of sixteen pictures with a Plus adapter's hidden states has as many."""
THUMBNAIL_SIDE = 256
_TEXT = "instantstyle"
"""The key of the JSON text among a file's metadata."""
_NAME = re.compile(r"\w[\w +-]{0,63}")

Float32Array = npt.NDArray[np.float32]


def _bytes(value: object) -> object:
    if not (isinstance(value, str) and json_context.get()):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise InputError(f"a style card's bytes in JSON are base64 text, and this is not: {broken}") from None


Blob = Annotated[
    bytes,
    BeforeValidator(_bytes),
    PlainSerializer(lambda content: base64.b64encode(content).decode(), return_type=str, when_used="json"),
]
"""Bytes, in JSON as base64 text."""


class FloatArray(FrozenModel):
    """An array of finite float32 numbers that can be compared and written as JSON."""

    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**24)], ...], Field(min_length=1, max_length=3)]
    data: Annotated[Blob, Field(max_length=MAX_BYTES)]
    """Little-endian."""

    if TYPE_CHECKING:

        def __init__(self, shape: tuple[int, ...], data: bytes) -> None: ...

    def model_post_init(self, context: object, /) -> None:
        """Raises InputError when there are not as many numbers as the shape says, or not all are finite."""
        if len(self.data) != 4 * math.prod(self.shape):
            raise InputError(f"numbers of the shape {list(self.shape)} are not {len(self.data):,} bytes of float32")
        if not np.isfinite(self.array).all():
            raise InputError("a style card holds NaN or infinity: it is damaged")

    @property
    def array(self) -> Float32Array:
        """The numbers, read-only."""
        return np.frombuffer(self.data, "<f4").reshape(self.shape)

    def __repr__(self) -> str:
        return f"Numbers{list(self.shape)}"


def float_array(array: object) -> FloatArray:
    """Numbers of anything NumPy reads."""
    exact = np.ascontiguousarray(array, "<f4")
    return FloatArray(exact.shape, exact.tobytes())


class EncoderEmbeddings(FrozenModel):
    """What one image encoder saw of a card's pictures."""

    encoder: Annotated[str, Field(max_length=200)]
    """Its name in words, for people."""
    probe: FloatArray
    """What it sees of `probe_picture()`, [dim]: by this an encoder is known again, in whatever precision it runs."""
    embeds: FloatArray
    """The un-normalised image embedding of each picture, [n, dim]."""
    hidden: FloatArray | None = None
    """Its last-but-one hidden states of each picture, [n, sequence, width]; there where a Plus adapter was at hand."""

    if TYPE_CHECKING:

        def __init__(
            self, encoder: str, probe: FloatArray, embeds: FloatArray, hidden: FloatArray | None = None
        ) -> None: ...

    def model_post_init(self, context: object, /) -> None:
        """Raises InputError when the shapes do not belong together."""
        ranks = (len(self.probe.shape), len(self.embeds.shape), 3 if self.hidden is None else len(self.hidden.shape))
        same = ranks == (1, 2, 3) and self.probe.shape[0] == self.embeds.shape[1]
        if not same or (self.hidden is not None and self.hidden.shape[0] != self.embeds.shape[0]):
            raise InputError(
                f"a style card's numbers do not belong together: probe {list(self.probe.shape)}, embeddings "
                f"{list(self.embeds.shape)}, hidden {None if self.hidden is None else list(self.hidden.shape)}"
            )


def is_card_name(text: str) -> bool:
    """Whether a text can be a card's name, and so no file's."""
    return _NAME.fullmatch(text) is not None and text == text.strip()


def _named(name: str) -> str:
    if not is_card_name(name):
        raise InputError(f"a style card's name is 1 to 64 letters, digits, spaces and + - _, not {name!r}")
    return name


def _thumbnail(content: bytes) -> bytes:
    small = pictures.encode_png(pictures.load_image(content, "the picture of a style card"), longest=THUMBNAIL_SIDE)
    return content if content == small else small


Thumbnail = Annotated[Blob, Field(max_length=2**22), AfterValidator(_thumbnail)]
CardStr = Annotated[str, Field(max_length=2000)]


class StyleCard(FrozenModel):
    """A style by name: what image encoders saw of its pictures, and what people want to know of it.

    Of several pictures the style is their mean, in which what each one shows fades.
    """

    name: Annotated[str, AfterValidator(_named)]
    sights: Annotated[tuple[EncoderEmbeddings, ...], Field(min_length=1, max_length=8)]
    thumbnails: Annotated[tuple[Thumbnail, ...], Field(max_length=16)] = ()
    """The pictures, PNG, at most 256 pixels on a side."""
    content: CardStr | Annotated[tuple[CardStr, ...], Field(max_length=16)] | None = None
    """What the pictures show, subtracted where a request says nothing else."""
    plan: CardStr | None = None
    """The plan it is meant for; None: the model's style blocks."""
    licence: Annotated[str, Field(max_length=200)] = ""
    credit: Annotated[str, Field(max_length=500)] = ""
    """Who made it, and of what."""

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            sights: Sequence[EncoderEmbeddings],
            thumbnails: Sequence[bytes] = (),
            content: str | Sequence[str] | None = None,
            plan: str | None = None,
            licence: str = "",
            credit: str = "",
        ) -> None: ...

    def open(self) -> Image.Image:
        """Its first picture in RGB.  Raises InputError when it carries none."""
        return self.pictures()[0]

    def pictures(self) -> list[Image.Image]:
        """Its pictures in RGB.  Raises InputError when it carries none."""
        if not self.thumbnails:
            raise InputError(f"the style card {self.name!r} carries no picture, only what encoders saw of one")
        return [pictures.load_image(each) for each in self.thumbnails]

    @property
    def sha256(self) -> str:
        """The hash of all that it holds."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __repr__(self) -> str:
        return f"StyleCard({self.name!r}, {', '.join(sight.encoder for sight in self.sights)})"

    def save(self, path: str | Path) -> Path:
        """Write the card as a `.style.safetensors` file, whole or not at all.  Raises InputError, OutputError."""
        path = Path(path)
        if not path.name.endswith(SUFFIX):
            raise InputError(f"style cards are {SUFFIX} files, so {str(path)!r} must end so")
        tensors: dict[str, npt.NDArray[Any]] = {}
        for i, sight in enumerate(self.sights):
            for part in ("probe", "embeds", "hidden"):
                held: FloatArray | None = getattr(sight, part)
                if held is not None:
                    tensors[f"{i}.{part}"] = held.array
        for i, content in enumerate(self.thumbnails):
            tensors[f"thumbnail.{i}"] = np.frombuffer(content, np.uint8)
        said = self.model_dump(mode="json", exclude={"sights", "thumbnails"})
        said["encoders"] = [sight.encoder for sight in self.sights]
        text = json.dumps(said, ensure_ascii=False)
        return atomic_files.write_atomic(path, write_safetensors(tensors, {_TEXT: text}))


def read_card(source: str | Path | bytes, name: str | None = None) -> StyleCard:
    """A card from its file or the file's bytes.

    Raises WeightsError when it is missing, too large, damaged or no card; nothing in it is run.
    """
    shown = name or ("the given style card" if isinstance(source, bytes) else repr(str(source)))
    content = source if isinstance(source, bytes) else _content(Path(source).expanduser(), shown)
    if len(content) > MAX_BYTES:
        raise WeightsError(f"{shown} is too large for a style card: more than {MAX_BYTES:,} bytes are not read")
    try:
        tensors = read_safetensors(content)
        head = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + head]).get("__metadata__", {}).get(_TEXT)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as broken:
        raise WeightsError(f"{shown} is no style card, or is damaged: {broken}") from broken
    if text is None:
        raise WeightsError(
            f"{shown} is a weight file and no style card; `instantstyle style make` writes cards from pictures"
        )
    try:
        return _card(json.loads(text), tensors)
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        reason = broken if isinstance(broken, InputError) else f"{type(broken).__name__} {broken}"
        raise WeightsError(f"the style card {shown} is damaged: {reason}") from broken


def _content(path: Path, shown: str) -> bytes:
    try:
        if not path.is_file():
            raise WeightsError(f"there is no style card at {shown}")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as refused:
        raise WeightsError(f"cannot read the style card {shown}: {refused}") from refused


def _card(said: dict[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> StyleCard:
    encoders = cast("list[str]", said.pop("encoders"))
    sights: list[EncoderEmbeddings] = []
    for i, encoder in enumerate(encoders):
        held = {part: tensors[f"{i}.{part}"] for part in ("probe", "embeds", "hidden") if f"{i}.{part}" in tensors}
        if wrong := [part for part, array in held.items() if array.dtype.kind != "f"]:
            raise InputError(f"its {wrong[0]} are no floating-point numbers")
        sights.append(EncoderEmbeddings(encoder, **{part: float_array(array) for part, array in held.items()}))
    shown = sorted((name for name in tensors if name.startswith("thumbnail.")), key=lambda name: int(name[10:]))
    if wrong := [name for name in shown if tensors[name].dtype != np.uint8]:
        raise InputError(f"its {wrong[0]} is no file of bytes")
    if isinstance(said.get("content"), list):
        said["content"] = tuple(said["content"])
    return StyleCard(sights=sights, thumbnails=tuple(tensors[name].tobytes() for name in shown), **said)


def user_style_dir() -> Path:
    """Where one's own cards are kept: `INSTANTSTYLE_STYLES`, else in the XDG data folder."""
    given = os.environ.get("INSTANTSTYLE_STYLES")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(given) if given else data / "instantstyle" / "styles"


def list_style_cards(*, own: bool = True) -> dict[str, Path]:
    """Name to file: the shipped cards, and before them one's own."""
    found: dict[str, Path] = {}
    for folder in (SHIPPED, *((user_style_dir(),) if own else ())):
        if folder.is_dir():
            found |= {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    return dict(sorted(found.items()))


def find_style_card(name: str, *, own: bool = True) -> StyleCard | None:
    """The card of a name, None when there is none."""
    path = list_style_cards(own=own).get(name)
    return None if path is None else read_card(path)


def unknown_card_hint(name: str) -> str:
    """What to say of a name that is neither a picture nor a card."""
    known = list_style_cards()
    near = closest_match(name, known)
    if near is not None:
        return f", and no style card of this name (did you mean {near!r}?)"
    return f", and no style card of this name: there are {', '.join(known)}" if known else ""


def encoder_fingerprint_image() -> Image.Image:
    """The picture by which encoders are told apart: slopes of three colours, a disc and stripes, 96 x 96."""
    y, x = np.mgrid[0:96, 0:96].astype(np.float64)
    disc = (x - 30) ** 2 + (y - 56) ** 2 < 24**2
    pixels = np.empty((96, 96, 3))
    pixels[..., 0] = np.where(disc, 1 - x / 95, x / 95)
    pixels[..., 1] = y / 95
    pixels[..., 2] = np.where(disc, 0.1, 0.5 + 0.5 * np.sin((x + 2 * y) / 7))
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
