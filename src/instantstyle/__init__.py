"""A picture in the style of a picture.

import instantstyle as ist

model = ist.load()
request = ist.Request("a cat", references=[ist.StyleReference("ref.png", content="dog")], seed=7)
ist.generate(model, request).save("cat.png")
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instantstyle.blocks import BlockPlan, Site
    from instantstyle.card import StyleCard, read_card
    from instantstyle.engine import Engine, Progress, Run
    from instantstyle.errors import (
        Cancelled,
        InputError,
        InstantStyleError,
        OutputError,
        PictureError,
        PlanError,
        WeightsError,
    )
    from instantstyle.generate import generate
    from instantstyle.model import Model, load
    from instantstyle.request import Control, Init, Request, Result, StyleReference, recall
    from instantstyle.sight import make_card

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
    "card": ("StyleCard", "read_card"),
    "engine": ("Engine", "Progress", "Run"),
    "errors": (
        "Cancelled",
        "InputError",
        "InstantStyleError",
        "OutputError",
        "PictureError",
        "PlanError",
        "WeightsError",
    ),
    "generate": ("generate",),
    "model": ("Model", "load"),
    "request": ("Control", "Init", "Request", "Result", "StyleReference", "recall"),
    "sight": ("make_card",),
}
"""Which module each public name lives in; it is imported when the name is first used, so that importing the package
imports no torch."""


class _Package(ModuleType):
    """Python binds a submodule to its package under the submodule's name; `generate` is to stay the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "generate" and isinstance(value, ModuleType):
            value = value.generate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("instantstyle.request").version()
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"instantstyle.{module}"), name)
    raise AttributeError(f"module 'instantstyle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
