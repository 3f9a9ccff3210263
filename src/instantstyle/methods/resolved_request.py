"""ResolvedRequest: a request as everything below `resolve` reads it, with nothing left to parse or to fill in."""

from collections.abc import Mapping
from dataclasses import dataclass

from instantstyle.blocks import BlockPlan
from instantstyle.methods.options import Value
from instantstyle.methods.specs import MethodSpec
from instantstyle.request import Request, StyleReference


@dataclass(frozen=True, eq=False)
class ResolvedReference:
    """A reference of weight above 0."""

    given: StyleReference
    plan: BlockPlan | None
    """Its own plan, or its style card's; None: the request's."""
    content: tuple[str, ...]
    """What its method takes out of it, or how it is called: phrases as typed, "auto" among them until it was chosen."""

    @property
    def weight(self) -> float:
        """Its share among the references, and its strength."""
        return self.given.weight


@dataclass(frozen=True, eq=False)
class ResolvedRequest:
    """What `sampling.resolve` makes of a request for one model, once."""

    request: Request
    """With every default filled in: what the result remembers."""
    method: MethodSpec
    plan: BlockPlan
    references: tuple[ResolvedReference, ...]
    options: Mapping[str, Value]
    prompt: str
    """As the text encoders are to read it."""
    negative: str
    size: tuple[int, int]
    """(width, height) in pixels."""
    seed: int
    guidance: float
    """Scale of classifier-free guidance."""
    guidance_rescale: float
    warnings: tuple[str, ...]
    distilled_guidance: float | None = None
    """Of networks that read their guidance as a number (Flux dev): that number."""

    @property
    def window(self) -> tuple[float, float]:
        """The part of the run in which the style holds; 0 is its first step, 1 its end."""
        return self.request.window

    @property
    def count(self) -> int:
        """Pictures."""
        return self.request.count

    @property
    def steps(self) -> int:
        """Steps of the schedule, before an init picture leaves some of them out."""
        return self.request.steps

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there is an unconditional row to guide away from."""
        return self.guidance > 1

    @property
    def branches(self) -> int:
        """Rows for each picture: the unconditional one, with guidance alone, and the conditional one."""
        return 2 if self.do_classifier_free_guidance else 1

    @property
    def is_styled(self) -> bool:
        """Whether a style is to enter anywhere in the run."""
        source = self.options.get("reference-source")
        generated = source == "generated" and not self.request.references
        return (bool(self.references) or generated) and self.window[0] < self.window[1]
