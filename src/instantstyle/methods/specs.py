"""The table of style methods: what each is, which fields of a request it takes, its options and what it costs.

Help pages, refusals, documentation and evaluation read this table and keep none of their own.  No torch: a method's
code is imported when it is first used.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from instantstyle.blocks import BlockPlan, Layout, late_up_blocks, shared_blocks
from instantstyle.errors import InputError, did_you_mean
from instantstyle.families import Family
from instantstyle.methods.options import Option, Options
from instantstyle.request import Request


@dataclass(frozen=True)
class StrengthSweep:
    """A method's strength, which is the weight of its references: what it means, and the values an evaluation tries."""

    help: str
    default: float = 1.0
    """The weight at which the method is as published."""
    values: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """From hardly any style to more than was published."""

    def apply(self, request: Request, value: float) -> Request:
        """The request with the weight of every reference multiplied by `value`."""
        weighed = [each.model_copy(update={"weight": each.weight * value}) for each in request.references]
        return request.model_copy(update={"references": tuple(weighed)})


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One row of the table."""

    name: str
    help: str
    """One line for help pages."""
    paper: str | None = None
    """The arXiv number."""
    function: str
    """`module:name` of the function (Model, ResolvedRequest) -> Injection, in this package."""
    default_plan: str | Callable[[Layout], str] = "style"
    """Where the style enters when a request does not say."""
    request_fields: frozenset[str] = frozenset()
    """Which of STYLE_FIELDS the method uses; the others are refused."""
    reference_fields: frozenset[str] = frozenset()
    """Which of REFERENCE_FIELDS it uses."""
    takes_references: bool = True
    negative_plans: bool = False
    """Whether a plan may put the reference into the unconditional row (`precise`)."""
    plan_blocks: Callable[[Family], BlockPlan] | None = None
    """The blocks that a plan may name; None: all."""
    needs_adapter: bool = False
    """Whether it reads the reference through an IP-Adapter."""
    unet_only: str | None = None
    """Why it works on UNets alone, where it does; None: on transformers too."""
    options: Options = field(default_factory=dict[str, Option])
    strength: StrengthSweep | None = None
    cost: float = 1.0
    """Seconds a picture relative to the bare model's, about: reference rows, further predictions, an inversion."""
    fit_cost: float = 0.0
    """The same of what is trained for each reference before the first picture; 0: nothing is."""

    @property
    def supports_mask(self) -> bool:
        """Whether a reference may be bound to a region."""
        return "mask" in self.reference_fields

    def plan_for(self, family: Family) -> str:
        """The plan that holds when a request does not give one."""
        return self.default_plan if isinstance(self.default_plan, str) else self.default_plan(family.layout)

    def load(self) -> Callable[..., Any]:
        """The method's function."""
        module, name = self.function.split(":")
        return getattr(import_module(f"instantstyle.methods.{module}"), name)


STYLE_FIELDS: Mapping[str, tuple[object, ...]] = {
    "plan": (None, "style"),
    "window": ((0.0, 1.0),),
    "subtraction": ("paper",),
    "combine": ("concat",),
    "fit": ("squash",),
}
"""Fields of a request that bear on the style alone, and the values that say nothing.

"style" is among them for plans, since pictures of version 0.1.0 remember it where nothing was said.
"""
REFERENCE_FIELDS: Mapping[str, object] = {
    "content": None,
    "content_weight": 0.5,
    "mask": None,
    "plan": None,
    "adapter": None,
}
"""The same of a reference, beside its picture and weight."""

_IMAGE_PROMPT = frozenset({"plan", "window", "subtraction", "combine", "fit"})
_REFERENCE_ROWS = frozenset({"plan", "window", "fit"})
_TOKENS = StrengthSweep("the factor on the image tokens' attention: the plan's scales are multiplied by it")
_SHARE = StrengthSweep("the share of attention that goes to the reference", values=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0))

REFERENCE_OPTIONS: Options = {
    "reference-source": Option(
        "noised",
        "where the reference's rows come from: its picture noised anew at every step, its DDIM inversion, or a picture "
        "generated from the option caption",
        choices=("noised", "inverted", "generated"),
        former_name="rows",
        former_choices={"renoised": "noised", "alongside": "generated"},
    ),
    "caption": Option("", "what the reference shows, for its own row; unless given, its content"),
    "inversion-guidance": Option(2.0, "guidance of the inversion", 0.0, 50.0),
    "offset": Option(0.1, "the noisiest part of an inversion that is left out, as a share of its steps", 0.0, 0.9),
}
"""Options of every method with reference rows."""

_SPECS = (
    MethodSpec(
        name="instantstyle",
        help="image tokens at the style blocks alone, the reference's content subtracted",
        paper="2404.02733",
        function="instantstyle:instantstyle",
        request_fields=_IMAGE_PROMPT,
        reference_fields=frozenset(REFERENCE_FIELDS),
        negative_plans=True,
        needs_adapter=True,
        strength=_TOKENS,
    ),
    MethodSpec(
        name="ip-adapter",
        help="image tokens at every block, nothing subtracted",
        paper="2308.06721",
        function="instantstyle:ip_adapter",
        default_plan="all",
        request_fields=_IMAGE_PROMPT - {"subtraction"},
        reference_fields=frozenset({"mask", "plan", "adapter"}),
        negative_plans=True,
        needs_adapter=True,
        strength=_TOKENS,
    ),
    MethodSpec(
        name="style-aligned",
        help="self-attention shared with the reference's rows, queries and keys matched to them by AdaIN",
        paper="2312.02133",
        function="shared_attention:style_aligned",
        default_plan=shared_blocks,
        request_fields=_REFERENCE_ROWS,
        reference_fields=frozenset({"content"}),
        options={
            **REFERENCE_OPTIONS,
            "reference-source": replace(REFERENCE_OPTIONS["reference-source"], default="inverted"),
            "adain": Option(True, "match the statistics of queries and keys to the reference's"),
            "scale": Option(1.0, "what the reference's keys are multiplied by", 0.0, 10.0),
            "shift": Option(math.log(2), "what is added to the scores of the reference's keys", -10.0, 10.0),
        },
        strength=StrengthSweep("how often the reference's keys count", values=(0.1, 0.25, 0.5, 1.0, 2.0, 4.0)),
        cost=3.2,
    ),
    MethodSpec(
        name="swapped",
        help="keys and values of late self-attention taken from the reference (Visual Style Prompting)",
        paper="2402.12974",
        function="shared_attention:swapped",
        default_plan=late_up_blocks,
        request_fields=_REFERENCE_ROWS,
        reference_fields=frozenset({"content"}),
        options={
            **REFERENCE_OPTIONS,
            "calibrate": Option(
                False, "late in the run, give the picture the reference's colours, by channel of the latents"
            ),
        },
        strength=_SHARE,
        cost=2.0,
    ),
    MethodSpec(
        name="stylekeeper",
        help="swapped, guided away from a prediction that also takes the reference's queries",
        paper="2510.06827",
        function="shared_attention:stylekeeper",
        unet_only="it was written for self-attention, and what a picture's queries carry beside a text's is not known",
        default_plan=late_up_blocks,
        request_fields=_REFERENCE_ROWS,
        reference_fields=frozenset({"content"}),
        options={
            **REFERENCE_OPTIONS,
            "leak": Option(1.0, "how far to guide away from the prediction with the reference's queries", 0.0, 10.0),
        },
        strength=_SHARE,
        cost=2.5,
    ),
    MethodSpec(
        name="cleanstyle",
        help="image tokens whose weaker singular directions are damped early in the run",
        paper="2602.20721",
        function="cleanstyle:cleanstyle",
        unet_only="singular directions of image tokens were damped in a UNet's cross-attention alone",
        request_fields=_IMAGE_PROMPT,
        reference_fields=frozenset(REFERENCE_FIELDS) - {"mask"},
        needs_adapter=True,
        options={
            "keep": Option(1.0, "how many of the strongest directions stay as they are", 0.0, 64.0),
            "damping": Option(0.01, "how fast the others are damped with their singular value", 0.0, 10.0),
            "sharpness": Option(20.0, "how suddenly the damping ends in the course of the run", 0.0, 100.0),
            "centre": Option(0.3, "when it ends, as a share of the run"),
            "against": Option(
                0.2, "damping of what stands in the unconditional row; 0: what stands there without this method"
            ),
        },
        strength=_TOKENS,
        cost=1.1,
    ),
    MethodSpec(
        name="stylestudio",
        help="the text's attention output takes on the mean and spread of the image's (cross-modal AdaIN)",
        paper="2412.08503",
        function="stylestudio:stylestudio",
        unet_only="it matches the text's attention output to the image's, and joint attention has one for both",
        request_fields=_IMAGE_PROMPT,
        reference_fields=frozenset(REFERENCE_FIELDS) - {"mask"},
        needs_adapter=True,
        strength=StrengthSweep(
            "how far the text's attention output takes on the image's statistics",
            values=(0.1, 0.25, 0.5, 0.75, 1.0, 1.5),
        ),
        cost=1.1,
    ),
    MethodSpec(
        name="b-lora",
        help="a LoRA of two blocks trained on the reference, of which the style block's is used",
        paper="2403.14572",
        function="b_lora:b_lora",
        unet_only="its two blocks are known in SDXL alone, and the training is of a UNet",
        request_fields=frozenset({"plan", "window"}),
        reference_fields=frozenset({"content"}),
        plan_blocks=lambda family: family.b_lora_blocks,
        options={
            "fit-steps": Option(0, "training steps; 0: the family's", 0.0, 20000.0),
            "fit-rank": Option(0, "rank of the LoRA; 0: the family's", 0.0, 512.0),
            "fit-rate": Option(0.0, "learning rate; 0: the family's", 0.0, 0.1),
            "fit-prompt": Option(
                "", "what the picture is called in training; unless given, its content, else the family's"
            ),
        },
        strength=StrengthSweep("how much of the style block's change is added to the weights"),
        cost=1.5,
        fit_cost=30.0,
    ),
    MethodSpec(
        name="none", help="the bare model, without a reference", function="injection:no_style", takes_references=False
    ),
)

METHODS: Mapping[str, MethodSpec] = {spec.name: spec for spec in _SPECS}
"""Every method by its name."""


def find_method(name: str) -> MethodSpec:
    """The method of a name.  Raises InputError, naming those that exist."""
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}: give one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def check_fields(spec: MethodSpec, request: Request) -> None:
    """Raises InputError, a sentence, for what a request says of its references and the method does not use.

    Without a reference there is nothing that could be used; `resolve` warns of it.
    """
    if request.references and not spec.takes_references:
        styled = _listed(each.name for each in METHODS.values() if each.takes_references)
        raise InputError(f"method {spec.name!r} draws without a reference: leave the references out, or use {styled}")
    if not request.references:
        return
    unused = {
        name: {each.name for each in METHODS.values() if name in each.request_fields}
        for name in unused_fields(spec, request)
    }
    for name in _unused_reference_fields(spec, request):
        using = {each.name for each in METHODS.values() if name in each.reference_fields}
        unused[_of_reference(name)] = using
    if unused:
        using = set(METHODS).intersection(*unused.values())
        instead = f", or use {_listed(name for name in METHODS if name in using)}" if using else ""
        them = "it" if len(unused) == 1 else "them"
        raise InputError(f"method {spec.name!r} does not use {' and '.join(unused)}: leave {them} out{instead}")


def drop_unused_fields(request: Request) -> tuple[Request, list[str]]:
    """The request without what `check_fields` refuses, and the names of what was left out.

    Version 0.1.0 dropped such fields and remembered them in its pictures.
    """
    spec = find_method(request.method)
    if request.references and not spec.takes_references:
        return drop_unused_fields(request.model_copy(update={"references": ()}))[0], ["references"]
    if not request.references:
        return request, []
    fields, reference_fields = unused_fields(spec, request), _unused_reference_fields(spec, request)
    defaults = {name: REFERENCE_FIELDS[name] for name in reference_fields}
    references = tuple(each.model_copy(update=defaults) for each in request.references)
    update = {"references": references, **{name: STYLE_FIELDS[name][0] for name in fields}}
    return request.model_copy(update=update), [*fields, *map(_of_reference, reference_fields)]


def unused_fields(spec: MethodSpec, request: Request, used: frozenset[str] | None = None) -> list[str]:
    """The style fields that a request gives and that are not among those used, by default the method's."""
    used = spec.request_fields if used is None else used
    given = [name for name, default in STYLE_FIELDS.items() if getattr(request, name) not in default]
    return [name for name in given if name not in used]


def _unused_reference_fields(spec: MethodSpec, request: Request) -> list[str]:
    unused = {name: default for name, default in REFERENCE_FIELDS.items() if name not in spec.reference_fields}
    given = {
        name
        for name, default in unused.items()
        for each in request.references
        if getattr(each, name) not in (default, ())
    }
    return [name for name in unused if name in given]


def _of_reference(name: str) -> str:
    return f"{name.replace('_', ' ')} of a reference"


def _listed(names: Iterable[str]) -> str:
    """Methods' names for messages: method 'a', 'b' or 'c'."""
    *some, last = map(repr, names)
    return "method " + " or ".join(filter(None, (", ".join(some), last)))
