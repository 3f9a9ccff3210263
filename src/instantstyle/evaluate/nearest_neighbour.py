"""Classification without training: the label whose true image is nearest.

The candidates of every task are rendered in the task's own style, so only the label in question differs.  Concepts are
compared by the orientation of contours, without colour, so that an image with another background colour than the
truth's may still show the right concept; families and icon sets by the texture of the whole image, in colour.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from instantstyle.emoji.sources import cache_folder
from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.evaluate.classifiers import to_input_tensor
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Style, render
from instantstyle.evaluate.handcrafted_features import handcrafted_features
from instantstyle.evaluate.metrics import Pixels, l1_distance
from instantstyle.evaluate.tasks import Task, with_family
from instantstyle.utils.atomic_files import atomic_write

FeatureArray = npt.NDArray[np.float32]


def contour_features(pixels: Pixels) -> FeatureArray:
    """What concepts are compared by: [n, features] of images [n, 64, 64, 3]."""
    return handcrafted_features(to_input_tensor(pixels), "edge")[0].numpy()


def texture_features(pixels: Pixels) -> FeatureArray:
    """What styles are compared by: [n, features] of images [n, 64, 64, 3]."""
    return handcrafted_features(to_input_tensor(pixels), "colour")[1].numpy()


def nearest_index(image: Pixels, candidates: Pixels) -> int:
    """The candidate with the most similar texture; every feature is divided by its deviation among the candidates."""
    features = texture_features(np.concatenate([candidates, image[None]]))
    scale = features[:-1].std(axis=0) + 1e-3
    return int(l1_distance(features[:-1] / scale, features[-1] / scale).argmin())


def nearest_labels(
    tasks: Sequence[Task], images: Pixels, labels: Sequence[str], truth: Callable[[Task, str], Pixels]
) -> list[str]:
    """For each image the label whose true image, `truth(task, label)`, has the most similar texture."""
    return [
        labels[nearest_index(image, np.stack([truth(task, label) for label in labels]))]
        for task, image in zip(tasks, images, strict=True)
    ]


def nearest_concepts(tasks: Sequence[Task], images: Pixels) -> list[str]:
    """For each image the concept whose true image in the task's style is nearest."""
    return [
        TRAINED_CONCEPTS[int(l1_distance(reference_gallery(TRAINED_CONCEPTS, task.style), features).argmin())]
        for task, features in zip(tasks, contour_features(images), strict=True)
    ]


def nearest_families(tasks: Sequence[Task], images: Pixels) -> list[str]:
    """For each image the transform family in which the target's true image is nearest, with the same parameters."""
    return nearest_labels(tasks, images, TRAINED_FAMILIES, target_in_family)


def nearest_icon_sets(tasks: Sequence[Task], images: Pixels) -> list[str]:
    """For each image the icon set whose true image of the target in the same transform is nearest."""
    return nearest_labels(tasks, images, TRAINED_SETS, target_in_icon_set)


def target_in_family(task: Task, family: str) -> Pixels:
    """The target with the transform's colours and seed in another family, [64, 64, 3]."""
    return render(task.target, replace(task.style, transform=with_family(task.style.transform, family)))


def target_in_icon_set(task: Task, icon_set: str) -> Pixels:
    """The target of another icon set in the same transform, [64, 64, 3]."""
    return render(task.target, Style(icon_set, task.style.transform))


def copied_reference(tasks: Sequence[Task], images: Pixels) -> npt.NDArray[np.bool_]:
    """Whether an image is nearer to its reference than to any icon set's image of the target in the same transform."""
    copied: list[bool] = []
    for task, features in zip(tasks, contour_features(images), strict=True):
        distances = l1_distance(_target_and_reference(task), features)
        copied.append(bool(distances[-1] < distances[:-1].min()))
    return np.array(copied, dtype=np.bool_)


@lru_cache(maxsize=1024)
def _target_and_reference(task: Task) -> FeatureArray:
    """Contour features of the target by every icon set, of the truth, and last of the reference."""
    targets = [target_in_icon_set(task, icon_set) for icon_set in TRAINED_SETS]
    return contour_features(np.stack([*targets, task.truth, task.reference]))


def reference_gallery(labels: Sequence[str], style: Style) -> FeatureArray:
    """Contour features of concepts in one style, [labels, features]; cached on disk, for they take half a second."""
    name = hashlib.sha256(repr((tuple(labels), style)).encode()).hexdigest()[:16]
    file = cache_folder() / "judges" / "contours" / f"{name}.npy"
    if not file.exists():
        features = contour_features(np.stack([render(label, style) for label in labels])).astype(np.float16)
        with atomic_write(file) as partial, partial.open("wb") as out:
            np.save(out, features)
    return np.load(file).astype(np.float32)
