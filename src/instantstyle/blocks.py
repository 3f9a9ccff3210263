"""Where in a UNet: its block layout, the sites of its attention layers, and the plan that weights them.

No torch here: a plan is read and checked before anything heavy is imported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from instantstyle.errors import PlanError, nearest

Stage = Literal["down", "mid", "up"]
Kind = Literal["self", "cross"]


class Site(NamedTuple):
    """The address of one attention layer: `up.0.1.3.cross` is block 0 of the up path, its attention 1, layer 3."""

    stage: Stage
    block: int
    attention: int
    layer: int
    kind: Kind

    def __str__(self) -> str:
        return ".".join(map(str, self))

    @property
    def module(self) -> str:
        """The attention module this layer belongs to, as plans name it: `up.0.1`, `down.2.1`, `mid`."""
        return "mid" if self.stage == "mid" else f"{self.stage}.{self.block}.{self.attention}"

    def level(self, levels: int) -> int:
        """The resolution it works at, 0 the highest, in a UNet of so many: the index into `channels` and `heads`."""
        return {"down": self.block, "mid": levels - 1, "up": levels - 1 - self.block}[self.stage]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The layout of a Stable Diffusion UNet; defaults are SDXL's (stable-diffusion-xl-base-1.0, unet/config.json)."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280)
    """Width of each resolution, highest resolution first."""
    depths: tuple[int, ...] = (0, 2, 10)
    """Transformer layers in each resolution's attentions; 0 where it has none."""
    heads: tuple[int, ...] = (5, 10, 20)
    """Attention heads at each resolution (diffusers' misnamed `attention_head_dim`)."""
    context_dim: int = 2048
    """Width of the text tokens."""
    pooled_dim: int | None = 1280
    """Width of the pooled text embedding; None for families without `text_time` conditioning (SD1.5)."""
    size_dim: int = 256
    """Width of each sinusoid of the six size numbers."""
    groups: int = 32
    linear: bool = True
    """Whether a transformer's first and last projections are linear layers (SDXL) or 1x1 convolutions (SD1.5)."""
    resnets: int = 2

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels[0]

    @property
    def mid_depth(self) -> int:
        """Transformer layers in the middle block: as many as the lowest resolution that has any."""
        return next((depth for depth in reversed(self.depths) if depth), 1)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every attention layer, in diffusers' registration order (down, up, mid; self before cross in each layer).

        The position in this tuple is the N of published IP-Adapter keys, `ip_adapter.N.to_k_ip.weight`.
        """
        levels = len(self.channels)
        modules: list[tuple[Stage, int, int, int]] = []
        modules += [("down", i, j, self.depths[i]) for i in range(levels) for j in range(self.resnets)]
        modules += [("up", i, j, self.depths[levels - 1 - i]) for i in range(levels) for j in range(self.resnets + 1)]
        modules += [("mid", 0, 0, self.mid_depth)]
        kinds: tuple[Kind, ...] = ("self", "cross")
        return tuple(
            Site(*module, layer, kind) for *module, depth in modules for layer in range(depth) for kind in kinds
        )

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The attention modules in execution order (down, mid, up), as ComfyUI counts them: SDXL has eleven."""
        order = {"down": 0, "mid": 1, "up": 2}
        return tuple(dict.fromkeys(site.module for site in sorted(self.sites, key=lambda s: (order[s.stage], s[1:4]))))


@dataclass(frozen=True)
class BlockPlan:
    """How loudly a style speaks at each attention module; where nothing is said, not at all.

    `weights` maps a prefix of a module's address (`up.0.1`, `up.0`, `up`, `mid`, `all`) to a strength; the longest
    prefix that fits a site wins.  `negative` maps prefixes where the reference stands in the *unconditional* row
    instead ("precise" transfer: at the layout block the style picture is what guidance pushes away from).
    """

    weights: Mapping[str, float]
    negative: Mapping[str, float] = field(default_factory=dict[str, float])

    def at(self, site: Site) -> float:
        """The strength at a site, 0 where the plan is silent."""
        return _longest(self.weights, site)

    def against(self, site: Site) -> float:
        """The strength at which the reference enters the unconditional row at a site."""
        return _longest(self.negative, site)

    def scaled(self, by: float) -> "BlockPlan":
        """The same plan, all strengths multiplied."""
        return BlockPlan({k: v * by for k, v in self.weights.items()}, {k: v * by for k, v in self.negative.items()})

    def __bool__(self) -> bool:
        return any(self.weights.values()) or any(self.negative.values())


def _longest(weights: Mapping[str, float], site: Site) -> float:
    address = f"{site.module}."
    fitting = [prefix for prefix in weights if prefix == "all" or address.startswith(f"{prefix}.")]
    return weights[max(fitting, key=lambda prefix: -1 if prefix == "all" else len(prefix))] if fitting else 0.0


_TERM = re.compile(r"(?P<block>[a-z]+(?:[._]?\w+)*?|\d+)\s*[=:]\s*(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+))")


def parse_plan(text: str, config: UNetConfig, presets: Mapping[str, BlockPlan]) -> BlockPlan:
    """Read a plan: preset names joined by `+`, terms such as `up.0.1=1.2,down.2.1=0.5`, or ComfyUI's `6:1,3:0.5`.

    Raises PlanError, naming what is known, when a preset or block does not exist.
    """
    names = text.strip().split("+")
    if all(name in presets for name in names):
        parts = [presets[name] for name in names]
        return BlockPlan(
            {k: v for part in parts for k, v in part.weights.items()},
            {k: v for part in parts for k, v in part.negative.items()},
        )
    weights: dict[str, float] = {}
    for term in filter(None, (part.strip() for part in text.split(","))):
        match = _TERM.fullmatch(term)
        if match is None:
            known = ", ".join(presets)
            raise PlanError(
                f"cannot read {term!r} in plan {text!r}: give one of {known}, or terms such as up.0.1=1,down.2.1=0.5"
                f"{nearest(term, presets)}"
            )
        weights[_block(match["block"], config)] = float(match["weight"])
    if not weights:
        raise PlanError(f"the plan {text!r} is empty: give one of {', '.join(presets)}, or terms such as up.0.1=1")
    return BlockPlan(weights)


def _block(name: str, config: UNetConfig) -> str:
    modules = config.modules
    if name.isdigit():
        if int(name) >= len(modules):
            raise PlanError(f"there is no block {name}: this model has {len(modules)}, counted from 0 in running order")
        return modules[int(name)]
    known = {"all", *modules, *(m.rsplit(".", 1)[0] for m in modules), *(m.split(".")[0] for m in modules)}
    if name not in known:
        raise PlanError(f"there is no block {name!r} in this model: it has {', '.join(modules)}{nearest(name, known)}")
    return name
