"""Style methods: what each asks of the denoiser, as data, and the register of their names."""

from collections.abc import Callable, Mapping

from instantstyle.blocks import parse_plan
from instantstyle.errors import InputError, nearest
from instantstyle.methods.image_prompt import instantstyle, ip_adapter
from instantstyle.methods.injection import Injection, Moment, Negative, Pinned, ReferenceRows
from instantstyle.model import Model
from instantstyle.request import Request

__all__ = ["METHODS", "Injection", "Method", "Moment", "Negative", "Pinned", "ReferenceRows", "inject"]

Method = Callable[[Model, Request], Injection]
"""From a loaded model and a checked request to what the denoiser is to do."""


def none(model: Model, request: Request) -> Injection:
    """No style: the bare model."""
    return Injection()


METHODS: Mapping[str, Method] = {"instantstyle": instantstyle, "ip-adapter": ip_adapter, "none": none}
LATER = ("style-aligned", "swapped", "b-lora")
"""Methods that are planned and not here yet."""


def inject(model: Model, request: Request) -> Injection:
    """What the request's method asks for; without references nothing.

    Raises InputError for unknown methods and for plans that cannot be read, also where nothing would come of them.
    """
    if request.method not in METHODS:
        there = f"there is no method {request.method!r}"
        if request.method in LATER:
            there = f"the method {request.method!r} is planned, and not in this version"
        raise InputError(f"{there}: give one of {', '.join(METHODS)}{nearest(request.method, METHODS)}")
    parse_plan(request.plan, model.family.unet, model.family.presets)
    return METHODS[request.method](model, request) if request.references else none(model, request)
