"""Style cards: a style kept as image embeddings, with its pictures, its content and its licence.

A card is one `.style.safetensors` file: the embeddings of its pictures for each encoder it was made with, small copies
of the pictures, and a JSON text.  Nothing in it can run.  Cards are found by name among those shipped with the package
and the user's own.  A request holds its cards themselves.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import AfterValidator, Field
from safetensors import SafetensorError
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as write_safetensors

from instantstyle.errors import InputError, WeightsError, closest_match
from instantstyle.request.base import Base64Bytes, FrozenModel, field, to_tuple, unchanged
from instantstyle.utils import atomic_files
from instantstyle.utils.files import local_path, parse_json
from instantstyle.utils.images import encode_png, load_image, url_of, url_refusal

SUFFIX = ".style.safetensors"
SHIPPED_STYLES = Path(__file__).resolve().parent.parent / "assets" / "styles"
MAX_CARD_BYTES = 32 * 2**20
"""Of a card's file; a card of sixteen pictures with a Plus adapter's hidden states has as many."""
THUMBNAIL_SIDE = 256
_TEXT = "instantstyle"
"""The key of the JSON text among a file's metadata."""
_NAME = re.compile(r"\w[\w +-]{0,63}")

Float32Array = npt.NDArray[np.float32]


class FloatArray(FrozenModel):
    """A float32 array of finite numbers that can be compared and written as JSON."""

    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**24)], ...], Field(min_length=1, max_length=3)]
    data: Annotated[Base64Bytes, Field(max_length=MAX_CARD_BYTES)]
    """Little-endian."""

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
        return f"FloatArray{list(self.shape)}"


def float_array(array: object) -> FloatArray:
    """A FloatArray of anything NumPy reads as an array."""
    values = np.ascontiguousarray(array, "<f4")
    return FloatArray(values.shape, values.tobytes())


class EncoderEmbeddings(FrozenModel):
    """One image encoder's embeddings of a card's pictures."""

    encoder: Annotated[str, Field(max_length=200)]
    """Its description, for people."""
    probe: FloatArray
    """Its embedding of `encoder_fingerprint_image()`, [dim], by which the encoder is recognised in any precision."""
    embeds: FloatArray
    """The un-normalised image embedding of each picture, [n, dim]."""
    hidden: FloatArray | None = None
    """Its penultimate hidden states of each picture, [n, sequence, width], which Plus adapters read."""

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
    """Whether a text can be a card's name: no file's path is one."""
    return _NAME.fullmatch(text) is not None and text == text.strip()


def _check_name(name: str) -> str:
    if not is_card_name(name):
        raise InputError(f"a style card's name is 1 to 64 letters, digits, spaces and + - _, not {name!r}")
    return name


def _thumbnail(content: bytes) -> bytes:
    small = encode_png(load_image(content, "the picture of a style card"), longest=THUMBNAIL_SIDE)
    return content if content == small else small


_to_content = cast("Callable[[str | Sequence[str] | None], str | tuple[str, ...] | None]", unchanged)
Thumbnail = Annotated[Base64Bytes, Field(max_length=2**22), AfterValidator(_thumbnail)]
CardStr = Annotated[str, Field(max_length=2000)]


class StyleCard(FrozenModel):
    """A style by name: its pictures' image embeddings, and what people want to know of it.

    Of several pictures the style is their mean, in which what each one shows fades.
    """

    name: Annotated[str, AfterValidator(_check_name)]
    sights: tuple[EncoderEmbeddings, ...] = field(converter=to_tuple, min_length=1, max_length=8)
    """The embeddings of each encoder it was made with.  Cards and pictures of version 0.1.0 have this name inside."""
    thumbnails: tuple[Thumbnail, ...] = field(default=(), converter=to_tuple, max_length=16)
    """The pictures, PNG, at most 256 pixels on a side."""
    content: CardStr | Annotated[tuple[CardStr, ...], Field(max_length=16)] | None = field(
        default=None, converter=_to_content
    )
    """What the pictures show, subtracted where a request says nothing else."""
    plan: CardStr | None = None
    """The plan it is meant for; None: the model's style blocks."""
    licence: Annotated[str, Field(max_length=200)] = ""
    credit: Annotated[str, Field(max_length=500)] = ""
    """Who made it, and of what."""

    def open(self) -> Image.Image:
        """Its first picture in RGB.  Raises InputError when it carries none."""
        return self.pictures()[0]

    def pictures(self) -> list[Image.Image]:
        """Its pictures in RGB.  Raises InputError when it carries none."""
        if not self.thumbnails:
            raise InputError(f"the style card {self.name!r} carries no picture, only what encoders saw of one")
        return [load_image(each) for each in self.thumbnails]

    @property
    def sha256(self) -> str:
        """The hash of all that it holds."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __repr__(self) -> str:
        return f"StyleCard({self.name!r}, {', '.join(each.encoder for each in self.sights)})"

    def save(self, path: str | Path) -> Path:
        """Write the card as a `.style.safetensors` file, whole or not at all.  Raises InputError, OutputError."""
        path = Path(path)
        if not path.name.endswith(SUFFIX):
            raise InputError(f"style cards are {SUFFIX} files, so {str(path)!r} must end so")
        tensors: dict[str, npt.NDArray[Any]] = {}
        for i, embeddings in enumerate(self.sights):
            for part in ("probe", "embeds", "hidden"):
                values: FloatArray | None = getattr(embeddings, part)
                if values is not None:
                    tensors[f"{i}.{part}"] = values.array
        for i, content in enumerate(self.thumbnails):
            tensors[f"thumbnail.{i}"] = np.frombuffer(content, np.uint8)
        fields = self.model_dump(mode="json", exclude={"sights", "thumbnails"})
        fields["encoders"] = [each.encoder for each in self.sights]
        text = json.dumps(fields, ensure_ascii=False)
        return atomic_files.write_atomic(path, write_safetensors(tensors, {_TEXT: text}))


def read_card(source: str | Path | bytes, name: str | None = None) -> StyleCard:
    """A card from its file or the file's bytes.

    Raises WeightsError when it is missing, too large, damaged or no card; nothing in it is run.
    """
    label = name or ("the given style card" if isinstance(source, bytes) else repr(str(source)))
    if not isinstance(source, bytes) and (url := url_of(source)):
        raise WeightsError(url_refusal(url, "style card"))
    content = source if isinstance(source, bytes) else _read_card_bytes(local_path(source, WeightsError), label)
    if len(content) > MAX_CARD_BYTES:
        raise WeightsError(f"{label} is too large for a style card: more than {MAX_CARD_BYTES:,} bytes are not read")
    try:
        tensors = read_safetensors(content)
        header_size = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + header_size]).get("__metadata__", {}).get(_TEXT)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as broken:
        raise WeightsError(f"{label} is no style card, or is damaged: {broken}") from broken
    if text is None:
        raise WeightsError(
            f"{label} is a weight file and no style card; `instantstyle style make` writes cards from pictures"
        )
    try:
        return _card(parse_json(text, unique=True), tensors)
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        reason = broken if isinstance(broken, InputError) else f"{type(broken).__name__} {broken}"
        raise WeightsError(f"the style card {label} is damaged: {reason}") from broken


def _read_card_bytes(path: Path, label: str) -> bytes:
    try:
        if not path.is_file():
            raise WeightsError(f"there is no style card at {label}")
        with path.open("rb") as file:
            return file.read(MAX_CARD_BYTES + 1)
    except (OSError, ValueError) as refused:
        raise WeightsError(f"cannot read the style card {label}: {refused}") from refused


def _card(fields: dict[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> StyleCard:
    encoders = cast("list[str]", fields.pop("encoders"))
    embeddings: list[EncoderEmbeddings] = []
    for i, encoder in enumerate(encoders):
        arrays = {part: tensors[f"{i}.{part}"] for part in ("probe", "embeds", "hidden") if f"{i}.{part}" in tensors}
        if wrong := [part for part, array in arrays.items() if array.dtype.kind != "f"]:
            raise InputError(f"its {wrong[0]} are no floating-point numbers")
        embeddings.append(EncoderEmbeddings(encoder, **{part: float_array(array) for part, array in arrays.items()}))
    thumbnails = sorted((name for name in tensors if name.startswith("thumbnail.")), key=lambda name: int(name[10:]))
    if wrong := [name for name in thumbnails if tensors[name].dtype != np.uint8]:
        raise InputError(f"its {wrong[0]} is no file of bytes")
    return StyleCard(sights=embeddings, thumbnails=[tensors[name].tobytes() for name in thumbnails], **fields)


def user_style_dir() -> Path:
    """Folder of the user's own cards: `INSTANTSTYLE_STYLES`, else in the XDG data folder."""
    configured = os.environ.get("INSTANTSTYLE_STYLES")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(configured) if configured else data / "instantstyle" / "styles"


def list_style_cards(*, own: bool = True) -> dict[str, Path]:
    """Files by name: the shipped cards, and with `own` the user's, which come before shipped ones of their names."""
    files: dict[str, Path] = {}
    for folder in (SHIPPED_STYLES, *((user_style_dir(),) if own else ())):
        if folder.is_dir():
            files |= {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    return dict(sorted(files.items()))


def find_style_card(name: str, *, own: bool = True) -> StyleCard | None:
    """The card of a name, None when there is none."""
    path = list_style_cards(own=own).get(name)
    return None if path is None else read_card(path)


def unknown_card_hint(name: str) -> str:
    """The end of the error sentence for a name that is neither a picture nor a card."""
    known = list_style_cards()
    near = closest_match(name, known)
    if near is not None:
        return f", and no style card of this name (did you mean {near!r}?)"
    return f", and no style card of this name: there are {', '.join(known)}" if known else ""


def encoder_fingerprint_image() -> Image.Image:
    """The picture whose embedding identifies an encoder: ramps of three colours, a disc and stripes, 96 x 96."""
    y, x = np.mgrid[0:96, 0:96].astype(np.float64)
    disc = (x - 30) ** 2 + (y - 56) ** 2 < 24**2
    pixels = np.empty((96, 96, 3))
    pixels[..., 0] = np.where(disc, 1 - x / 95, x / 95)
    pixels[..., 1] = y / 95
    pixels[..., 2] = np.where(disc, 0.1, 0.5 + 0.5 * np.sin((x + 2 * y) / 7))
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
