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

from instantstyle.emoji.captions import SET_WORDS, article, colour_name
from instantstyle.emoji.splits import CORE, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, Treatment, sample
from instantstyle.errors import InputError
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.ground_truth import SIDE, TRAINED_SETS, Pixels, Style, picture
from instantstyle.methods import OPTIONS, STRENGTHS
from instantstyle.methods.lora_training import Fitted, watching
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
FITTED = tuple(name for name, options in OPTIONS.items() if "fit-steps" in options)
"""Methods that are fitted to a reference before they draw: they cost many pictures' time a reference."""


@dataclass(frozen=True)
class Question:
    """One question.  The reference never shows what is asked for."""

    thing: str
    style: Style
    shown: str
    """What the reference shows."""
    other: str
    """What a second reference in the same style shows, for the counterfactual swap."""
    seed: int
    cell: str = ""
    """Which of the four cells it belongs to."""
    stratum: str = ""
    """How near the reference's content is to what is asked for."""

    @property
    def words(self) -> str:
        """What is asked for, as captions say it: `an umbrella`."""
        return article(self.thing)

    @property
    def truth(self) -> Pixels:
        """The right answer, [64, 64, 3]."""
        return picture(self.thing, self.style)

    @property
    def reference(self) -> Pixels:
        """What the method is shown, at the size at which pictures are judged."""
        return picture(self.shown, self.style)


@dataclass(frozen=True)
class Way:
    """How questions are put to a model: method, where and how loudly, and what is changed for a control."""

    method: str = "instantstyle"
    plan: str = "style"
    strength: float | None = None
    """The method's one knob; None: as it was published."""
    reference: Shown = "true"
    styled_words: bool = False
    """Whether the prompt also says how the picture is to look: what a reader could type instead."""
    subtract: str | None = None
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
        minus = "" if self.subtract is None else f" - content ({self.subtract} {self.content_weight:g}{auto})"
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.method}{plan}{minus}{options}"

    @property
    def at(self) -> float | None:
        """The strength it speaks at: the published one where none is given; None for a method without a knob."""
        knob = STRENGTHS.get(self.method)
        return None if knob is None else knob.published if self.strength is None else self.strength


@dataclass(frozen=True)
class Answers:
    """What came of questions."""

    pixels: Pixels
    """[n, 64, 64, 3]."""
    seconds: float
    """Of one core a picture, while so many were drawn together; fits aside, inversions included."""
    evaluations: float
    """Rows that went through the UNet a picture, over all steps, those of reference rows and inversions with them."""
    fits: Sequence[float] = ()
    """Seconds of one core for the fit to each picture's reference: 0 for methods without, NaN where it was there."""


def request(question: Question, way: Way, model: Model, steps: int = STEPS) -> Request:
    """The question as a request.  A model of 128 pixels is shown references of that size."""
    words = question.words
    if way.styled_words:
        words = _short_enough(model, f"{words}, {described(question.style)}")
    given = _reference(question, way.reference, min(model.family.size[0], 2 * SIDE))
    references: list[StyleReference] = []
    if given is not None and way.method != "none":
        shown = question.other if way.reference == "other" else question.shown
        content = None if way.subtract is None else "auto" if way.content == "auto" else shown
        references.append(StyleReference(given, content=content, content_weight=way.content_weight))
    more: dict[str, Any] = {"subtraction": way.subtract} if way.subtract else {}
    asked = Request(
        prompt=words,
        references=references,
        method=way.method,
        plan=way.plan if way.method == "instantstyle" else "style",
        seed=question.seed,
        steps=steps,
        guidance=GUIDANCE,
        options=way.options,
        **more,
    )
    knob = STRENGTHS.get(way.method)
    return asked if knob is None else knob.at(asked, 1.0 if way.at is None else way.at)


def described(style: Style) -> str:
    """All that captions could say of how a picture looks, as they say it; of a hand without a name, the rest."""
    said = " ".join(filter(None, (style.look.family, SET_WORDS.get(style.set_name, ""))))
    return f"{said} style, on {colour_name(style.look.ground)}"


def _short_enough(model: Model, words: str) -> str:
    """As many of the phrases, from the first on, as the model reads."""
    while "," in words:
        try:
            for tower in model.towers:
                tower.ids([words])
        except InputError:
            words = words.rpartition(",")[0]
        else:
            break
    return words


def _reference(question: Question, shown: Shown, side: int) -> Image.Image | None:
    match shown:
        case "none":
            return None
        case "blank":
            return Image.new("RGB", (side, side), (128, 128, 128))
        case "wrong":
            drawn = picture(question.shown, another_style(question), side)
        case "other":
            drawn = picture(question.other, question.style, side)
        case "true":
            drawn = picture(question.shown, question.style, side)
    return Image.fromarray(drawn)


def another_style(question: Question) -> Style:
    """A style that has nothing to do with the question's: another family, other colours, another hand."""
    rng = np.random.default_rng((question.seed, 77))
    families = [name for name in TRAINED_FAMILIES if name != question.style.look.family]
    sets = [
        name for name in TRAINED_SETS if name != question.style.set_name and splits().trains(question.shown, name)
    ] or list(TRAINED_SETS)
    return Style(str(rng.choice(sets)), sample(rng, families))


def ask(
    model: Model,
    questions: Sequence[Question],
    way: Way,
    steps: int = STEPS,
    report: Callable[[int, int], None] | None = None,
) -> Answers:
    """Put questions to a model, `BATCH` of them together."""
    drawn: list[Image.Image] = []
    spent, fits = 0.0, list[float]()
    with _rows_through() as rows:
        for i in range(0, len(questions), BATCH):
            engine, began = Engine(model), time.process_time()
            runs: list[Run] = []
            for each in questions[i : i + BATCH]:
                steps_of_fit: list[Fitted] = []
                before = time.process_time()
                with watching(steps_of_fit.append):
                    runs.append(engine.submit(request(each, way, model, steps)))
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
    return Answers(pixels, spent / n, rows[0] / n, fits)


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


def held_out_cells(count: int, families: Sequence[str] = TRAINED_FAMILIES, seed: int = SEED) -> list[Question]:
    """Questions about unseen (thing, set) cells of the model's own things, treatment families in equal numbers.

    The truth was never trained on, its thing and its set were; the reference is another thing of that set.
    """
    rng = np.random.default_rng(seed)
    cells = sorted(cell for cell in splits().cells if cell[0] in CORE and cell[1] in TRAINED_SETS)
    order = np.concatenate([rng.permutation(len(cells)) for _ in range(math.ceil(count / len(cells)))])
    return [
        question(*cells[int(row)], sample(rng, [families[number % len(families)]]), rng, seed + number)
        for number, row in enumerate(order[:count])
    ]


def question(thing: str, set_name: str, treatment: Treatment, rng: np.random.Generator, seed: int) -> Question:
    """A question about a thing in a style, with two other things drawn at random for its references to show."""
    held_out = set_name not in TRAINED_SETS
    others = [label for label in CORE if label != thing and (held_out or splits().trains(label, set_name))]
    shown, other = (str(each) for each in rng.choice(others, 2, replace=False))
    return Question(thing, Style(set_name, treatment), shown, other, seed)


def restyled(treatment: Treatment, family: str) -> Treatment:
    """The same colours, numbers and chance, drawn the way another family draws."""
    return replace(treatment, family=family)
