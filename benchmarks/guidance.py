"""Guidance and its rescaling in the built-in model, on *trained* cells: what may be chosen by, and nothing held out.

    python benchmarks/guidance.py [--count 144] [--out benchmarks/results/guidance.md]

Known things by known sets in looks drawn for the occasion, by the judge `strokes` alone: `conv` is kept for what is
held out.  Distance is the mean absolute one to the true picture, contrast the standard deviation of a
picture, in levels.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from instantstyle.emoji.sources import concepts, in_set
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, sample_transform
from instantstyle.evaluate.classifiers import load_classifier, pixels_of, predict
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Pixels
from instantstyle.evaluate.tasks import BATCH, STEPS, Setting, Task, make_task, to_request
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.sampling import Engine
from instantstyle.utils.atomic_files import write_atomic

OUT = Path(__file__).resolve().parent / "results/guidance.md"
SEED = 4242
TRIED = ((1.5, 0.0), (2.0, 0.0), (3.0, 0.0), (5.0, 0.0), (1.5, 0.7), (2.0, 0.7), (3.0, 0.7), (5.0, 0.7))
"""Guidance and rescaling."""
HEAD = """# Guidance on trained cells

`python benchmarks/guidance.py --count {count}`: {count} questions, {steps} steps, weights {weights}, judge `strokes`.

"""


def trained_cells(count: int) -> list[Task]:
    """Questions about (thing, set) cells that were trained on, treatment families in equal numbers."""
    rng, known = np.random.default_rng(SEED), {each.label: each for each in concepts()}
    cells: list[tuple[str, str]] = [
        (thing, name)
        for thing in TRAINED_CONCEPTS
        for name in TRAINED_SETS
        if splits().trains(thing, name) and in_set(name, known[thing])
    ]
    asked: list[Task] = []
    for number, row in enumerate(rng.permutation(len(cells))[:count]):
        look = sample_transform(rng, [TRAINED_FAMILIES[number % len(TRAINED_FAMILIES)]])
        asked.append(make_task(*cells[int(row)], look, rng, SEED + number))
    return asked


def drawn(model: Model, asked: list[Task], guidance: float, rescale: float) -> Pixels:
    """The answers at a guidance and a rescaling, the style speaking at the preset's blocks."""
    images: list[Image.Image] = []
    for first in range(0, len(asked), BATCH):
        engine = Engine(model)
        for each in asked[first : first + BATCH]:
            changed = {"guidance": guidance, "guidance_rescale": rescale}
            engine.submit(to_request(each, Setting(), model).model_copy(update=changed))
        images += [result.images[0] for result in engine.run()]
    return pixels_of(images)


def main() -> None:
    """Ask, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=144, help="questions a row")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    model, asked = load(), trained_cells(given.count)
    truths = np.stack([each.truth for each in asked])
    things, families = [each.target for each in asked], [each.style.transform.kind for each in asked]
    rows = {"real pictures": truths}
    rows |= {f"{scale:g}, rescaled {share:g}": drawn(model, asked, scale, share) for scale, share in TRIED}
    lines = ["| guidance | content right | family right | distance | contrast |", "|---|---|---|---|---|"]
    for name, pixels in rows.items():
        said = predict(load_classifier("strokes"), pixels)
        right = [said.correct(what, true).mean() for what, true in (("concept", things), ("family", families))]
        apart = np.abs(pixels.astype(float) - truths).mean()
        contrast = pixels.astype(float).std((1, 2)).mean()
        lines.append(f"| {name} | {right[0]:.2f} | {right[1]:.2f} | {apart:.1f} | {contrast:.1f} |")
    head = HEAD.format(count=given.count, steps=STEPS, weights=model.weights_fingerprint[:12])
    print("\n".join(lines))
    write_atomic(given.out, (head + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
