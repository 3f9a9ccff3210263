"""Which attention blocks carry style, and which layout?  Inject a reference at one module at a time, and measure.

In the emoji world a reference's style is known and so is the truth (the prompted concept in that style), so three
things are measured for each module: how far the background's colour follows the reference, how much nearer the image
comes to the truth than without a reference, and whether it still shows the prompted concept.  Layout, where asked for:
are contours where the reference's are, more than where other references' are?
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch.nn.functional as F
from PIL import Image

from instantstyle.emoji.captions import with_article
from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import concepts
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import StyleTransform, apply_transform, sample_transform
from instantstyle.errors import InputError
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.metrics import Floats, Pixels, background_correlation
from instantstyle.evaluate.nearest_neighbour import contour_features
from instantstyle.evaluate.plots import plot_bars
from instantstyle.loading import PRESETS_FILE
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.markdown import markdown_table


@dataclass(frozen=True)
class ProbeCase:
    """Draw `target` in the style of an image of `reference_content`."""

    target: str
    reference_content: str
    icon_set: str
    transform: StyleTransform
    reference: Image.Image
    truth: Image.Image


@dataclass(frozen=True)
class PlanScore:
    """What one block plan does, over all cases."""

    plan: str
    lightness: float
    """Correlation of the background's lightness with the reference's, -1 to 1."""
    colour: float
    """The same of Lab a and b together."""
    distance_reduction: float
    """How much nearer to the truth than without a reference, as a share of the distance without (1: the truth)."""
    content: float
    """Share of images whose nearest text, by the model's own CLIP, is the target."""
    leak: float
    """Share whose nearest text is the reference's content."""


@dataclass(frozen=True)
class LayoutScore(PlanScore):
    """The same with how far the layout follows."""

    layout: float
    """Correlation of contours with the reference's beyond that with other references', -2 to 2."""
    layout_error: float
    """The standard error of that mean."""


def probe_cases(count: int, side: int, seed: int = 2024, families: Sequence[str] | None = None) -> list[ProbeCase]:
    """Cases whose truth was never trained on: held-out (concept, icon set) cells in random transforms."""
    rng, indices = np.random.default_rng(seed), {c.label: i for i, c in enumerate(concepts())}
    cells = sorted(cell for cell in splits().cells if cell[0] in TRAINED_CONCEPTS)
    cases: list[ProbeCase] = []
    for number in rng.permutation(max(count, len(cells)))[:count]:
        target, icon_set = cells[int(number) % len(cells)]
        others = [label for label in TRAINED_CONCEPTS if label != target and splits().trains(label, icon_set)]
        shown, transform = str(rng.choice(others)), sample_transform(rng, families)

        def draw(label: str, transform: StyleTransform = transform, icon_set: str = icon_set) -> Image.Image:
            pixels = apply_transform(transform, np.asarray(rasters(icon_set)[indices[label]]))
            return Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)

        cases.append(ProbeCase(target, shown, icon_set, transform, draw(shown), draw(target)))
    return cases


def draw_cases(
    model: Model, cases: Sequence[ProbeCase], plan: str | None, seed: int = 7, steps: int = 25
) -> list[Image.Image]:
    """The model's images under a plan, all cases in one batch; without a plan, without a reference."""
    engine = Engine(model)
    runs = [
        engine.submit(
            Request(
                prompt=with_article(case.target),
                references=[StyleReference(case.reference)] if plan else [],
                plan=plan or "style",
                seed=seed + number,
                steps=steps,
            )
        )
        for number, case in enumerate(cases)
    ]
    engine.run()
    return [run.result().images[0] for run in runs]


def score_plan(
    model: Model, plan: str, cases: Sequence[ProbeCase], images: Sequence[Image.Image], bare: Sequence[Image.Image]
) -> PlanScore:
    """Score images under a plan; `bare`: the images without a reference."""
    pixels, truths, references = (
        _stack(each) for each in (images, [case.truth for case in cases], [case.reference for case in cases])
    )
    lightness, colour = background_correlation(pixels, references)
    labels = clip_labels(model, images)
    return PlanScore(
        plan,
        lightness=lightness,
        colour=colour,
        distance_reduction=1 - _mean_distance(pixels, truths) / _mean_distance(_stack(bare), truths),
        content=float(np.mean([label == case.target for label, case in zip(labels, cases, strict=True)])),
        leak=float(np.mean([label == case.reference_content for label, case in zip(labels, cases, strict=True)])),
    )


def _stack(images: Sequence[Image.Image]) -> Pixels:
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def _mean_distance(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean())


def clip_labels(model: Model, images: Sequence[Image.Image]) -> list[str]:
    """For each image the trained concept whose text is nearest to it in the model's own CLIP."""
    texts = model.encode_prompt([with_article(label) for label in TRAINED_CONCEPTS]).text_embeds
    assert texts is not None
    similarity = F.normalize(model.encode_image(list(images)), dim=-1) @ F.normalize(texts, dim=-1).T
    return [TRAINED_CONCEPTS[int(i)] for i in similarity.argmax(-1)]


def probe_blocks(
    model: Model,
    count: int = 48,
    steps: int = 25,
    plans: Sequence[str] | None = None,
    *,
    without: bool = False,
    layout: bool = False,
) -> list[PlanScore]:
    """Score no reference and each plan; by default every attention module alone, the family's style, and all.

    `without`: also all modules but one, each in turn.  `layout`: also whether the layout follows (`LayoutScore`).
    """
    modules = model.family.layout.modules
    chosen = list(plans or (*(f"{module}=1" for module in modules), "style", "all"))
    if without:
        chosen += [all_except(module) for module in modules]
    cases = probe_cases(count, model.family.size[0])
    bare = draw_cases(model, cases, None, steps=steps)
    scores: list[PlanScore] = []
    for plan in ("none", *chosen):
        images = bare
        if plan != "none":
            print(f"probing {plan}", file=sys.stderr)
            images = draw_cases(model, cases, plan, steps=steps)
        score = score_plan(model, plan, cases, images, bare)
        scores.append(layout_score(score, cases, images) if layout else score)
    return scores


def all_except(module: str) -> str:
    """The plan of all modules but one."""
    return f"all=1,{module}=0"


def layout_score(score: PlanScore, cases: Sequence[ProbeCase], images: Sequence[Image.Image]) -> LayoutScore:
    """A score with how far the layout follows: the orientation of contours by cell, whatever their colours."""
    own, reference = (contour_features(pixels_of(p)) for p in (images, [case.reference for case in cases]))
    r = _row_correlations(own, reference)
    n = len(cases)
    excess = np.diag(r) - (r.sum(1) - np.diag(r)) / max(n - 1, 1)
    return LayoutScore(
        **asdict(score), layout=float(excess.mean()), layout_error=float(excess.std() / max(n, 1) ** 0.5)
    )


def _row_correlations(a: Floats, b: Floats) -> Floats:
    """Pearson's r of every row of `a` [n, d] with every row of `b` [m, d]: [n, m]."""
    a, b = ((x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-6) for x in (a, b))
    return np.asarray(a @ b.T / a.shape[1])


def infer_presets(scores: Sequence[PlanScore], modules: Sequence[str]) -> dict[str, dict[str, float]]:
    """The presets that follow from a probe of every module alone.

    Style is at the modules that alone bring the image at least a third as much nearer to the truth as the best of them
    does, layout at those that alone bring the reference's contours at least half as far as the best; either only where
    the effect is certain: 5 % nearer, and three standard errors above no reference.
    """
    alone = {s.plan.removesuffix("=1"): s for s in scores if s.plan.removesuffix("=1") in modules}
    presets: dict[str, dict[str, float]] = {}
    best = max((s.distance_reduction for s in alone.values()), default=0.0)
    if best >= 0.05:
        presets["style"] = {name: 1.0 for name, s in alone.items() if s.distance_reduction >= best / 3}
    bare = next((s.layout for s in scores if isinstance(s, LayoutScore) and s.plan == "none"), 0.0)
    shifts = {name: s.layout - bare for name, s in alone.items() if isinstance(s, LayoutScore)}
    certain = {name: by for name, by in shifts.items() if by > 3 * cast("LayoutScore", alone[name]).layout_error}
    if certain:
        presets["layout"] = {name: 1.0 for name, by in certain.items() if by >= max(certain.values()) / 2}
    return presets


def write_presets(model: Model, presets: Mapping[str, Mapping[str, float]], source: str) -> Path:
    """Write presets.json into the model's folder, from where `load` reads it.

    Raises InputError when there are none, or when the model is a single file.
    """
    if not presets:
        raise InputError("the probe found no module that carries style, so there is nothing to write")
    if model.source.single is not None:
        raise InputError(
            f"presets are kept in a model's folder, and {model.source.spec!r} is a file: nothing is written"
        )
    data = {**{name: dict(blocks) for name, blocks in presets.items()}, "source": source}
    return write_atomic(model.source.folder / PRESETS_FILE, f"{json.dumps(data, indent=2)}\n".encode())


def probe_table(scores: Sequence[PlanScore]) -> str:
    """Scores as a Markdown table."""
    header = [
        "plan",
        "ground lightness r",
        "ground colour r",
        "nearer to truth",
        "content right",
        "reference's content",
    ]
    layout = any(isinstance(s, LayoutScore) for s in scores)
    rows: list[list[str]] = []
    for s in scores:
        shares = (f"{value:.0%}" for value in (s.distance_reduction, s.content, s.leak))
        row = [s.plan, f"{s.lightness:.2f}", f"{s.colour:.2f}", *shares]
        rows.append([*row, f"{s.layout:+.3f} (error {s.layout_error:.3f})"] if isinstance(s, LayoutScore) else row)
    return "\n".join(markdown_table([*header, "layout follows"] if layout else header, rows))


def probe_figure(scores: Sequence[PlanScore]) -> Image.Image:
    """Bars for each plan: background, distance to the truth, content, and layout where it was measured."""
    series: list[tuple[str, list[float]]] = [
        ("background lightness follows the reference, r", [s.lightness for s in scores]),
        ("background colour follows the reference, r", [s.colour for s in scores]),
        ("nearer to the truth than without a reference, share", [s.distance_reduction for s in scores]),
        ("content right, share", [s.content for s in scores]),
    ]
    if any(isinstance(s, LayoutScore) for s in scores):
        layouts = [s.layout if isinstance(s, LayoutScore) else float("nan") for s in scores]
        series.append(("layout follows, correlation beyond other references'", layouts))
    names = [s.plan.removesuffix("=1") for s in scores]
    names = [f"no {n.removeprefix('all=1,').removesuffix('=0')}" if n.startswith("all=1,") else n for n in names]
    return plot_bars("Which blocks carry style, and which layout?", names, series)
