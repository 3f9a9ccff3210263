"""A picture with its caption, or why it is none; and shards of such records, the unit of work and of resuming.

Every item of a shard is a record or says why it is none, so what was read always adds up.  Nothing is decoded here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

from instantstyle.errors import printable

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Names that pictures end with."""
TEXTS = (".txt", ".caption")
"""Names that the captions beside them end with."""
MAX_CAPTION = 2**16
"""Characters; no text encoder reads as many tokens."""
CAPTION_KEYS, IMAGE_KEYS, STYLE_KEYS, LICENCE = (
    ("caption", "text", "prompt"),
    ("file_name", "image_file", "image"),
    ("style",),
    ("license", "licence"),
)
"""Under which names metadata holds the caption, the picture's file, the style it belongs to and its licence."""

Styles = Literal["field", "folder", "none"]
"""How it is known which pictures share a style: a field `style` of their metadata, their folder, or not at all."""


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it."""

    key: str
    """Its name, unique within its shard."""
    picture: bytes | Path
    caption: str
    style: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class BadSample:
    """What cannot be used."""

    where: str
    why: str
    broken: bool = False
    """Whether the shard could not be read on from here."""

    def __post_init__(self) -> None:
        """Names in both are a stranger's."""
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "why", printable(self.why))


@runtime_checkable
class Shard(Protocol):
    """Some records that are read together; small, and sent to other processes."""

    @property
    def name(self) -> str:
        """Where it comes from, for people."""
        ...

    @property
    def remote(self) -> bool:
        """Whether what was broken may be whole the next time."""
        ...

    def source_fingerprint(self) -> str:
        """Changes when the source does, as far as that is seen without reading it."""
        ...

    def items(self) -> Iterator[Sample | BadSample]:
        """Its records, and what is wrong with the others, in an order that never changes."""
        ...


def make_sample(
    where: str, key: str, picture: bytes | Path, metadata: Any, text: str | None, folder: str, styles: Styles
) -> Sample | BadSample:
    """What is said of a picture in metadata, or by the text beside it, as a record; or that it has no caption."""
    caption = (text if text is not None else first_text(metadata, CAPTION_KEYS) or "").strip()
    if not caption:
        return BadSample(where, "it has no caption")
    if len(caption) > MAX_CAPTION:
        return BadSample(where, f"its caption has {len(caption):,} characters, and at most {MAX_CAPTION:,} are read")
    try:
        caption.encode()
    except UnicodeEncodeError:
        return BadSample(where, "its caption holds half a surrogate pair, which is no text")
    group = {
        "field": first_text(metadata, STYLE_KEYS),
        "folder": folder if folder not in ("", ".") else None,
        "none": None,
    }[styles]
    return Sample(key, picture, " ".join(caption.split()), group, first_text(metadata, LICENCE))


def first_text(metadata: Any, names: Sequence[str]) -> str | None:
    """What metadata says under the first of these names that it has."""
    if not isinstance(metadata, Mapping):
        return None
    fields = cast("Mapping[str, object]", metadata)
    value = next((fields[name] for name in names if fields.get(name) not in (None, "")), None)
    return str(value) if isinstance(value, str | int) else None


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
