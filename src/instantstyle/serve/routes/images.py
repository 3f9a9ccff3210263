"""/v1/images, /v1/inputs and /v1/recall: pictures made, pictures sent, and what a picture says of itself."""

from collections.abc import Mapping
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from instantstyle.request import Request as DrawRequest
from instantstyle.request.third_party_metadata import NoMetadataError, read_third_party_request
from instantstyle.serve.bodies import check_pixels
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.routes.common import MAX_EVENT, Client, In, png_response
from instantstyle.serve.routes.jobs import JobView
from instantstyle.serve.studio import JobOptions, image_view, request_summary
from instantstyle.utils.images import encode_webp, load_image

router = APIRouter(prefix="/v1")


class ImageList(BaseModel):
    """Pictures, newest first."""

    images: list[dict[str, Any]]
    more: int | None


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
    thumbnail: Annotated[
        int | None, Query(ge=16, le=1024, description="A WebP copy of at most so many pixels.")
    ] = None,
) -> Response:
    """A picture as PNG."""
    content = studio.files.read(image, metadata=metadata)
    if content is None:
        raise ApiError(404, f"there is no picture {image[:64]!r} here", code="not_found")
    if thumbnail is not None:
        small = encode_webp(load_image(content), thumbnail)
        return Response(
            small, media_type="image/webp", headers={"Cache-Control": "private, max-age=31536000, immutable"}
        )
    response = png_response(content)
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
def draw_again(image: str, studio: In, client: Client) -> JobView:
    """Draw a picture's request again; the job's `verdict` says whether it is the same to the pixel."""
    row = studio.store.image(image)
    text = None if row is None else studio.store.request(row.job)
    if row is None or text is None:
        raise ApiError(404, f"there is no picture {image[:64]!r} here", code="not_found")
    made = studio.row(row.job)  # with the meter as then, so that the batch is the same where nobody else draws
    options = JobOptions(compare_with=image, compare_index=row.place, meter=bool(made.options.get("meter")))
    job, _ = studio.submit(DrawRequest.from_json(text), client=client, options=options)
    return JobView(**studio.view(job))


_FILE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.post(
    "/inputs", status_code=201, tags=["pictures"], openapi_extra=_FILE_BODY, responses=documented(413, 415, 507)
)
async def add_input(request: Request, studio: In) -> dict[str, Any]:
    """Send a picture once, as the body; its `url` then stands for it in requests.  The newest are kept."""
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
    return png_response(held.png)


@router.post("/recall", tags=["pictures"], openapi_extra=_FILE_BODY, responses=documented(413, 415))
async def recall(request: Request, studio: In) -> dict[str, Any]:
    """The settings that a picture carries, ours or another program's; `program` is null where there are none."""
    content = await request.body()
    check_pixels(content, studio.limits, "the picture")

    def read() -> dict[str, Any]:
        try:
            found = read_third_party_request(content)
        except NoMetadataError:
            return {"program": None, "model": None, "left_out": [], "request": None}
        wanted = request_summary(found.request)
        held = found.request.model_dump(mode="json")
        return {
            "program": found.program,
            "model": found.model,
            "left_out": list(found.unsupported),
            "request": _filled(wanted, held),
        }

    return await run_in_threadpool(read)


def _filled(wanted: Mapping[str, Any], held: Mapping[str, Any]) -> Any:
    """A summary whose inputs carry what they stand for: `url` to be shown, `value` to be sent again."""

    def at(place: str) -> Any:
        value: Any = held
        for part in place.split("."):
            value = cast("list[Any]", value)[int(part)] if isinstance(value, list) else value[part]
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
