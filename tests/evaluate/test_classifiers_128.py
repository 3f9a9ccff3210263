"""Classifiers at 128 px learn, go on where they were, and answer every question."""

from pathlib import Path

import numpy as np
import pytest
import torch

from instantstyle.evaluate import classifiers_128
from instantstyle.evaluate.ground_truth import LabelledImages


@pytest.mark.parametrize("name", ["strokes", "conv"])
def test_a_classifier_learns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(classifiers_128, "BATCH", 4)
    pictures = np.random.default_rng(0).integers(256, size=(4, 128, 128, 3), dtype=np.uint8)
    images = LabelledImages(pictures, *(np.arange(4) for _ in range(3)))
    classifiers_128.train_classifier_128(name, images, 1, tmp_path)
    net = classifiers_128.train_classifier_128(name, images, 2, tmp_path)
    assert torch.load(tmp_path / f"{name}-128.pt", weights_only=True)["step"] == 2
    assert set(classifiers_128.accuracy(net, images)) == {"concept", "family", "drawer"}
