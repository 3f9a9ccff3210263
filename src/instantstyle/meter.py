"""Meter: what the model's own CLIP sees in a picture, against the same seed without the reference.

Three numbers, each a cosine between -1 and 1:

    prompt   cos(image(x), text(prompt))                                    how near the picture is to its words
    look     cos(image(x) - P x, image(r) - P r), P the span of the words   how near it is to the reference's look
    content  cos(image(x), text(what the reference shows))                  how much of its content came along

The words that are taken out for `look` are the prompt's and the content's: what both pictures show is no likeness of
their style.  What CLIP does not see (a brush's exact hand, small detail) the meter does not see either.

Checked against true pictures with the built-in model (benchmarks/results/meter.md): `prompt` tells pictures that show
what was asked for from those that do not; `look` does *not* tell a style that arrived from one that did not, so it is
shown and nothing is concluded or ranked by it; content did not come along in any picture, so `content` could only be
tried on copies of the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.errors import InputError
from instantstyle.methods.content_subtraction import subtract_content
from instantstyle.methods.prompts import nearest_words, normalize_prompt
from instantstyle.methods.reference_embedding import embed_references
from instantstyle.model import Model
from instantstyle.request import Request, Result, StyleReference
from instantstyle.sampling import Engine, Progress


@dataclass(frozen=True)
class MeterReading:
    """Cosines of one picture, and of the picture of the same seed without the reference."""

    prompt: float
    look: float
    content: float | None
    """None where nobody said what the reference shows and the model has no vocabulary to guess from."""
    prompt_without: float
    look_without: float
    content_without: float | None
    content_words: str | None

    @property
    def score(self) -> float:
        """What pictures of one request are ranked by: `prompt`, and content that came along taken off.

        Chosen on trained cells, where `look` made the order of four seeds worse than none.
        """
        leaked = 0.0 if self.content is None else max(0.0, self.content - (self.content_without or 0.0))
        return self.prompt - leaked

    def as_dict(self) -> dict[str, float | str | None]:
        """For JSON; rounded to what can be told apart."""
        given = {name: round(x, 4) if isinstance(x, float) else x for name, x in asdict(self).items()}
        return {**given, "score": round(self.score, 4)}


@dataclass(frozen=True)
class RankedResult:
    """A result of one picture and what the meter reads on it."""

    result: Result
    reading: MeterReading


def without_reference(request: Request) -> Request:
    """The same request with no style: what the meter compares with."""
    plain: dict[str, object] = {"method": "none", "references": (), "plan": None, "window": (0.0, 1.0), "options": {}}
    return request.model_copy(update={**plain, "subtraction": "paper", "combine": "concat", "fit": "squash"})


def can_measure(model: Model, request: Request) -> bool:
    """Whether there is a reference, and a CLIP that sees and reads in one space."""
    if not request.references or model.image_encoder is None:
        return False
    try:
        _texts(model, ["a"], _width(model))
    except InputError:
        return False
    return True


@torch.no_grad()
def measure(
    model: Model, request: Request, images: Sequence[Image.Image], without: Sequence[Image.Image]
) -> list[MeterReading]:
    """A reading of each picture of a request; `without` are those of `without_reference(request)`, as many.

    Raises InputError where the model has no CLIP for it: see `can_measure`.
    """
    references = [each for each in request.references if each.weight] or list(request.references)
    if not references:
        raise InputError("there is no reference to measure by: give the request a style reference")
    width = _width(model)
    seen, bare = F.normalize(_see(model, images), dim=-1), F.normalize(_see(model, without), dim=-1)
    shown = F.normalize(_reference(model, request, references), dim=-1)
    prompt = _texts(model, [request.prompt], width)
    words = content_of(model, request, references, shown)
    content = _texts(model, words, width) if words else None
    spanned = prompt if content is None else torch.cat([prompt, content])
    readings: list[MeterReading] = []
    numbers = [_cosines(x, shown, prompt, content, spanned) for x in (seen, bare)]
    for (p, look, c), (p0, look0, c0) in zip(*numbers, strict=True):
        readings.append(MeterReading(p, look, c, p0, look0, c0, ", ".join(words) or None))
    return readings


def best_of(
    model: Model, request: Request, seeds: int, *, progress: Callable[[Progress], None] | None = None
) -> list[RankedResult]:
    """A request of one picture drawn with so many seeds, from its own upwards: the best by `MeterReading.score` first.

    Each seed is drawn without the reference too, so that the cost is that of 2 * `seeds` pictures; all are stepped
    together.  `progress` is called after each step of the first.  Raises InputError for a request that the meter
    cannot judge.
    """
    if request.count != 1:
        raise InputError(f"best_of draws one picture a seed, and count is {request.count}: leave it at 1")
    if seeds < 1:
        raise InputError(f"best_of needs at least one seed, not {seeds}")
    if not can_measure(model, request):
        raise InputError(
            "the meter ranks by a style reference and a CLIP that sees and reads: "
            + ("give a reference" if not request.references else "this model has none")
        )
    engine = Engine(model)
    first = engine.submit(request)
    wanted = [request.model_copy(update={"seed": (first.resolved.seed + i) % 2**63}) for i in range(seeds)]
    runs = [first, *(engine.submit(each) for each in wanted[1:])]
    bare = [engine.submit(without_reference(each)) for each in wanted]
    for step in first:
        if progress is not None:
            progress(step)
    engine.run()
    ranked = [
        RankedResult(result, measure(model, result.request, result.images, without.result().images)[0])
        for result, without in zip([run.result() for run in runs], bare, strict=True)
    ]
    return sorted(ranked, key=lambda each: -each.reading.score)


def content_of(
    model: Model, request: Request, references: Sequence[StyleReference], shown: Float[Tensor, "1 dim"]
) -> list[str]:
    """What the references show: as said, else the nearest word of the model's vocabulary, else nothing."""
    said = [phrase for each in references for phrase in each.content_phrases if phrase.strip().lower() != "auto"]
    if said:
        return list(dict.fromkeys(said))
    return nearest_words(model, shown) if model.vocabulary else []


def _cosines(
    x: Float[Tensor, "n dim"],
    shown: Float[Tensor, "1 dim"],
    prompt: Float[Tensor, "1 dim"],
    content: Float[Tensor, "m dim"] | None,
    spanned: Float[Tensor, "k dim"],
) -> list[tuple[float, float, float | None]]:
    near = x @ prompt.T
    bare, wanted = subtract_content(x, spanned, 1.0, "projected"), subtract_content(shown, spanned, 1.0, "projected")
    look = F.normalize(bare, dim=-1) @ F.normalize(wanted, dim=-1).T
    came = None if content is None else (x @ content.T).amax(-1)
    return [(float(near[i, 0]), float(look[i, 0]), None if came is None else float(came[i])) for i in range(len(x))]


def _reference(model: Model, request: Request, references: Sequence[StyleReference]) -> Float[Tensor, "1 dim"]:
    """The weighted mean of the references' embeddings."""
    seen = F.normalize(embed_references(model, [each.image for each in references], request.fit).float(), dim=-1)
    weights = torch.tensor([each.weight or 1.0 for each in references], device=seen.device)
    return (seen * weights[:, None]).sum(0, keepdim=True)


def _see(model: Model, images: Sequence[Image.Image]) -> Float[Tensor, "n dim"]:
    return model.encode_image(list(images)).float()


def _width(model: Model) -> int:
    assert model.image_encoder is not None
    return int(model.image_encoder.net.config.projection_dim)


def _texts(model: Model, texts: Sequence[str], width: int) -> Float[Tensor, "n dim"]:
    read = [normalize_prompt(model, text).text for text in texts]
    return F.normalize(model.encode_content_text(read, width).float(), dim=-1)
