"""Evaluation tasks whose ground truth is known: draw this content in the style of an image of other content.

A `Task` is what is asked, a `Setting` how a method is asked it, `Outputs` what came of it.
"""

import importlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import nn

from instantstyle.emoji.captions import SET_WORDS, colour_name, with_article
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, StyleTransform, sample_transform
from instantstyle.errors import InputError
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.ground_truth import TRAINED_SETS, TRUTH_SIDE, Style, render
from instantstyle.evaluate.metrics import Pixels
from instantstyle.methods import METHODS
from instantstyle.methods.lora_training import TrainProgress, on_progress
from instantstyle.model import Model
from instantstyle.networks.unet import UNet
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

ReferenceKind = Literal["true", "other", "wrong", "blank", "none"]
"""Which reference is given: the task's own, one of other content in the same style, one of the same content in another
style, a grey square, or no image at all."""
GENERATION_BATCH = 32
"""Tasks that are run together: with guidance two rows each, and 64 rows a step are efficient."""
GUIDANCE = 2.0
"""Chosen among 2, 3 and 5 on trained cells (benchmarks/LOG.md): 5, the usual default, exaggerates styles."""
STEPS, SEED = 25, 2026
"""Steps of every evaluation, and the seed of its first task; both fixed before anything was measured."""
FITTED = tuple(name for name, spec in METHODS.items() if spec.fit_cost)
"""Methods that train on the reference first: they cost many images' time per reference."""


@dataclass(frozen=True)
class Task:
    """Draw `target` in `style`, given a reference that shows `reference_content` in that style."""

    target: str
    style: Style
    reference_content: str
    """Never the target."""
    swap_content: str
    """What a second reference in the same style shows, for the counterfactual swap."""
    seed: int
    cell: str = ""
    """Which of the suite's four cells it belongs to."""
    similarity_stratum: str = ""
    """`near` or `far`: how similar the reference's content is to the target."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the suite's hash, under the keys of files written by 0.1.0."""
        style = {"set_name": self.style.icon_set, "look": self.style.transform.to_dict()}
        content = {"thing": self.target, "shown": self.reference_content, "other": self.swap_content}
        return {**content, "style": style, "seed": self.seed, "cell": self.cell, "stratum": self.similarity_stratum}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Task":
        """What `to_dict` gave."""
        style = Style(data["style"]["set_name"], StyleTransform.from_dict(data["style"]["look"]))
        content = (data["thing"], style, data["shown"], data["other"])
        return cls(*content, data["seed"], data["cell"], data["stratum"])

    @property
    def prompt(self) -> str:
        """The target as captions have it: `an umbrella`."""
        return with_article(self.target)

    @property
    def truth(self) -> Pixels:
        """The ground truth, [64, 64, 3]."""
        return render(self.target, self.style)

    @property
    def reference(self) -> Pixels:
        """The reference at the size at which images are evaluated, [64, 64, 3]."""
        return render(self.reference_content, self.style)


@dataclass(frozen=True)
class Setting:
    """How a model is asked its tasks: method, plan and strength, and what is changed for a control."""

    method: str = "instantstyle"
    plan: str = "style"
    strength: float | None = None
    """The value of the method's strength sweep; None: as published."""
    reference: ReferenceKind = "true"
    style_in_prompt: bool = False
    """Whether the prompt also describes the style: what a user could type instead."""
    subtraction: str | None = None
    """By which variant the reference's content is subtracted; None: it is not."""
    content_weight: float = 0.5
    content: Literal["given", "auto"] = "given"
    """Which content is subtracted: the true one, or what the model's own CLIP finds."""
    options: Mapping[str, bool | float | int | str] = field(
        default_factory=dict[str, bool | float | int | str], hash=False
    )

    @property
    def name(self) -> str:
        """The name in tables."""
        plan = "" if self.plan == "style" or self.method != "instantstyle" else f" ({self.plan})"
        auto = ", auto" if self.content == "auto" else ""
        minus = "" if self.subtraction is None else f" - content ({self.subtraction} {self.content_weight:g}{auto})"
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.method}{plan}{minus}{options}"

    @property
    def sweep_value(self) -> float | None:
        """The strength, the published one where none is given; None for a method without a sweep."""
        sweep = METHODS[self.method].strength
        return None if sweep is None else sweep.default if self.strength is None else self.strength

    def resolved(self) -> "Setting":
        """With the strength filled in: settings that are the same to a model are equal."""
        return replace(self, strength=self.sweep_value)

    def to_dict(self) -> dict[str, Any]:
        """The resolved setting as plain data, under the keys of images cached by 0.1.0."""
        names = {"style_in_prompt": "styled_words", "subtraction": "subtract"}
        return {names.get(name, name): value for name, value in asdict(self.resolved()).items()}


@dataclass(frozen=True)
class Outputs:
    """The images generated for tasks, and what they cost."""

    pixels: Pixels
    """[n, 64, 64, 3]."""
    seconds: float
    """Core seconds per image while run in batches; inversions included, fits not."""
    unet_rows: float
    """Batch rows through the UNet per image, over all steps, those of references and inversions included."""
    fit_seconds: Sequence[float] = ()
    """Core seconds of the fit to each task's reference: 0 for methods without, NaN where it was cached."""


def to_request(task: Task, setting: Setting, model: Model, steps: int = STEPS) -> Request:
    """The task as a request.  A model of 128 pixels gets references of that size."""
    prompt = task.prompt
    if setting.style_in_prompt:
        prompt = _truncate_phrases(model, f"{prompt}, {style_description(task.style)}")
    image = _reference_image(task, setting.reference, min(model.family.size[0], 2 * TRUTH_SIDE))
    references: list[StyleReference] = []
    if image is not None and setting.method != "none":
        shown = task.swap_content if setting.reference == "other" else task.reference_content
        content = None if setting.subtraction is None else "auto" if setting.content == "auto" else shown
        references.append(StyleReference(image, content=content, content_weight=setting.content_weight))
    subtraction: dict[str, Any] = {"subtraction": setting.subtraction} if setting.subtraction else {}
    request = Request(
        prompt=prompt,
        references=references,
        method=setting.method,
        plan=setting.plan if setting.method == "instantstyle" else None,
        seed=task.seed,
        steps=steps,
        guidance=GUIDANCE,
        options=setting.options,
        **subtraction,
    )
    sweep = METHODS[setting.method].strength
    return request if sweep is None else sweep.apply(request, setting.sweep_value or 0.0)


def style_description(style: Style) -> str:
    """All that captions say of a style, in their words; without the icon set where captions have no name for it."""
    words = " ".join(filter(None, (style.transform.kind, SET_WORDS.get(style.icon_set, ""))))
    return f"{words} style, on {colour_name(style.transform.background)}"


def _truncate_phrases(model: Model, prompt: str) -> str:
    """As many of the comma-separated phrases, from the first on, as the text encoders have tokens for."""
    while "," in prompt:
        try:
            for encoder in model.text_encoders:
                encoder.tokenize([prompt])
        except InputError:
            prompt = prompt.rpartition(",")[0]
        else:
            break
    return prompt


def _reference_image(task: Task, kind: ReferenceKind, side: int) -> Image.Image | None:
    match kind:
        case "none":
            return None
        case "blank":
            return Image.new("RGB", (side, side), (128, 128, 128))
        case "wrong":
            pixels = render(task.reference_content, unrelated_style(task), side)
        case "other":
            pixels = render(task.swap_content, task.style, side)
        case "true":
            pixels = render(task.reference_content, task.style, side)
    return Image.fromarray(pixels)


def unrelated_style(task: Task) -> Style:
    """A style that has nothing to do with the task's: another transform family, other colours, another icon set."""
    rng = np.random.default_rng((task.seed, 77))
    families = [name for name in TRAINED_FAMILIES if name != task.style.transform.kind]
    sets = [
        name for name in TRAINED_SETS if name != task.style.icon_set and splits().trains(task.reference_content, name)
    ] or list(TRAINED_SETS)
    return Style(str(rng.choice(sets)), sample_transform(rng, families))


def run_tasks(
    model: Model,
    tasks: Sequence[Task],
    setting: Setting,
    steps: int = STEPS,
    on_batch: Callable[[int, int], None] | None = None,
) -> Outputs:
    """Generate an image for each task, `BATCH` of them together; `on_batch` gets the number done and in all."""
    images: list[Image.Image] = []
    seconds, fit_seconds = 0.0, list[float]()
    with _count_unet_rows() as counter:
        for i in range(0, len(tasks), GENERATION_BATCH):
            engine, began = Engine(model), time.process_time()
            runs: list[Run] = []
            for task in tasks[i : i + GENERATION_BATCH]:
                fit_progress: list[TrainProgress] = []
                before = time.process_time()
                with on_progress(fit_progress.append):
                    runs.append(engine.submit(to_request(task, setting, model, steps)).prepare())
                if fit_progress:
                    fit_seconds.append(time.process_time() - before)
                    began += fit_seconds[-1]
                else:
                    fit_seconds.append(math.nan if setting.method in FITTED else 0.0)
            engine.run()
            images += [run.result().images[0] for run in runs]
            seconds += time.process_time() - began
            if on_batch is not None:
                on_batch(len(images), len(tasks))
    n = max(len(tasks), 1)
    pixels = pixels_of(images) if images else np.zeros((0, TRUTH_SIDE, TRUTH_SIDE, 3), np.uint8)
    return Outputs(pixels, seconds / n, counter[0] / n, fit_seconds)


@contextmanager
def _count_unet_rows() -> Generator[list[int]]:
    """While entered, the batch rows that go through any UNet are added to the list's one number."""
    counter = [0]

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, UNet):
            counter[0] += len(args[0])

    modules: Any = importlib.import_module("torch.nn.modules.module")  # its hooks are not among torch's typed names
    handle = modules.register_module_forward_pre_hook(count)
    try:
        yield counter
    finally:
        handle.remove()


def held_out_tasks(count: int, families: Sequence[str] = TRAINED_FAMILIES, seed: int = SEED) -> list[Task]:
    """Tasks of unseen (concept, icon set) cells of trained concepts, transform families in equal numbers.

    The truth was never trained on, its concept and its set were; the reference is another concept of that set.
    """
    rng = np.random.default_rng(seed)
    cells = sorted(cell for cell in splits().cells if cell[0] in TRAINED_CONCEPTS and cell[1] in TRAINED_SETS)
    order = np.concatenate([rng.permutation(len(cells)) for _ in range(math.ceil(count / len(cells)))])
    return [
        make_task(*cells[int(cell)], sample_transform(rng, [families[i % len(families)]]), rng, seed + i)
        for i, cell in enumerate(order[:count])
    ]


def make_task(target: str, icon_set: str, transform: StyleTransform, rng: np.random.Generator, seed: int) -> Task:
    """A task of a concept in a style, with two other concepts at random for its references to show."""
    held_out = icon_set not in TRAINED_SETS
    others = [name for name in TRAINED_CONCEPTS if name != target and (held_out or splits().trains(name, icon_set))]
    shown, other = (str(name) for name in rng.choice(others, 2, replace=False))
    return Task(target, Style(icon_set, transform), shown, other, seed)


def with_family(transform: StyleTransform, family: str) -> StyleTransform:
    """The same colours, amount and seed in another family."""
    return replace(transform, kind=family)
