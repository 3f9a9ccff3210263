"""`python -m instantstyle.evaluate.build_bundle`: writes the small suite's tasks and drawings into the package."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import SETS, concepts
from instantstyle.evaluate.bundled_data import BUNDLE_FOLDER, DRAWINGS, QUESTIONS, bundle_drawings
from instantstyle.evaluate.ground_truth import TRAINED_SETS
from instantstyle.evaluate.measurements import distractor_styles
from instantstyle.evaluate.suite import generate_tasks, suite_hash
from instantstyle.evaluate.tasks import Task, unrelated_style
from instantstyle.utils.atomic_files import write_atomic


def needed_drawings(tasks: Sequence[Task]) -> set[tuple[str, str]]:
    """The drawings, by icon set and concept, that tasks, references, controls and measurements are made of."""
    needed: set[tuple[str, str]] = set()
    for task in tasks:
        needed |= {(icon_set, task.target) for icon_set in TRAINED_SETS}  # what a copy is compared with
        needed |= {(task.style.icon_set, label) for label in (task.target, task.reference_content, task.swap_content)}
        needed |= {
            (style.icon_set, label)
            for style in (unrelated_style(task), *distractor_styles(task))
            for label in (task.target, task.reference_content)
        }
    return needed


def main() -> None:
    """Write both files.  Needs the drawings of the emoji world: make world."""
    folder = Path(__file__).parent.parent / BUNDLE_FOLDER
    tasks = generate_tasks(small=True)
    rows = {concept.label: row for row, concept in enumerate(concepts())}
    needed = needed_drawings(tasks)
    assert not any(SETS[name].held_out for name, _ in needed), "held-out icon sets are never shipped"
    data = bundle_drawings({(name, label): np.asarray(rasters(name)[rows[label]]) for name, label in needed})
    suite = {"sha256": suite_hash(tasks), "questions": [task.to_dict() for task in tasks]}
    write_atomic(folder / QUESTIONS, f"{json.dumps(suite, indent=1, ensure_ascii=False)}\n".encode())
    print(write_atomic(folder / DRAWINGS, data), f"{len(needed)} drawings, {len(data):,} bytes")


if __name__ == "__main__":
    main()
