"""All that a style method asks of the denoiser, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from instantstyle.nets.attention import Attend, plain


@dataclass(frozen=True)
class Injection:
    """What a method asks for; the engine does it.

    Rows are [unconditional, conditional], each `count` times; without guidance the conditional ones alone.
    """

    attend: Attend = plain
    """What the run's own rows do at each attention layer; `plain` where no style enters."""
    window: tuple[float, float] = (0.0, 1.0)
    """The part of the run `attend` holds for: outside of it the rows are plain."""
    settled: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of the request as the method understood them, for the result to remember."""

    def at(self, step: int, steps: int) -> Attend:
        """What the run does at a step, counted from 0: the window holds from its start up to, not with, its end."""
        return self.attend if self.window[0] <= step / steps < self.window[1] else plain
