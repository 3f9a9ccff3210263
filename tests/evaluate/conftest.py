"""A world drawn on the spot, for tests of the referee where the drawings of the emoji world are not at hand."""

from collections.abc import Generator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from instantstyle.emoji.rasterize import RASTER_SIZE, RgbaArray
from instantstyle.emoji.sources import EmojiConcept
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.evaluate import ground_truth, nearest_neighbour, suite


class Shapes:
    """Every thing a few rectangles of its own, every set with colours of its own, drawn when asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, row: int) -> RgbaArray:
        thing, hand = np.random.default_rng(row), np.random.default_rng(list(self.name.encode()))
        canvas = Image.new("RGBA", (RASTER_SIZE, RASTER_SIZE))
        pen = ImageDraw.Draw(canvas)
        for colour in hand.integers(0, 255, (3, 3)).tolist():
            x, y, width, height = thing.integers(8, 60, 4).tolist()
            pen.rectangle((x, y, x + width, y + height), (*colour, 255))
        return np.asarray(canvas)


@pytest.fixture(scope="module")
def drawn_world() -> Generator[None]:
    """While it stands, real pictures are of `Shapes`; nothing is fetched and nothing rendered."""
    labels = [*TRAINED_CONCEPTS, *sorted(splits().concepts)]
    things = tuple(EmojiConcept(label, "", "", f"kind{i % 7}-x", ()) for i, label in enumerate(labels))
    rows = {label: row for row, label in enumerate(labels)}

    def every(set_name: str, concept: EmojiConcept) -> bool:
        return True

    caches = (suite._real, suite._four, nearest_neighbour._prompted, ground_truth.gallery)  # pyright: ignore[reportPrivateUsage]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth, "drawings", dict[tuple[str, str], RgbaArray])
        patch.setattr(ground_truth, "masters", Shapes)
        patch.setattr(ground_truth, "_rows", lambda: rows)
        patch.setattr(suite, "concepts", lambda: things)
        patch.setattr(suite, "has", every)
        for each in caches:
            each.cache_clear()
        yield
    for each in caches:
        each.cache_clear()
