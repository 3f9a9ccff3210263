"""All measurements of generated images at once: classifiers, the four-way test, leakage, copying, backgrounds.

A measurement is a column: one number a task, NaN where it does not apply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.evaluate import nearest_neighbour
from instantstyle.evaluate.classifiers import HELD_OUT, Predictions, load_classifier, predict
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Style, render
from instantstyle.evaluate.metrics import (
    Floats,
    Pixels,
    background_color,
    cosine_distance,
    counterfactual_leakage,
    four_way_outcomes,
    l1_distance,
    leakage_nats,
    leakage_rate,
    pixel_descriptors,
)
from instantstyle.evaluate.tasks import Task, unrelated_style

CLASSIFIERS = (HELD_OUT, "strokes")
"""Classifiers of content and style, the held-out one first."""
COLOUR_BLIND = ("grey", "edge")
"""Classifiers of style alone, which do not see colour: a transferred palette does not pass them."""
NUM_DISTRACTORS = 3
"""Other styles s' that each four-way test is made against."""
Columns = Mapping[str, Floats]
"""[n] by the measure's name, NaN where it does not apply."""
ContentStyleFeatures = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""A classifier's content and style features."""


def measure_images(
    tasks: Sequence[Task],
    generated: Pixels,
    swapped: Pixels | None = None,
    suite: Sequence[Task] | None = None,
) -> Columns:
    """Every measurement of every image [n, 64, 64, 3].

    `swapped`: the same tasks with references of other content, for the counterfactual swap.  `suite`: all tasks, whose
    true images' mean centres the features, where `tasks` are a part of them.  Classifiers know trained concepts and
    styles only; elsewhere their columns are NaN, and the four-way test, which compares with true images, stands alone.
    """
    known_content = np.array([task.target in TRAINED_CONCEPTS for task in tasks])
    known_style = np.array(
        [task.style.transform.kind in TRAINED_FAMILIES and task.style.icon_set in TRAINED_SETS for task in tasks]
    )
    true, all_true = _true_images(tuple(tasks)), _true_images(tuple(tasks if suite is None else suite))
    columns: dict[str, Floats] = {}
    for name in (*CLASSIFIERS, *COLOUR_BLIND):
        predictions = predict(load_classifier(name), generated)
        families = [task.style.transform.kind for task in tasks]
        style = _correct_where(known_style, predictions, "family", families, TRAINED_FAMILIES[0])
        columns[f"style right, {name}"] = style
        if name in COLOUR_BLIND:
            continue
        targets = [task.target for task in tasks]
        content = _correct_where(known_content, predictions, "concept", targets, TRAINED_CONCEPTS[0])
        columns |= {f"content right, {name}": content, f"both right, {name}": content * style}
        distances = _feature_distances(true.features[name], all_true.features[name], predictions)
        columns |= _four_way_columns(distances, name)
        columns |= _leakage_columns(tasks, predictions, name)
        if swapped is not None:
            columns |= _swap_column(tasks, predictions, swapped, name)
    columns |= _four_way_columns(l1_distance(true.descriptors, pixel_descriptors(generated)[:, None]), "pixels")
    columns["copies"] = nearest_neighbour.copied_reference(tasks, generated).astype(np.float64)
    backgrounds = {
        "ground": np.stack([background_color(image) for image in generated]),
        "reference ground": true.backgrounds,
    }
    for name, lab in backgrounds.items():
        columns |= {f"{name} {axis}": lab[:, i].astype(np.float64) for i, axis in enumerate("Lab")}
    return columns


def _correct_where(
    known: npt.NDArray[np.bool_], predictions: Predictions, head: str, truths: Sequence[str], filler: str
) -> Floats:
    correct = predictions.correct(head, [t if k else filler for t, k in zip(truths, known, strict=True)])
    return np.where(known, correct.astype(np.float64), np.nan)


def swap_columns(tasks: Sequence[Task], generated: Pixels, swapped: Pixels) -> Columns:
    """The counterfactual swap alone: how much likelier the reference's content is than when other content is shown."""
    columns: dict[str, Floats] = {}
    for name in CLASSIFIERS:
        columns |= _swap_column(tasks, predict(load_classifier(name), generated), swapped, name)
    return columns


def _swap_column(tasks: Sequence[Task], predictions: Predictions, swapped: Pixels, name: str) -> Columns:
    shown = [task.reference_content for task in tasks]
    other = predict(load_classifier(name), swapped).log_probability("concept", shown)
    return {f"swap leak, {name}": counterfactual_leakage(predictions.log_probability("concept", shown), other)}


def _leakage_columns(tasks: Sequence[Task], predictions: Predictions, name: str) -> Columns:
    index = {label: i for i, label in enumerate(TRAINED_CONCEPTS)}
    shown = np.array([index[task.reference_content] for task in tasks])
    target = np.array([index.get(task.target, -1) for task in tasks])
    log_p, strata = predictions.log_probs["concept"], [(task.cell, task.similarity_stratum) for task in tasks]
    return {
        f"excess hit, {name}": leakage_rate(log_p, shown, target, strata),
        f"excess nats, {name}": leakage_nats(log_p, shown, target, strata),
    }


@dataclass(frozen=True)
class _TrueImages:
    """What is measured of the true images of tasks: m = 2 + 2 x NUM_DISTRACTORS a task, as `_four_way_images`."""

    features: Mapping[str, ContentStyleFeatures]
    """Of each of `CLASSIFIERS`, [n, m, 128] each."""
    descriptors: npt.NDArray[np.float32]
    """[n, m, 896]."""
    backgrounds: npt.NDArray[np.float32]
    """Of the references, [n, 3]."""


@lru_cache(maxsize=16)
def _true_images(tasks: tuple[Task, ...]) -> _TrueImages:
    images = np.stack([_four_way_images(task) for task in tasks])
    shape, flat = images.shape[:2], images.reshape(-1, *images.shape[2:])
    features: dict[str, ContentStyleFeatures] = {}
    for name in CLASSIFIERS:
        predictions = predict(load_classifier(name), flat)
        features[name] = (
            predictions.content_features.reshape(*shape, -1),
            predictions.style_features.reshape(*shape, -1),
        )
    descriptors = pixel_descriptors(flat).reshape(*shape, -1)
    return _TrueImages(features, descriptors, np.stack([background_color(reference) for reference in images[:, 1]]))


@lru_cache(maxsize=1024)
def _four_way_images(task: Task) -> Pixels:
    """True images [2 + 2 x NUM_DISTRACTORS, 64, 64, 3]: the truth, the reference, and both in each other style."""
    styles = distractor_styles(task)
    restyled = [render(content, s) for content in (task.target, task.reference_content) for s in styles]
    return np.stack([task.truth, task.reference, *restyled])


def distractor_styles(task: Task) -> list[Style]:
    """The other styles s' of a task's four-way test."""
    return [unrelated_style(replace(task, seed=task.seed + 100_000 * k)) for k in range(1, NUM_DISTRACTORS + 1)]


def _feature_distances(true: ContentStyleFeatures, all_true: ContentStyleFeatures, predictions: Predictions) -> Floats:
    """Cosine distances [n, m] to the true images, of content and style features added.

    Features are centred by the mean of all true images, since they share a large constant part.
    """
    distances: Floats = np.zeros(true[0].shape[:2])
    generated = (predictions.content_features, predictions.style_features)
    for known, everything, features in zip(true, all_true, generated, strict=True):
        centre = everything.mean((0, 1))
        distances = distances + cosine_distance(known - centre, (features - centre)[:, None])
    return distances


def _four_way_columns(distances: Floats, name: str) -> Columns:
    """The four-way test from distances [n, m] to `_four_way_images`, and the distance to the truth."""
    right, copied = distances[:, 0], distances[:, 1]
    missed, both = distances[:, 2 : 2 + NUM_DISTRACTORS], distances[:, 2 + NUM_DISTRACTORS :]
    shares = four_way_outcomes(right, missed, copied, both).astype(np.float64)
    return {
        f"four-way right, {name}": shares[:, 0],
        f"four-way copied, {name}": shares[:, 2],
        f"distance to truth, {name}": right.astype(np.float64),
    }


def measure_bounds(name: str) -> tuple[float, float]:
    """The range that a measure's values have: shares 0 to 1, differences of shares -1 to 1, else infinite."""
    if name == "copies" or name.partition(",")[0] in _SHARES:
        return 0.0, 1.0
    return (-1.0, 1.0) if name.startswith("excess hit") else (-np.inf, np.inf)


_SHARES = ("style right", "content right", "both right", "four-way right", "four-way copied")
