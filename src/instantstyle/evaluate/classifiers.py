# pyright: reportUnknownMemberType=false

"""Classifiers of an image's content, style family and icon set, from which the evaluation's scores come.

They are trained on true images of training concepts alone (`train_classifiers`) and used by no method, loss or
selection.  Two architectures see the whole image, and `conv` is never used to tune anything.  Two more see less: `grey`
no colour, `edge` only contours, so that a transferred palette does not pass them.  They are small because they are
trained on two shared cores; what each scores on true images stands beside every figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.errors import InputError, WeightsError, did_you_mean
from instantstyle.evaluate.ground_truth import TRAINED_SETS, TRUTH_SIDE
from instantstyle.evaluate.handcrafted_features import View, feature_dims, handcrafted_features
from instantstyle.evaluate.metrics import Pixels

CLASSIFIER_NAMES: Mapping[str, View] = {"strokes": "colour", "conv": "colour", "grey": "grey", "edge": "edge"}
"""The classifiers, and what each sees."""
HELD_OUT = "conv"
"""The classifier that nothing is ever tuned on: not presets, not strengths, not training stages."""
WIDTH = 128
"""Dimension of a classifier's content and style features."""
LABELS: Mapping[str, Sequence[str]] = {"concept": TRAINED_CONCEPTS, "family": TRAINED_FAMILIES, "drawer": TRAINED_SETS}
"""The classification heads and their labels; `drawer` is the icon set."""
PREDICTION_BATCH = 256
Features = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""Content and style features of n images, [n, 128] each."""


class ConvClassifier(nn.Module):
    """Two small convolutional networks: a residual one for content, on images averaged down to 32 x 32, and one with a
    receptive field of 13 pixels for style, of which only means and deviations over the image are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, 2), _conv(32, 96, 2))
        self.deep = _conv(96, 96, 1)
        self.down = _conv(96, WIDTH, 2)
        self.near = nn.Sequential(_conv(3, 24, 2, 5), _conv(24, WIDTH // 2, 2, 5))

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Features:
        """Features of images in 0..1."""
        x = pixels * 2 - 1
        content = self.stem(F.avg_pool2d(x, 2))
        texture = self.near(x).flatten(2)
        content = self.down(content + self.deep(content)).mean((2, 3))
        return content, torch.cat([texture.mean(2), texture.std(2)], dim=1)


class HandcraftedClassifier(nn.Module):
    """Perceptrons on fixed features (`handcrafted_features`)."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view: View = view
        self.lengths = feature_dims(view)
        self.what, self.how = (
            _perceptron(length, hidden) for length, hidden in zip(self.lengths, (320, 160), strict=True)
        )

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Features:
        """Features of images in 0..1."""
        return self.read(*handcrafted_features(pixels, self.view))

    def read(self, layout: Float[Tensor, "n a"], texture: Float[Tensor, "n b"]) -> Features:
        """Features from the handcrafted ones of this view or of a wider one, of which the last columns are used."""
        return self.what(layout[:, -self.lengths[0] :]), self.how(texture[:, -self.lengths[1] :])


def _perceptron(length: int, hidden: int) -> nn.Sequential:
    """Batch normalisation and two linear layers."""
    return nn.Sequential(
        nn.BatchNorm1d(length, affine=False),
        nn.Dropout(0.25),
        nn.Linear(length, hidden),
        nn.GELU(),
        nn.Dropout(0.25),
        nn.Linear(hidden, WIDTH),
        nn.GELU(),
    )


class ContentStyleHeads(nn.Module):
    """One classifier: a trunk with content and style features, and a linear head for each kind of label."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in CLASSIFIER_NAMES:
            raise InputError(
                f"there is no classifier {name!r}: give one of {', '.join(CLASSIFIER_NAMES)}"
                f"{did_you_mean(name, CLASSIFIER_NAMES)}"
            )
        self.name = name
        self.trunk = ConvClassifier() if name == "conv" else HandcraftedClassifier(CLASSIFIER_NAMES[name])
        self.heads = nn.ModuleDict({head: nn.Linear(WIDTH, len(labels)) for head, labels in LABELS.items()})

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Logits [n, labels] of every head."""
        return self.classify(self.trunk(pixels))

    def classify(self, features: Features) -> dict[str, Tensor]:
        """Logits of every head.

        The concept is read from content features, family and icon set from style features, which are means over the
        image, so that a set is not recognised by the concepts that it often draws.
        """
        content, style = features
        return {name: head(content if name == "concept" else style) for name, head in self.heads.items()}


def _conv(into: int, out: int, stride: int, side: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, side, stride, side // 2, bias=False), nn.BatchNorm2d(out), nn.SiLU())


@dataclass(frozen=True)
class Predictions:
    """What a classifier predicts for n images."""

    log_probs: Mapping[str, npt.NDArray[np.float32]]
    """Log-probabilities [n, labels] of each head."""
    content_features: npt.NDArray[np.float32]
    """[n, 128]: where similarity of content is measured."""
    style_features: npt.NDArray[np.float32]
    """[n, 128]: where similarity of style is measured."""

    def labels(self, head: str) -> list[str]:
        """The likeliest label of each image."""
        return [LABELS[head][int(i)] for i in self.log_probs[head].argmax(1)]

    def correct(self, head: str, truths: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For each image whether the likeliest label is the true one."""
        return np.array([label == truth for label, truth in zip(self.labels(head), truths, strict=True)])

    def log_probability(self, head: str, labels: Sequence[str]) -> npt.NDArray[np.float32]:
        """For each image the log-probability of one label."""
        known = LABELS[head]
        return np.array([row[known.index(label)] for row, label in zip(self.log_probs[head], labels, strict=True)])


@torch.no_grad()
def predict(net: ContentStyleHeads, pixels: Shaped[np.ndarray, "n side side 3"]) -> Predictions:
    """Predictions for images [n, 64, 64, 3] uint8."""
    log_probs: dict[str, list[Tensor]] = {head: [] for head in LABELS}
    content: list[Tensor] = []
    style: list[Tensor] = []
    for i in range(0, len(pixels), PREDICTION_BATCH):
        features: Features = net.trunk(to_input_tensor(pixels[i : i + PREDICTION_BATCH]))
        content.append(features[0])
        style.append(features[1])
        for head, logits in net.classify(features).items():
            log_probs[head].append(F.log_softmax(logits, dim=-1))
    return Predictions(
        {head: torch.cat(parts).numpy() for head, parts in log_probs.items()},
        torch.cat(content).numpy(),
        torch.cat(style).numpy(),
    )


def to_input_tensor(pixels: Shaped[np.ndarray, "n side side 3"]) -> Float[Tensor, "n 3 side side"]:
    """Images uint8 as a tensor in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


def pixels_of(images: Sequence[Image.Image]) -> Pixels:
    """Images as classifiers see them: [n, 64, 64, 3] uint8, larger ones averaged down."""
    square = (TRUTH_SIDE, TRUTH_SIDE)
    fitted = [p if p.size == square else p.resize(square, Image.Resampling.BOX) for p in images]
    return np.stack([np.asarray(p.convert("RGB")) for p in fitted])


@cache
def load_classifier(name: str) -> ContentStyleHeads:
    """A trained classifier of the package.

    Raises InputError for an unknown name, WeightsError when its file is missing or has other labels.
    """
    net = ContentStyleHeads(name)
    with as_file(files("instantstyle") / "assets" / "judges" / f"{name}.safetensors") as path:
        if not path.is_file():
            raise WeightsError(f"the classifier {name!r} is not in this installation: train it with make judges")
        opened: Any = safe_open(path, "pt")
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            weights: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    if metadata.get("answers") != labels_text():
        raise WeightsError(f"the classifier {name!r} was trained for other labels than there are now: make judges")
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net.eval().requires_grad_(False)


def labels_text() -> str:
    """All labels in one line, as a classifier's file names those it was trained for."""
    return "; ".join(f"{head}: {', '.join(labels)}" for head, labels in LABELS.items())
