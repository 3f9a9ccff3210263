"""StoredImage: a picture inside a request, as PNG bytes of bounded size with the hash of the file it came from."""

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, cast

from PIL import Image
from pydantic import AfterValidator

from instantstyle.errors import InputError, PictureError
from instantstyle.request.base import Base64Bytes, FrozenModel, abbreviate, decode_base64, field, json_context
from instantstyle.utils import images
from instantstyle.utils.images import Transparency

MAX_REFERENCE_SIZE = 512
"""Longest side in pixels of a stored reference.  Image encoders read at most 336; more would only swell metadata."""
MAX_IMAGE_SIZE = 2048
"""Longest side in pixels of a stored control, init or mask picture, which a result follows pixel by pixel."""


def _plain_png(content: bytes) -> bytes:
    """The bytes themselves where they are an RGB PNG without ancillary data, else such a PNG of the same picture."""
    picture = images.load_image(content)
    with Image.open(io.BytesIO(content)) as opened:
        plain = (
            opened.format == "PNG" and opened.mode == "RGB" and max(opened.size) <= MAX_IMAGE_SIZE and not opened.info
        )
    return content if plain else images.encode_png(picture, longest=MAX_IMAGE_SIZE)


class StoredImage(FrozenModel):
    """RGB PNG bytes of bounded size, and the hash of the file they were made from."""

    sha256: str = field(pattern="^[0-9a-f]{64}$")
    """Of the original file's bytes, in hexadecimal."""
    png: Annotated[Base64Bytes, AfterValidator(_plain_png)]

    def open(self) -> Image.Image:
        """The picture, RGB."""
        return images.load_image(self.png)

    def __repr__(self) -> str:
        return f"StoredImage({self.sha256[:12]}, {len(self.png):,} bytes)"


ImageInput = str | Path | bytes | Image.Image | StoredImage
"""What a picture may be given as: a path, the bytes of a file, a PIL image, or a stored picture."""


def store_image(
    source: ImageInput, longest: int = MAX_REFERENCE_SIZE, *, transparency: Transparency = "white"
) -> StoredImage:
    """Read a picture safely and bound its longer side in pixels; `transparency` as in `load_image`.

    Raises PictureError.
    """
    if isinstance(source, StoredImage):
        picture = source.open()
        if max(picture.size) <= longest:
            return source
        return StoredImage(source.sha256, images.encode_png(picture, longest=longest))
    if isinstance(source, Image.Image):
        picture = images.load_image(source, transparency=transparency)
        content = images.encode_png(picture)
    elif isinstance(source, bytes):
        picture, content = images.load_image(source, transparency=transparency), source
    else:  # read once, so that the hash is that of the very bytes that were decoded
        content = images.read_bytes(source)
        picture = images.load_image(content, repr(str(source)), transparency=transparency)
    return StoredImage(hashlib.sha256(content).hexdigest(), images.encode_png(picture, longest=longest))


def coerce_image(value: object, longest: int, transparency: Transparency = "white") -> StoredImage:
    """Anything a picture may be given as, stored; in JSON a string is never a path.  Raises PictureError."""
    if isinstance(value, Mapping):
        fields = dict(cast("Mapping[str, object]", value))
        try:
            content = decode_base64(fields.get("png"))
        except InputError as broken:
            raise PictureError(f"a picture in JSON is base64 text of a PNG: {broken}") from None
        if isinstance(content, bytes) and transparency != "white":  # before the alpha channel is gone
            fields["png"] = images.encode_png(images.load_image(content, transparency=transparency))
        value = StoredImage.model_validate(fields)
    if isinstance(value, str | Path) and json_context.get():
        if url := images.url_of(value):
            raise PictureError(images.url_refusal(url))
        raise PictureError(f"a picture in JSON is an object with sha256 and png, not the path {abbreviate(value)}")
    if isinstance(value, str | Path | bytes | Image.Image | StoredImage):
        return store_image(value, longest, transparency=transparency)
    raise PictureError(f"a picture is a path, the bytes of a file or a PIL image, not {abbreviate(value)}")


def _coerce_mask(value: object) -> StoredImage | None:
    return None if value is None else coerce_image(value, MAX_IMAGE_SIZE, "mask")


to_image: Callable[[ImageInput], StoredImage] = partial(coerce_image, longest=MAX_IMAGE_SIZE)
"""Converter of picture fields."""
to_mask: Callable[[ImageInput | None], StoredImage | None] = _coerce_mask
"""Converter of mask fields, white on black: transparent counts as black, or alpha is the mask."""
