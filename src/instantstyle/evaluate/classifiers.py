# pyright: reportUnknownMemberType=false

"""Judges: small networks that say what a picture shows, how it looks and whose hand drew it.

They learn from real pictures of training concepts alone (`school.py`) and are never asked by any method, loss or
selection.  Two architectures see the picture as it is, and `conv` is never used to tune anything.  The twins see
less: `grey` no colour, `edge` nothing but contours, so what copies a palette does not impress them.  They are small
because they are trained on two shared cores; what each is worth on real pictures stands beside every figure.
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
from instantstyle.evaluate.ground_truth import SIDE, TRAINED_SETS, Pixels
from instantstyle.evaluate.handcrafted_features import View, feature_dims, handcrafted_features

CLASSIFIER_NAMES: Mapping[str, View] = {"strokes": "colour", "conv": "colour", "grey": "grey", "edge": "edge"}
"""The judges, and what each is shown."""
HELD_OUT = "conv"
"""The judge that nothing is ever tuned on: not presets, not strengths, not recipes."""
WIDTH = 128
"""Numbers in a judge's features."""
ANSWERS: Mapping[str, Sequence[str]] = {"concept": TRAINED_CONCEPTS, "family": TRAINED_FAMILIES, "drawer": TRAINED_SETS}
"""The questions a judge answers, and the answers there are."""
BATCH = 256
Classifier = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""What is where, and how it is drawn: a judge's two sights of n pictures, [n, 128] each."""


class ConvClassifier(nn.Module):
    """Two small convolutional networks: a residual one that knows where things are, on pictures averaged down to
    32 x 32, and one that sees 13 pixels at a time and keeps only means and spreads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, 2), _conv(32, 96, 2))
        self.deep = _conv(96, 96, 1)
        self.down = _conv(96, WIDTH, 2)
        self.near = nn.Sequential(_conv(3, 24, 2, 5), _conv(24, WIDTH // 2, 2, 5))

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Classifier:
        """Features of pictures in 0..1."""
        x = pixels * 2 - 1
        what = self.stem(F.avg_pool2d(x, 2))
        near = self.near(x).flatten(2)
        return self.down(what + self.deep(what)).mean((2, 3)), torch.cat([near.mean(2), near.std(2)], dim=1)


class HandcraftedClassifier(nn.Module):
    """Measured, not learned, is what a picture is drawn with (`measured`); perceptrons read the numbers."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view: View = view
        self.lengths = feature_dims(view)
        self.what, self.how = (
            _perceptron(length, hidden) for length, hidden in zip(self.lengths, (320, 160), strict=True)
        )

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Classifier:
        """Features of pictures in 0..1."""
        return self.read(*handcrafted_features(pixels, self.view))

    def read(self, layout: Float[Tensor, "n a"], texture: Float[Tensor, "n b"]) -> Classifier:
        """Features of what was measured, or of the ends of it that this view reads."""
        return self.what(layout[:, -self.lengths[0] :]), self.how(texture[:, -self.lengths[1] :])


def _perceptron(length: int, hidden: int) -> nn.Sequential:
    """Numbers normalised, and read twice."""
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
    """One judge: two sights of a picture, of what is where and of how it is drawn, and an answer to each question."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in CLASSIFIER_NAMES:
            raise InputError(
                f"there is no judge {name!r}: give one of {', '.join(CLASSIFIER_NAMES)}"
                f"{did_you_mean(name, CLASSIFIER_NAMES)}"
            )
        self.name = name
        self.trunk = ConvClassifier() if name == "conv" else HandcraftedClassifier(CLASSIFIER_NAMES[name])
        self.heads = nn.ModuleDict({question: nn.Linear(WIDTH, len(said)) for question, said in ANSWERS.items()})

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Scores of every answer to every question, before softmax."""
        return self.say(self.trunk(pixels))

    def say(self, seen: Classifier) -> dict[str, Tensor]:
        """What is shown is told from where things are; how and by whom it was drawn from means over the picture, so
        that nobody is taken for the author of a thing because he drew many like it."""
        what, how = seen
        return {question: head(what if question == "concept" else how) for question, head in self.heads.items()}


def _conv(into: int, out: int, stride: int, side: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, side, stride, side // 2, bias=False), nn.BatchNorm2d(out), nn.SiLU())


@dataclass(frozen=True)
class Predictions:
    """What a judge says of n pictures."""

    logits: Mapping[str, npt.NDArray[np.float32]]
    """Log-probabilities [n, answers] to each question."""
    what: npt.NDArray[np.float32]
    """What is where, [n, 128]: where likeness of content is measured."""
    how: npt.NDArray[np.float32]
    """How it is drawn, [n, 128]: where likeness of style is measured."""

    def label(self, question: str) -> list[str]:
        """The likeliest answer for each picture."""
        return [ANSWERS[question][int(i)] for i in self.logits[question].argmax(1)]

    def correct(self, question: str, truths: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For each picture whether the likeliest answer is the true one."""
        return np.array([a == t for a, t in zip(self.label(question), truths, strict=True)])

    def log_probability(self, question: str, answers: Sequence[str]) -> npt.NDArray[np.float32]:
        """For each picture the log-probability of one answer."""
        known = ANSWERS[question]
        return np.array([row[known.index(a)] for row, a in zip(self.logits[question], answers, strict=True)])


@torch.no_grad()
def predict(net: ContentStyleHeads, pixels: Shaped[np.ndarray, "n side side 3"]) -> Predictions:
    """What a judge says of pictures [n, 64, 64, 3] uint8."""
    logits: dict[str, list[Tensor]] = {question: [] for question in ANSWERS}
    what: list[Tensor] = []
    how: list[Tensor] = []
    for i in range(0, len(pixels), BATCH):
        seen: Classifier = net.trunk(to_input_tensor(pixels[i : i + BATCH]))
        what.append(seen[0])
        how.append(seen[1])
        for question, scores in net.say(seen).items():
            logits[question].append(F.log_softmax(scores, dim=-1))
    return Predictions(
        {question: torch.cat(each).numpy() for question, each in logits.items()},
        torch.cat(what).numpy(),
        torch.cat(how).numpy(),
    )


def to_input_tensor(pixels: Shaped[np.ndarray, "n side side 3"]) -> Float[Tensor, "n 3 side side"]:
    """Pictures uint8 as a tensor in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


def pixels_of(pictures: Sequence[Image.Image]) -> Pixels:
    """Pictures as judges see them: [n, 64, 64, 3], larger ones averaged down."""
    square = (SIDE, SIDE)
    fitted = [p if p.size == square else p.resize(square, Image.Resampling.BOX) for p in pictures]
    return np.stack([np.asarray(p.convert("RGB")) for p in fitted])


@cache
def load_classifier(name: str) -> ContentStyleHeads:
    """A trained judge from the package.

    Raises InputError for an unknown name, WeightsError when its file is missing or for other answers than there are.
    """
    net = ContentStyleHeads(name)
    with as_file(files("instantstyle") / "assets" / "judges" / f"{name}.safetensors") as path:
        if not path.is_file():
            raise WeightsError(f"the judge {name!r} is not in this installation: train it with make judges")
        opened: Any = safe_open(path, "pt")
        with opened as file:
            said: dict[str, str] = file.metadata() or {}
            weights: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    if said.get("answers") != labels_text():
        raise WeightsError(f"the judge {name!r} was trained for other things or looks than there are now: make judges")
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net.eval().requires_grad_(False)


def labels_text() -> str:
    """All answers as one line, by which a file of weights is known to fit."""
    return "; ".join(f"{question}: {', '.join(said)}" for question, said in ANSWERS.items())
