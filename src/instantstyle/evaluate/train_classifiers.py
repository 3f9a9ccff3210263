# pyright: reportUnknownMemberType=false

"""`python -m instantstyle.evaluate.train_classifiers [NAMES]`: trains the judges on real pictures.

Resumable: a batch depends on its number only, and the state is saved every minute.  Pictures are moved, blurred and
made noisy at random, so that a judge looks at what is drawn and not at how pixels were stored.
"""

import argparse
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

import instantstyle
from instantstyle.emoji.sources import cache_folder
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.evaluate.classifiers import (
    CLASSIFIER_NAMES,
    ContentStyleHeads,
    HandcraftedClassifier,
    labels_text,
    predict,
    to_input_tensor,
)
from instantstyle.evaluate.ground_truth import TRAINED_SETS, LabelledImages, load_labelled_images
from instantstyle.evaluate.handcrafted_features import feature_dims, handcrafted_features
from instantstyle.optimisation import load_checkpoint, optimise, save_checkpoint
from instantstyle.utils.atomic_files import atomic_write

TRAINING_STEPS = {"strokes": 1500, "grey": 1500, "edge": 1500, "conv": 2600}
BATCH, RATE = 64, 2e-3
PICTURES, MEASURED, CHUNK = 48_000, 30_000, 3000
CLASSIFIER_FOLDER = Path(instantstyle.__file__).parent / "assets" / "judges"


def from_bank(folder: Path, name: str = "core") -> LabelledImages:
    """The images of a bank that training drew, `core` at 64 px or `core-128`, with their labels."""
    index: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    style = np.array(index["style"])
    family = np.array([TRAINED_FAMILIES.index(t["family"]) for t in index["treatments"]])
    drawer = np.array([TRAINED_SETS.index(s) for s in index["sets"]])
    concept = np.array([TRAINED_CONCEPTS.index(label) for label in index["labels"]])[np.array(index["concept"])]
    return LabelledImages(np.load(folder / f"{name}.npy", mmap_mode="r"), concept, family[style], drawer[style])


def augment_images(x: Float[Tensor, "n 3 h w"], rng: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Each picture moved by up to three pixels, scaled by up to 6 %, blurred by some and made noisy by a little."""
    n = len(x)
    scale = 1 + (torch.rand(n, generator=rng) * 2 - 1) * 0.06
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = scale
    turn[:, :, 2] = (torch.rand(n, 2, generator=rng) * 2 - 1) * 3 / (x.shape[-1] / 2)
    x = F.grid_sample(x, F.affine_grid(turn, list(x.shape), False), padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1, generator=rng) * (torch.rand(n, 1, 1, 1, generator=rng) < 0.6))
    noise = torch.randn(x.shape, generator=rng) * torch.rand(n, 1, 1, 1, generator=rng) * 0.04
    return (x + noise).clamp(0, 1)


def train_classifier(
    name: str, pictures: LabelledImages, steps: int, seed: int = 5, folder: Path | None = None
) -> ContentStyleHeads:
    """Train a judge, or train it on from where it was stopped."""
    torch.manual_seed(seed)
    net = ContentStyleHeads(name)
    numbers = _measured(pictures, seed) if isinstance(net.trunk, HandcraftedClassifier) else None
    truths = {"concept": pictures.concept, "family": pictures.family, "drawer": pictures.icon_set}
    losses: list[Tensor] = []

    def loss(step: int) -> tuple[Tensor]:
        draw = np.random.default_rng((seed, step))
        if numbers is None:
            rows = np.sort(draw.integers(len(pictures.concept), size=BATCH))
            chance = torch.Generator().manual_seed(seed + step)
            logits = net(augment_images(to_input_tensor(pictures.pictures[rows]), chance))
        else:
            picked = draw.integers(MEASURED, size=4 * BATCH)
            rows = numbers.rows[picked]
            trunk = cast("HandcraftedClassifier", net.trunk)
            logits = net.classify(trunk.read(numbers.layout[picked].float(), numbers.texture[picked].float()))
        losses[:] = [
            F.cross_entropy(logits[q], torch.from_numpy(t[rows]), label_smoothing=0.05) for q, t in truths.items()
        ]
        return (losses[0] + 0.5 * losses[1] + 0.3 * losses[2],)

    def rate(step: int) -> float:
        return RATE * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.005)

    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.02)
    file = (folder or cache_folder() / "judges") / f"{name}.pt"
    start = int(load_checkpoint(file, net, optimiser)["step"])
    net.train()
    shown = saved_at = time.monotonic()
    for done in optimise(list(net.parameters()), loss, optimiser, range(start, steps), lr=rate):
        now = time.monotonic()
        if now - shown > 15 or done.step == steps:
            print(
                f"{name} {done.step}/{steps} concept, family, drawer {[round(x.item(), 2) for x in losses]}", flush=True
            )
            shown = now
        if now - saved_at > 60 or done.step == steps:
            save_checkpoint(file, net, optimiser.state_dict(), done.step)
            saved_at = now
    return net.eval()


@dataclass(frozen=True)
class _Numbers:
    """What `Strokes` reads of disturbed pictures, in half precision, and which pictures they are."""

    layout: Tensor
    texture: Tensor
    rows: npt.NDArray[np.int64]


def _measured(pictures: LabelledImages, seed: int) -> _Numbers:
    """Measured once for all judges that read it, and kept by the chunk."""
    rows = np.random.default_rng(seed).integers(len(pictures.concept), size=MEASURED)
    chunks = [_measure(pictures, rows[i : i + CHUNK], seed + i) for i in range(0, MEASURED, CHUNK)]
    return _Numbers(torch.cat([a for a, _ in chunks]), torch.cat([b for _, b in chunks]), rows)


def _measure(pictures: LabelledImages, rows: npt.NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor]:
    truths = tuple(int(truth[rows].sum()) for truth in (pictures.concept, pictures.family, pictures.icon_set))
    key = (splits().sha256, labels_text(), feature_dims("colour"), truths, len(pictures.concept), seed)
    file = cache_folder() / "judges" / f"measured-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.npz"
    if not file.exists():
        parts: list[tuple[Tensor, Tensor]] = []
        for i in range(0, len(rows), 250):
            x = augment_images(
                to_input_tensor(pictures.pictures[rows[i : i + 250]]), torch.Generator().manual_seed(seed + i)
            )
            parts.append(handcrafted_features(x, "colour"))
        print(f"measured {len(rows)} pictures", flush=True)
        layout, texture = (torch.cat(each).half().numpy() for each in zip(*parts, strict=True))
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.savez(out, layout=layout, texture=texture)
    with np.load(file) as kept:
        return torch.from_numpy(kept["layout"]), torch.from_numpy(kept["texture"])


def evaluate_classifier(net: ContentStyleHeads, pictures: LabelledImages) -> dict[str, float]:
    """The shares a judge gets right on real pictures."""
    verdict = predict(net, pictures.pictures)
    truths = {"concept": pictures.concept, "family": pictures.family, "drawer": pictures.icon_set}
    return {question: float((verdict.log_probs[question].argmax(1) == t).mean()) for question, t in truths.items()}


def export_classifier(
    net: ContentStyleHeads, accuracies: dict[str, float], steps: int, folder: Path = CLASSIFIER_FOLDER
) -> Path:
    """Write a judge in half precision, with what it was found to be worth."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    metadata = {"answers": labels_text(), "splits": splits().sha256, "steps": str(steps)}
    metadata |= {f"real {question} right": f"{share:.4f}" for question, share in accuracies.items()}
    path = folder / f"{net.name}.safetensors"
    with atomic_write(path) as partial:
        save_file({k: v.contiguous() for k, v in half.items()}, partial, metadata=metadata)
    return path


def main() -> None:
    """Train, examine on unseen (concept, set) cells, and ship."""
    parser = argparse.ArgumentParser(description="Train the referee's judges on real pictures.")
    parser.add_argument("names", nargs="*", default=list(CLASSIFIER_NAMES), help="which judges")
    parser.add_argument("--steps", type=int, help="instead of each judge's own number")
    parser.add_argument("--bank", type=Path, help="a folder with training's bank, instead of drawing a stock")
    parser.add_argument("--out", type=Path, default=CLASSIFIER_FOLDER)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = from_bank(given.bank) if given.bank else load_labelled_images(PICTURES)
    unseen = load_labelled_images(3000, seed=32, held_out_cells=True)
    for name in given.names:
        steps = given.steps or TRAINING_STEPS[name]
        net = train_classifier(name, pictures, steps)
        accuracies = evaluate_classifier(net, unseen)
        path = export_classifier(net, accuracies, steps, given.out)
        print(name, accuracies, f"{path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
