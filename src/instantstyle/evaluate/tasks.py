"""Questions whose answer is known, and how they are put: this thing, in the look of a picture of another thing."""

import importlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import nn

from instantstyle.emoji.captions import SET_WORDS, colour_name, with_article
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, StyleTransform, sample_transform
from instantstyle.errors import InputError
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.ground_truth import SIDE, TRAINED_SETS, Pixels, Style, render
from instantstyle.methods import METHODS
from instantstyle.methods.lora_training import TrainProgress, on_progress
from instantstyle.model import Model
from instantstyle.networks.unet import UNet
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

Shown = Literal["true", "other", "wrong", "blank", "none"]
"""Which reference is given: the question's own, one of other content in the same style, one of the same content in
another style, a grey square, or no picture at all."""
BATCH = 32
"""Questions that are drawn together: with guidance two rows each, and 64 rows a step are efficient."""
GUIDANCE = 2.0
"""Chosen among 2, 3 and 5 on trained cells (benchmarks/LOG.md): 5, the usual default, paints looks too loudly."""
STEPS, SEED = 25, 2026
"""Steps of every evaluation, and the seed of its first question; both fixed before anything was measured."""
FITTED = tuple(name for name, spec in METHODS.items() if spec.fit_cost)
"""Methods that are fitted to a reference before they draw: they cost many pictures' time a reference."""


@dataclass(frozen=True)
class Task:
    """One question.  The reference never shows what is asked for."""

    target: str
    style: Style
    reference_content: str
    """What the reference shows."""
    swap_content: str
    """What a second reference in the same style shows, for the counterfactual swap."""
    seed: int
    cell: str = ""
    """Which of the four cells it belongs to."""
    similarity_stratum: str = ""
    """How near the reference's content is to what is asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the set's hash, under the keys that written files have."""
        style = {"set_name": self.style.icon_set, "look": self.style.transform.to_dict()}
        content = {"thing": self.target, "shown": self.reference_content, "other": self.swap_content}
        return {**content, "style": style, "seed": self.seed, "cell": self.cell, "stratum": self.similarity_stratum}

    @property
    def words(self) -> str:
        """What is asked for, as captions say it: `an umbrella`."""
        return with_article(self.target)

    @property
    def truth(self) -> Pixels:
        """The right answer, [64, 64, 3]."""
        return render(self.target, self.style)

    @property
    def reference(self) -> Pixels:
        """What the method is shown, at the size at which pictures are judged."""
        return render(self.reference_content, self.style)


@dataclass(frozen=True)
class Setting:
    """How questions are put to a model: method, where and how loudly, and what is changed for a control."""

    method: str = "instantstyle"
    plan: str = "style"
    strength: float | None = None
    """The method's one knob; None: as it was published."""
    reference: Shown = "true"
    style_in_prompt: bool = False
    """Whether the prompt also says how the picture is to look: what a reader could type instead."""
    subtraction: str | None = None
    """Whether the reference's content is taken out, and by which variant."""
    content_weight: float = 0.5
    content: Literal["given", "auto"] = "given"
    """Whose word is taken out: what the reference truly shows, or what the model's own CLIP finds in it."""
    options: Mapping[str, bool | float | int | str] = field(
        default_factory=dict[str, bool | float | int | str], hash=False
    )

    @property
    def name(self) -> str:
        """How tables call it."""
        plan = "" if self.plan == "style" or self.method != "instantstyle" else f" ({self.plan})"
        auto = ", auto" if self.content == "auto" else ""
        minus = "" if self.subtraction is None else f" - content ({self.subtraction} {self.content_weight:g}{auto})"
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.method}{plan}{minus}{options}"

    @property
    def sweep_value(self) -> float | None:
        """The strength it speaks at: the published one where none is given; None for a method without a knob."""
        knob = METHODS[self.method].strength
        return None if knob is None else knob.default if self.strength is None else self.strength


@dataclass(frozen=True)
class Outputs:
    """What came of questions."""

    pixels: Pixels
    """[n, 64, 64, 3]."""
    seconds: float
    """Of one core a picture, while so many were drawn together; fits aside, inversions included."""
    unet_rows: float
    """Rows that went through the UNet a picture, over all steps, those of reference rows and inversions with them."""
    fit_seconds: Sequence[float] = ()
    """Seconds of one core for the fit to each picture's reference: 0 for methods without, NaN where it was there."""


def to_request(question: Task, way: Setting, model: Model, steps: int = STEPS) -> Request:
    """The question as a request.  A model of 128 pixels is shown references of that size."""
    words = question.words
    if way.style_in_prompt:
        words = _short_enough(model, f"{words}, {style_description(question.style)}")
    given = _reference(question, way.reference, min(model.family.size[0], 2 * SIDE))
    references: list[StyleReference] = []
    if given is not None and way.method != "none":
        shown = question.swap_content if way.reference == "other" else question.reference_content
        content = None if way.subtraction is None else "auto" if way.content == "auto" else shown
        references.append(StyleReference(given, content=content, content_weight=way.content_weight))
    more: dict[str, Any] = {"subtraction": way.subtraction} if way.subtraction else {}
    asked = Request(
        prompt=words,
        references=references,
        method=way.method,
        plan=way.plan if way.method == "instantstyle" else None,
        seed=question.seed,
        steps=steps,
        guidance=GUIDANCE,
        options=way.options,
        **more,
    )
    knob = METHODS[way.method].strength
    return asked if knob is None else knob.apply(asked, 1.0 if way.sweep_value is None else way.sweep_value)


def style_description(style: Style) -> str:
    """All that captions could say of how a picture looks, as they say it; of a hand without a name, the rest."""
    said = " ".join(filter(None, (style.transform.kind, SET_WORDS.get(style.icon_set, ""))))
    return f"{said} style, on {colour_name(style.transform.background)}"


def _short_enough(model: Model, words: str) -> str:
    """As many of the phrases, from the first on, as the model reads."""
    while "," in words:
        try:
            for tower in model.text_encoders:
                tower.tokenize([words])
        except InputError:
            words = words.rpartition(",")[0]
        else:
            break
    return words


def _reference(question: Task, shown: Shown, side: int) -> Image.Image | None:
    match shown:
        case "none":
            return None
        case "blank":
            return Image.new("RGB", (side, side), (128, 128, 128))
        case "wrong":
            drawn = render(question.reference_content, unrelated_style(question), side)
        case "other":
            drawn = render(question.swap_content, question.style, side)
        case "true":
            drawn = render(question.reference_content, question.style, side)
    return Image.fromarray(drawn)


def unrelated_style(question: Task) -> Style:
    """A style that has nothing to do with the question's: another family, other colours, another hand."""
    rng = np.random.default_rng((question.seed, 77))
    families = [name for name in TRAINED_FAMILIES if name != question.style.transform.kind]
    sets = [
        name
        for name in TRAINED_SETS
        if name != question.style.icon_set and splits().trains(question.reference_content, name)
    ] or list(TRAINED_SETS)
    return Style(str(rng.choice(sets)), sample_transform(rng, families))


def run_tasks(
    model: Model,
    questions: Sequence[Task],
    way: Setting,
    steps: int = STEPS,
    report: Callable[[int, int], None] | None = None,
) -> Outputs:
    """Put questions to a model, `BATCH` of them together."""
    drawn: list[Image.Image] = []
    spent, fits = 0.0, list[float]()
    with _rows_through() as rows:
        for i in range(0, len(questions), BATCH):
            engine, began = Engine(model), time.process_time()
            runs: list[Run] = []
            for each in questions[i : i + BATCH]:
                steps_of_fit: list[TrainProgress] = []
                before = time.process_time()
                with on_progress(steps_of_fit.append):
                    runs.append(engine.submit(to_request(each, way, model, steps)).prepare())
                if steps_of_fit:
                    fits.append(time.process_time() - before)
                    began += fits[-1]
                else:
                    fits.append(math.nan if way.method in FITTED else 0.0)
            engine.run()
            drawn += [run.result().images[0] for run in runs]
            spent += time.process_time() - began
            if report is not None:
                report(len(drawn), len(questions))
    n = max(len(questions), 1)
    pixels = pixels_of(drawn) if drawn else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return Outputs(pixels, spent / n, rows[0] / n, fits)


@contextmanager
def _rows_through() -> Generator[list[int]]:
    """While entered, every row that goes through any UNet is counted in the list's one number."""
    counted = [0]

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, UNet):
            counted[0] += len(given[0])

    modules: Any = importlib.import_module("torch.nn.modules.module")  # its hooks are not among torch's typed names
    handle = modules.register_module_forward_pre_hook(count)
    try:
        yield counted
    finally:
        handle.remove()


def held_out_tasks(count: int, families: Sequence[str] = TRAINED_FAMILIES, seed: int = SEED) -> list[Task]:
    """Questions about unseen (thing, set) cells of the model's own things, treatment families in equal numbers.

    The truth was never trained on, its thing and its set were; the reference is another thing of that set.
    """
    rng = np.random.default_rng(seed)
    cells = sorted(cell for cell in splits().cells if cell[0] in TRAINED_CONCEPTS and cell[1] in TRAINED_SETS)
    order = np.concatenate([rng.permutation(len(cells)) for _ in range(math.ceil(count / len(cells)))])
    return [
        make_task(*cells[int(row)], sample_transform(rng, [families[number % len(families)]]), rng, seed + number)
        for number, row in enumerate(order[:count])
    ]


def make_task(thing: str, set_name: str, treatment: StyleTransform, rng: np.random.Generator, seed: int) -> Task:
    """A question about a thing in a style, with two other things drawn at random for its references to show."""
    held_out = set_name not in TRAINED_SETS
    others = [label for label in TRAINED_CONCEPTS if label != thing and (held_out or splits().trains(label, set_name))]
    shown, other = (str(each) for each in rng.choice(others, 2, replace=False))
    return Task(thing, Style(set_name, treatment), shown, other, seed)


def with_family(treatment: StyleTransform, family: str) -> StyleTransform:
    """The same colours, numbers and chance, drawn the way another family draws."""
    return replace(treatment, kind=family)
