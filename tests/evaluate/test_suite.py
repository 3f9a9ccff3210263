"""The referee cannot be fooled: what cheats scores nothing, and what may rank methods is decided by the truth.

On the small set, whose drawings travel with the package; what is said of all drawings needs `make world`.
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
from instantstyle.evaluate.ground_truth import Style, render
from instantstyle.evaluate.metrics import Pixels
from instantstyle.evaluate.report import NO_REFERENCE, validate_metrics
from instantstyle.evaluate.suite import (
    CELLS,
    Columns,
    baselines,
    evaluation_suite,
    generate_tasks,
    histogram_match,
    measure,
    suite_hash,
)
from instantstyle.evaluate.tasks import Task

DRAWN = all((cache_folder() / f"masters-{RASTER_SIZE}" / f"{name}.npy").exists() for name in SETS)
drawn = pytest.mark.skipif(not DRAWN, reason="the drawings are not here: make world")


@pytest.fixture(scope="module")
def asked() -> list[Task]:
    return [q for q in evaluation_suite(small=True) if q.cell == CELLS[0]]


@pytest.fixture(scope="module")
def entries(asked: list[Task]) -> dict[str, Columns]:
    """Controls that need no model; for pictures without a reference stand the right things in a look of their own."""
    look = sample_transform(np.random.default_rng(4), ["plain"])
    bare: Pixels = np.stack([render(q.target, Style("twemoji", look)) for q in asked])
    made = {name: measure(asked, pixels) for name, pixels in baselines(asked, bare, None).items()}
    return {**made, NO_REFERENCE: measure(asked, bare)}


def test_the_small_questions_are_fixed_and_are_those_of_the_file() -> None:
    asked = evaluation_suite(small=True)
    assert suite_hash(asked)[:16] == "6cc42dcd53237266"
    said = files("instantstyle").joinpath("assets/referee/questions.json").read_text("utf-8")
    assert json.loads(said)["sha256"] == suite_hash(asked)
    assert [sum(q.cell == cell for q in asked) for cell in CELLS] == [6, 3, 3, 3]
    _are_fair(asked)


def test_the_small_set_carries_every_drawing_it_needs_and_none_that_is_held_out() -> None:
    assert needed_drawings(evaluation_suite(small=True)) == set(drawings())
    assert not any(SETS[name].held_out for name, _ in drawings())


@drawn
def test_the_questions_are_fixed() -> None:
    asked = evaluation_suite()
    assert suite_hash(asked)[:16] == "29f091feea32a7cf"
    assert suite_hash([replace(asked[0], seed=1), *asked[1:]]) != suite_hash(asked)
    _are_fair(asked)


@drawn
def test_what_is_carried_is_what_would_be_made_here() -> None:
    assert generate_tasks(small=True) == evaluation_suite(small=True)
    rows = {concept.label: row for row, concept in enumerate(concepts())}
    for (name, thing), carried in drawings().items():
        assert np.array_equal(carried, rasters(name)[rows[thing]]), (name, thing)


def _are_fair(asked: Sequence[Task]) -> None:
    assert all(len({q.target, q.reference_content, q.swap_content}) == 3 for q in asked), (
        "a reference never shows what is asked for"
    )
    for q in asked:
        assert (q.target in splits().concepts) == q.cell.startswith("unseen")


def test_a_copy_scores_zero_and_the_truth_scores_full(entries: dict[str, Columns]) -> None:
    for name in ("strokes", "conv", "pixels"):
        assert entries["copy of the reference"][f"four-way right, {name}"].max() == 0
        assert entries["copy of the reference"][f"four-way copied, {name}"].min() == 1
        assert entries["truth"][f"four-way right, {name}"].min() == 1
    assert entries["copy of the reference"]["copies"].all()
    assert not entries["truth"]["copies"].any()


def test_a_palette_copier_does_not_pass_the_style_guards(entries: dict[str, Columns]) -> None:
    for name in ("grey", "edge"):
        truth, copier = (np.nanmean(entries[who][f"style right, {name}"]) for who in ("truth", "palette alone"))
        assert copier <= truth / 2


def test_admission(asked: list[Task], entries: dict[str, Columns]) -> None:
    table = {a.measure: a for a in validate_metrics(entries, np.ones(len(asked), dtype=np.bool_))}
    for measure_name in (
        "four-way right, strokes",
        "four-way right, pixels",
        "both right, conv",
        "both right, strokes",
    ):
        assert table[measure_name].admitted
    assert not table["style right, conv"].admitted, "who copies the reference has its style"


def test_permuting_questions_permutes_their_measures(asked: list[Task], entries: dict[str, Columns]) -> None:
    order = [1, 0]
    two = [asked[i] for i in order]
    turned = measure(two, np.stack([q.truth for q in two]))
    for name in ("four-way right, conv", "distance to truth, conv", "ground L", "copies"):
        assert turned[name] == pytest.approx(entries["truth"][name][order], abs=0.05)


def test_a_palette_is_the_references() -> None:
    rng = np.random.default_rng(0)
    x, reference = rng.integers(0, 100, (2, 16, 16, 3)).astype(np.uint8)
    matched = histogram_match(x, reference)
    assert np.array_equal(np.sort(matched.reshape(-1, 3), axis=0), np.sort(reference.reshape(-1, 3), axis=0))
