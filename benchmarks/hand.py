"""By what door does a drawing set's hand reach the built-in model: the style blocks, all blocks, words, or none?

    python benchmarks/hand.py [--count 192] [--out benchmarks/results/hand.md]

Untreated held-out cells, put in each way; which of the nine sets drew the picture is said by two judges that were
taught by real pictures, and by the nearest true picture.  What no door reaches is not for a plan of blocks to mend.
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

OUT = Path(__file__).resolve().parent / "results/hand.md"
WAYS = {
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
    """Ask, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=192, help="questions a way")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    model, asked = load(), held_out_tasks(given.count, ("plain",), SEED + 1)
    truths = np.stack([each.truth for each in asked])
    back = pixels_of([model.decode_latents(model.encode_latents(Image.fromarray(each)))[0] for each in truths])
    rows = {"real pictures": truths, "real pictures through the VAE": back}
    rows |= {name: run_tasks(model, asked, way).pixels for name, way in WAYS.items()}
    told = {name: icon_set_accuracy(asked, drawn) for name, drawn in rows.items()}
    lines = [f"| | {' | '.join(told['no reference'])} |", "|---|---|---|---|"]
    for name, by in told.items():
        shares = [(right.mean(), *wilson(int(right.sum()), len(right))) for right in by.values()]
        lines.append(f"| {name} | {' | '.join('{:.2f} ({:.2f} to {:.2f})'.format(*share) for share in shares)} |")
    head = HEAD.format(count=given.count, steps=STEPS, weights=model.weights_fingerprint[:12])
    print("\n".join(lines))
    write_atomic(given.out, (head + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
