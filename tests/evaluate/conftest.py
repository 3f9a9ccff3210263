"""A world drawn on the spot, for tests of the referee where the drawings of the emoji world are not at hand."""

from collections.abc import Generator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from instantstyle.emoji.rasterize import MASTER, Rgba
from instantstyle.emoji.sources import Concept
from instantstyle.emoji.splits import CORE, splits
from instantstyle.evaluate import ground_truth as real
from instantstyle.evaluate import nearest_neighbour as nearest
from instantstyle.evaluate import suite


class Shapes:
    """Every thing a few rectangles of its own, every set with colours of its own, drawn when asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, row: int) -> Rgba:
        thing, hand = np.random.default_rng(row), np.random.default_rng(list(self.name.encode()))
        canvas = Image.new("RGBA", (MASTER, MASTER))
        pen = ImageDraw.Draw(canvas)
        for colour in hand.integers(0, 255, (3, 3)).tolist():
            x, y, width, height = thing.integers(8, 60, 4).tolist()
            pen.rectangle((x, y, x + width, y + height), (*colour, 255))
        return np.asarray(canvas)


@pytest.fixture(scope="module")
def drawn_world() -> Generator[None]:
    """While it stands, real pictures are of `Shapes`; nothing is fetched and nothing rendered."""
    labels = [*CORE, *sorted(splits().concepts)]
    things = tuple(Concept(label, "", "", f"kind{i % 7}-x", ()) for i, label in enumerate(labels))
    rows = {label: row for row, label in enumerate(labels)}

    def every(set_name: str, concept: Concept) -> bool:
        return True

    caches = (suite._real, suite._four, nearest._prompted, real.gallery)  # pyright: ignore[reportPrivateUsage]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "drawings", dict[tuple[str, str], Rgba])
        patch.setattr(real, "masters", Shapes)
        patch.setattr(real, "_rows", lambda: rows)
        patch.setattr(suite, "concepts", lambda: things)
        patch.setattr(suite, "has", every)
        for each in caches:
            each.cache_clear()
        yield
    for each in caches:
        each.cache_clear()
