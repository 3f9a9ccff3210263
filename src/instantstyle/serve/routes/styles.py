"""/v1/styles: the library of style cards."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from instantstyle.errors import InputError, WeightsError
from instantstyle.request.style_card import StyleCard, read_card
from instantstyle.serve.bodies import check_pixels
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.library import LibraryEntry
from instantstyle.serve.routes.common import In, png_response
from instantstyle.serve.studio import Studio

if TYPE_CHECKING:
    from instantstyle.model import Model

router = APIRouter(prefix="/v1")


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
    response = png_response(card.thumbnails[0])
    response.headers["Cache-Control"] = "private, no-cache"
    return response


@router.get("/styles/{name}/file", tags=["styles"], responses=documented(404), response_class=Response)
def style_file(name: str, studio: In) -> Response:
    """A style as a file to be shared."""
    entry = _entry(studio, name)
    headers = {"Content-Disposition": f'attachment; filename="{name}.style.safetensors"'}
    return Response(entry.path.read_bytes(), media_type="application/octet-stream", headers=headers)


def _card(model: "Model", pictures: list[bytes], words: dict[str, str]) -> StyleCard:
    from instantstyle.methods.reference_embedding import make_card  # imports torch, as the loaded model has

    content, licence, credit = words.get("content") or None, words.get("licence", ""), words.get("credit", "")
    return make_card(model, words["name"], pictures, content=content, licence=licence, credit=credit)


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
        card = await studio.with_model(lambda model: _card(model, pictures, words))
    else:
        raise ApiError(400, "send one `card`, or pictures as `picture` and a `name`", code="invalid_value")
    entry = await run_in_threadpool(studio.library.save, card)
    return _style(card.name, entry)


@router.delete("/styles/{name}", status_code=204, tags=["styles"], responses=documented(404))
def delete_style(name: str, studio: In) -> None:
    """Forget a saved style."""
    if not studio.library.delete(name):
        raise ApiError(404, f"there is no style {name[:64]!r} here", code="not_found")
