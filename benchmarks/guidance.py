"""Guidance and its rescaling in the built-in model on *trained* cells: by these, defaults may be chosen.

    python benchmarks/guidance.py [--count 144] [--out benchmarks/results/guidance.md]

Trained concepts of trained icon sets in random transforms, by the classifier `strokes` alone: `conv` is for held-out
cells.  Distance is the mean absolute one to the true image, contrast the standard deviation of an image, in levels.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from instantstyle.emoji.sources import concepts, in_set
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, sample_transform
from instantstyle.evaluate.classifiers import load_classifier, pixels_of, predict
from instantstyle.evaluate.ground_truth import TRAINED_SETS
from instantstyle.evaluate.metrics import Pixels
from instantstyle.evaluate.tasks import GENERATION_BATCH, STEPS, Setting, Task, make_task, to_request
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.sampling import Engine
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.markdown import markdown_table

OUT = Path(__file__).resolve().parent / "results/guidance.md"
SEED = 4242
TRIED = ((1.5, 0.0), (2.0, 0.0), (3.0, 0.0), (5.0, 0.0), (1.5, 0.7), (2.0, 0.7), (3.0, 0.7), (5.0, 0.7))
"""Guidance and rescaling."""
HEAD = """# Guidance on trained cells

`python benchmarks/guidance.py --count {count}`: {count} questions, {steps} steps, weights {weights}, judge `strokes`.

"""


def trained_cells(count: int) -> list[Task]:
    """Tasks of (concept, icon set) cells that were trained on, transform families in equal numbers."""
    rng, known = np.random.default_rng(SEED), {each.label: each for each in concepts()}
    cells: list[tuple[str, str]] = [
        (thing, name)
        for thing in TRAINED_CONCEPTS
        for name in TRAINED_SETS
        if splits().trains(thing, name) and in_set(name, known[thing])
    ]
    tasks: list[Task] = []
    for number, row in enumerate(rng.permutation(len(cells))[:count]):
        transform = sample_transform(rng, [TRAINED_FAMILIES[number % len(TRAINED_FAMILIES)]])
        tasks.append(make_task(*cells[int(row)], transform, rng, SEED + number))
    return tasks


def generate_images(model: Model, tasks: list[Task], guidance: float, rescale: float) -> Pixels:
    """The images at a guidance and a rescaling, the style at the preset's blocks."""
    images: list[Image.Image] = []
    for first in range(0, len(tasks), GENERATION_BATCH):
        engine = Engine(model)
        for each in tasks[first : first + GENERATION_BATCH]:
            changed = {"guidance": guidance, "guidance_rescale": rescale}
            engine.submit(to_request(each, Setting(), model).model_copy(update=changed))
        images += [result.images[0] for result in engine.run()]
    return pixels_of(images)


def main() -> None:
    """Generate, classify, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=144, help="questions a row")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    model, tasks = load(), trained_cells(args.count)
    truths = np.stack([each.truth for each in tasks])
    targets, families = [each.target for each in tasks], [each.style.transform.kind for each in tasks]
    rows = {"real pictures": truths}
    rows |= {f"{scale:g}, rescaled {share:g}": generate_images(model, tasks, scale, share) for scale, share in TRIED}
    cells: list[list[str]] = []
    for name, pixels in rows.items():
        predictions = predict(load_classifier("strokes"), pixels)
        correct = [
            predictions.correct(head, true).mean() for head, true in (("concept", targets), ("family", families))
        ]
        distance = np.abs(pixels.astype(float) - truths).mean()
        contrast = pixels.astype(float).std((1, 2)).mean()
        cells.append([name, *(f"{share:.2f}" for share in correct), f"{distance:.1f}", f"{contrast:.1f}"])
    lines = markdown_table(["guidance", "content right", "family right", "distance", "contrast"], cells)
    head = HEAD.format(count=args.count, steps=STEPS, weights=model.weights_fingerprint[:12])
    print("\n".join(lines))
    write_atomic(args.out, (head + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
