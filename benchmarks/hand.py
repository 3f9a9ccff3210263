"""By which conditioning is an icon set's style reproduced: at the style blocks, at all blocks, by the prompt, or none?

    python benchmarks/hand.py [--count 192] [--out benchmarks/results/hand.md]

Held-out cells without transform, in each setting; the icon set of the images is predicted by two classifiers and by the
nearest true image.  What no setting reproduces, no block plan can mend.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from instantstyle.evaluate.acceptance import icon_set_accuracy
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.metrics import wilson
from instantstyle.evaluate.tasks import SEED, STEPS, Setting, held_out_tasks, run_tasks
from instantstyle.loading import load
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.markdown import markdown_table

OUT = Path(__file__).resolve().parent / "results/hand.md"
SETTINGS = {
    "no reference": Setting("none"),
    "set named in words": Setting("none", style_in_prompt=True),
    "style blocks": Setting(),
    "style blocks and words": Setting(style_in_prompt=True),
    "all blocks": Setting("ip-adapter"),
}
HEAD = """# By what door does a drawing set's hand reach the built-in model?

`python benchmarks/hand.py --count {count}`: {count} untreated held-out cells, {steps} steps, weights {weights}; share
whose set is right, of nine (chance .11), with 95 % intervals that take questions as independent.

"""


def main() -> None:
    """Generate, classify, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=192, help="questions a way")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    model, tasks = load(), held_out_tasks(args.count, ("plain",), SEED + 1)
    truths = np.stack([each.truth for each in tasks])
    decoded = pixels_of([model.decode_latents(model.encode_latents(Image.fromarray(each)))[0] for each in truths])
    rows = {"real pictures": truths, "real pictures through the VAE": decoded}
    rows |= {name: run_tasks(model, tasks, setting).pixels for name, setting in SETTINGS.items()}
    accuracy = {name: icon_set_accuracy(tasks, images) for name, images in rows.items()}
    cells: list[list[str]] = []
    for name, by_classifier in accuracy.items():
        shares = [(correct.mean(), *wilson(int(correct.sum()), len(correct))) for correct in by_classifier.values()]
        cells.append([name, *("{:.2f} ({:.2f} to {:.2f})".format(*share) for share in shares)])
    lines = markdown_table(["", *accuracy["no reference"]], cells)
    head = HEAD.format(count=args.count, steps=STEPS, weights=model.weights_fingerprint[:12])
    print("\n".join(lines))
    write_atomic(args.out, (head + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
