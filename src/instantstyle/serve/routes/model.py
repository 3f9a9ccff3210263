"""What is asked of the model: its facts, its words, what it sees in a picture."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from instantstyle.errors import InputError
from instantstyle.request import Request as DrawRequest
from instantstyle.request import package_version
from instantstyle.request.style_card import StyleCard
from instantstyle.serve.bodies import check_pixels, data_url
from instantstyle.serve.errors import ApiError, documented
from instantstyle.serve.model_facts import guess_content, live_settings, method_table
from instantstyle.serve.routes.common import In
from instantstyle.utils.images import load_image

router = APIRouter(prefix="/v1")


class GuessBody(BaseModel):
    """A picture to be looked at."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(max_length=64 * 2**20)
    """A data URL, or the address of a picture of this server."""


@router.get("/studio", tags=["model"], responses=documented(503))
def facts(studio: In) -> dict[str, Any]:
    """What the page needs to know of the model and the server."""
    from instantstyle.methods.prompts import vocabulary_of  # both import torch, as the loaded model has
    from instantstyle.sampling.schedulers import FLOW_SAMPLERS, SAMPLERS

    model = studio.model
    family, vocabulary = model.family, vocabulary_of(model)
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
        "live": live_settings(model),
        "methods": method_table(),
        "plans": list(family.presets),
        "blocks": list(family.layout.modules),
        "samplers": list(FLOW_SAMPLERS if family.is_transformer else SAMPLERS),
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
    return {"words": await studio.with_model(lambda model: guess_content(model, picture, 3))}


@router.get("/words", tags=["model"], responses=documented(503))
def words(studio: In, prompt: Annotated[str, Query(max_length=2000)] = "") -> dict[str, Any]:
    """How the model reads a prompt: the words it was taught, and a sentence on each that it was not."""
    from instantstyle.methods.prompts import vocabulary_of  # imports torch, as the loaded model has

    vocabulary = vocabulary_of(studio.model)
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
