"""The block probe's arithmetic on images whose scores are known by construction; no model and no drawings needed."""

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
BACKGROUNDS: tuple[Colour, ...] = ((230, 40, 40), (30, 60, 200), (240, 240, 90), (20, 20, 20))
MODEL = Model.__new__(Model)  # never used: `clip_labels` is replaced


def _flat(ground: Colour, target: Colour = (128, 128, 128)) -> Image.Image:
    """A square on a ground."""
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    picture.paste(target, (16, 16, 48, 48))
    return picture


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> list[ProbeCase]:
    """Four cases of a cat, each with a dog on its own background as reference; every image is labelled a cat."""

    def cat(model: Model, pictures: Sequence[Image.Image]) -> list[str]:
        return ["cat"] * len(pictures)

    monkeypatch.setattr(block_probe, "clip_labels", cat)
    transform = sample_transform(np.random.default_rng(0))
    return [ProbeCase("cat", "dog", "noto", transform, _flat(g), _flat(g, (250, 250, 250))) for g in BACKGROUNDS]


def test_backgrounds_that_follow_correlate_and_a_constant_one_does_not(cases: list[ProbeCase]) -> None:
    bare = [_flat((200, 200, 200)) for _ in cases]
    following = score_plan(MODEL, "style", cases, [case.reference for case in cases], bare)
    assert (following.lightness, following.colour) == pytest.approx((1, 1), abs=1e-5)
    constant = score_plan(MODEL, "none", cases, bare, bare)
    assert constant.lightness == 0
    assert abs(constant.colour) < 0.3


def test_the_distance_reduction_is_1_at_the_truth_and_0_without_a_reference(cases: list[ProbeCase]) -> None:
    bare = [_flat((200, 200, 200)) for _ in cases]
    truths = [case.truth for case in cases]
    assert score_plan(MODEL, "style", cases, truths, bare).distance_reduction == pytest.approx(1)
    assert score_plan(MODEL, "none", cases, bare, bare).distance_reduction == pytest.approx(0)
    halfway = [Image.blend(b, t, 0.5) for b, t in zip(bare, truths, strict=True)]
    assert score_plan(MODEL, "style", cases, halfway, bare).distance_reduction == pytest.approx(0.5, abs=0.01)


def test_content_and_leak_are_shares_of_labels(cases: list[ProbeCase], monkeypatch: pytest.MonkeyPatch) -> None:
    images = [case.reference for case in cases]

    def one_dog(model: Model, pictures: Sequence[Image.Image]) -> list[str]:
        return ["cat", "dog", "cat", "owl"]

    monkeypatch.setattr(block_probe, "clip_labels", one_dog)
    bare = [_flat((200, 200, 200)) for _ in cases]
    scored = score_plan(MODEL, "all", cases, images, bare)
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


def test_layout_follows_contours_whatever_their_colours() -> None:
    def square(x: int, y: int, ink: Colour, ground: Colour) -> Image.Image:
        picture = Image.new("RGB", (SIDE, SIDE), ground)
        picture.paste(ink, (x, y, x + 20, y + 20))
        return picture

    places = ((4, 4), (36, 8), (8, 36), (38, 38))
    cases = [_case(square(x, y, (200, 30, 30), (240, 240, 240))) for x, y in places]
    same_place = [square(x, y, (250, 250, 80), (20, 20, 90)) for x, y in places]
    nothing = PlanScore("x", 0.0, 0.0, 0.0, 0.0, 0.0)
    follows = layout_score(nothing, cases, same_place)
    assert follows.layout > 0.5
    assert follows.layout > 10 * follows.layout_error
    assert layout_score(nothing, cases, same_place[1:] + same_place[:1]).layout < 0, (
        "another one's layout is not followed"
    )
    assert layout_score(nothing, cases, same_place[:1] * 4).layout == pytest.approx(0, abs=1e-6), (
        "one layout for all is none"
    )


def test_presets_are_the_modules_with_an_effect_of_their_own() -> None:
    def one(plan: str, nearer: float, layout: float) -> LayoutScore:
        return LayoutScore(plan, 0.0, 0.0, nearer, 1.0, 0.0, layout, 0.01)

    scores = [one("none", 0.0, 0.0), one("down.2.1=1", 0.0, 0.2), one("up.1.1=1", 0.4, 0.02), one("mid=1", 0.01, 0.08)]
    scores += [one("up.1.2=1", 0.2, 0.0), one("style", 0.5, 0.0), one(all_except("mid"), 0.5, 0.3)]
    modules = ("down.2.1", "mid", "up.1.1", "up.1.2")
    assert infer_presets(scores, modules) == {"style": {"up.1.1": 1.0, "up.1.2": 1.0}, "layout": {"down.2.1": 1.0}}
    weak = [one("none", 0.0, 0.0), one("mid=1", 0.04, 0.02)]
    assert infer_presets(weak, modules) == {}, "no effect, no presets"
    lines = probe_table(scores).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].endswith("| +0.200 (error 0.010) |")
    assert probe_figure(scores).width > probe_figure(scores[:2]).width


def test_presets_are_written_beside_the_model_and_read_from_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models.folder("emoji"), folder)
    model = load(folder)
    assert model.family.presets == EMOJI.presets, "without a file, the family's"
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
