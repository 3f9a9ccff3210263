"""A picture in the style of a picture.

import instantstyle as ist

model = ist.load()
request = ist.Request("a cat", references=[ist.StyleReference("ref.png", content="dog")], seed=7)
ist.generate(model, request).save("cat.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from instantstyle.utils.threads import set_wait_policy

set_wait_policy()  # before torch is loaded, or it has no effect

if TYPE_CHECKING:
    from instantstyle.blocks import BlockPlan, Site
    from instantstyle.errors import (
        Cancelled,
        InputError,
        InstantStyleError,
        OutputError,
        PictureError,
        PlanError,
        WeightsError,
    )
    from instantstyle.loading import load
    from instantstyle.methods.reference_embedding import make_card
    from instantstyle.model import Model
    from instantstyle.pipeline import generate
    from instantstyle.request import Control, Init, Request, Result, StyleReference, recall
    from instantstyle.request.style_card import StyleCard, read_card
    from instantstyle.sampling import Engine, Progress, Run

    __version__: str

__all__ = [
    "BlockPlan",
    "Cancelled",
    "Control",
    "Engine",
    "Init",
    "InputError",
    "InstantStyleError",
    "Model",
    "OutputError",
    "PictureError",
    "PlanError",
    "Progress",
    "Request",
    "Result",
    "Run",
    "Site",
    "StyleCard",
    "StyleReference",
    "WeightsError",
    "__version__",
    "generate",
    "load",
    "make_card",
    "read_card",
    "recall",
]

_HOME = {
    "blocks": ("BlockPlan", "Site"),
    "request.style_card": ("StyleCard", "read_card"),
    "sampling": ("Engine", "Progress", "Run"),
    "errors": (
        "Cancelled",
        "InputError",
        "InstantStyleError",
        "OutputError",
        "PictureError",
        "PlanError",
        "WeightsError",
    ),
    "pipeline": ("generate",),
    "loading": ("load",),
    "model": ("Model",),
    "request": ("Control", "Init", "Request", "Result", "StyleReference", "recall"),
    "methods.reference_embedding": ("make_card",),
}
"""Which module each public name lives in; it is imported when the name is first used, so that importing the package
imports no torch."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("instantstyle.request").package_version()
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"instantstyle.{module}"), name)
    raise AttributeError(f"module 'instantstyle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
