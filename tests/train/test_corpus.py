"""What a step learns from: rows come as often as they are to."""

import numpy as np
import torch

from instantstyle.train.emoji.dataset import CaptionEmbeddings, TrainingSet
from instantstyle.train.emoji.image_bank import ImageBank

NOTHING = CaptionEmbeddings(("",), torch.zeros(1, 1, 1), torch.zeros(1, 1))
BANK = ImageBank(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), np.arange(4), (), (), ())
FOUR = TrainingSet(BANK, torch.zeros(4, 1, 1, 1), NOTHING, np.zeros((4, 4), int))


def test_rows_come_as_often_as_they_are_to() -> None:
    often = np.array([0.0, 1.0, 1.0, 2.0])
    rows = FOUR.sample_indices(40_000, np.random.default_rng(0), often)
    shares = np.bincount(rows, minlength=4) / len(rows)
    assert shares[0] == 0
    np.testing.assert_allclose(shares, often / often.sum(), atol=0.01)


def test_rows_come_alike_where_nothing_is_said() -> None:
    shares = np.bincount(FOUR.sample_indices(40_000, np.random.default_rng(0)), minlength=4) / 40_000
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
