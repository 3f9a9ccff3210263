"""Injection: all that a style method asks of the denoiser, as data.

A run's rows of the batch are, in this order and each `count` times: the unconditional one (with guidance alone), the
conditional one, one for each of `extra_guidance`; then the reference rows, once each.  `attend` sees them all.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from jaxtyping import Float
from torch import Tensor

from instantstyle.encoders.clip import TextEmbeddings
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, plain
from instantstyle.networks.unet import UNet

_T = TypeVar("_T")
PromptRole = Literal["negative", "prompt"]
"""Which of the request's two texts a row reads."""


@dataclass(frozen=True)
class StepContext:
    """A step of a run: all that `attend_at`, reference latents and x0 hooks may depend on; no layer has a clock.

    The denoiser's input there is `alpha * x0 + sigma * noise`, whichever the sampler: with alpha^2 + sigma^2 = 1, or
    alpha + sigma = 1 in flow matching.
    """

    step: int
    """From 0."""
    num_steps: int
    timestep: float
    """In training steps, 0 to 999."""
    alpha: float
    sigma: float
    next_timestep: float = 0.0
    """Of the step that follows; 0 behind the last."""


ReferenceLatents = Callable[[StepContext], Tensor]
"""The latents of reference rows as the denoiser is to see them at a step, [rows, channels, height, width].

The same step gives the same latents: randomness comes from the request's seed and the step.
"""
X0Hook = Callable[[StepContext, Tensor], Tensor]
"""From the x0 that a step predicts to the one that the run goes on with, both [count, channels, height, width]
latents.  The predicted noise stays as it is."""


@dataclass(frozen=True)
class ReferenceBatch:
    """Rows that go through the denoiser beside a run's own, for `attend` to read; their predictions are dropped."""

    text: TextEmbeddings
    """What each row reads."""
    latents: ReferenceLatents
    time_ids: Float[Tensor, "rows 6"] | None = None
    """SDXL's size conditioning in float32; None: the run's own."""
    clean_latents: Float[Tensor, "references channels height width"] | None = None
    """The references without noise, each once."""

    def __len__(self) -> int:
        return len(self.text.prompt_embeds)


@dataclass(frozen=True)
class GuidanceTerm:
    """One more prediction for the run's own latents, from which guidance pushes away besides the unconditional one.

    The run's prediction becomes guided + weight * (conditional - this one); `attend` decides in what they differ.
    """

    weight: float
    text: PromptRole = "prompt"


@dataclass(frozen=True)
class Injection:
    """What a method asks for, inside its window; outside of it the run is the bare model."""

    attend: Attend = plain
    """What the run's rows do at each attention layer."""
    window: tuple[float, float] = (0.0, 1.0)
    """The part of the run it holds for; 0 is the first step, 1 its end."""
    attend_at: Callable[[StepContext], Attend] | None = None
    """`attend` as a function of the step, where it changes in the course of the run; None: `attend` at every step."""
    unet: UNet | None = None
    """The network that predicts, one that shares all but some tensors with the model's; None: the model's."""
    reference_batch: ReferenceBatch | None = None
    uncond_text: PromptRole = "negative"
    """What the unconditional row reads."""
    extra_guidance: tuple[GuidanceTerm, ...] = ()
    x0_hook: X0Hook | None = None

    def at(self, step: int, num_steps: int) -> "Injection":
        """What holds at a step: the window holds from its start up to, not with, its end."""
        return self if self.window[0] <= step / num_steps < self.window[1] else NO_INJECTION

    def attend_for(self, step: StepContext) -> Attend:
        """What the rows do at a step that this injection holds for."""
        return self.attend if self.attend_at is None else self.attend_at(step)


NO_INJECTION = Injection()
"""The bare model."""


@dataclass(frozen=True)
class PreparationStep:
    """A piece of what is computed before a run's first step, of about the cost of one call of the denoiser."""

    phase: str
    """What is being done, such as "inverting the reference"."""
    step: int
    """Pieces done."""
    steps: int


Preparation = Generator[PreparationStep, None, _T]
"""Work in pieces, and its result."""


def make_injection(model: Model, request: ResolvedRequest) -> Preparation[Injection]:
    """What the request's method asks for; nothing where no style is to enter.  Raises what the method raises."""
    if not request.is_styled:
        return NO_INJECTION
    made: Injection | Preparation[Injection] = request.method.load()(model, request)
    return made if isinstance(made, Injection) else (yield from made)


def no_style(model: Model, request: ResolvedRequest) -> Injection:
    """The method "none"."""
    return NO_INJECTION


def run_to_end(work: Generator[Any, None, _T]) -> _T:
    """Do all pieces of some work at once, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast("_T", end.value)
