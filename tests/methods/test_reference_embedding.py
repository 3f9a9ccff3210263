"""What a model sees of a card is what it saw of its pictures; what it reads of a prompt is what it was taught."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny_models
from instantstyle.encoders.prompt_vocabulary import VOCABULARY_FILE
from instantstyle.errors import InputError, WeightsError
from instantstyle.loading import load
from instantstyle.methods.prompts import normalize_prompt, vocabulary_of
from instantstyle.methods.reference_embedding import (
    embed_references,
    make_card,
    reembed,
    reembed_cards,
)
from instantstyle.model import Model
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference
from instantstyle.request.style_card import StyleCard


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small random model with a vocabulary of three things and a table of their names."""
    folder = tmp_path_factory.mktemp("taught") / "emoji"
    shutil.copytree(tiny_models.folder("emoji"), folder)
    things: dict[str, Any] = {
        "cat": {"emoji": "🐈", "group": "a/cat", "kin": "animal", "names": ["kitty", "Katze"], "tags": []},
        "dog": {"emoji": "🐕", "group": "a/dog", "kin": "animal", "names": ["Hund"], "tags": []},
        "zebra": {"emoji": "🦓", "group": "a/zebra", "kin": "animal", "names": [], "tags": []},
    }
    table: dict[str, Any] = {"things": things, "looks": ["ink", "red", "on"], "colours": ["red"]}
    (folder / VOCABULARY_FILE).write_text(json.dumps(table), encoding="utf-8")
    return load(folder)


def drawn(model: Model, *references: StyleReference, prompt: str = "a cat", method: str = "instantstyle") -> np.ndarray:
    request = Request(prompt, references=references, steps=1, seed=3, plan="all", method=method, sampler="ddim")
    return np.asarray(generate(model, request).images[0])


def test_a_card_speaks_as_its_picture_does() -> None:
    model, shown = tiny_models.model("emoji"), tiny_models.picture(1)
    own = make_card(model, "ink", [shown], content="dog")
    assert np.array_equal(drawn(model, StyleReference(own)), drawn(model, StyleReference(shown, content="dog")))
    assert not np.array_equal(drawn(model, StyleReference(own)), drawn(model, StyleReference(shown)))
    both = [StyleReference(own, content=""), StyleReference(tiny_models.picture(2))]
    of_pictures = [StyleReference(shown), StyleReference(tiny_models.picture(2))]
    assert np.abs(drawn(model, *both).astype(int) - drawn(model, *of_pictures)).max() <= 1  # other batches, other sums


def test_the_adapter_as_published_hears_the_card_and_not_its_words() -> None:
    model, shown = tiny_models.model("emoji"), tiny_models.picture(1)
    own = make_card(model, "ink", [shown], content="dog", plan="layout")
    as_published = drawn(model, StyleReference(own), method="ip-adapter")
    assert np.array_equal(as_published, drawn(model, StyleReference(shown), method="ip-adapter"))


def test_the_plan_of_a_card_is_that_of_its_reference() -> None:
    model, shown = tiny_models.model("emoji"), tiny_models.picture(1)
    own = make_card(model, "ink", [shown], plan="layout")
    assert np.array_equal(drawn(model, StyleReference(own)), drawn(model, StyleReference(shown, plan="layout")))


def test_of_several_pictures_it_is_the_mean() -> None:
    model, shown = tiny_models.model("emoji"), [tiny_models.picture(seed) for seed in (1, 2, 3)]
    own = make_card(model, "ink", shown)
    expected = model.encode_image(shown).mean(0, keepdim=True)
    assert embed_references(model, [own]).sub(expected).abs().max() < 1e-5


def test_a_card_of_another_encoder_is_refused_and_can_be_looked_at_anew() -> None:
    own = make_card(tiny_models.model("emoji"), "ink", [tiny_models.picture(1)])
    other = tiny_models.model("sdxl")
    with pytest.raises(WeightsError, match=r"'ink' was made for another image encoder \(192 wide.*24 wide.*re-embed"):
        drawn(other, StyleReference(own))
    request = reembed_cards(other, Request("a cat", references=[StyleReference(own)]))
    both = request.references[0].image
    assert isinstance(both, StyleCard)
    assert len(both.sights) == 2
    assert np.array_equal(drawn(other, StyleReference(both)), drawn(other, StyleReference(tiny_models.picture(1))))
    assert embed_references(tiny_models.model("emoji"), [both]).shape == (1, 192)
    bare = own.model_copy(update={"thumbnails": ()})
    with pytest.raises(InputError, match="no picture"):
        reembed(other, bare)


def test_an_encoder_is_known_again_in_half_precision_and_not_after_other_training(tmp_path: Path) -> None:
    own = make_card(tiny_models.model("emoji"), "ink", [tiny_models.picture(1)])
    half = load(tiny_models.folder("emoji"), dtype="bfloat16")
    assert embed_references(half, [own]).dtype == half.dtype
    with pytest.raises(WeightsError, match="another image encoder"):
        embed_references(load(tiny_models.emoji(tmp_path / "other", seed=1)), [own])


def test_a_card_of_no_picture_is_a_sentence() -> None:
    with pytest.raises(InputError, match="at least one"):
        make_card(tiny_models.model("emoji"), "ink", [])


def test_what_is_typed_is_drawn_as_taught_and_remembered_as_typed(taught: Model) -> None:
    result = generate(taught, Request("Kitties!", steps=1, seed=3, sampler="ddim"))
    assert np.array_equal(np.asarray(result.images[0]), drawn(taught, prompt="cat"))
    assert (result.request.prompt, result.warnings) == ("Kitties!", ())


def test_what_was_not_taught_is_a_warning_of_the_result(taught: Model) -> None:
    reference = StyleReference(tiny_models.picture(1), content=("Hund", "zebra"))
    request = Request("a red cat", "zebra", [reference], steps=1, seed=3)
    said = generate(taught, request).warnings
    assert [each.split(": ")[0] for each in said if "zebra" in each] == ["negative prompt", "content of a reference"]
    assert sum("'red'" in each for each in said) == 1
    assert len(said) == 3


def test_content_is_subtracted_as_taught(taught: Model) -> None:
    dog, hund = (StyleReference(tiny_models.picture(1), content=word) for word in ("dog", "Hund"))
    assert np.array_equal(drawn(taught, dog), drawn(taught, hund))


@pytest.mark.parametrize("name", ["sdxl", "sd15", "emoji"])
def test_a_model_without_a_table_reads_what_is_typed(name: str) -> None:
    model = tiny_models.model(name)
    assert vocabulary_of(model) is None
    for typed in ("kitty", "🐱", "two red cats on a car, oil"):
        understood = normalize_prompt(model, typed)
        assert (understood.text, understood.warnings) == (typed, ())


def test_the_built_in_model_has_a_table() -> None:
    from instantstyle.weights.resolve import BUILT_IN

    if not (BUILT_IN / "emoji").exists():
        pytest.skip("this tree has no built-in model")
    assert (BUILT_IN / "emoji" / VOCABULARY_FILE).is_file(), "write it: python -m instantstyle.emoji.build_vocabulary"
    assert isinstance(tiny_models.picture(), Image.Image)
