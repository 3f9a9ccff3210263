"""A warning describes the run: it is about what is read, and about what is done with it."""

import logging
from typing import Any

import pytest

import tiny_models
from instantstyle import load
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import resolve

PICTURE = tiny_models.picture(1)


@pytest.fixture(scope="module")
def model() -> Model:
    return load("emoji")


def warnings(model: Model, prompt: str = "a cat", reference: dict[str, Any] | None = None, **fields: Any) -> str:
    references = () if reference is None else (StyleReference(PICTURE, **reference),)
    return "; ".join(resolve(model, Request(prompt, references=references, **fields)).warnings)


def test_words_are_left_out_of_plain_prompts_alone(model: Model) -> None:
    assert "'red' is left out" in warnings(model, "red car")
    for prompt, reading in (("red car", "long"), ("(red)1.3 car", "weighted")):
        said = warnings(model, prompt, reading=reading)
        assert "left out" in said
        assert said.startswith(f"with reading='{reading}' prompts are read as typed")
        assert ";" not in said
    assert not warnings(model, "a cat, neon style", reading="long")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reference": {"content": "zebra"}}, "content of a reference: 'zebra'"),
        ({"reference": {"content": "zebra", "content_weight": 0}}, ""),
        ({"reference": {"content": "zebra", "weight": 0}}, ""),
        ({"reference": {"content": "zebra"}, "method": "style-aligned"}, "caption of a reference: 'zebra'"),
        ({"reference": {"content": "cat"}, "method": "swapped", "options": {"caption": "zebra"}}, "caption of a"),
        ({"reference": {"content": "zebra"}, "method": "swapped", "options": {"caption": "cat"}}, ""),
        ({"negative": "zebra"}, "negative prompt: 'zebra'"),
        ({"negative": "zebra", "guidance": 1}, "the negative prompt changes nothing at guidance 1"),
        ({"guidance": 1, "guidance_rescale": 0.5}, "guidance_rescale changes nothing at guidance 1"),
        ({"reference": {}, "window": (0.5, 0.5)}, "the window from 0.5 to 0.5 holds no step"),
    ],
)
def test_what_is_read_is_warned_of_and_what_is_not_read_is_not(model: Model, fields: dict[str, Any], told: str) -> None:
    said = warnings(model, **fields)
    assert said.startswith(told)
    assert ("zebra" in said) == ("zebra" in told or "caption" in told)
    assert bool(said) == bool(told)


def test_transformers_says_nothing_of_long_texts(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    transformers = logging.getLogger("transformers")
    transformers.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            model.encode_prompt(["a cat, " + "on dark blue, " * 40], "long")
    finally:
        transformers.removeHandler(caplog.handler)
    assert "sequence length" not in caplog.text
