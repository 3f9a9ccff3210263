"""The pages' scripts: twenty foreign references break nothing, and every section of the gallery can be asked for."""

import importlib.util
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import tiny_models
from instantstyle.request import Request
from instantstyle.sampling import Engine
from instantstyle.utils import images


@pytest.fixture(scope="module")
def foreign(script: Callable[[str], ModuleType]) -> ModuleType:
    """docs/foreign.py as a module."""
    return script("docs/foreign.py")


@pytest.fixture(scope="module")
def gallery(script: Callable[[str], ModuleType]) -> ModuleType:
    """docs/gallery.py as a module."""
    return script("docs/gallery.py")


def test_twenty_foreign_references_break_nothing(foreign: ModuleType) -> None:
    """Whatever a picture is, it is read, seen and drawn by; what comes out is finite, and follows what went in."""
    carried = importlib.util.find_spec("skimage") is not None
    names = [name for name in foreign.REFERENCES if carried or not foreign.is_photograph(name)]
    assert len(foreign.REFERENCES) == 20
    model = tiny_models.model("emoji")
    given = [foreign.reference(name) for name in names]
    seen = model.encode_image([reference.image.open() for reference in given])
    assert seen.isfinite().all()
    rows = seen.numpy()
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1) + 1e9 * np.eye(len(names))
    assert apart.min() > 1e-4, "two of them look the same to the encoder"
    engine = Engine(model)
    runs = [engine.submit(Request("a cat", references=[each], plan="all", steps=1, seed=1)) for each in given]
    engine.run()
    drawn = [run.result().images[0] for run in runs]
    sheet = {name: [each.image.open(), made, made] for name, each, made in zip(names, given, drawn, strict=True)}
    assert foreign.grid(sheet).width > 900
    assert "lightness" in foreign.page(sheet, model)


def test_a_transparent_reference_lies_on_white_and_sixteen_bits_become_eight(foreign: ModuleType) -> None:
    clear = np.asarray(foreign.reference("transparent").image.open())
    assert (clear[0, 0] == 255).all()
    deep = np.asarray(foreign.reference("16-bit grey").image.open())
    assert (deep.min() < 20, deep.max() > 230) == (True, True)


def test_the_background_colour_and_its_correlation(foreign: ModuleType) -> None:
    blue = Image.new("RGB", (40, 40), (10, 20, 200))
    blue.paste((255, 0, 0), (10, 10, 30, 30))
    assert foreign.background_colour(blue).tolist() == [10, 20, 200]
    assert np.allclose(foreign.lab([[255, 255, 255], [0, 0, 0]])[:, 0], [100, 0], atol=0.1)
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (240, 240, 240)]
    assert foreign.correlations(colours, colours) == pytest.approx((1, 1, 1))


def test_every_section_of_the_gallery_fits_its_labels(gallery: ModuleType) -> None:
    model = tiny_models.model("emoji")
    sections = [section for make in gallery.SECTIONS if (section := make(model)) is not None]
    assert [section.name for section in sections] == ["cards", "blocks", "subtraction", "strength"]
    for section in sections:
        labelled = len(section.rows) - bool(section.top)
        assert len(section.cells) == labelled
        assert {len(row) for row in section.cells} == {len(section.columns)}
    small = next(section for section in sections if section.name == "subtraction")
    cells = [
        [gallery.Cell(c.concept, c.request.model_copy(update={"steps": 1})) for c in row] for row in small.cells[:1]
    ]
    short = gallery.Section(small.name, small.title, small.caption, small.columns, small.rows[:1], cells)
    rows = gallery.draw_section(model, short)
    assert "Recognised" in gallery.recognition(model, short, rows)
    assert images.encode_png(rows[0][0]) != images.encode_png(rows[0][-1]), "a content weight must do something"
