"""OpenAI's images API, by their own client."""

import base64
import io
from collections.abc import Generator
from typing import Any, cast

import openai
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def api(server: str) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as client:
        yield client


EXTRA: dict[str, Any] = {"seed": 7, "steps": 2, "guidance": 1.0}


def opened(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def drawn(colour: str, mode: str = "RGB", size: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_generation(api: openai.OpenAI) -> None:
    made = api.images.generate(prompt="a cat", model="instantstyle", n=2, extra_body=EXTRA)
    assert made.data is not None
    assert len(made.data) == 2
    assert opened(made.data[0].b64_json).size == (64, 64)
    assert cast("Any", made.data[0]).seed == 7
    assert made.usage is not None
    assert made.usage.input_tokens > 0
    assert made.output_format == "png"
    again = api.images.generate(prompt="a cat", n=2, extra_body=EXTRA)
    assert again.data is not None
    assert [opened(each.b64_json).tobytes() for each in again.data] == [
        opened(each.b64_json).tobytes() for each in made.data
    ]


def test_size_and_format_are_those_asked_for(api: openai.OpenAI) -> None:
    made = api.images.generate(
        prompt="a cat", model="gpt-image-1", size="1536x1024", output_format="jpeg", extra_body=EXTRA
    )
    assert made.data is not None
    shown = opened(made.data[0].b64_json)
    assert (shown.format, shown.size) == ("JPEG", (1536, 1024))
    said = cast("Any", made).warnings
    assert any("enlarged" in each for each in said)
    assert any("gpt-image-1" in each for each in said)


def test_images_of_an_edit_are_style_references(api: openai.OpenAI) -> None:
    plain = api.images.generate(prompt="a cat", extra_body=EXTRA)
    one = api.images.edit(image=drawn("red"), prompt="a cat", extra_body=EXTRA)
    two = api.images.edit(image=[drawn("red"), drawn("blue")], prompt="a cat", extra_body=EXTRA)
    weak = api.images.edit(image=[drawn("red")], prompt="a cat", extra_body={**EXTRA, "strength": 0.0})
    pictures = [opened(each.data[0].b64_json).convert("RGB").tobytes() for each in (plain, one, two, weak) if each.data]
    assert len(set(pictures[:3])) == 3
    assert pictures[3] == pictures[0]


def test_a_mask_paints_the_first_image_anew_where_it_is_clear(api: openai.OpenAI) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    made = api.images.edit(
        image=[drawn("white", size=64), drawn("red")],
        mask=buffer.getvalue(),
        prompt="a black cat",
        extra_body={**EXTRA, "steps": 4, "guidance": 2.0},
    )
    assert made.data is not None
    shown = opened(made.data[0].b64_json).convert("L")
    left, right = shown.crop((0, 0, 24, 64)), shown.crop((44, 0, 64, 64))
    assert cast("int", right.getextrema()[0]) > 180  # kept as it was, as far as the VAE keeps white
    assert left.getextrema() != right.getextrema()
    with pytest.raises(openai.BadRequestError, match="nowhere transparent"):
        api.images.edit(image=drawn("white"), mask=drawn("black"), prompt="a cat", extra_body=EXTRA)


def test_a_stream_brings_partial_pictures(api: openai.OpenAI) -> None:
    events = list(
        api.images.generate(prompt="a dog", stream=True, partial_images=2, n=1, extra_body={**EXTRA, "steps": 9})
    )
    assert [each.type for each in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [opened(each.b64_json).size for each in events] == [(64, 64)] * 3
    edits = list(api.images.edit(image=drawn("red"), prompt="a dog", stream=True, extra_body=EXTRA))
    assert [each.type for each in edits] == ["image_edit.completed"]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"model": "nonesuch"}, openai.NotFoundError, "nonesuch"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "nonsense"),
        ({"extra_body": {"method": "instanstyle"}}, openai.BadRequestError, "did you mean 'instantstyle'"),
        ({"extra_body": {"plan": "up.9"}}, openai.BadRequestError, "up.9"),
        ({"n": 11}, openai.BadRequestError, "n"),
        ({"response_format": "url"}, openai.BadRequestError, "response_format"),
        ({"extra_body": {"steps": 1000}}, openai.BadRequestError, "steps"),
    ],
)
def test_errors_have_their_shape(api: openai.OpenAI, fields: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        cast("Any", api.images).generate(**{"prompt": "a cat", **fields})
    error = cast("openai.APIStatusError", caught.value)
    assert said in str(error)
    assert error.type == "invalid_request_error"


def test_addresses_elsewhere_are_not_fetched(api: openai.OpenAI, server: str) -> None:
    import httpx

    body = {"prompt": "a cat", "images": [{"image_url": "http://127.0.0.1:1/secret.png"}]}
    answer = httpx.post(f"{server}/v1/images/edits", json=body)
    assert answer.status_code == 400
    assert "not fetched" in answer.json()["error"]["message"]


def test_the_list_of_models(api: openai.OpenAI) -> None:
    assert "instantstyle" in [model.id for model in api.models.list()]
