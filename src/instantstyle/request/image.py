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
from instantstyle.request.base import FrozenModel, abbreviate, json_context
from instantstyle.utils import images

MAX_REFERENCE_SIZE = 512
"""Longest side of a remembered reference.  Image encoders see at most 336 pixels; more would only swell metadata."""
MAX_IMAGE_SIZE = 2048
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
    picture = images.load_image(content)
    with Image.open(io.BytesIO(content)) as opened:
        plain = (
            opened.format == "PNG" and opened.mode == "RGB" and max(opened.size) <= MAX_IMAGE_SIZE and not opened.info
        )
    return content if plain else images.encode_png(picture, longest=MAX_IMAGE_SIZE)


class StoredImage(FrozenModel):
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
        return images.load_image(self.png)

    def __repr__(self) -> str:
        return f"Picture({self.sha256[:12]}, {len(self.png):,} bytes)"


ImageInput = str | Path | bytes | Image.Image | StoredImage
"""What a picture may be given as: a path, the bytes of a file, a PIL image, or one that is remembered already."""


def store_image(source: ImageInput, longest: int = MAX_REFERENCE_SIZE) -> StoredImage:
    """Read a picture safely and bound its longer side.  Raises PictureError."""
    if isinstance(source, StoredImage):
        small = source.open()
        return (
            source
            if max(small.size) <= longest
            else StoredImage(source.sha256, images.encode_png(small, longest=longest))
        )
    if isinstance(source, Image.Image):
        picture = images.load_image(source)
        content = images.encode_png(picture)
    elif isinstance(source, bytes):
        picture, content = images.load_image(source), source
    else:  # read once, so that the hash is that of the very bytes that were decoded
        content = images.read_bytes(source)
        picture = images.load_image(content, repr(str(source)))
    return StoredImage(hashlib.sha256(content).hexdigest(), images.encode_png(picture, longest=longest))


def coerce_image(value: object, longest: int) -> object:
    """Whatever a picture may be given as, remembered; in JSON a text is never a path.  Raises PictureError."""
    if isinstance(value, dict):
        value = StoredImage.model_validate(value)
    if isinstance(value, str | Path) and json_context.get():
        raise PictureError(f"a picture in JSON is an object with sha256 and png, not the path {abbreviate(value)}")
    if isinstance(value, str | Path | bytes | Image.Image | StoredImage):
        return store_image(value, longest)
    raise PictureError(f"a picture is a path, the bytes of a file or a PIL image, not {abbreviate(value)}")
