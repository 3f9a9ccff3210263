"""What is asked of the model: its facts, its words, what it sees in a picture."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from instantstyle.errors import InputError
from instantstyle.request import Request as DrawRequest
from instantstyle.request.style_card import StyleCard
from instantstyle.serve.bodies import check_pixels, data_url
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.internals import (
    load_image,
    method_table,
    nearest_words,
    package_version,
    prompt_vocabulary,
    sampler_names,
)
from instantstyle.serve.routes.common import In
from instantstyle.serve.studio import Studio

router = APIRouter(prefix="/v1")


class GuessBody(BaseModel):
    """A picture to be looked at."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(max_length=64 * 2**20)
    """A data URL, or the address of a picture of this server."""


@router.get("/studio", tags=["model"], responses=documented(503))
def facts(studio: In) -> dict[str, Any]:
    """What the page needs to know of the model and the server."""
    model = studio.model
    family, vocabulary = model.family, prompt_vocabulary(model)
    live = live_settings(studio)
    return {
        "version": package_version(),
        "model": {
            "id": studio.spec,
            "family": family.name,
            "size": family.size,
            "multiple": family.size_multiple,
            "guidance": family.guidance,
            "identity": model.weights_fingerprint[:12],
            "sees": model.image_encoder is not None,
            "style": model.adapter is not None,
        },
        "steps": DrawRequest("").steps or 30,
        "live": live,
        "methods": method_table(),
        "plans": list(family.presets),
        "blocks": list(family.unet.modules),
        "samplers": sampler_names(),
        "controls": list(model.controls),
        "things": sorted(model.vocabulary),
        "looks": sorted(vocabulary.style_words) if vocabulary else [],
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
    found = vocabulary.normalize(prompt)
    return {"text": found.text, "warnings": list(found.warnings)}


@router.get("/models", tags=["model"], responses=documented(503))
def models(studio: In) -> dict[str, Any]:
    """The loaded model, as OpenAI lists models."""
    family = studio.model.family.name
    names = list(dict.fromkeys(["instantstyle", family, studio.spec]))
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "instantstyle"} for name in names]
    return {"object": "list", "data": entries}
