"""The native API: jobs, their events, pictures, styles, and what the page asks of the model."""

import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from instantstyle.errors import InputError, PictureError, WeightsError
from instantstyle.request import Request as DrawRequest
from instantstyle.request.style_card import StyleCard
from instantstyle.serve.bodies import build_request, check_pixels, data_url, parse_json
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.events import EventStream, Message
from instantstyle.serve.internals import (
    encode_webp,
    load_image,
    make_style_card,
    method_table,
    nearest_words,
    prompt_vocabulary,
    read_card,
    read_request,
    sampler_names,
    version,
)
from instantstyle.serve.library import LibraryEntry
from instantstyle.serve.store import FINISHED, State
from instantstyle.serve.studio import JobOptions, Studio, data_url_of, image_view, summary, with_addresses

router = APIRouter(prefix="/v1")
MAX_EVENT = 2**63 - 1


def studio_of(request: Request) -> Studio:
    """The studio that a request is for."""
    return cast("Studio", request.app.state.studio)


def client_of(
    request: Request,
    x_client_id: Annotated[
        str | None, Header(pattern=r"^[\w-]{1,64}$", description="Who asks, for fairness and limits.")
    ] = None,
) -> str:
    """Who asks: what a client calls itself, else its address."""
    return x_client_id or (request.client.host if request.client else "local")


In = Annotated[Studio, Depends(studio_of)]
Client = Annotated[str, Depends(client_of)]


class JobImage(BaseModel):
    """A picture of a job."""

    model_config = ConfigDict(extra="allow")
    id: str
    url: str
    place: int


class JobView(BaseModel):
    """A job: a request, where it stands, and what came of it."""

    id: str
    object: Literal["job"]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    created: float
    started: float | None
    finished: float | None
    position: int | None
    """How many jobs wait before it."""
    draft: bool
    attempt: int
    request: dict[str, Any]
    """As it was sent, with its seed; pictures are addresses."""
    seed: int | None
    size: tuple[int, int] | None
    steps: int | None
    seconds: float | None
    images: list[JobImage]
    warnings: list[str]
    error: str | None
    """Why it failed, a sentence."""
    verdict: dict[str, Any] | None
    """Of `again`: whether the picture is the same to the pixel."""
    url: str
    events: str


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobView]
    more: int | None
    """Give as `before` for the next ones."""


class ImageList(BaseModel):
    """Pictures, newest first."""

    images: list[dict[str, Any]]
    more: int | None


class GuessBody(BaseModel):
    """A picture to be looked at."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(max_length=64 * 2**20)
    """A data URL, or the address of a picture of this server."""


_PICTURE = {"anyOf": [{"type": "string", "description": "data URL, attachment:NAME, /v1/images/ID"}, {"type": "object"}]}
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Request"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["request"],
                    "properties": {"request": {"type": "string", "description": "a Request as JSON"}},
                    "additionalProperties": {"type": "string", "format": "binary"},
                }
            },
        },
    }
}


async def read_body(request: Request, studio: Studio) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The fields of a request and the files beside it.  Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return parse_json(await request.body()), {}
    if kind != "multipart/form-data":
        raise ApiError(
            415, f"send application/json or multipart/form-data, not {kind[:60] or 'nothing'!r}", code="content_type"
        )
    files: dict[str, bytes] = {}
    text: str | bytes | None = None
    limits = studio.limits
    async with request.form(max_files=limits.uploads, max_fields=64, max_part_size=limits.body_bytes) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                content = await value.read()
                if name == "request":
                    text = content
                elif name in files:
                    raise ApiError(400, f"two files are called {name!r}: give each its own name", param=name)
                else:
                    files[name] = content
            elif name == "request":
                text = value
            else:
                raise ApiError(
                    400, f"the body has a field {name[:60]!r}: it takes `request`, a Request as JSON, and files", param=name[:60]
                )
    if text is None:
        raise ApiError(400, "the body has no field `request`: a Request as JSON", param="request")
    return parse_json(text.encode() if isinstance(text, str) else text), files


@router.post(
    "/jobs",
    status_code=202,
    tags=["jobs"],
    openapi_extra=REQUEST_BODY,
    responses={200: {"model": JobView, "description": "It is over"}, **documented(404, 409, 413, 415, 429, 503, 507)},
)
async def create_job(
    request: Request,
    response: Response,
    studio: In,
    client: Client,
    draft: Annotated[bool, Query(description="Draw before all others, keep nothing.")] = False,
    meter: Annotated[bool, Query(description="Measure what the reference did.")] = False,
    preview: Annotated[bool, Query(description="Send previews.")] = True,
    replaces: Annotated[str | None, Query(max_length=64, description="A job that this overtakes: cancelled.")] = None,
    wait: Annotated[float, Query(ge=0, le=600, description="Answer when it is over, or after so many seconds.")] = 0,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> JobView:
    """Accept a request.  The job is on disk before the answer comes: 202, or 200 where it is over already."""
    fields, files = await read_body(request, studio)
    options = JobOptions(draft=draft, meter=meter, preview=preview, replaces=replaces)

    def accept() -> tuple[Any, bool]:
        wanted = build_request(fields, files, studio.fetch, studio.limits)
        return studio.submit(wanted, client=client, options=options, key=idempotency_key)

    row, _ = await run_in_threadpool(accept)
    if wait and row.state not in FINISHED:
        row = await studio.finished(row, wait)
    response.status_code = 200 if row.state in FINISHED else 202
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return JobView(**studio.view(row))


@router.get("/jobs", tags=["jobs"], responses=documented())
def list_jobs(
    studio: In,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[int | None, Query(ge=0, le=MAX_EVENT)] = None,
    state: State | None = None,
) -> JobList:
    """Jobs, newest first, without drafts."""
    rows = studio.store.jobs(limit=limit, before=before, state=state)
    return JobList(jobs=[JobView(**studio.view(row)) for row in rows], more=rows[-1].n if len(rows) == limit else None)


@router.get("/jobs/{job}", tags=["jobs"], responses=documented(404))
async def get_job(
    job: str, studio: In, wait: Annotated[float, Query(ge=0, le=600, description="Seconds to wait for its end.")] = 0
) -> JobView:
    """A job; 404 for an unknown id."""
    row = studio.row(job)
    if wait and row.state not in FINISHED:
        row = await studio.finished(row, wait)
    return JobView(**studio.view(row))


@router.delete("/jobs/{job}", tags=["jobs"], responses=documented(404))
@router.post("/jobs/{job}/cancel", tags=["jobs"], responses=documented(404))
def cancel_job(job: str, studio: In) -> JobView:
    """Cancel: a waiting job at once, a running one before its next step, and no other.  Finished ones stay."""
    return JobView(**studio.view(studio.cancel(job)))


@router.post("/jobs/{job}/retry", status_code=202, tags=["jobs"], responses=documented(404, 429, 503, 507))
def retry_job(job: str, studio: In, client: Client) -> JobView:
    """The same request once more, as a new job with the same seed."""
    row, text = studio.row(job), studio.store.request(job)
    assert text is not None
    options = JobOptions(meter=bool(row.options.get("meter")))
    again, _ = studio.submit(DrawRequest.from_json(text), client=client, options=options)
    return JobView(**studio.view(again))


@router.get("/jobs/{job}/request", tags=["jobs"], responses=documented(404))
def job_request(job: str, studio: In) -> Response:
    """The whole request as JSON, pictures in it: what POST /v1/jobs takes."""
    text = studio.store.request(studio.row(job).id)
    return Response(text, media_type="application/json")


@router.get("/jobs/{job}/inputs/{place}", tags=["jobs"], responses=documented(404), response_class=Response)
def job_input(job: str, place: str, studio: In) -> Response:
    """A picture of a job's request, such as `references.0.image`, as PNG; of a style card its thumbnail."""
    held = studio.input(job, place)
    if isinstance(held, StyleCard) and held.thumbnails:
        return _png(held.thumbnails[0])
    if not isinstance(held, StyleCard) and held is not None:
        return _png(held.png)
    raise ApiError(404, f"the request of job {job[:64]!r} has no picture at {place[:64]!r}", code="not_found")


def _last_event(
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
    after: Annotated[int | None, Query(ge=0, le=MAX_EVENT)] = None,
) -> int | None:
    """The newest event a client has seen."""
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdigit()) or int(last_event_id) > MAX_EVENT:
            raise ApiError(400, f"Last-Event-ID is the number of an event, not {last_event_id!r}", param="Last-Event-ID")
        return int(last_event_id)
    return after


LastEvent = Annotated[int | None, Depends(_last_event)]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def _stream(studio: Studio, messages: AsyncGenerator[Message | None, None]) -> EventStream:
    if studio.board.readers >= studio.limits.streams:
        raise ApiError(429, "too many event streams are open: close some", code="streams", headers={"Retry-After": "5"})
    return EventStream(messages)


@router.get(
    "/jobs/{job}/events", tags=["events"], response_class=Response, responses={**_STREAM, 204: {"description": "Over"}, **documented(404, 429)}
)
async def job_events(job: str, studio: In, after: LastEvent = None) -> Response:
    """What happens to a job: queued, running, progress, preview, then done, failed or cancelled.

    A client that comes back with Last-Event-ID gets what it missed; 204 where that is nothing and the job is over.
    """
    row = studio.row(job)
    if after is not None and row.state in FINISHED and not studio.store.events(after, job, 1):
        return Response(status_code=204)
    return _stream(studio, studio.board.follow(after or 0, job))


@router.get("/events", tags=["events"], response_class=Response, responses={**_STREAM, **documented(429)})
async def all_events(studio: In, after: LastEvent = None) -> Response:
    """What happens to all jobs but drafts, from now on or after Last-Event-ID."""
    start = studio.store.last_event() if after is None else after
    return _stream(studio, studio.board.follow(start))


# -- pictures ----------------------------------------------------------------------------------------------------------


def _png(content: bytes, *, kept: bool = True) -> Response:
    caching = "private, max-age=31536000, immutable" if kept else "no-store"
    return Response(content, media_type="image/png", headers={"Cache-Control": caching})


@router.get("/images", tags=["pictures"], responses=documented())
def list_images(
    studio: In,
    query: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 60,
    before: Annotated[int | None, Query(ge=0, le=MAX_EVENT)] = None,
) -> ImageList:
    """The gallery, newest first; `query` is words of the prompt, the style, the method or the seed."""
    rows = studio.store.search(query, limit=limit, before=before)
    return ImageList(images=[image_view(row) for row in rows], more=rows[-1].n if len(rows) == limit else None)


@router.get("/images/{image}", tags=["pictures"], responses=documented(404), response_class=Response)
def get_image(
    image: str,
    studio: In,
    metadata: Annotated[bool, Query(description="Whether the file says how it was made.")] = True,
    download: bool = False,
    thumbnail: Annotated[int | None, Query(ge=16, le=1024, description="A WebP copy of at most so many pixels.")] = None,
) -> Response:
    """A picture as PNG."""
    content = studio.files.read(image, metadata=metadata)
    if content is None:
        raise ApiError(404, f"there is no picture {image[:64]!r} here", code="not_found")
    if thumbnail is not None:
        small = encode_webp(load_image(content), thumbnail)
        return Response(small, media_type="image/webp", headers={"Cache-Control": "private, max-age=31536000, immutable"})
    response = _png(content)
    if download:
        response.headers["Content-Disposition"] = f'attachment; filename="{image}.png"'
    return response


@router.delete("/images/{image}", status_code=204, tags=["pictures"], responses=documented(404))
def delete_image(image: str, studio: In) -> None:
    """Take a picture out of the gallery, and its file away."""
    if not studio.store.delete_image(image):
        raise ApiError(404, f"there is no picture {image[:64]!r} here", code="not_found")
    studio.files.delete(image)


@router.post("/images/{image}/again", status_code=202, tags=["pictures"], responses=documented(404, 429, 503, 507))
def again(image: str, studio: In, client: Client) -> JobView:
    """Draw a picture's request again; the job's `verdict` says whether it is the same to the pixel."""
    row = studio.store.image(image)
    text = None if row is None else studio.store.request(row.job)
    if row is None or text is None:
        raise ApiError(404, f"there is no picture {image[:64]!r} here", code="not_found")
    options = JobOptions(compare_with=image, compare_index=row.place)
    job, _ = studio.submit(DrawRequest.from_json(text), client=client, options=options)
    return JobView(**studio.view(job))


_FILE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.post("/inputs", status_code=201, tags=["pictures"], openapi_extra=_FILE_BODY, responses=documented(413, 415, 507))
async def add_input(request: Request, studio: In) -> dict[str, Any]:
    """Send a picture once, as the body; its `url` then stands for it in requests.  Kept while it is among the newest."""
    content = check_pixels(await request.body(), studio.limits, "the picture")
    picture = await run_in_threadpool(studio.files.keep_input, content)
    with picture.open() as opened:
        return {"url": f"/v1/inputs/{picture.sha256}", "width": opened.width, "height": opened.height}


@router.get("/inputs/{sha256}", tags=["pictures"], responses=documented(404), response_class=Response)
def get_input(sha256: str, studio: In) -> Response:
    """A picture that was sent."""
    held = studio.files.read_input(sha256)
    if held is None:
        raise ApiError(404, f"there is no picture {sha256[:64]!r} here", code="not_found")
    return _png(held.png)


@router.post("/recall", tags=["pictures"], openapi_extra=_FILE_BODY, responses=documented(413, 415))
async def recall(request: Request, studio: In) -> dict[str, Any]:
    """The settings that a PNG carries, of ours, A1111's, ComfyUI's or InvokeAI's, as a request."""
    content = await request.body()
    check_pixels(content, studio.limits, "the picture")

    def read() -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            file.write(content)
            file.flush()
            try:
                found = read_request(Path(file.name))
            except PictureError as unreadable:
                raise PictureError(str(unreadable).replace(repr(file.name), "the picture")) from None
        wanted = summary(found.request)
        held = found.request.model_dump(mode="json")
        return {
            "program": found.program,
            "model": found.model,
            "left_out": list(found.left_out),
            "request": _filled(wanted, held),
        }

    return await run_in_threadpool(read)


def _filled(wanted: Mapping[str, Any], held: Mapping[str, Any]) -> Any:
    """A summary whose inputs carry what they stand for: `url` to be shown, `value` to be sent again."""

    def at(place: str) -> Any:
        value: Any = held
        for part in place.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        return value

    def walk(value: object) -> object:
        if isinstance(value, list):
            return [walk(each) for each in cast("list[object]", value)]
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        if "input" not in given:
            return {name: walk(each) for name, each in given.items()}
        full = at(given["input"])
        png = full.get("png") or next(iter(full.get("thumbnails", ())), None)
        rest = {name: each for name, each in given.items() if name != "input"}
        return {**rest, "value": full, "url": f"data:image/png;base64,{png}" if png else None}

    return walk(dict(wanted))


# -- styles ------------------------------------------------------------------------------------------------------------


def _style(name: str, entry: LibraryEntry) -> dict[str, Any]:
    card, base = entry.card, f"/v1/styles/{name}"
    return {
        "name": name,
        "content": card.content,
        "plan": card.plan,
        "licence": card.licence,
        "credit": card.credit,
        "shipped": entry.shipped,
        "pictures": len(card.thumbnails),
        "thumbnail": f"{base}/thumbnail" if card.thumbnails else None,
        "file": f"{base}/file",
    }


def _entry(studio: Studio, name: str) -> LibraryEntry:
    entry = studio.library.get(name)
    if entry is None:
        raise ApiError(404, f"there is no style {name[:64]!r} here; GET /v1/styles lists them", code="not_found")
    return entry


@router.get("/styles", tags=["styles"], responses=documented())
def list_styles(studio: In) -> dict[str, Any]:
    """The style library."""
    return {"styles": [_style(name, entry) for name, entry in studio.library.entries().items()]}


@router.get("/styles/{name}", tags=["styles"], responses=documented(404))
def get_style(name: str, studio: In) -> dict[str, Any]:
    """One style."""
    return _style(name, _entry(studio, name))


@router.get("/styles/{name}/thumbnail", tags=["styles"], responses=documented(404), response_class=Response)
def style_thumbnail(name: str, studio: In) -> Response:
    """The first picture of a style."""
    card = _entry(studio, name).card
    if not card.thumbnails:
        raise ApiError(404, f"the style {name[:64]!r} carries no picture", code="not_found")
    response = _png(card.thumbnails[0])
    response.headers["Cache-Control"] = "private, no-cache"
    return response


@router.get("/styles/{name}/file", tags=["styles"], responses=documented(404), response_class=Response)
def style_file(name: str, studio: In) -> Response:
    """A style as a file to be shared."""
    entry = _entry(studio, name)
    headers = {"Content-Disposition": f'attachment; filename="{name}.style.safetensors"'}
    return Response(entry.path.read_bytes(), media_type="application/octet-stream", headers=headers)


_STYLE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "card": {"type": "string", "format": "binary", "description": "a .style.safetensors file"},
                        "picture": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        **{name: {"type": "string"} for name in ("name", "content", "licence", "credit")},
                    },
                }
            }
        },
    }
}


@router.post(
    "/styles", status_code=201, tags=["styles"], openapi_extra=_STYLE_BODY, responses=documented(413, 415, 503, 507)
)
async def add_style(request: Request, studio: In) -> dict[str, Any]:
    """Save a style: a card's file as it is, or pictures with a name, which the model's image encoder looks at."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, "send multipart/form-data: `card`, or `picture` and `name`", code="content_type")
    words: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []
    async with request.form(max_files=16, max_fields=16) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((name, await value.read()))
            elif name in ("name", "content", "licence", "credit"):
                words[name] = value
            else:
                raise ApiError(400, f"there is no field {name[:60]!r}: name, content, licence, credit", param=name[:60])
    cards = [content for name, content in files if name == "card"]
    pictures = [check_pixels(content, studio.limits, "the picture") for name, content in files if name == "picture"]
    if len(cards) == 1 and not pictures:
        try:
            card = read_card(cards[0])
        except WeightsError as damaged:
            raise InputError(str(damaged)) from None
        card = card.model_copy(update={"name": words["name"]}) if words.get("name") else card
    elif pictures and not cards and words.get("name"):
        made = words["name"], pictures, words.get("content") or None, words.get("licence", ""), words.get("credit", "")
        card = await studio.with_model(lambda model: make_style_card(model, *made))
    else:
        raise ApiError(400, "send one `card`, or pictures as `picture` and a `name`", code="invalid_value")
    entry = await run_in_threadpool(studio.library.save, card)
    return _style(card.name, entry)


@router.delete("/styles/{name}", status_code=204, tags=["styles"], responses=documented(404))
def delete_style(name: str, studio: In) -> None:
    """Forget a saved style."""
    if not studio.library.delete(name):
        raise ApiError(404, f"there is no style {name[:64]!r} here", code="not_found")


# -- the model ---------------------------------------------------------------------------------------------------------


@router.get("/studio", tags=["model"], responses=documented(503))
def facts(studio: In) -> dict[str, Any]:
    """What the page needs to know of the model and the server."""
    model = studio.model
    family, vocabulary = model.family, prompt_vocabulary(model)
    live = live_settings(studio)
    return {
        "version": version(),
        "model": {
            "id": studio.spec,
            "family": family.name,
            "size": family.size,
            "multiple": family.multiple,
            "guidance": family.guidance,
            "identity": model.identity[:12],
            "sees": model.eyes is not None,
            "style": model.adapter is not None,
        },
        "steps": DrawRequest("").steps or 30,
        "live": live,
        "methods": method_table(model),
        "plans": list(family.presets),
        "blocks": list(family.unet.modules),
        "samplers": sampler_names(),
        "controls": list(model.controls),
        "things": sorted(model.vocabulary),
        "looks": sorted(vocabulary.looks) if vocabulary else [],
        "limits": {
            "count": studio.limits.count,
            "steps": studio.limits.steps,
            "body_bytes": studio.limits.body_bytes,
            "side": [studio.limits.scale * side for side in family.size],
        },
    }


def live_settings(studio: Studio) -> dict[str, Any] | None:
    """Steps, guidance and sampler of a live draft; None for a model that cannot follow a slider on this device."""
    model = studio.model
    few = getattr(model.family, "few_step", None)  # a model that was distilled says so itself
    if few is not None:
        return {"steps": few.steps, "guidance": few.guidance, "sampler": few.sampler}
    if max(model.family.size) > 256 and model.device.type == "cpu":
        return None
    return {"steps": 8, "guidance": 2.0, "sampler": None}


@router.post("/guess", tags=["model"], responses=documented(404, 413, 415, 503))
async def guess(body: GuessBody, studio: In) -> dict[str, list[str]]:
    """What a picture shows, by the model's own words, the likeliest first."""
    if body.image.startswith("data:"):
        content = check_pixels(data_url(body.image), studio.limits, "image")
    else:
        held = studio.fetch(body.image) if body.image.startswith("/v1/") else None
        if isinstance(held, StyleCard):
            raise InputError("a style card says itself what it shows")
        if held is None:
            raise ApiError(404, "image is a data URL, or the address of a picture of this server", param="image")
        content = held if isinstance(held, bytes) else cast("Any", held).png
    picture = await run_in_threadpool(load_image, content)
    return {"words": await studio.with_model(lambda model: nearest_words(model, picture, 3))}


@router.get("/words", tags=["model"], responses=documented(503))
def words(studio: In, prompt: Annotated[str, Query(max_length=2000)] = "") -> dict[str, Any]:
    """How the model reads a prompt: the words it was taught, and a sentence on each that it was not."""
    vocabulary = prompt_vocabulary(studio.model)
    if vocabulary is None or not prompt.strip():
        return {"text": prompt, "warnings": []}
    found = vocabulary.understand(prompt)
    return {"text": found.text, "warnings": list(found.warnings)}


@router.get("/models", tags=["model"], responses=documented(503))
def models(studio: In) -> dict[str, Any]:
    """The loaded model, as OpenAI lists models."""
    family = studio.model.family.name
    names = list(dict.fromkeys(["instantstyle", family, studio.spec]))
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "instantstyle"} for name in names]
    return {"object": "list", "data": entries}


__all__ = ["data_url_of", "live_settings", "router", "studio_of", "with_addresses"]
