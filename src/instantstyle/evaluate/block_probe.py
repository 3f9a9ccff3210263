# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Which blocks carry style?  Inject a reference at one attention module at a time, and measure what follows it.

In the emoji world a reference's look is known (treatments are data) and so is the truth (the prompted thing in that
very look), so three things can be measured for each module: how far the ground's colour follows the reference, how
much nearer the picture comes to the truth than without a reference, and whether it still shows what was asked for.
Layout is asked for where it is wanted: do contours lie where the reference's do, more than where other references' do?
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from instantstyle.emoji.captions import with_article
from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import concepts
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import StyleTransform, apply_transform, sample_transform
from instantstyle.errors import InputError
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.metrics import Floats
from instantstyle.evaluate.nearest_neighbour import contours
from instantstyle.evaluate.plots import bars
from instantstyle.loading import PRESETS_FILE
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from instantstyle.utils.atomic_files import write_atomic

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ProbeCase:
    """One question: this thing, in the look of a picture of another thing."""

    thing: str
    shown: str
    """What the reference shows."""
    set_name: str
    treatment: StyleTransform
    reference: Image.Image
    truth: Image.Image


@dataclass(frozen=True)
class PlanScore:
    """What one plan does, over all cases."""

    plan: str
    lightness: float
    """Correlation of the ground's lightness with the reference's, -1 to 1."""
    colour: float
    """The same for Lab a and b together."""
    distance_reduction: float
    """How much nearer to the truth than without a reference, as a share of the distance without (1: the truth)."""
    content: float
    """Share of pictures whose nearest text, by the model's own CLIP, is the prompted thing."""
    leak: float
    """Share whose nearest text is the thing that the reference shows."""


@dataclass(frozen=True)
class LayoutScore(PlanScore):
    """The same with the answer to the question of layout."""

    layout: float
    """How much more alike contours are to the reference's than to other references', as a correlation, -2 to 2."""
    layout_error: float
    """The standard error of that mean."""


def probe_cases(count: int, side: int, seed: int = 2024, families: Sequence[str] | None = None) -> list[ProbeCase]:
    """Questions whose answer was never trained on: held-out (thing, set) cells, in looks drawn for the occasion."""
    rng, rows = np.random.default_rng(seed), {c.label: i for i, c in enumerate(concepts())}
    cells = sorted(cell for cell in splits().cells if cell[0] in TRAINED_CONCEPTS)
    made: list[ProbeCase] = []
    for number in rng.permutation(max(count, len(cells)))[:count]:
        thing, set_name = cells[int(number) % len(cells)]
        others = [label for label in TRAINED_CONCEPTS if label != thing and splits().trains(label, set_name)]
        shown, look = str(rng.choice(others)), sample_transform(rng, families)

        def draw(label: str, look: StyleTransform = look, set_name: str = set_name) -> Image.Image:
            pixels = apply_transform(look, np.asarray(rasters(set_name)[rows[label]]))
            return Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)

        made.append(ProbeCase(thing, shown, set_name, look, draw(shown), draw(thing)))
    return made


def draw_cases(
    model: Model, questions: Sequence[ProbeCase], plan: str | None, seed: int = 7, steps: int = 25
) -> list[Image.Image]:
    """The model's answers, all stepped together; without a plan, without a reference."""
    engine = Engine(model)
    runs = [
        engine.submit(
            Request(
                prompt=with_article(case.thing),
                references=[StyleReference(case.reference)] if plan else [],
                plan=plan or "style",
                seed=seed + number,
                steps=steps,
            )
        )
        for number, case in enumerate(questions)
    ]
    engine.run()
    return [run.result().images[0] for run in runs]


def score_plan(
    model: Model, plan: str, questions: Sequence[ProbeCase], answers: list[Image.Image], bare: list[Image.Image]
) -> PlanScore:
    """Measure answers under a plan against references, truths and the answers without a reference."""
    ground = np.array([_ground(a) for a in answers])
    wanted = np.array([_ground(case.reference) for case in questions])
    far = np.array([_distance(a, case.truth) for a, case in zip(answers, questions, strict=True)])
    without = np.array([_distance(b, case.truth) for b, case in zip(bare, questions, strict=True)])
    said = clip_labels(model, answers)
    return PlanScore(
        plan,
        lightness=_correlation(ground[:, 0], wanted[:, 0]),
        colour=_correlation(ground[:, 1:].ravel(), wanted[:, 1:].ravel()),
        distance_reduction=float(1 - far.mean() / without.mean()),
        content=float(np.mean([s == case.thing for s, case in zip(said, questions, strict=True)])),
        leak=float(np.mean([s == case.shown for s, case in zip(said, questions, strict=True)])),
    )


def clip_labels(model: Model, pictures: Sequence[Image.Image]) -> list[str]:
    """For each picture the core label whose text is nearest to it in the model's own CLIP."""
    texts = model.encode_prompt([with_article(label) for label in TRAINED_CONCEPTS]).text_embeds
    assert texts is not None
    likeness = F.normalize(model.encode_image(list(pictures)), dim=-1) @ F.normalize(texts, dim=-1).T
    return [TRAINED_CONCEPTS[int(i)] for i in likeness.argmax(-1)]


def probe(
    model: Model,
    count: int = 48,
    steps: int = 25,
    plans: Sequence[str] | None = None,
    *,
    without: bool = False,
    layout: bool = False,
) -> list[PlanScore]:
    """Score no reference and each plan; by default every attention module alone, the family's style, and all.

    `without`: also all modules but one, each in turn.  `layout`: also whether the layout follows (`Laid`).
    """
    modules = model.family.unet.modules
    tried = list(plans or (*(f"{module}=1" for module in modules), "style", "all"))
    if without:
        tried += [all_except(module) for module in modules]
    questions = probe_cases(count, model.family.size[0])
    bare = draw_cases(model, questions, None, steps=steps)
    scores: list[PlanScore] = []
    for plan in ("none", *tried):
        if plan == "none":
            answers = bare
        else:
            print(f"probing {plan}", file=sys.stderr)
            answers = draw_cases(model, questions, plan, steps=steps)
        scored = score_plan(model, plan, questions, answers, bare)
        scores.append(layout_score(scored, questions, answers) if layout else scored)
    return scores


def all_except(module: str) -> str:
    """The plan of all modules but one."""
    return f"all=1,{module}=0"


def layout_score(scored: PlanScore, questions: Sequence[ProbeCase], answers: Sequence[Image.Image]) -> LayoutScore:
    """A score with how far the layout follows: which way contours run where, whatever their colours."""
    seen, shown = (contours(pixels_of(p)) for p in (answers, [case.reference for case in questions]))
    alike = _correlations(seen, shown)
    n = len(questions)
    beyond = np.diag(alike) - (alike.sum(1) - np.diag(alike)) / max(n - 1, 1)
    return LayoutScore(
        **asdict(scored), layout=float(beyond.mean()), layout_error=float(beyond.std() / max(n, 1) ** 0.5)
    )


def _correlations(a: Floats, b: Floats) -> Floats:
    """Of every row of one with every row of the other."""
    a, b = ((x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-6) for x in (a, b))
    return np.asarray(a @ b.T / a.shape[1])


def infer_presets(scores: Sequence[PlanScore], modules: Sequence[str]) -> dict[str, dict[str, float]]:
    """The presets that a probe of every module alone finds.

    Style is at the modules that alone bring the picture at least a third as much nearer to the truth as the best of
    them does, layout at those that alone bring the reference's contours at least half as far as the best; either only
    where there is something to find: 5 % nearer, and three standard errors above no reference.
    """
    alone = {s.plan.removesuffix("=1"): s for s in scores if s.plan.removesuffix("=1") in modules}
    presets: dict[str, dict[str, float]] = {}
    best = max((s.distance_reduction for s in alone.values()), default=0.0)
    if best >= 0.05:
        presets["style"] = {name: 1.0 for name, s in alone.items() if s.distance_reduction >= best / 3}
    bare = next((s.layout for s in scores if isinstance(s, LayoutScore) and s.plan == "none"), 0.0)
    shifts = {name: s.layout - bare for name, s in alone.items() if isinstance(s, LayoutScore)}
    sure = {name: by for name, by in shifts.items() if by > 3 * cast("LayoutScore", alone[name]).layout_error}
    if sure:
        presets["layout"] = {name: 1.0 for name, by in sure.items() if by >= max(sure.values()) / 2}
    return presets


def write_presets(model: Model, presets: Mapping[str, Mapping[str, float]], source: str) -> Path:
    """Keep presets as data beside the model, in presets.json of its folder, from where `load` reads them.

    Raises InputError when there are none, or when the model is no folder of one's own.
    """
    if not presets:
        raise InputError("the probe found no module that carries style, so there is nothing to write")
    if model.source.single is not None:
        raise InputError(
            f"presets are kept in a model's folder, and {model.source.spec!r} is a file: nothing is written"
        )
    said = {**{name: dict(blocks) for name, blocks in presets.items()}, "source": source}
    return write_atomic(model.source.folder / PRESETS_FILE, f"{json.dumps(said, indent=2)}\n".encode())


def probe_table(scores: Sequence[PlanScore]) -> str:
    """Scores as a Markdown table."""
    head = "| plan | ground lightness r | ground colour r | nearer to truth | content right | reference's content |"
    rows = [
        f"| {s.plan} | {s.lightness:.2f} | {s.colour:.2f} | {s.distance_reduction:.0%} | {s.content:.0%} | "
        f"{s.leak:.0%} |" + (f" {s.layout:+.3f} (error {s.layout_error:.3f}) |" if isinstance(s, LayoutScore) else "")
        for s in scores
    ]
    asked = any(isinstance(s, LayoutScore) for s in scores)
    more = " layout follows |" if asked else ""
    return "\n".join([head + more, "|---|---|---|---|---|---|" + ("---|" if asked else ""), *rows])


def probe_figure(scores: Sequence[PlanScore]) -> Image.Image:
    """Bars a plan: does the ground follow, is it nearer to the truth, is the content right, does the layout follow?"""
    series: list[tuple[str, list[float]]] = [
        ("ground lightness, r", [s.lightness for s in scores]),
        ("ground colour, r", [s.colour for s in scores]),
        ("nearer to the truth, share", [s.distance_reduction for s in scores]),
        ("content right, share", [s.content for s in scores]),
    ]
    if any(isinstance(s, LayoutScore) for s in scores):
        layouts = [s.layout if isinstance(s, LayoutScore) else float("nan") for s in scores]
        series.append(("layout follows, correlation beyond other references'", layouts))
    names = [s.plan.removesuffix("=1") for s in scores]
    names = [f"no {n.removeprefix('all=1,').removesuffix('=0')}" if n.startswith("all=1,") else n for n in names]
    return bars("Which blocks carry style, and which layout?", names, series)


def _pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB"))


def _ground(picture: Image.Image) -> npt.NDArray[np.float32]:
    """The median Lab colour of the picture's border."""
    lab = cv2.cvtColor(_pixels(picture).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    edges = (lab[:2], lab[-2:], lab[:, :2], lab[:, -2:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    return np.median(border, axis=0).astype(np.float32)


def _distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(_pixels(a).astype(np.float32) - _pixels(b).astype(np.float32)).mean())


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(torch.corrcoef(torch.from_numpy(np.stack([a, b])))[0, 1])
