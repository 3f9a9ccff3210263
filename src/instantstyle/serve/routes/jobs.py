"""/v1/jobs and /v1/events: requests become jobs, and what happens to them is told."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from instantstyle.request import Request as DrawRequest
from instantstyle.request.style_card import StyleCard
from instantstyle.serve.bodies import build_request, parse_body
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.events import EventStream, Message
from instantstyle.serve.routes.common import MAX_EVENT, Client, In, png_response
from instantstyle.serve.rows import FINISHED, State
from instantstyle.serve.studio import JobOptions, Studio

router = APIRouter(prefix="/v1")


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
        return parse_body(await request.body()), {}
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
                    400,
                    f"the body has a field {name[:60]!r}: it takes `request`, a Request as JSON, and files",
                    param=name[:60],
                )
    if text is None:
        raise ApiError(400, "the body has no field `request`: a Request as JSON", param="request")
    return parse_body(text.encode() if isinstance(text, str) else text), files


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
        return png_response(held.thumbnails[0])
    if not isinstance(held, StyleCard) and held is not None:
        return png_response(held.png)
    raise ApiError(404, f"the request of job {job[:64]!r} has no picture at {place[:64]!r}", code="not_found")


def _last_event(
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
    after: Annotated[int | None, Query(ge=0, le=MAX_EVENT)] = None,
) -> int | None:
    """The newest event a client has seen."""
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdigit()) or int(last_event_id) > MAX_EVENT:
            raise ApiError(
                400, f"Last-Event-ID is the number of an event, not {last_event_id!r}", param="Last-Event-ID"
            )
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
    "/jobs/{job}/events",
    tags=["events"],
    response_class=Response,
    responses={**_STREAM, 204: {"description": "Over"}, **documented(404, 429)},
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
