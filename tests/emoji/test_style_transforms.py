"""Style transforms are data: the same one gives the same pixels, and held-out ones are never sampled for training."""

import colorsys
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from instantstyle.emoji.captions import (
    OTHER_WORDS,
    SET_WORDS,
    colour_name,
    content_phrase,
    describe_style,
    make_caption,
)
from instantstyle.emoji.rasterize import RgbaArray
from instantstyle.emoji.sources import SETS
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits, splits_hash
from instantstyle.emoji.style_transforms import (
    HELD_OUT_FAMILIES,
    HELD_OUT_HUES,
    TRAINED_FAMILIES,
    Colour,
    StyleTransform,
    apply_transform,
    sample_transform,
)


@pytest.fixture
def drawing() -> RgbaArray:
    """A red disc with a dark bar across it on nothing."""
    y, x = np.mgrid[0:128, 0:128]
    inside = (x - 64) ** 2 + (y - 64) ** 2 < 50**2
    picture = np.zeros((128, 128, 4), np.uint8)
    picture[inside] = (220, 30, 40, 255)
    picture[inside & (abs(y - 64) < 8)] = (20, 20, 20, 255)
    return picture


@pytest.mark.parametrize("family", [*TRAINED_FAMILIES, *HELD_OUT_FAMILIES])
def test_a_transform_survives_json(family: str, drawing: RgbaArray) -> None:
    transform = sample_transform(np.random.default_rng(3), [family])
    data: dict[str, Any] = json.loads(json.dumps(transform.to_dict()))
    assert list(data) == ["family", "ground", "ink", "second", "amount", "seed"], "the keys of files written before"
    again = StyleTransform.from_dict(data)
    first = apply_transform(transform, drawing)
    assert first.shape == (128, 128, 3)
    assert np.array_equal(first, apply_transform(again, drawing))


@pytest.mark.parametrize("family", [*TRAINED_FAMILIES, *HELD_OUT_FAMILIES])
def test_the_drawing_stands_out_from_its_background(family: str, drawing: RgbaArray) -> None:
    for seed in range(4):
        picture = apply_transform(sample_transform(np.random.default_rng(seed), [family]), drawing).astype(float)
        outside = picture[:8].mean(axis=(0, 1))
        assert np.abs(picture - outside).max() > 40, "nothing stands out from the background"


@pytest.mark.parametrize("family", TRAINED_FAMILIES)
def test_families_differ(family: str, drawing: RgbaArray) -> None:
    base = sample_transform(np.random.default_rng(5), [family])
    mine = apply_transform(base, drawing).astype(float)
    for other in TRAINED_FAMILIES:
        if other != family:
            theirs = apply_transform(dataclasses.replace(base, kind=other), drawing).astype(float)
            assert np.abs(mine - theirs).mean() > 1, other


def _in_band(colour: Colour) -> bool:
    hue, saturation, _ = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    return saturation > 0.1 and HELD_OUT_HUES[0] + 3 < hue * 360 < HELD_OUT_HUES[1] - 3


def test_backgrounds_of_held_out_hues_are_never_sampled_for_training() -> None:
    rng = np.random.default_rng(0)
    assert not any(_in_band(sample_transform(rng).background) for _ in range(2000))
    assert any(_in_band(sample_transform(rng, held_out_hue=True).background) for _ in range(50))
    assert {sample_transform(rng).kind for _ in range(500)} == set(TRAINED_FAMILIES)


def test_splits_match_their_hash_and_are_disjoint() -> None:
    held_out = splits()
    assert not held_out.concepts & set(TRAINED_CONCEPTS)
    assert held_out.sets == {name for name, s in SETS.items() if s.held_out}
    assert not any(concept in held_out.concepts or name in held_out.sets for concept, name in held_out.cells)
    concept, name = min(held_out.cells)
    assert not held_out.trains(concept, name)
    trained_sets = [s for s in SETS if not SETS[s].held_out]
    share = len([c for c in held_out.cells if c[0] in TRAINED_CONCEPTS]) / (len(TRAINED_CONCEPTS) * len(trained_sets))
    assert 1 / 20 < share < 1 / 7


def test_a_changed_split_changes_the_hash() -> None:
    assert splits_hash({"concepts": ["a"]}) != splits_hash({"concepts": ["b"]})


def test_captions_have_the_concept_and_sometimes_the_style() -> None:
    rng = np.random.default_rng(1)
    captions = [make_caption("cat", sample_transform(rng), "noto", rng, styled=0.5) for _ in range(200)]
    assert all("cat" in text or "kitty" in text for text in captions)
    styled = [text for text in captions if "," in text]
    assert 60 < len(styled) < 140
    assert all(describe_style(sample_transform(rng), name, rng) for name in SET_WORDS for _ in range(20)), (
        "a description is never empty"
    )
    assert {content_phrase("red apple", rng) for _ in range(200)} >= {"an apple", "red apple", "apple", "a red apple"}


def test_colours_have_their_names() -> None:
    assert colour_name((255, 255, 255)) == "white"
    assert colour_name((10, 20, 80)) == "navy"
    assert colour_name((250, 240, 80)) == "yellow"


def test_synonyms_are_of_trained_concepts_and_unique() -> None:
    assert set(OTHER_WORDS) <= set(TRAINED_CONCEPTS)
    words = [word for several in OTHER_WORDS.values() for word in several]
    assert len(words) == len(set(words))
