"""`python -m instantstyle.evaluate.acceptance [--model FOLDER]`: checks what the built-in model must reach.

Every score is given beside its ceiling: the same score of the true images.  All tasks are of unseen (concept, icon set)
cells, 25 steps, with seeds fixed beforehand and the family's `style` preset at strength 1 unless a row says otherwise.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from instantstyle.emoji.sources import SETS
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import HELD_OUT_FAMILIES, TRAINED_FAMILIES, sample_transform
from instantstyle.errors import InputError
from instantstyle.evaluate import nearest_neighbour
from instantstyle.evaluate.classifiers import load_classifier, pixels_of, predict
from instantstyle.evaluate.measurements import CLASSIFIERS
from instantstyle.evaluate.metrics import Bools, Pixels, background_correlation, cosine_distance, psnr, wilson
from instantstyle.evaluate.tasks import SEED, STEPS, Setting, Task, held_out_tasks, make_task, run_tasks
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.markdown import markdown_table

CARD_MARKERS = ("<!-- floors -->", "<!-- /floors -->")
"""Between which a model card holds the table."""
OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class Check:
    """One score, that of the true images, and what must be reached."""

    what: str
    measured_by: str
    """A classifier, `nearest` for the nearest true image, or a unit."""
    value: float
    ceiling: float | None
    """The same score of the true images."""
    floor: float
    higher_is_better: bool = True
    note: str = ""
    bound: float | None = None
    """What must reach the floor where it is not the value itself: the lower end of its interval."""

    @property
    def passed(self) -> bool:
        """Whether the floor is reached."""
        reached = self.value if self.bound is None else self.bound
        return bool(reached >= self.floor if self.higher_is_better else reached <= self.floor)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, under the keys of files written by 0.1.0."""
        numbers = {"figure": self.value, "ceiling": self.ceiling, "floor": self.floor, "more": self.higher_is_better}
        rest = {"note": self.note, "bound": self.bound, "met": self.passed}
        return {"what": self.what, "judge": self.measured_by, **numbers, **rest}


def acceptance_checks(
    model: Model, count: int = 96, steps: int = STEPS, on_batch: OnBatch | None = None
) -> list[Check]:
    """Run all checks; `count` tasks for the main ones, fewer for the others."""
    tasks = held_out_tasks(count)
    images, bare = (run_tasks(model, tasks, s, steps, on_batch).pixels for s in (Setting(), Setting("none")))
    truths = np.stack([task.truth for task in tasks])
    checks = _content_and_family(tasks, images, bare, truths)
    checks += _backgrounds(tasks, images, bare, truths)
    plain = held_out_tasks(max(count // 2, 18), ("plain",), SEED + 1)
    checks += _icon_sets(plain, run_tasks(model, plain, Setting(), steps, on_batch).pixels)
    copied, of_truth = (float(nearest_neighbour.copied_reference(tasks, x).mean()) for x in (images, truths))
    checks.append(Check("copies", "nearest", copied, of_truth, 0.05, higher_is_better=False))
    checks += _unseen_styles(model, max(count // 2, 6), steps, on_batch)
    checks += _facts(model, truths, steps)
    return checks


def _content_and_family(tasks: Sequence[Task], images: Pixels, bare: Pixels, truths: Pixels) -> list[Check]:
    targets, families = [task.target for task in tasks], [task.style.transform.kind for task in tasks]

    def correct(name: str, pixels: Pixels) -> tuple[Bools, Bools]:
        if name != "nearest":
            predictions = predict(load_classifier(name), pixels)
            return predictions.correct("concept", targets), predictions.correct("family", families)
        concepts = nearest_neighbour.nearest_concepts(tasks, pixels)
        kinds = nearest_neighbour.nearest_families(tasks, pixels)
        return np.array(concepts) == np.array(targets), np.array(kinds) == np.array(families)

    content_checks, other_checks = list[Check](), list[Check]()
    for name in (*CLASSIFIERS, "nearest"):
        (content, family), (true_content, true_family) = correct(name, images), correct(name, truths)
        note = f"{float(correct(name, bare)[0].mean()):.0%} without a reference"
        scores = {"content": content, "family": family, "both": content & family}
        ceilings = {"content": true_content, "family": true_family, "both": true_content & true_family}
        value = {key: float(each.mean()) for key, each in scores.items()}
        top = {key: float(each.mean()) for key, each in ceilings.items()}
        content_checks.append(
            Check("content right", name, value["content"], top["content"], 0.85 * top["content"], note=note)
        )
        other_checks += [
            Check("treatment family right", name, value["family"], top["family"], 0.75 * top["family"]),
            Check("both right", name, value["both"], top["both"], 0.6 * top["both"]),
        ]
    return content_checks + other_checks


def _backgrounds(tasks: Sequence[Task], images: Pixels, bare: Pixels, truths: Pixels) -> list[Check]:
    references = np.stack([task.reference for task in tasks])
    (light, colour), without, true = (background_correlation(x, references) for x in (images, bare, truths))
    note = "{:.2f} without a reference"
    return [
        Check("ground lightness, r", "Lab", light, true[0], 0.9, note=note.format(without[0])),
        Check("ground a and b, r", "Lab", colour, true[1], 0.5, note=note.format(without[1])),
    ]


def _icon_sets(tasks: Sequence[Task], images: Pixels) -> list[Check]:
    truths = np.stack([task.truth for task in tasks])
    ours, true = icon_set_accuracy(tasks, images), icon_set_accuracy(tasks, truths)
    note = "untreated references, chance 0.11"
    return [
        Check("drawing set right", name, float(correct.mean()), float(true[name].mean()), 2.5 / 9, note=note)
        for name, correct in ours.items()
    ]


def icon_set_accuracy(tasks: Sequence[Task], images: Pixels) -> dict[str, Bools]:
    """Of each image whether its icon set is recognised, by every classifier and by the nearest true image."""
    names = [task.style.icon_set for task in tasks]
    correct = {name: predict(load_classifier(name), images).correct("drawer", names) for name in CLASSIFIERS}
    return {**correct, "nearest": np.array(nearest_neighbour.nearest_icon_sets(tasks, images)) == np.array(names)}


def _unseen_styles(model: Model, count: int, steps: int, on_batch: OnBatch | None) -> list[Check]:
    """Styles that nothing was trained on: is the true one nearest among all families, or among all icon sets?"""
    rng, held_out = np.random.default_rng(SEED + 2), splits()
    cells = sorted(cell for cell in held_out.cells if cell[0] in TRAINED_CONCEPTS)
    family_tasks, set_tasks = list[Task](), list[Task]()
    for number in range(count * len(HELD_OUT_FAMILIES)):
        target, icon_set = cells[int(rng.integers(len(cells)))]
        transform = sample_transform(rng, [HELD_OUT_FAMILIES[number % len(HELD_OUT_FAMILIES)]])
        family_tasks.append(make_task(target, icon_set, transform, rng, SEED + 500 + number))
    unseen_sets = sorted(held_out.sets)
    for number in range(count * len(unseen_sets)):
        target, icon_set = str(rng.choice(TRAINED_CONCEPTS)), unseen_sets[number % len(unseen_sets)]
        set_tasks.append(make_task(target, icon_set, sample_transform(rng, ["plain"]), rng, SEED + 700 + number))
    families = [task.style.transform.kind for task in family_tasks]
    known_families, in_family = (*TRAINED_FAMILIES, *HELD_OUT_FAMILIES), nearest_neighbour.target_in_family
    icon_sets, in_icon_set = [task.style.icon_set for task in set_tasks], nearest_neighbour.target_in_icon_set
    checks: list[Check] = []
    for what, tasks, truths, known, render_as in (
        ("unseen treatment families", family_tasks, families, known_families, in_family),
        ("openmoji", set_tasks, icon_sets, tuple(SETS), in_icon_set),
    ):
        images = run_tasks(model, tasks, Setting(), steps, on_batch).pixels
        for name in (*CLASSIFIERS, "nearest"):
            nearest = _nearest_styles(name, tasks, images, known, render_as)
            hits = sum(style == truth for style, truth in zip(nearest, truths, strict=True))
            low, high = wilson(hits, len(tasks))
            note = f"the lower end of {low:.2f} to {high:.2f} (95 %, {len(tasks)} questions) must be above chance"
            share, chance = hits / len(tasks), 1 / len(known)
            checks.append(Check(f"{what}: nearest look", name, share, 1.0, chance, note=note, bound=low))
    return checks


def _nearest_styles(
    name: str,
    tasks: Sequence[Task],
    images: Pixels,
    known: Sequence[str],
    render_as: Callable[[Task, str], Pixels],
) -> list[str]:
    """For each image the style whose true image of the target is nearest, by a classifier's features or by texture."""
    if name == "nearest":
        return nearest_neighbour.nearest_labels(tasks, images, known, render_as)
    nearest: list[str] = []
    for task, image in zip(tasks, images, strict=True):
        candidates = np.stack([render_as(task, style) for style in known])
        features = predict(load_classifier(name), np.concatenate([candidates, image[None]])).style_features
        features = features - features[:-1].mean(0)
        nearest.append(known[int(cosine_distance(features[:-1], features[-1]).argmin())])
    return nearest


def _facts(model: Model, truths: Pixels, steps: int) -> list[Check]:
    side = model.family.size[0]
    large = [Image.fromarray(truth).resize((side, side), Image.Resampling.BICUBIC) for truth in truths]
    decoded = pixels_of([model.decode_latents(model.encode_latents(image))[0] for image in large])
    megabytes = sum(file.stat().st_size for file in model.source.folder.rglob("*.safetensors")) / 1e6
    request = Request(prompt="a cat", references=[StyleReference(large[0])], seed=1, steps=steps)
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        generate(model, request)
        seconds.append(time.perf_counter() - began)
    less: dict[str, Any] = {"higher_is_better": False}
    return [
        Check("things", "count", len(model.vocabulary), None, 120),
        Check("side, pixels", "count", side, None, 64),
        Check("VAE round trip, dB", "PSNR", psnr(decoded, truths), None, 26, note="unseen cells, all looks"),
        Check("weights, MB", "size", megabytes, None, 60, **less),
        Check("one picture, seconds", "clock", min(seconds), None, 2.5, note=f"{steps} steps, best of 3", **less),
    ]


def acceptance_table(checks: Sequence[Check]) -> str:
    """The checks as a Markdown table."""
    header = ["what", "measured by", "figure", "real pictures", "floor", "met", ""]
    rows = [
        [
            check.what,
            check.measured_by,
            f"{check.value:.2f}",
            "" if check.ceiling is None else f"{check.ceiling:.2f}",
            f"{'at least' if check.higher_is_better else 'at most'} {check.floor:.2f}",
            "yes" if check.passed else "no",
            check.note,
        ]
        for check in checks
    ]
    return "\n".join(markdown_table(header, rows))


def write_into_card(card: Path, checks: Sequence[Check]) -> None:
    """Write the table between a model card's markers.  Raises InputError when it has none."""
    begin, end = CARD_MARKERS
    text = card.read_text("utf-8") if card.is_file() else ""
    before, _, rest = text.partition(begin)
    _, marked, after = rest.partition(end)
    if not marked:
        raise InputError(f"{card} has no place for the floors: a card is to hold {begin} and {end}")
    write_atomic(card, f"{before}{begin}\n\n{acceptance_table(checks)}\n\n{end}{after}".encode())


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description="What the built-in model must reach, row by row.")
    parser.add_argument("--model", default="emoji", help="the built-in model, or a folder")
    parser.add_argument("--adapter", help="another adapter file than the model's own")
    parser.add_argument("--count", type=int, default=96, help="questions of the main rows")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="write the table here, and the figures beside it as JSON")
    parser.add_argument("--card", action="store_true", help="write the table into the model's own card, too")
    args = parser.parse_args()

    def on_batch(done: int, total: int) -> None:
        print(f"drawn {done}/{total}", file=sys.stderr, flush=True)

    model = load(args.model, adapter=args.adapter)
    checks = acceptance_checks(model, args.count, args.steps, on_batch)
    print(acceptance_table(checks))
    if args.out is not None:
        write_atomic(args.out, f"{acceptance_table(checks)}\n".encode())
        data = [check.to_dict() for check in checks]
        write_atomic(args.out.with_suffix(".json"), f"{json.dumps(data, indent=1)}\n".encode())
    if args.card:
        write_into_card(model.source.folder / "README.md", checks)


if __name__ == "__main__":
    main()
