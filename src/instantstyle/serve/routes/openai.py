"""OpenAI's images API: generations and edits, so that programs written for it draw here.

`image` and `image[]` of an edit are style references; with a `mask` the first is the picture that is painted anew
where the mask is transparent, and the others are the references.  Beside OpenAI's fields: seed, strength, content,
plan, method, negative, steps, guidance.  Addresses elsewhere are not fetched.
"""

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from fastapi import APIRouter, Request, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from instantstyle.errors import InputError, PictureError
from instantstyle.request import Init, StyleReference
from instantstyle.request import Request as DrawRequest
from instantstyle.serve.bodies import check_pixels, data_url, parse_body
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.events import EventStream
from instantstyle.serve.routes.common import Client, In
from instantstyle.serve.rows import FINISHED, JobRow
from instantstyle.serve.studio import JobOptions, Studio, now
from instantstyle.utils.images import load_image

if TYPE_CHECKING:
    from instantstyle.model import Model

router = APIRouter(prefix="/v1/images", tags=["openai"])
MAX_IMAGES = 16
ALIASES = ("gpt-image", "dall-e", "chatgpt-image")
"""Names that programs send by habit; the model that is loaded draws for them, and says so."""
PLAIN = ("auto", "standard", "low", "medium", "high", "hd", "xhigh", "max")


class ImageWish(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(extra="forbid")
    prompt: Annotated[str, Field(min_length=1, max_length=2000)]
    model: Annotated[str, Field(max_length=200)] = "instantstyle"
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$")] = "auto"
    quality: Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    style: Literal["vivid", "natural"] | None = None
    user: Annotated[str, Field(max_length=200)] | None = None
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 90
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    input_fidelity: Literal["low", "high"] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    strength: Annotated[float, Field(ge=0, le=10)] = 1.0
    """How strongly the references speak."""
    content: Annotated[str, Field(max_length=2000)] | None = None
    """What the references show, to be taken out."""
    plan: Annotated[str, Field(max_length=2000)] = "style"
    method: Annotated[str, Field(max_length=100)] = "instantstyle"
    negative: Annotated[str, Field(max_length=2000)] = ""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    mask_strength: Annotated[float, Field(ge=0, le=1)] = 0.9
    """With a mask: how much of the painted part is drawn anew."""


class ImageData(BaseModel):
    """A picture."""

    b64_json: str
    seed: int | None = None


class ImagesResponse(BaseModel):
    """What OpenAI's client reads, and ours beside it."""

    created: int
    data: list[ImageData]
    size: str
    quality: str
    background: str
    output_format: str
    usage: dict[str, Any]
    warnings: list[str]
    job: str


_RESPONSES = {
    200: {
        "model": ImagesResponse,
        "description": "Pictures; with stream a text/event-stream",
    },
    **documented(404, 413, 415, 429, 503, 507),
}


@router.post("/generations", responses=cast("dict[int | str, dict[str, Any]]", _RESPONSES), response_model=None)
async def generations(wish: ImageWish, studio: In, client: Client) -> Response | ImagesResponse:
    """Pictures of a prompt."""
    return await _answer(studio, client, "image_generation", wish, [], None)


_EDIT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["prompt", "image"],
                    "properties": {
                        "prompt": {"type": "string"},
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "mask": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


@router.post(
    "/edits",
    openapi_extra=_EDIT,
    responses=cast("dict[int | str, dict[str, Any]]", _RESPONSES),
    response_model=None,
)
async def edits(request: Request, studio: In, client: Client) -> Response | ImagesResponse:
    """Pictures of a prompt in the style of pictures; with a mask, a part of the first painted anew."""
    said, pictures, mask = await _read_edit(request, studio)
    try:
        wish = ImageWish.model_validate(said)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or None
        raise ApiError(400, f"{place or 'the body'}: {first['msg']}", code="invalid_value", param=place) from None
    if not 1 <= len(pictures) <= MAX_IMAGES:
        raise ApiError(
            400, f"an edit has 1 to {MAX_IMAGES} images, not {len(pictures)}", code="invalid_value", param="image"
        )
    return await _answer(studio, client, "image_edit", wish, pictures, mask)


async def _read_edit(request: Request, studio: Studio) -> tuple[dict[str, Any], list[bytes], bytes | None]:
    """Fields, images and mask of either encoding: the client's multipart, or JSON with data URLs."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    pictures: list[bytes] = []
    mask: bytes | None = None
    said: dict[str, Any] = {}
    if kind == "multipart/form-data":
        async with request.form(max_files=MAX_IMAGES + 2, max_fields=64) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    said[name] = value
                elif name in ("image", "image[]"):
                    pictures.append(await value.read())
                elif name == "mask":
                    mask = await value.read()
                else:
                    raise ApiError(
                        400, f"there is no file field {name[:60]!r}: image, image[] and mask", param=name[:60]
                    )
    elif kind == "application/json":
        said = parse_body(await request.body())
        for item in cast("list[Any]", said.pop("images", [])):
            url: object = cast("dict[str, Any]", item).get("image_url") if isinstance(item, dict) else None
            if not isinstance(url, str) or not url.startswith("data:"):
                raise ApiError(400, "images are data URLs; addresses elsewhere are not fetched", param="images")
            pictures.append(data_url(url))
    else:
        raise ApiError(415, "send multipart/form-data, or JSON with data URLs", code="content_type")
    for content in (*pictures, *([mask] if mask is not None else [])):
        check_pixels(content, studio.limits, "image")
    return said, pictures, mask


def _draw_request(
    studio: Studio, wish: ImageWish, pictures: Sequence[bytes], mask: bytes | None
) -> tuple[DrawRequest, tuple[int, int] | None, list[str]]:
    """Our request, the size to enlarge to where the model does not draw so large, and what is to be said of it."""
    warnings: list[str] = []
    model = studio.model
    known = ("instantstyle", model.family.name, studio.spec)
    if wish.model not in known:
        if not wish.model.startswith(ALIASES):
            raise ApiError(
                404,
                f"there is no model {wish.model!r} here: this server has {', '.join(dict.fromkeys(known))}",
                code="model_not_found",
                param="model",
            )
        warnings.append(f"the model is {studio.spec}, not {wish.model}")
    size, enlarge = _size(studio, wish, warnings)
    init: Init | None = None
    references = list(pictures)
    try:
        if mask is not None:
            first = references.pop(0)
            init = Init(first, wish.mask_strength, _painted(mask, load_image(first).size))
        styles = [StyleReference(each, content=wish.content, weight=wish.strength) for each in references]
    except PictureError as bad:
        raise ApiError(400, str(bad), code="invalid_image_format", param="image") from None
    fields: dict[str, Any] = {
        "prompt": wish.prompt,
        "negative": wish.negative,
        "references": styles,
        "method": wish.method,
        "plan": wish.plan,
        "init": init,
        "size": size,
        "seed": wish.seed,
        "count": wish.n,
        "guidance": wish.guidance,
        "steps": wish.steps,
    }
    return DrawRequest(**{name: value for name, value in fields.items() if value is not None}), enlarge, warnings


def _size(
    studio: Studio, wish: ImageWish, warnings: list[str]
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """The size to draw at and the one to enlarge to: programs ask a 64-pixel model for 1024 x 1024."""
    if wish.size == "auto":
        return None, None
    family = studio.model.family
    width, height = map(int, wish.size.split("x"))
    own_width, own_height = family.size
    if width <= 2 * own_width and height <= 2 * own_height:
        fits = width % family.size_multiple == 0 and height % family.size_multiple == 0
        return ((width, height), None) if fits else (family.size, (width, height))
    scale = max(width / own_width, height / own_height)
    drawn = tuple(
        max(family.size_multiple, round(side / scale / family.size_multiple) * family.size_multiple)
        for side in (width, height)
    )
    warnings.append(f"the model draws {drawn[0]}x{drawn[1]}, which was enlarged to {wish.size}")
    return (drawn[0], drawn[1]), (width, height)


def _painted(mask: bytes, size: tuple[int, int]) -> Image.Image:
    """OpenAI's mask, transparent where it is to be painted, as ours: white there and black elsewhere."""
    _ = load_image(mask)  # refuses what is no picture
    with Image.open(io.BytesIO(mask)) as opened:
        alpha = opened.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        raise InputError("the mask is nowhere transparent, so nothing would be painted: give it an alpha channel")
    return alpha.point([255 - i for i in range(256)]).resize(size).convert("RGB")


async def _answer(
    studio: Studio, client: str, kind: str, wish: ImageWish, pictures: Sequence[bytes], mask: bytes | None
) -> Response | ImagesResponse:
    def accept() -> tuple[JobRow, DrawRequest, tuple[int, int] | None, list[str]]:
        wanted, enlarge, warnings = _draw_request(studio, wish, pictures, mask)
        options = JobOptions(preview=False, partials=wish.partial_images if wish.stream else 0)
        row, _ = studio.submit(wanted, client=client, options=options)
        return row, wanted, enlarge, warnings

    row, wanted, enlarge, warnings = await run_in_threadpool(accept)
    about = _about(studio, wish, wanted, enlarge)
    usage = _usage(studio, wanted)
    if wish.stream:
        return EventStream(_events(studio, kind, wish, row, enlarge, about, usage), _encoded, b": ok\n\n")
    while row.state not in FINISHED:
        row = await studio.finished(row, 60)
    if row.state != "done":
        raise _failure(row)
    seed = cast("int | None", row.outcome.get("seed"))
    data = [
        ImageData(b64_json=each, seed=seed) for each in await run_in_threadpool(_pictures, studio, wish, row, enlarge)
    ]
    said = [*warnings, *cast("list[str]", row.outcome.get("warnings", []))]
    return ImagesResponse(created=now(), data=data, usage=usage, warnings=said, job=row.id, **about)


def _failure(row: JobRow) -> ApiError:
    if row.state == "cancelled":
        return ApiError(409, "the job was cancelled", code="cancelled")
    given = row.outcome.get("kind") == "input"
    sentence = str(row.outcome.get("error") or "the job failed")
    return ApiError(400 if given else 500, sentence, code="invalid_value" if given else "failed")


def _pictures(studio: Studio, wish: ImageWish, row: JobRow, enlarge: tuple[int, int] | None) -> list[str]:
    contents = [studio.files.read(image.id) for image in studio.store.images_of(row.id)]
    return [_as_asked(content, wish, enlarge) for content in contents if content is not None]


def _as_asked(content: bytes, wish: ImageWish, enlarge: tuple[int, int] | None) -> str:
    """A PNG in the size and format that were asked for, as base64."""
    if enlarge is not None or wish.output_format != "png":
        picture = load_image(content)
        if enlarge is not None:
            picture = picture.resize(enlarge, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        quality = {} if wish.output_format == "png" else {"quality": wish.output_compression}
        picture.save(buffer, wish.output_format.upper(), **quality)
        content = buffer.getvalue()
    return base64.b64encode(content).decode()


def _about(studio: Studio, wish: ImageWish, wanted: DrawRequest, enlarge: tuple[int, int] | None) -> dict[str, str]:
    width, height = enlarge or wanted.size or studio.model.family.size
    quality = wish.quality if wish.quality in ("low", "medium", "high") else "high"
    return {
        "size": f"{width}x{height}",
        "quality": quality,
        "background": "opaque",
        "output_format": wish.output_format,
    }


def _count_tokens(model: "Model", text: str) -> int:
    """Tokens of a text by the model's first tokenizer, its begin and end left out; 0 for a model that reads none."""
    if not model.text_encoders:
        return 0
    return max(0, len(model.text_encoders[0].tokenizer(text, verbose=False).input_ids) - 2)


def _usage(studio: Studio, wanted: DrawRequest) -> dict[str, Any]:
    """Tokens of the prompt, tokens of the references, and the latent pixels of what is drawn."""
    model = studio.model
    width, height = wanted.size or model.family.size
    text, image = _count_tokens(model, wanted.prompt), model.family.num_image_tokens * len(wanted.references)
    made = wanted.count * (width // model.vae_scale_factor) * (height // model.vae_scale_factor)
    return {
        "input_tokens": text + image,
        "output_tokens": made,
        "total_tokens": text + image + made,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
    }


async def _events(
    studio: Studio,
    kind: str,
    wish: ImageWish,
    row: JobRow,
    enlarge: tuple[int, int] | None,
    about: Mapping[str, str],
    usage: Mapping[str, Any],
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """OpenAI's events of a job: partial pictures, then one `completed` for each."""
    sent = 0
    try:
        async for message in studio.board.follow(0, row.id):
            if message is None:
                yield None
            elif message.kind.startswith("partial."):
                image = base64.b64decode(cast("str", message.data["image"] or ""))
                if not image:
                    continue
                part = {
                    "b64_json": await run_in_threadpool(_as_asked, image, wish, enlarge),
                    "partial_image_index": sent,
                }
                sent += 1
                yield {"type": f"{kind}.partial_image", "created_at": now(), **part, **about}
        ended = studio.store.job(row.id) or row
        if ended.state != "done":
            failure = _failure(ended) if ended.state in FINISHED else ApiError(503, "the server stops", code="stopping")
            yield {"error": {"message": failure.message, "type": "server_error", "param": None, "code": failure.code}}
            return
        for each in await run_in_threadpool(_pictures, studio, wish, ended, enlarge):
            seed = ended.outcome.get("seed")
            full = {"b64_json": each, "usage": usage, "seed": seed}
            yield {"type": f"{kind}.completed", "created_at": now(), **full, **about}
            await asyncio.sleep(0)
    finally:
        studio.board.forget(row.id)


def _encoded(message: dict[str, Any] | None) -> bytes:
    """No `id:` and no lone fields on these streams: OpenAI's decoder takes a later comment for an empty event."""
    if message is None:
        return b": ping\n\n"
    return f"event: {message.get('type', 'error')}\ndata: {json.dumps(message)}\n\n".encode()
