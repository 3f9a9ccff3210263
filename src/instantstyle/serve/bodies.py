"""What clients send, read into a `Request`: JSON with pictures in it, or multipart with pictures beside it.

Where a request has a picture, a client may give

    {"sha256": ..., "png": base64}      the form in which requests are remembered
    "data:image/png;base64,..."         any picture
    "attachment:NAME"                   the file field NAME of the same multipart body
    "/v1/images/ID"                     a picture that this server made
    "/v1/jobs/ID/inputs/PLACE"          a picture, or style card, of an earlier request
    "neon"                              for references: a style of the library

and nothing else: no path and no address elsewhere is opened.
"""

import base64
import binascii
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from PIL import Image

from instantstyle.errors import InputError, PictureError
from instantstyle.request import Request
from instantstyle.serve.errors import ApiError
from instantstyle.serve.limits import Limits

Fetch = Callable[[str], object]
"""What the server holds under an address or a style's name: bytes, a Picture, a StyleCard; None for nothing."""


def parse_body(body: bytes) -> dict[str, Any]:
    """A JSON object.  Raises ApiError."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as broken:
        raise ApiError(400, f"the body is no JSON: {str(broken)[:200]}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(given).__name__}", code="invalid_json")
    return cast("dict[str, Any]", given)


def data_url(text: str) -> bytes:
    """The bytes of a data URL.  Raises InputError."""
    head, _, data = text.partition(",")
    if not head.endswith(";base64"):
        raise InputError("a picture's data URL is data:image/...;base64,...: this one is not in base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise InputError(f"a picture's data URL is not base64: {broken}") from None


def check_pixels(content: bytes, limits: Limits, place: str) -> bytes:
    """The same bytes, once their header says that the picture is not too large.  Raises InputError."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise InputError(f"{place} has too many pixels: at most {limits.upload_pixels:,} are read") from None
    except Exception:
        return content  # not a picture: what reads it says so
    if width * height > limits.upload_pixels:
        raise InputError(
            f"{place} has too many pixels: {width} x {height} is {width * height:,}, and at most "
            f"{limits.upload_pixels:,} are read"
        )
    return content


def build_request(fields: Mapping[str, Any], files: Mapping[str, bytes], fetch: Fetch, limits: Limits) -> Request:
    """A request of parsed JSON, its pictures put in.  Raises InputError, ApiError."""
    used: set[str] = set()

    def picture(value: object, place: str, *, styles: bool = False) -> object:
        if not isinstance(value, str):
            return _checked_object(value, limits, place)
        if value.startswith("data:"):
            return check_pixels(data_url(value), limits, place)
        if value.startswith("attachment:"):
            name = value.removeprefix("attachment:")
            if name not in files:
                known = ", ".join(sorted(files)) or "none"
                raise InputError(f"{place} is {value!r}, and the body has no file of this name: it has {known}")
            used.add(name)
            return check_pixels(files[name], limits, place)
        if value.startswith("/v1/") or styles:
            held = fetch(value)
            if held is not None:
                return held
        if "://" in value:
            raise InputError(f"{place} is an address elsewhere, which is not fetched: send the picture itself")
        if value.startswith("/v1/"):
            raise ApiError(404, f"{place}: there is nothing at {value[:100]!r} here", code="not_found", param=place)
        if styles:
            raise InputError(f"{place}: there is no style called {value[:64]!r}; GET /v1/styles lists them")
        raise PictureError(f"{place} is a picture: its data URL, attachment:NAME or /v1/images/ID, not {value[:60]!r}")

    def placed(value: object, place: str, names: Mapping[str, bool]) -> object:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        return {
            name: picture(each, f"{place}.{name}", styles=names[name]) if name in names and each is not None else each
            for name, each in given.items()
        }

    def several(value: object, place: str, names: Mapping[str, bool]) -> object:
        if not isinstance(value, list):
            return value
        items = cast("list[object]", value)
        return [placed(each, f"{place}.{i}", names) for i, each in enumerate(items)]

    made = dict(fields)
    if "references" in made:
        made["references"] = several(made["references"], "references", {"image": True, "mask": False})
    if "controls" in made:
        made["controls"] = several(made["controls"], "controls", {"image": False})
    if "init" in made:
        made["init"] = placed(made["init"], "init", {"image": False, "mask": False})
    if unused := files.keys() - used:
        raise InputError(
            f"the body has the file {sorted(unused)[0]!r}, and nothing in the request speaks of it: say "
            f"'attachment:{sorted(unused)[0]}' where it belongs"
        )
    return Request.from_fields(made)


def _checked_object(value: object, limits: Limits, place: str) -> object:
    """A remembered picture as JSON; its size is looked at before it is decoded."""
    if isinstance(value, dict):
        png = cast("dict[str, Any]", value).get("png")
        if isinstance(png, str):
            try:
                check_pixels(base64.b64decode(png), limits, place)
            except (binascii.Error, ValueError):
                return cast("object", value)  # what reads it says so
    return cast("object", value)
