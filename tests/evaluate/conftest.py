"""A synthetic emoji world, for tests of the evaluation without the real drawings."""

from collections.abc import Generator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from instantstyle.emoji.rasterize import RASTER_SIZE, RgbaArray
from instantstyle.emoji.sources import EmojiConcept
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.evaluate import ground_truth, measurements, nearest_neighbour, suite


class Shapes:
    """Stands for `rasters(icon_set)`: every concept has rectangles of its own, every icon set its own colours."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, row: int) -> RgbaArray:
        concept, icon_set = np.random.default_rng(row), np.random.default_rng(list(self.name.encode()))
        canvas = Image.new("RGBA", (RASTER_SIZE, RASTER_SIZE))
        pen = ImageDraw.Draw(canvas)
        for colour in icon_set.integers(0, 255, (3, 3)).tolist():
            x, y, width, height = concept.integers(8, 60, 4).tolist()
            pen.rectangle((x, y, x + width, y + height), (*colour, 255))
        return np.asarray(canvas)


@pytest.fixture(scope="module")
def synthetic_world() -> Generator[None]:
    """While it is entered, ground truths are rendered from `Shapes`; nothing is fetched."""
    labels = [*TRAINED_CONCEPTS, *sorted(splits().concepts)]
    all_concepts = tuple(EmojiConcept(label, "", "", f"kind{i % 7}-x", ()) for i, label in enumerate(labels))
    rows = {label: row for row, label in enumerate(labels)}

    def in_every_set(icon_set: str, concept: EmojiConcept) -> bool:
        return True

    caches = (
        measurements._true_images,  # pyright: ignore[reportPrivateUsage]
        measurements._four_way_images,  # pyright: ignore[reportPrivateUsage]
        nearest_neighbour._target_and_reference,  # pyright: ignore[reportPrivateUsage]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth, "drawings", dict[tuple[str, str], RgbaArray])
        patch.setattr(ground_truth, "rasters", Shapes)
        patch.setattr(ground_truth, "_concept_rows", lambda: rows)
        patch.setattr(suite, "concepts", lambda: all_concepts)
        patch.setattr(suite, "in_set", in_every_set)
        for each in caches:
            each.cache_clear()
        yield
    for each in caches:
        each.cache_clear()
