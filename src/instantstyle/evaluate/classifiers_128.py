# pyright: reportUnknownMemberType=false

"""`python -m instantstyle.evaluate.classifiers_128 BANK`: classifiers that look at 128 px, for the 128-pixel model.

Those of `classifiers` look at 64 px, where hatching and pixels are half gone.  Architectures, questions and rules are
theirs: trained on real pictures of training concepts alone, and nothing is ever tuned on `conv`.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.emoji.sources import cache_folder
from instantstyle.evaluate.classifiers import ContentStyleHeads, to_input_tensor
from instantstyle.evaluate.ground_truth import LabelledImages
from instantstyle.evaluate.train_classifiers import augment_images, from_bank
from instantstyle.utils.atomic_files import atomic_write

TRAINING_STEPS_128 = {"strokes": 2_000, "conv": 4_000}
BATCH, RATE = 48, 2e-3
WEIGHTS = {"concept": 1.0, "family": 0.5, "drawer": 0.3}
"""How much each question counts in the loss."""


class Classifier128(nn.Module):
    """Two classifiers as one: what is where is read at half the side, how it is drawn at the full one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.small, self.full = ContentStyleHeads(name), ContentStyleHeads(name)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Scores of every answer to every question, before softmax, of pictures in 0..1."""
        return {**self.full(pixels), "concept": self.small(F.avg_pool2d(pixels, 2))["concept"]}


def train_classifier_128(name: str, images: LabelledImages, steps: int, folder: Path) -> Classifier128:
    """Train on pictures moved, blurred and made noisy; goes on from `folder/NAME-128.pt`, saved every minute."""
    net, file, first = Classifier128(name), folder / f"{name}-128.pt", 0
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.02)
    if file.exists():
        saved = torch.load(file, weights_only=True)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        first = int(saved["step"])
    right = {"concept": images.concept, "family": images.family, "drawer": images.icon_set}
    kept = time.monotonic()
    net.train()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.005)
        rows = np.sort(np.random.default_rng((59, step)).integers(len(images.concept), size=BATCH))
        chance = torch.Generator().manual_seed(step)
        logits = net(augment_images(to_input_tensor(images.pictures[rows]), chance))
        losses = [
            weight * F.cross_entropy(logits[question], torch.from_numpy(right[question][rows]), label_smoothing=0.05)
            for question, weight in WEIGHTS.items()
        ]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimiser.step()
        if time.monotonic() - kept > 60 or step + 1 == steps:
            kept = time.monotonic()
            print(f"{name} {step + 1}/{steps} {[round(loss.item(), 2) for loss in losses]}", flush=True)
            with atomic_write(file) as partial:
                torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, partial)
    return net.eval()


@torch.no_grad()
def accuracy(net: Classifier128, images: LabelledImages, batch: int = 128) -> dict[str, float]:
    """The shares of pictures that a classifier gets right, by question."""
    count = len(images.concept)
    parts = [net(to_input_tensor(images.pictures[i : i + batch])) for i in range(0, count, batch)]
    right = {"concept": images.concept, "family": images.family, "drawer": images.icon_set}
    predicted = {question: torch.cat([part[question] for part in parts]).argmax(1).numpy() for question in WEIGHTS}
    return {question: float((predicted[question] == right[question]).mean()) for question in WEIGHTS}


def main() -> None:
    """Train the named classifiers on a bank."""
    parser = argparse.ArgumentParser(description="Train classifiers that look at 128 px.")
    parser.add_argument("bank", type=Path, help="the folder `bank` of a training at 128 px")
    parser.add_argument("--names", nargs="*", default=list(TRAINING_STEPS_128), help="which classifiers")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "judges")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.names:
        train_classifier_128(name, from_bank(given.bank, "core-128"), TRAINING_STEPS_128[name], given.folder)


if __name__ == "__main__":
    main()
