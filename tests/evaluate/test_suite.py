"""The benchmark's tasks are fixed, and its measures cannot be gamed: copies and palettes score nothing.

On the small suite, whose drawings are bundled with the package; tests of all drawings need `make world`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from instantstyle.emoji.rasterize import RASTER_SIZE, rasters
from instantstyle.emoji.sources import SETS, cache_folder, concepts
from instantstyle.emoji.splits import splits
from instantstyle.emoji.style_transforms import sample_transform
from instantstyle.evaluate.build_bundle import needed_drawings
from instantstyle.evaluate.bundled_data import drawings
from instantstyle.evaluate.experiments import NO_REFERENCE
from instantstyle.evaluate.ground_truth import Style, render
from instantstyle.evaluate.measurements import Columns, measure_images
from instantstyle.evaluate.metrics import Pixels
from instantstyle.evaluate.results import validate_metrics
from instantstyle.evaluate.suite import (
    CELLS,
    baselines,
    evaluation_suite,
    generate_tasks,
    histogram_match,
    suite_hash,
)
from instantstyle.evaluate.tasks import Task

HAS_DRAWINGS = all((cache_folder() / f"masters-{RASTER_SIZE}" / f"{name}.npy").exists() for name in SETS)
needs_drawings = pytest.mark.skipif(not HAS_DRAWINGS, reason="the drawings are not here: make world")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [task for task in evaluation_suite(small=True) if task.cell == CELLS[0]]


@pytest.fixture(scope="module")
def columns(tasks: list[Task]) -> dict[str, Columns]:
    """Measurements of controls that need no model; images without a reference are the targets in another style."""
    transform = sample_transform(np.random.default_rng(4), ["plain"])
    bare: Pixels = np.stack([render(task.target, Style("twemoji", transform)) for task in tasks])
    measured = {name: measure_images(tasks, pixels) for name, pixels in baselines(tasks, bare, None).items()}
    return {**measured, NO_REFERENCE: measure_images(tasks, bare)}


def test_the_small_suite_is_fixed_and_is_the_bundled_file() -> None:
    tasks = evaluation_suite(small=True)
    assert suite_hash(tasks)[:16] == "6cc42dcd53237266"
    text = files("instantstyle").joinpath("assets/referee/questions.json").read_text("utf-8")
    assert json.loads(text)["sha256"] == suite_hash(tasks)
    assert [sum(task.cell == cell for task in tasks) for cell in CELLS] == [6, 3, 3, 3]
    _check_contents(tasks)


def test_the_bundle_has_every_drawing_it_needs_and_none_that_is_held_out() -> None:
    assert needed_drawings(evaluation_suite(small=True)) == set(drawings())
    assert not any(SETS[name].held_out for name, _ in drawings())


@needs_drawings
def test_the_suite_is_fixed() -> None:
    tasks = evaluation_suite()
    assert suite_hash(tasks)[:16] == "29f091feea32a7cf"
    assert suite_hash([replace(tasks[0], seed=1), *tasks[1:]]) != suite_hash(tasks)
    _check_contents(tasks)


@needs_drawings
def test_the_bundle_is_what_would_be_generated_here() -> None:
    assert generate_tasks(small=True) == evaluation_suite(small=True)
    rows = {concept.label: row for row, concept in enumerate(concepts())}
    for (name, label), bundled in drawings().items():
        assert np.array_equal(bundled, rasters(name)[rows[label]]), (name, label)


def _check_contents(tasks: Sequence[Task]) -> None:
    assert all(len({task.target, task.reference_content, task.swap_content}) == 3 for task in tasks), (
        "a reference never shows what is tasks for"
    )
    for task in tasks:
        assert (task.target in splits().concepts) == task.cell.startswith("unseen")


def test_a_copy_scores_0_and_the_truth_scores_1(columns: dict[str, Columns]) -> None:
    for name in ("strokes", "conv", "pixels"):
        assert columns["copy of the reference"][f"four-way right, {name}"].max() == 0
        assert columns["copy of the reference"][f"four-way copied, {name}"].min() == 1
        assert columns["truth"][f"four-way right, {name}"].min() == 1
    assert columns["copy of the reference"]["copies"].all()
    assert not columns["truth"]["copies"].any()


def test_a_transferred_palette_does_not_pass_colour_blind_classifiers(columns: dict[str, Columns]) -> None:
    for name in ("grey", "edge"):
        truth, palette = (np.nanmean(columns[image][f"style right, {name}"]) for image in ("truth", "palette alone"))
        assert palette <= truth / 2


def test_which_measures_are_valid(tasks: list[Task], columns: dict[str, Columns]) -> None:
    table = {a.measure: a for a in validate_metrics(columns, np.ones(len(tasks), dtype=np.bool_))}
    for measure_name in (
        "four-way right, strokes",
        "four-way right, pixels",
        "both right, conv",
        "both right, strokes",
    ):
        assert table[measure_name].admitted
    assert not table["style right, conv"].admitted, "a copy of the reference has its style"


def test_permuting_tasks_permutes_their_measurements(tasks: list[Task], columns: dict[str, Columns]) -> None:
    order = [1, 0]
    two = [tasks[i] for i in order]
    turned = measure_images(two, np.stack([task.truth for task in two]))
    for name in ("four-way right, conv", "distance to truth, conv", "ground L", "copies"):
        assert turned[name] == pytest.approx(columns["truth"][name][order], abs=0.05)


def test_a_matched_histogram_is_the_references() -> None:
    rng = np.random.default_rng(0)
    x, reference = rng.integers(0, 100, (2, 16, 16, 3)).astype(np.uint8)
    matched = histogram_match(x, reference)
    assert np.array_equal(np.sort(matched.reshape(-1, 3), axis=0), np.sort(reference.reshape(-1, 3), axis=0))
