"""Pictures as requests hold them: not paths but PNG bytes of bounded size, with the hash of the file they came from."""

import base64
import binascii
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from instantstyle.errors import PictureError
from instantstyle.request.base import Noun, reading_json, short
from instantstyle.utils import images as pictures

REFERENCE_SIDE = 512
"""Longest side of a remembered reference.  Image encoders see at most 336 pixels; more would only swell metadata."""
PICTURE_SIDE = 2048
"""Longest side of a remembered control, init or mask picture, which a result follows pixel by pixel."""


def unbase64(value: object) -> object:
    """The bytes of base64 text; what is no text stays as it is.  Raises PictureError."""
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
        BeforeValidator(unbase64),
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


def given_picture(value: object, longest: int) -> object:
    """Whatever a picture may be given as, remembered; in JSON a text is never a path.  Raises PictureError."""
    if isinstance(value, dict):
        value = Picture.model_validate(value)
    if isinstance(value, str | Path) and reading_json.get():
        raise PictureError(f"a picture in JSON is an object with sha256 and png, not the path {short(value)}")
    if isinstance(value, str | Path | bytes | Image.Image | Picture):
        return remember(value, longest)
    raise PictureError(f"a picture is a path, the bytes of a file or a PIL image, not {short(value)}")
