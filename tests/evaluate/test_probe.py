"""The probe's arithmetic, on pictures whose answer is known by construction; no model draws and no world is needed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_models
from instantstyle.emoji.style_transforms import sample_transform
from instantstyle.errors import InputError, WeightsError
from instantstyle.evaluate import block_probe
from instantstyle.evaluate.block_probe import (
    LayoutScore,
    PlanScore,
    ProbeCase,
    all_except,
    infer_presets,
    layout_score,
    probe_figure,
    probe_table,
    score_plan,
    write_presets,
)
from instantstyle.families import EMOJI
from instantstyle.loading import PRESETS_FILE, load
from instantstyle.model import Model

Colour = tuple[int, int, int]

SIDE = 64
GROUNDS: tuple[Colour, ...] = ((230, 40, 40), (30, 60, 200), (240, 240, 90), (20, 20, 20))
MODEL = Model.__new__(Model)  # never asked anything: `named` is replaced


def _flat(ground: Colour, thing: Colour = (128, 128, 128)) -> Image.Image:
    """A square on a ground."""
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    picture.paste(thing, (16, 16, 48, 48))
    return picture


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[ProbeCase]:
    """Four questions about a cat, each shown a dog on a ground of its own; whatever is drawn is named a cat."""

    def cat(model: Model, pictures: Sequence[Image.Image]) -> list[str]:
        return ["cat"] * len(pictures)

    monkeypatch.setattr(block_probe, "named", cat)
    look = sample_transform(np.random.default_rng(0))
    return [ProbeCase("cat", "dog", "noto", look, _flat(g), _flat(g, (250, 250, 250))) for g in GROUNDS]


def _ground(picture: Image.Image) -> list[float]:
    return block_probe._ground(picture).tolist()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("ground", "lab"),
    [  # published Lab values of sRGB's corners under D65
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_the_ground_is_the_colour_of_the_border(ground: Colour, lab: tuple[float, float, float]) -> None:
    assert _ground(_flat(ground)) == pytest.approx(lab, abs=0.7)


@pytest.mark.parametrize("turns", range(4))
def test_all_four_edges_count(turns: int) -> None:
    """One side of the picture and the near three quarters of its neighbours are red: most of the border, by a little.

    Of four edges of 128 pixels each, that side is 128 and its neighbours have 96 each, so 320 of 512 are red; without
    that side's own edge 192 of 384 would be, and the median no longer red.
    """
    picture = Image.new("RGB", (SIDE, SIDE), (0, 0, 255))
    picture.paste((255, 0, 0), (SIDE // 4 + 1, 0, SIDE, SIDE))
    turned = picture.rotate(90 * turns)
    assert _ground(turned) == pytest.approx((53.24, 80.09, 67.20), abs=0.7)


def test_the_right_grounds_correlate_and_one_ground_for_all_does_not(questions: list[ProbeCase]) -> None:
    bare = [_flat((200, 200, 200)) for _ in questions]
    followed = score_plan(MODEL, "style", questions, [case.reference for case in questions], bare)
    assert (followed.lightness, followed.colour) == pytest.approx((1, 1), abs=1e-5)
    ignored = score_plan(MODEL, "none", questions, bare, bare)
    assert ignored.lightness == 0
    assert abs(ignored.colour) < 0.3


def test_correlation_is_numpys_and_0_where_nothing_varies() -> None:
    correlation = block_probe._correlation  # pyright: ignore[reportPrivateUsage]
    a, b = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    assert correlation(a, a) == pytest.approx(1)
    assert correlation(a, -2 * a) == pytest.approx(-1)
    assert correlation(a, b) == pytest.approx(float(np.corrcoef(a, b)[0, 1]), abs=1e-6)
    assert correlation(a, np.full_like(a, 3)) == correlation(np.full_like(a, 3), a) == 0


def test_the_truth_is_all_the_way_and_the_bare_picture_is_none(questions: list[ProbeCase]) -> None:
    bare = [_flat((200, 200, 200)) for _ in questions]
    truths = [case.truth for case in questions]
    assert score_plan(MODEL, "style", questions, truths, bare).distance_reduction == pytest.approx(1)
    assert score_plan(MODEL, "none", questions, bare, bare).distance_reduction == pytest.approx(0)
    halfway = [Image.blend(b, t, 0.5) for b, t in zip(bare, truths, strict=True)]
    assert score_plan(MODEL, "style", questions, halfway, bare).distance_reduction == pytest.approx(0.5, abs=0.01)


def test_content_and_leak_are_shares_of_what_is_named(
    questions: list[ProbeCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [case.reference for case in questions]

    def one_dog(model: Model, pictures: Sequence[Image.Image]) -> list[str]:
        return ["cat", "dog", "cat", "owl"]

    monkeypatch.setattr(block_probe, "named", one_dog)
    bare = [_flat((200, 200, 200)) for _ in questions]
    scored = score_plan(MODEL, "all", questions, answers, bare)
    assert (scored.content, scored.leak) == (0.5, 0.25)


def test_the_table_has_a_row_a_score() -> None:
    scores = [PlanScore("none", 0.0, 0.02, 0.0, 0.9, 0.05), PlanScore("up.0.1=1", 0.81, 0.77, 0.333, 0.85, 0.1)]
    lines = probe_table(scores).splitlines()
    assert len(lines) == 2 + len(scores)
    assert len({line.count("|") for line in lines}) == 1, "every row has the columns of the head"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["none", "up.0.1=1"]
    assert lines[3] == "| up.0.1=1 | 0.81 | 0.77 | 33% | 85% | 10% |"


def _case(reference: Image.Image) -> ProbeCase:
    return ProbeCase("cat", "dog", "noto", sample_transform(np.random.default_rng(0)), reference, reference)


def test_layout_follows_where_contours_do_whatever_their_colours() -> None:
    def square(x: int, y: int, ink: Colour, ground: Colour) -> Image.Image:
        picture = Image.new("RGB", (SIDE, SIDE), ground)
        picture.paste(ink, (x, y, x + 20, y + 20))
        return picture

    places = ((4, 4), (36, 8), (8, 36), (38, 38))
    questions = [_case(square(x, y, (200, 30, 30), (240, 240, 240))) for x, y in places]
    there = [square(x, y, (250, 250, 80), (20, 20, 90)) for x, y in places]
    nothing = PlanScore("x", 0.0, 0.0, 0.0, 0.0, 0.0)
    follows = layout_score(nothing, questions, there)
    assert follows.layout > 0.5
    assert follows.layout > 10 * follows.layout_error
    assert layout_score(nothing, questions, there[1:] + there[:1]).layout < 0, "another one's layout is not followed"
    assert layout_score(nothing, questions, there[:1] * 4).layout == pytest.approx(0, abs=1e-6), (
        "one layout for all is none"
    )


def test_what_is_found_is_what_alone_does_it() -> None:
    def one(plan: str, nearer: float, layout: float) -> LayoutScore:
        return LayoutScore(plan, 0.0, 0.0, nearer, 1.0, 0.0, layout, 0.01)

    scores = [one("none", 0.0, 0.0), one("down.2.1=1", 0.0, 0.2), one("up.1.1=1", 0.4, 0.02), one("mid=1", 0.01, 0.08)]
    scores += [one("up.1.2=1", 0.2, 0.0), one("style", 0.5, 0.0), one(all_except("mid"), 0.5, 0.3)]
    modules = ("down.2.1", "mid", "up.1.1", "up.1.2")
    assert infer_presets(scores, modules) == {"style": {"up.1.1": 1.0, "up.1.2": 1.0}, "layout": {"down.2.1": 1.0}}
    weak = [one("none", 0.0, 0.0), one("mid=1", 0.04, 0.02)]
    assert infer_presets(weak, modules) == {}, "where there is nothing, nothing is found"
    lines = probe_table(scores).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].endswith("| +0.200 (error 0.010) |")
    assert probe_figure(scores).width > probe_figure(scores[:2]).width


def test_presets_are_data_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models.folder("emoji"), folder)
    model = load(folder)
    assert model.family.presets == EMOJI.presets, "where nothing is said, the family's"
    with pytest.raises(InputError, match="nothing to write"):
        write_presets(model, {}, "a test")
    path = write_presets(model, {"style": {"up.0.1": 1.0, "mid": 0.5}}, "a test")
    assert (path, json.loads(path.read_text("utf-8"))["source"]) == (folder / PRESETS_FILE, "a test")
    family = load(folder).family
    assert (family.presets["style"].weights, family.presets_source) == ({"up.0.1": 1.0, "mid": 0.5}, "a test")
    assert family.presets["layout"] == EMOJI.presets["layout"]
    assert family.presets["precise"].negative == EMOJI.presets["layout"].weights
    path.write_text(json.dumps({"style": {"up.7": 1.0}}), "utf-8")
    with pytest.raises(WeightsError, match=r"presets\.json is not understood: there is no block 'up\.7'"):
        load(folder)
