# pyright: reportUnknownMemberType=false

"""see − say, against arithmetic done by hand and properties that each variant must have."""

import math
from typing import cast

import pytest
import torch

from instantstyle.errors import InputError
from instantstyle.methods.content_subtraction import effective_weight, nearest_text, subtract_content, weighted_average

IMAGE = torch.tensor([[3.0, 4.0, 0.0]])
TEXT = torch.tensor([[0.0, 2.0, 0.0]])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_paper_subtracts_as_it_is() -> None:
    assert torch.equal(subtract_content(IMAGE, TEXT, 0.5), torch.tensor([[3.0, 3.0, 0.0]]))


def test_normalised_works_between_directions_and_keeps_the_length() -> None:
    # (0.6, 0.8) - 0.8 * (0, 1) is (0.6, 0): the first axis, five long.
    torch.testing.assert_close(subtract_content(IMAGE, TEXT, 0.8, "normalised"), torch.tensor([[5.0, 0.0, 0.0]]))


def test_normalised_does_not_know_how_long_the_text_embedding_is() -> None:
    image, text = random(2, 8), random(1, 8, seed=1)
    torch.testing.assert_close(
        subtract_content(image, text, 0.7, "normalised"), subtract_content(image, 9 * text, 0.7, "normalised")
    )


def test_projected_at_weight_1_leaves_nothing_of_the_content() -> None:
    image, texts = random(3, 16), random(2, 16, seed=1)
    left = subtract_content(image, texts, 1.0, "projected")
    torch.testing.assert_close(left @ texts.T, torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(subtract_content(left, texts, 1.0, "projected"), left)


def test_projected_does_not_touch_what_is_not_there() -> None:
    image = torch.tensor([[3.0, 0.0, 4.0]])
    torch.testing.assert_close(subtract_content(image, TEXT, 1.0, "projected"), image)


@pytest.mark.parametrize("how", ["paper", "normalised", "projected", "masked"])
def test_weight_0_changes_nothing(how: str) -> None:
    image = random(2, 8)
    torch.testing.assert_close(subtract_content(image, random(1, 8, seed=1), 0.0, how), image)  # pyright: ignore


def test_masked_makes_zero_what_agrees_most() -> None:
    """Against k-means by trying every split: least squares around the two means."""
    image, text = random(3, 24), random(1, 24, seed=1)
    left = subtract_content(image, text, 1.0, "masked")
    for seen, kept in zip(image, left, strict=True):
        agree = cast("torch.Tensor", seen / seen.norm() * text[0] / text.norm())
        order = agree.argsort()

        def spread(split: int, agree: torch.Tensor = agree, order: torch.Tensor = order) -> float:
            clusters = agree[order[:split]], agree[order[split:]]
            return sum(float((cluster - cluster.mean()).square().sum()) for cluster in clusters)

        split = min(range(1, 24), key=spread)
        expected = seen.clone()
        expected[order[split:]] = 0
        assert torch.equal(kept, expected)


def test_several_words_count_as_their_mean() -> None:
    image, texts = random(1, 8), random(3, 8, seed=1)
    expected = image - 0.5 * (texts[0] + texts[1] + texts[2]) / 3
    torch.testing.assert_close(subtract_content(image, texts, 0.5), expected)


@pytest.mark.parametrize("how", ["paper", "normalised", "projected", "masked"])
def test_a_word_said_twice_is_said_once(how: str) -> None:
    """Of the projection this holds too, although its span is then degenerate."""
    image, text = random(1, 8), random(1, 8, seed=1)
    twice = torch.cat([text, text])
    torch.testing.assert_close(subtract_content(image, twice, 0.5, how), subtract_content(image, text, 0.5, how))  # pyright: ignore


def test_the_nearest_text_is_by_angle_not_by_length() -> None:
    texts = torch.tensor([[100.0, 1.0], [0.1, 0.1], [0.0, 9.0]])
    assert nearest_text(torch.tensor([[1.0, 0.9], [0.0, 1.0], [5.0, 0.0]]), texts) == [1, 2, 0]


def test_average_takes_shares() -> None:
    torch.testing.assert_close(
        weighted_average(torch.tensor([[1.0, 0.0], [5.0, 4.0]]), [3.0, 1.0]), torch.tensor([[2.0, 1.0]])
    )
    assert weighted_average(random(2, 5, 7), [1.0, 1.0]).shape == (1, 5, 7)


def test_strength() -> None:
    assert effective_weight([0.7]) == pytest.approx(0.7)
    assert effective_weight([0.7, 0.7, 0.7]) == pytest.approx(0.7)
    assert effective_weight([1.0, 0.0]) == 1.0
    assert math.isclose(effective_weight([1.0, 1e-9]), 1.0, rel_tol=1e-6)
    with pytest.raises(InputError, match="weight 0"):
        effective_weight([0.0, 0.0])
