"""The referee's fixed questions in four cells, the controls that no measure may be fooled by, and all measures at once.

Cells: seen or unseen thing x seen or unseen style, never pooled.  The truth was never trained on in any of them; in the
first its thing and its style were, each on its own.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from instantstyle.emoji.sources import concepts, in_set
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import HELD_OUT_FAMILIES, TRAINED_FAMILIES, StyleTransform, sample_transform
from instantstyle.evaluate import bundled_data, nearest_neighbour
from instantstyle.evaluate.classifiers import HELD_OUT, Predictions, load_classifier, pixels_of, predict
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Pixels, Style, render
from instantstyle.evaluate.metrics import (
    Floats,
    background_color,
    cosine_distance,
    counterfactual_leakage,
    four_way_outcomes,
    l1_distance,
    leakage_nats,
    leakage_rate,
    pixel_descriptors,
)
from instantstyle.evaluate.tasks import SEED, Task, make_task, unrelated_style
from instantstyle.model import Model

CELLS = (
    "seen thing, seen style",
    "unseen thing, seen style",
    "seen thing, unseen style",
    "unseen thing, unseen style",
)
OTHER_STYLES = 3
"""Styles s' that each four-way test is made against."""
Columns = Mapping[str, Floats]
"""A number a question, NaN where a measure does not apply."""


def evaluation_suite(small: bool = False) -> list[Task]:
    """The questions; small: a few of each cell, for a look in minutes, as they travel with the package."""
    return [_from(said) for said in bundled_data.questions()] if small else generate_tasks()


def _from(said: Mapping[str, Any]) -> Task:
    style: Mapping[str, Any] = said["style"]
    return Task(
        said["thing"],
        Style(style["set_name"], StyleTransform.from_dict(style["look"])),
        said["shown"],
        said["other"],
        said["seed"],
        said["cell"],
        said["stratum"],
    )


def generate_tasks(small: bool = False) -> list[Task]:
    """The questions as chance makes them, from a fixed seed.  Concepts and styles cross, so both cluster.

    The small set asks of no hand that nobody trained on: its drawings travel with the package, and those never do.
    """
    rng, held_out = np.random.default_rng(SEED + 9), splits()
    asked: list[Task] = []
    styles, things = (3, 1) if small else (12, 3)
    for cell in CELLS:
        for number in range(2 * styles if small and cell == CELLS[0] else styles):
            if small and cell.endswith("unseen style"):
                number = (0, 2, 3)[number]
            style = _unseen_style(number, rng) if cell.endswith("unseen style") else _seen_style(number, rng)
            for thing in _things(cell.startswith("unseen"), style, things, rng):
                set_name, seed = style.icon_set, SEED + len(asked)
                made = make_task(thing, set_name, style.transform, rng, seed)
                kinds = {c.label: c.subgroup for c in concepts()}
                near = kinds[thing].split("-")[0] == kinds[made.reference_content].split("-")[0]
                asked.append(replace(made, cell=cell, similarity_stratum="near" if near else "far"))
    assert not any(q.target in held_out.concepts and q.cell.startswith("seen") for q in asked)
    return asked


def subsample(asked: Sequence[Task], count: int) -> list[Task]:
    """At most `count` questions of every cell, in the order of the suite, of as many styles as there can be."""
    kept: set[Task] = set()
    for cell in CELLS:
        left = [q for q in asked if q.cell == cell]
        taken = list[Task]()
        while left and len(taken) < count:
            firsts: dict[str, Task] = {}
            for q in left:
                firsts.setdefault(repr(q.style), q)
            taken += list(firsts.values())[: count - len(taken)]
            left = [q for q in left if q not in taken]
        kept.update(taken)
    return [q for q in asked if q in kept]


BLOCK = (3, 3, 3, 2)
"""Levels of the variance block: things asked for, styles, things shown, seeds."""
FACTORS = ("words", "style", "reference's content", "seed")


def factorial_block(seed: int = SEED + 11) -> list[Task]:
    """A full factorial block of seen things and styles for variance shares, the last of `FACTORS` turning fastest.

    What is shown is never what is asked for.
    """
    rng = np.random.default_rng(seed)
    things, styles, shown, seeds = BLOCK
    labels = [str(each) for each in rng.choice(TRAINED_CONCEPTS, things + shown + 1, replace=False)]
    families = rng.choice(TRAINED_FAMILIES, styles, replace=False)
    looks = [Style(str(rng.choice(TRAINED_SETS)), sample_transform(rng, [str(family)])) for family in families]
    return [
        Task(thing, style, each, labels[-1], seed + 1000 + number, "variance")
        for thing in labels[:things]
        for style in looks
        for each in labels[things:-1]
        for number in range(seeds)
    ]


def _seen_style(number: int, rng: np.random.Generator) -> Style:
    family = TRAINED_FAMILIES[number % len(TRAINED_FAMILIES)]
    # Of the sets those with enough unseen cells, so that several things can be asked for in one style.
    sets = [s for s in TRAINED_SETS if len(_unseen_cells(s)) >= 3]
    return Style(str(rng.choice(sets)), sample_transform(rng, [family]))


def _unseen_style(number: int, rng: np.random.Generator) -> Style:
    """In turn: a family nobody trained on, a hand nobody trained on, a ground of hues nobody trained on."""
    match number % 3:
        case 0:
            return Style(str(rng.choice(TRAINED_SETS)), sample_transform(rng, [HELD_OUT_FAMILIES[number // 3 % 3]]))
        case 1:
            return Style(sorted(splits().sets)[number // 3 % 2], sample_transform(rng, ["plain"]))
        case _:
            return Style(
                str(rng.choice(TRAINED_SETS)), sample_transform(rng, ["duotone", "palette"], held_out_hue=True)
            )


def _unseen_cells(set_name: str) -> list[str]:
    return sorted(thing for thing, s in splits().cells if s == set_name and thing in TRAINED_CONCEPTS)


def _things(unseen: bool, style: Style, count: int, rng: np.random.Generator) -> list[str]:
    known = {c.label: c for c in concepts()}
    if unseen:
        there = sorted(c for c in splits().concepts if c in known and in_set(style.icon_set, known[c]))
    else:
        there = _unseen_cells(style.icon_set) or list(TRAINED_CONCEPTS)
    return [str(each) for each in rng.choice(there, min(count, len(there)), replace=False)]


def suite_hash(asked: Sequence[Task]) -> str:
    """The hash of a set of questions: two reports with the same one asked the same."""
    return hashlib.sha256(json.dumps([q.to_dict() for q in asked], sort_keys=True).encode()).hexdigest()


def baselines(asked: Sequence[Task], without: Pixels, model: Model | None) -> dict[str, Pixels]:
    """What needs no method: the truth, the truth through the model's VAE, a copy of the reference, its palette alone.

    `without` are the pictures drawn without a reference.
    """
    truths = np.stack([q.truth for q in asked])
    made = {"truth": truths}
    if model is not None:
        side = model.family.size[0]
        large = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in truths]
        made["truth through the VAE"] = pixels_of(
            [model.decode_latents(model.encode_latents(each))[0] for each in large]
        )
    references = np.stack([q.reference for q in asked])
    made["copy of the reference"] = references
    made["palette alone"] = np.stack([histogram_match(x, r) for x, r in zip(without, references, strict=True)])
    return made


def histogram_match(pixels: Pixels, reference: Pixels) -> Pixels:
    """The picture with the reference's colours: every channel's histogram matched, nothing else changed."""
    matched = np.empty_like(pixels)
    for channel in range(3):
        flat, wanted = pixels[..., channel].ravel(), np.sort(reference[..., channel].ravel())
        order = np.argsort(flat, kind="stable")
        filled = np.empty_like(flat)
        filled[order] = wanted[np.linspace(0, len(wanted) - 1, len(flat)).round().astype(int)]
        matched[..., channel] = filled.reshape(pixels.shape[:2])
    return matched


def measure(
    asked: Sequence[Task],
    drawn: Pixels,
    swapped: Pixels | None = None,
    among: Sequence[Task] | None = None,
) -> Columns:
    """Every measure of every picture.  `swapped`: the same drawn with references of other content, for the swap.

    Classifiers know trained things and looks alone; where the truth is none of these their columns are NaN, and the
    four-way test, which compares with true pictures, speaks alone.  `among`: the whole set of questions, from the
    middle of whose real pictures likeness is measured, where only a part of them is asked here.
    """
    known_thing = np.array([q.target in TRAINED_CONCEPTS for q in asked])
    known_look = np.array(
        [q.style.transform.kind in TRAINED_FAMILIES and q.style.icon_set in TRAINED_SETS for q in asked]
    )
    columns: dict[str, Floats] = {}
    real, whole = _real(tuple(asked)), _real(tuple(asked if among is None else among))
    for name in ("strokes", HELD_OUT, "grey", "edge"):
        verdict = predict(load_classifier(name), drawn)
        style = np.full(len(asked), np.nan)
        looks = [q.style.transform.kind if k else TRAINED_FAMILIES[0] for q, k in zip(asked, known_look, strict=True)]
        style[known_look] = verdict.correct("family", looks)[known_look]
        columns[f"style right, {name}"] = style
        if name in ("grey", "edge"):
            continue
        content = np.full(len(asked), np.nan)
        things = [q.target if k else TRAINED_CONCEPTS[0] for q, k in zip(asked, known_thing, strict=True)]
        content[known_thing] = verdict.correct("concept", things)[known_thing]
        columns[f"content right, {name}"] = content
        columns[f"both right, {name}"] = content * style
        columns |= _shares(real.sights[name], whole.sights[name], verdict, name)
        columns |= _excess(asked, verdict, name)
        if swapped is not None:
            columns |= _swap(asked, verdict, swapped, name)
    far = l1_distance(real.sketches, pixel_descriptors(drawn)[:, None])
    columns |= _named(_recombined(far), "pixels")
    columns["distance to truth, pixels"] = far[:, 0]
    columns["copies"] = nearest_neighbour.copied_reference(asked, drawn).astype(np.float64)
    for prefix, lab in (
        ("ground", np.stack([background_color(each) for each in drawn])),
        ("reference ground", real.grounds),
    ):
        columns |= {f"{prefix} {axis}": lab[:, i].astype(np.float64) for i, axis in enumerate("Lab")}
    return columns


def swap_columns(asked: Sequence[Task], drawn: Pixels, swapped: Pixels) -> Columns:
    """The counterfactual swap alone: how much likelier the reference's content is than with other content shown."""
    columns: dict[str, Floats] = {}
    for name in ("strokes", HELD_OUT):
        columns |= _swap(asked, predict(load_classifier(name), drawn), swapped, name)
    return columns


def _swap(asked: Sequence[Task], verdict: Predictions, swapped: Pixels, name: str) -> Columns:
    shown = [q.reference_content for q in asked]
    other = predict(load_classifier(name), swapped).log_probability("concept", shown)
    return {f"swap leak, {name}": counterfactual_leakage(verdict.log_probability("concept", shown), other)}


def _excess(asked: Sequence[Task], verdict: Predictions, name: str) -> Columns:
    rows = {label: i for i, label in enumerate(TRAINED_CONCEPTS)}
    shown = np.array([rows[q.reference_content] for q in asked])
    target = np.array([rows.get(q.target, -1) for q in asked])
    said, strata = verdict.logits["concept"], [(q.cell, q.similarity_stratum) for q in asked]
    return {
        f"excess hit, {name}": leakage_rate(said, shown, target, strata),
        f"excess nats, {name}": leakage_nats(said, shown, target, strata),
    }


@dataclass(frozen=True)
class _Real:
    """What is measured of the questions' true pictures: of the question, of the reference, and both restyled."""

    sights: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    """What two judges see of each, [n, 2 + 2 x OTHER_STYLES, 128] of what is where and as much of how it is drawn."""
    sketches: npt.NDArray[np.float32]
    grounds: npt.NDArray[np.float32]
    """Of the references, [n, 3]."""


@lru_cache(maxsize=16)
def _real(asked: tuple[Task, ...]) -> _Real:
    four = np.stack([_four(q) for q in asked])
    flat = four.reshape(-1, *four.shape[2:])
    sights: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
    for name in ("strokes", HELD_OUT):
        seen = predict(load_classifier(name), flat)
        sights[name] = (seen.what.reshape(*four.shape[:2], -1), seen.how.reshape(*four.shape[:2], -1))
    drawn = pixel_descriptors(flat).reshape(*four.shape[:2], -1)
    return _Real(sights, drawn, np.stack([background_color(each) for each in four[:, 1]]))


@lru_cache(maxsize=1024)
def _four(q: Task) -> Pixels:
    """True pictures [2 + 2 x OTHER_STYLES, 64, 64, 3]: of the question, of the reference, and both restyled."""
    styles = distractor_styles(q)
    return np.stack(
        [
            q.truth,
            q.reference,
            *(render(q.target, s) for s in styles),
            *(render(q.reference_content, s) for s in styles),
        ]
    )


def distractor_styles(q: Task) -> list[Style]:
    """The styles s' of a question's four-way test."""
    return [unrelated_style(replace(q, seed=q.seed + 100_000 * k)) for k in range(1, OTHER_STYLES + 1)]


def _shares(
    real: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    whole: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    verdict: Predictions,
    name: str,
) -> Columns:
    # Likeness is measured from the middle of the real pictures: features share a large constant part.
    far: Floats = np.zeros(real[0].shape[:2])
    for known, middle, seen in zip(real, whole, (verdict.what, verdict.how), strict=True):
        centre = middle.mean((0, 1))
        far = far + cosine_distance(known - centre, (seen - centre)[:, None])
    return {**_named(_recombined(far), name), f"distance to truth, {name}": far[:, 0].astype(np.float64)}


def _recombined(far: Floats) -> Floats:
    return four_way_outcomes(far[:, 0], far[:, 2 : 2 + OTHER_STYLES], far[:, 1], far[:, 2 + OTHER_STYLES :])


def _named(shares: Floats, name: str) -> Columns:
    kept = {"four-way right": 0, "four-way copied": 2}
    return {f"{what}, {name}": shares[:, i].astype(np.float64) for what, i in kept.items()}
