"""`python -m instantstyle.evaluate.build_bundle`: the small set's questions and drawings, written into the package."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from instantstyle.emoji.rasterize import masters
from instantstyle.emoji.sources import SETS, concepts
from instantstyle.evaluate.bundled_data import DRAWINGS, FOLDER, QUESTIONS, packed
from instantstyle.evaluate.ground_truth import TRAINED_SETS
from instantstyle.evaluate.suite import digest, made, others
from instantstyle.evaluate.tasks import Question, another_style
from instantstyle.utils.atomic_files import write_whole


def needed(asked: Sequence[Question]) -> set[tuple[str, str]]:
    """The drawings, by set and thing, that questions, references, controls and measures are made of."""
    found: set[tuple[str, str]] = set()
    for q in asked:
        found |= {(name, q.thing) for name in TRAINED_SETS}  # what a copy is told from
        found |= {(q.style.set_name, each) for each in (q.thing, q.shown, q.other)}
        found |= {(each.set_name, thing) for each in (another_style(q), *others(q)) for thing in (q.thing, q.shown)}
    return found


def main() -> None:
    """Write both files.  Needs the drawings of the emoji world: make world."""
    folder = Path(__file__).parent.parent / FOLDER
    asked = made(small=True)
    rows = {concept.label: row for row, concept in enumerate(concepts())}
    wanted = needed(asked)
    assert not any(SETS[name].held_out for name, _ in wanted), "the sets that are held out are never shipped"
    pack = packed({(name, thing): np.asarray(masters(name)[rows[thing]]) for name, thing in wanted})
    said = {"sha256": digest(asked), "questions": [asdict(q) for q in asked]}
    write_whole(folder / QUESTIONS, f"{json.dumps(said, indent=1, ensure_ascii=False)}\n".encode())
    print(write_whole(folder / DRAWINGS, pack), f"{len(wanted)} drawings, {len(pack):,} bytes")


if __name__ == "__main__":
    main()
