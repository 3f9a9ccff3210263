"""`python -m instantstyle.evaluate.build_bundle`: the small set's questions and drawings, written into the package."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import SETS, concepts
from instantstyle.evaluate.bundled_data import BUNDLE_FOLDER, DRAWINGS, QUESTIONS, bundled
from instantstyle.evaluate.ground_truth import TRAINED_SETS
from instantstyle.evaluate.suite import distractor_styles, generate_tasks, suite_hash
from instantstyle.evaluate.tasks import Task, unrelated_style
from instantstyle.utils.atomic_files import write_atomic


def needed_drawings(asked: Sequence[Task]) -> set[tuple[str, str]]:
    """The drawings, by set and thing, that questions, references, controls and measures are made of."""
    found: set[tuple[str, str]] = set()
    for q in asked:
        found |= {(name, q.target) for name in TRAINED_SETS}  # what a copy is told from
        found |= {(q.style.icon_set, each) for each in (q.target, q.reference_content, q.swap_content)}
        found |= {
            (each.icon_set, thing)
            for each in (unrelated_style(q), *distractor_styles(q))
            for thing in (q.target, q.reference_content)
        }
    return found


def main() -> None:
    """Write both files.  Needs the drawings of the emoji world: make world."""
    folder = Path(__file__).parent.parent / BUNDLE_FOLDER
    asked = generate_tasks(small=True)
    rows = {concept.label: row for row, concept in enumerate(concepts())}
    wanted = needed_drawings(asked)
    assert not any(SETS[name].held_out for name, _ in wanted), "the sets that are held out are never shipped"
    pack = bundled({(name, thing): np.asarray(rasters(name)[rows[thing]]) for name, thing in wanted})
    said = {"sha256": suite_hash(asked), "questions": [q.to_dict() for q in asked]}
    write_atomic(folder / QUESTIONS, f"{json.dumps(said, indent=1, ensure_ascii=False)}\n".encode())
    print(write_atomic(folder / DRAWINGS, pack), f"{len(wanted)} drawings, {len(pack):,} bytes")


if __name__ == "__main__":
    main()
