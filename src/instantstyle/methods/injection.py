"""All that a style method asks of the denoiser, as data.

A run's rows of the UNet's batch are, in this order and each `count` times: the unconditional one (with guidance
alone), the conditional one, one for each of `negatives`; then the reference rows, once each.  `attend` sees them all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from instantstyle.model import TextEmbeddings
from instantstyle.networks.attention import Attend, plain
from instantstyle.networks.unet import UNet

PromptRole = Literal["negative", "prompt"]
"""Which of the request's two texts a row reads."""


@dataclass(frozen=True)
class StepContext:
    """A step of a run: what reference rows may depend on, and nothing else, so that no layer needs a clock.

    The UNet sees `signal * picture + noise * Gaussian noise` there, whichever the sampler: signal^2 + noise^2 = 1.
    """

    step: int
    """Counted from 0."""
    num_steps: int
    timestep: float
    """In training steps, 0 to 999."""
    alpha: float
    sigma: float
    next_timestep: float = 0.0
    """The time of the next step; 0 behind the last."""


ReferenceLatents = Callable[[StepContext], Tensor]
"""The latents of reference rows as the UNet is to see them at a moment, [rows, channels, height, width].

A re-noised reference is `signal * z + noise * fresh`, an inverted one is its trajectory at that step.  The same moment
gives the same latents: randomness comes from the request's seed and the step.
"""


X0Hook = Callable[[StepContext, Tensor], Tensor]
"""From the picture that a run expects after a step's prediction to the one it goes on to, both
[count, channels, height, width] latents.  What is taken for noise stays as it is."""


@dataclass(frozen=True)
class ReferenceBatch:
    """Rows that go through the UNet beside a run's own, for `attend` to look at; their predictions are dropped."""

    text: TextEmbeddings
    """What each row reads: `context` and, where the family has it, `pooled`."""
    latents: ReferenceLatents
    time_ids: Tensor | None = None
    """SDXL's six numbers, [rows, 6] in float32; None: the run's own."""
    clean_latents: Tensor | None = None
    """What the references show, without noise and each once, [references, channels, height, width]."""

    def __len__(self) -> int:
        return len(self.text.prompt_embeds)


@dataclass(frozen=True)
class GuidanceTerm:
    """One more prediction for the run's own latents, from which guidance pushes away besides the unconditional one.

    What spoils it is `attend`'s business.  The run's prediction becomes guided + weight * (conditional - this).
    """

    weight: float
    text: PromptRole = "prompt"


@dataclass(frozen=True)
class Injection:
    """What a method asks for; the engine does it.

    All but `settled` holds for the window only: outside of it the run is the bare model.
    """

    attend: Attend = plain
    """What the run's rows do at each attention layer; `plain` where no style enters."""
    window: tuple[float, float] = (0.0, 1.0)
    """The part of the run the injection holds for; 0 is its first step, 1 its end."""
    resolved_fields: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of the request as the method understood them, for the result to remember."""
    unet: UNet | None = None
    """The network that predicts, one that shares all but some tensors with the model's (`nets.varied`); None: that."""
    reference_batch: ReferenceBatch | None = None
    """Rows that the run's own may look at."""
    uncond_text: PromptRole = "negative"
    """What the unconditional row reads."""
    extra_guidance: tuple[GuidanceTerm, ...] = ()
    """Further predictions to push away from."""
    x0_hook: X0Hook | None = None
    """What becomes of the expected picture at each step; None: nothing."""

    def at(self, step: int, steps: int) -> "Injection":
        """What is asked for at a step, counted from 0: the window holds from its start up to, not with, its end."""
        return self if self.window[0] <= step / steps < self.window[1] else NO_INJECTION


NO_INJECTION = Injection()
"""The bare model."""
