"""The benchmark's fixed tasks in four cells, the variance block, and baselines that need no method.

Cells: seen or unseen content x seen or unseen style, never pooled.  The truth was never trained on in any of them; in
the first its content and its style were, each on its own.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from instantstyle.emoji.sources import concepts, in_set
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import HELD_OUT_FAMILIES, TRAINED_FAMILIES, sample_transform
from instantstyle.evaluate import bundled_data
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Style
from instantstyle.evaluate.metrics import Pixels
from instantstyle.evaluate.tasks import SEED, Task, make_task
from instantstyle.model import Model

CELLS = (
    "seen thing, seen style",
    "unseen thing, seen style",
    "seen thing, unseen style",
    "unseen thing, unseen style",
)
"""Names of the cells, as reports and files have them."""
BLOCK = (3, 3, 3, 2)
"""Levels of the variance block's factors: target contents, styles, reference contents, seeds."""
FACTORS = ("words", "style", "reference's content", "seed")
GROUND_TRUTH, VAE_ORACLE = "truth", "truth through the VAE"
REFERENCE_COPY, PALETTE_TRANSFER = "copy of the reference", "palette alone"
"""Names of the baselines, as reports have them."""


def evaluation_suite(small: bool = False) -> list[Task]:
    """The tasks; small: a few of each cell, for minutes' work, as they are bundled with the package."""
    return [Task.from_dict(data) for data in bundled_data.questions()] if small else generate_tasks()


def generate_tasks(small: bool = False) -> list[Task]:
    """The tasks, generated from a fixed seed.  Contents and styles cross, so both cluster.

    The small suite has no held-out icon set: its drawings are bundled with the package, and those never are.
    """
    rng = np.random.default_rng(SEED + 9)
    tasks: list[Task] = []
    num_styles, num_targets = (3, 1) if small else (12, 3)
    for cell in CELLS:
        for number in range(2 * num_styles if small and cell == CELLS[0] else num_styles):
            if small and cell.endswith("unseen style"):
                number = (0, 2, 3)[number]
            style = _unseen_style(number, rng) if cell.endswith("unseen style") else _seen_style(number, rng)
            for target in _targets(cell.startswith("unseen"), style, num_targets, rng):
                task = make_task(target, style.icon_set, style.transform, rng, SEED + len(tasks))
                subgroups = {c.label: c.subgroup for c in concepts()}
                near = subgroups[target].split("-")[0] == subgroups[task.reference_content].split("-")[0]
                tasks.append(replace(task, cell=cell, similarity_stratum="near" if near else "far"))
    assert not any(task.target in splits().concepts and task.cell.startswith("seen") for task in tasks)
    return tasks


def subsample(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` tasks of every cell, in the suite's order, of as many styles as possible."""
    chosen: set[Task] = set()
    for cell in CELLS:
        left = [task for task in tasks if task.cell == cell]
        taken = list[Task]()
        while left and len(taken) < count:
            first_of_style: dict[str, Task] = {}
            for task in left:
                first_of_style.setdefault(repr(task.style), task)
            taken += list(first_of_style.values())[: count - len(taken)]
            left = [task for task in left if task not in taken]
        chosen.update(taken)
    return [task for task in tasks if task in chosen]


def factorial_block(seed: int = SEED + 11) -> list[Task]:
    """A full factorial block of seen contents and styles for variance shares; the last of `FACTORS` varies fastest.

    The references never show a target.
    """
    rng = np.random.default_rng(seed)
    num_targets, num_styles, num_shown, num_seeds = BLOCK
    labels = [str(label) for label in rng.choice(TRAINED_CONCEPTS, num_targets + num_shown + 1, replace=False)]
    families = rng.choice(TRAINED_FAMILIES, num_styles, replace=False)
    styles = [Style(str(rng.choice(TRAINED_SETS)), sample_transform(rng, [str(family)])) for family in families]
    return [
        Task(target, style, shown, labels[-1], seed + 1000 + number, "variance")
        for target in labels[:num_targets]
        for style in styles
        for shown in labels[num_targets:-1]
        for number in range(num_seeds)
    ]


def _seen_style(number: int, rng: np.random.Generator) -> Style:
    family = TRAINED_FAMILIES[number % len(TRAINED_FAMILIES)]
    # Only sets with enough unseen cells, so that several targets can be asked for in one style.
    sets = [name for name in TRAINED_SETS if len(_unseen_cells(name)) >= 3]
    return Style(str(rng.choice(sets)), sample_transform(rng, [family]))


def _unseen_style(number: int, rng: np.random.Generator) -> Style:
    """In turn: a held-out transform family, a held-out icon set, a background of held-out hues."""
    match number % 3:
        case 0:
            return Style(str(rng.choice(TRAINED_SETS)), sample_transform(rng, [HELD_OUT_FAMILIES[number // 3 % 3]]))
        case 1:
            return Style(sorted(splits().sets)[number // 3 % 2], sample_transform(rng, ["plain"]))
        case _:
            return Style(
                str(rng.choice(TRAINED_SETS)), sample_transform(rng, ["duotone", "palette"], held_out_hue=True)
            )


def _unseen_cells(icon_set: str) -> list[str]:
    return sorted(concept for concept, name in splits().cells if name == icon_set and concept in TRAINED_CONCEPTS)


def _targets(unseen: bool, style: Style, count: int, rng: np.random.Generator) -> list[str]:
    known = {c.label: c for c in concepts()}
    if unseen:
        targets = sorted(c for c in splits().concepts if c in known and in_set(style.icon_set, known[c]))
    else:
        targets = _unseen_cells(style.icon_set) or list(TRAINED_CONCEPTS)
    return [str(target) for target in rng.choice(targets, min(count, len(targets)), replace=False)]


def suite_hash(tasks: Sequence[Task]) -> str:
    """SHA-256 of a list of tasks: two reports with the same hash asked the same."""
    return hashlib.sha256(json.dumps([task.to_dict() for task in tasks], sort_keys=True).encode()).hexdigest()


def baselines(tasks: Sequence[Task], without_reference: Pixels, model: Model | None) -> dict[str, Pixels]:
    """Images that need no method: the truth, the truth through the model's VAE, a copy of the reference, its palette.

    `without_reference`: the model's images without a reference, whose colours are matched to the reference's.
    """
    truths = np.stack([task.truth for task in tasks])
    images = {GROUND_TRUTH: truths}
    if model is not None:
        side = model.family.size[0]
        large = [Image.fromarray(truth).resize((side, side), Image.Resampling.BICUBIC) for truth in truths]
        decoded = [model.decode_latents(model.encode_latents(image))[0] for image in large]
        images[VAE_ORACLE] = pixels_of(decoded)
    references = np.stack([task.reference for task in tasks])
    images[REFERENCE_COPY] = references
    images[PALETTE_TRANSFER] = np.stack(
        [histogram_match(image, reference) for image, reference in zip(without_reference, references, strict=True)]
    )
    return images


def histogram_match(pixels: Pixels, reference: Pixels) -> Pixels:
    """The image with each channel's histogram matched to the reference's, nothing else changed."""
    matched = np.empty_like(pixels)
    for channel in range(3):
        flat, wanted = pixels[..., channel].ravel(), np.sort(reference[..., channel].ravel())
        order = np.argsort(flat, kind="stable")
        filled = np.empty_like(flat)
        filled[order] = wanted[np.linspace(0, len(wanted) - 1, len(flat)).round().astype(int)]
        matched[..., channel] = filled.reshape(pixels.shape[:2])
    return matched
