# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Which blocks carry style?  Inject a reference at one attention module at a time, and measure what follows it.

In the emoji world a reference's look is known (treatments are data) and so is the truth (the prompted thing in that
very look), so three things can be measured for each module: how far the ground's colour follows the reference, how
much nearer the picture comes to the truth than without a reference, and whether it still shows what was asked for.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from instantstyle.engine import Engine
from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.world.draw import masters
from instantstyle.world.sources import concepts
from instantstyle.world.splits import CORE, splits
from instantstyle.world.treatments import Treatment, apply, sample

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One question: this thing, in the look of a picture of another thing."""

    thing: str
    shown: str
    """What the reference shows."""
    set_name: str
    treatment: Treatment
    reference: Image.Image
    truth: Image.Image


@dataclass(frozen=True)
class Score:
    """What one plan does, over all cases."""

    plan: str
    lightness: float
    """Correlation of the ground's lightness with the reference's, -1 to 1."""
    colour: float
    """The same for Lab a and b together."""
    nearer: float
    """How much nearer to the truth than without a reference, as a share of the distance without (1: the truth)."""
    content: float
    """Share of pictures whose nearest text, by the model's own CLIP, is the prompted thing."""
    leak: float
    """Share whose nearest text is the thing that the reference shows."""


def cases(count: int, side: int, seed: int = 2024, families: Sequence[str] | None = None) -> list[Case]:
    """Questions whose answer was never trained on: held-out (thing, set) cells, in looks drawn for the occasion."""
    rng, rows = np.random.default_rng(seed), {c.label: i for i, c in enumerate(concepts())}
    cells = sorted(cell for cell in splits().cells if cell[0] in CORE)
    made: list[Case] = []
    for number in rng.permutation(max(count, len(cells)))[:count]:
        thing, set_name = cells[int(number) % len(cells)]
        others = [label for label in CORE if label != thing and splits().trains(label, set_name)]
        shown, look = str(rng.choice(others)), sample(rng, families)

        def draw(label: str, look: Treatment = look, set_name: str = set_name) -> Image.Image:
            pixels = apply(look, np.asarray(masters(set_name)[rows[label]]))
            return Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)

        made.append(Case(thing, shown, set_name, look, draw(shown), draw(thing)))
    return made


def draw(
    model: Model, questions: Sequence[Case], plan: str | None, seed: int = 7, steps: int = 25
) -> list[Image.Image]:
    """The model's answers, all stepped together; without a plan, without a reference."""
    engine = Engine(model)
    runs = [
        engine.submit(
            Request(
                prompt=f"a {case.thing}",
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


def score(
    model: Model, plan: str, questions: Sequence[Case], answers: list[Image.Image], bare: list[Image.Image]
) -> Score:
    """Measure answers under a plan against references, truths and the answers without a reference."""
    ground = np.array([_ground(a) for a in answers])
    wanted = np.array([_ground(case.reference) for case in questions])
    far = np.array([_distance(a, case.truth) for a, case in zip(answers, questions, strict=True)])
    without = np.array([_distance(b, case.truth) for b, case in zip(bare, questions, strict=True)])
    said = named(model, answers)
    return Score(
        plan,
        lightness=_correlation(ground[:, 0], wanted[:, 0]),
        colour=_correlation(ground[:, 1:].ravel(), wanted[:, 1:].ravel()),
        nearer=float(1 - far.mean() / without.mean()),
        content=float(np.mean([s == case.thing for s, case in zip(said, questions, strict=True)])),
        leak=float(np.mean([s == case.shown for s, case in zip(said, questions, strict=True)])),
    )


def named(model: Model, pictures: Sequence[Image.Image]) -> list[str]:
    """For each picture the core label whose text is nearest to it in the model's own CLIP."""
    texts = model.say([f"a {label}" for label in CORE]).embeds
    assert texts is not None
    likeness = F.normalize(model.see(list(pictures)), dim=-1) @ F.normalize(texts, dim=-1).T
    return [CORE[int(i)] for i in likeness.argmax(-1)]


def probe(model: Model, count: int = 48, steps: int = 25, plans: Sequence[str] | None = None) -> list[Score]:
    """Score no reference and each plan; by default every attention module alone, the family's style, and all."""
    questions = cases(count, model.family.size[0])
    bare = draw(model, questions, None, steps=steps)
    scores = [score(model, "none", questions, bare, bare)]
    for plan in plans or (*(f"{module}=1" for module in model.family.unet.modules), "style", "all"):
        print(f"probing {plan}", file=sys.stderr)
        scores.append(score(model, plan, questions, draw(model, questions, plan, steps=steps), bare))
    return scores


def table(scores: Sequence[Score]) -> str:
    """Scores as a Markdown table."""
    head = "| plan | ground lightness r | ground colour r | nearer to truth | content right | reference's content |"
    rows = [
        f"| {s.plan} | {s.lightness:.2f} | {s.colour:.2f} | {s.nearer:.0%} | {s.content:.0%} | {s.leak:.0%} |"
        for s in scores
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


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
