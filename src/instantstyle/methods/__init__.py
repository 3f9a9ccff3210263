"""Style methods: what each asks of the denoiser, as data, and the register of their names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instantstyle.blocks import parse_block_plan
from instantstyle.errors import InputError, did_you_mean
from instantstyle.methods.b_lora import B_LORA, b_lora
from instantstyle.methods.injection import GuidanceTerm, Injection, ReferenceBatch, ReferenceLatents, StepContext
from instantstyle.methods.instantstyle import instantstyle, ip_adapter
from instantstyle.methods.options import Option, Options, resolve_options
from instantstyle.methods.shared_attention import (
    STYLE_ALIGNED,
    STYLEKEEPER,
    SWAPPED,
    style_aligned,
    stylekeeper,
    swapped,
)
from instantstyle.methods.stylestudio import CLEANSTYLE, cleanstyle, stylestudio
from instantstyle.model import Model
from instantstyle.request import Request

__all__ = [
    "METHODS",
    "OPTIONS",
    "STRENGTH_SWEEPS",
    "GuidanceTerm",
    "Injection",
    "Method",
    "Option",
    "ReferenceBatch",
    "ReferenceLatents",
    "StepContext",
    "StrengthSweep",
    "make_injection",
]

Method = Callable[[Model, Request], Injection]
"""From a loaded model and a checked request to what the denoiser is to do."""


def no_style(model: Model, request: Request) -> Injection:
    """No style: the bare model."""
    return Injection()


METHODS: Mapping[str, Method] = {
    "instantstyle": instantstyle,
    "ip-adapter": ip_adapter,
    "style-aligned": style_aligned,
    "swapped": swapped,
    "stylekeeper": stylekeeper,
    "cleanstyle": cleanstyle,
    "stylestudio": stylestudio,
    "b-lora": b_lora,
    "none": no_style,
}
SUPPORTS_MASK = ("instantstyle", "ip-adapter", "none")
"""Methods whose references may be masked."""
OPTIONS: Mapping[str, Options] = {
    **{name: {} for name in METHODS},
    "b-lora": B_LORA,
    "style-aligned": STYLE_ALIGNED,
    "swapped": SWAPPED,
    "stylekeeper": STYLEKEEPER,
    "cleanstyle": CLEANSTYLE,
}
"""What else can be set about each method: `Request.options`."""


@dataclass(frozen=True)
class StrengthSweep:
    """A method's one knob from no style to too much of it: the weight of its reference, and what that weighs."""

    help: str
    """What the weight is, in the method's own terms."""
    default: float = 1.0
    """The weight at which the method is as published."""
    values: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """A sweep from hardly any style to more than was published."""

    def apply(self, request: Request, value: float) -> Request:
        """The request at this strength: every reference weighs `value` times what it did."""
        weighed = [each.model_copy(update={"weight": each.weight * value}) for each in request.references]
        return request.model_copy(update={"references": tuple(weighed)})


_SPEAKS = StrengthSweep(
    "how loudly the picture's tokens speak beside the text's: the plan's strengths are multiplied by it"
)
_SWAPS = StrengthSweep("the share of attention that goes to the reference", values=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0))
STRENGTH_SWEEPS: Mapping[str, StrengthSweep] = {
    "instantstyle": _SPEAKS,
    "ip-adapter": _SPEAKS,
    "b-lora": StrengthSweep("how much of the style block's change is added to the weights"),
    "style-aligned": StrengthSweep("how often the reference's keys count", values=(0.1, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "swapped": _SWAPS,
    "stylekeeper": _SWAPS,
    "cleanstyle": _SPEAKS,
    "stylestudio": StrengthSweep(
        "how far the text's answer takes on the image's statistics", values=(0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
    ),
}
"""The knob of each method that has a style to weigh: to sweep it is to compare methods, not their defaults."""


def make_injection(model: Model, request: Request) -> Injection:
    """What the request's method asks for; without references nothing, unless one is to be drawn alongside.

    Raises InputError for unknown methods and for plans that cannot be read, also where nothing would come of them.
    """
    if request.method not in METHODS:
        raise InputError(
            f"there is no method {request.method!r}: give one of {', '.join(METHODS)}"
            f"{did_you_mean(request.method, METHODS)}"
        )
    parse_block_plan(request.plan, model.family.unet, model.family.presets)
    if request.method not in SUPPORTS_MASK and any(each.mask is not None for each in request.references):
        raise InputError(
            f"method {request.method!r} lets a reference speak in the whole picture, so a mask does not go with it: "
            f"leave the mask out, or use {' or '.join(SUPPORTS_MASK[:-1])}"
        )
    knobs = resolve_options(request, OPTIONS[request.method])
    styled = request.references or knobs.get("rows") == "alongside"
    return METHODS[request.method](model, request) if styled else no_style(model, request)
