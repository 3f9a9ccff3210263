"""The meter: its cosines against sums written out, what it cannot judge, and the ranking of seeds."""

from typing import cast

import pytest
import torch

import tiny_models
from instantstyle.errors import InputError
from instantstyle.meter import best_of, can_measure, measure, without_reference
from instantstyle.methods.reference_embedding import embed_references
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference

REFERENCE = StyleReference(tiny_models.picture(1), content="dog")
REQUEST = Request("a cat", references=[REFERENCE], seed=5, steps=2, guidance=1.0)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum().sqrt()


def test_the_numbers_are_cosines_of_the_models_own_clip() -> None:
    model = tiny_models.model("emoji")
    result, bare = generate(model, REQUEST), generate(model, without_reference(REQUEST))
    (reading,) = measure(model, REQUEST, result.images, bare.images)
    seen = unit(model.encode_image(result.images)[0].double())
    shown = unit(embed_references(model, [REFERENCE.image])[0].double())
    width = seen.shape[-1]
    prompt, content = (unit(model.encode_content_text([text], width)[0].double()) for text in ("a cat", "dog"))
    assert reading.prompt == pytest.approx(float(seen @ prompt), abs=1e-5)
    assert reading.content == pytest.approx(float(seen @ content), abs=1e-5)
    # Gram-Schmidt by hand: what lies in the span of both texts is taken out of both pictures.
    second = unit(content - (content @ prompt) * prompt)
    one, other = (unit(x - (x @ prompt) * prompt - (x @ second) * second) for x in (seen, shown))
    assert reading.look == pytest.approx(float(one @ other), abs=1e-4)
    came = max(0.0, cast("float", reading.content) - cast("float", reading.content_without))
    assert reading.score == pytest.approx(reading.prompt - came, abs=1e-6)
    same = measure(model, REQUEST, bare.images, bare.images)[0]
    assert (same.prompt, same.look, same.content) == (same.prompt_without, same.look_without, same.content_without)


def test_the_best_of_several_seeds_comes_first_and_each_is_as_alone() -> None:
    model = tiny_models.model("emoji")
    steps: list[int] = []
    ranked = best_of(model, REQUEST, 3, progress=lambda at: steps.append(at.step))
    assert steps[-1] == 2
    assert {each.result.request.seed for each in ranked} == {5, 6, 7}
    scores = [each.reading.score for each in ranked]
    assert scores == sorted(scores, reverse=True)
    for each in ranked:
        alone = generate(model, REQUEST.model_copy(update={"seed": each.result.request.seed}))
        bare = generate(model, without_reference(alone.request))
        (reading,) = measure(model, REQUEST, alone.images, bare.images)
        assert reading.score == pytest.approx(each.reading.score, abs=2e-3)  # pictures of 8 bits, another batch


def test_what_cannot_be_judged_is_refused() -> None:
    model = tiny_models.model("emoji")
    with pytest.raises(InputError, match="give a reference"):
        best_of(model, Request("a cat"), 2)
    with pytest.raises(InputError, match="count is 3"):
        best_of(model, REQUEST.model_copy(update={"count": 3}), 2)
    assert not can_measure(model, Request("a cat"))
