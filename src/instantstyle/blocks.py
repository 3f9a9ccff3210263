"""UNetConfig, Site and BlockPlan: a UNet's layout, the addresses of its attention layers, and a scale for each.

No torch here: a plan is parsed and checked before anything heavy is imported.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, cast

from instantstyle.errors import PlanError, did_you_mean

Stage = Literal["down", "mid", "up", "double", "single", "joint"]
"""The path of a UNet's block; or the kind of a transformer's: `double` with a stream of weights for each of text and
picture, `single` with one for both (Flux), `joint` where there is but one kind of block (Stable Diffusion 3)."""
AttentionKind = Literal["self", "cross", "joint"]
"""The picture attends to itself; to what else there is, such as a text; or text and picture to both."""

TRANSFORMER_STAGES: frozenset[str] = frozenset({"double", "single", "joint"})


class Site(NamedTuple):
    """The address of one attention layer.

    `up.0.1.3.cross` is block 0 of a UNet's up path, its attention 1, layer 3; `double.7.joint` is block 7 of a
    transformer, whose attention and layer are 0 and not said.
    """

    stage: Stage
    block: int
    attention: int
    layer: int
    kind: AttentionKind

    @classmethod
    def of_block(cls, stage: Stage, block: int, kind: AttentionKind) -> "Site":
        """The address of a transformer's attention."""
        return cls(stage, block, 0, 0, kind)

    def __str__(self) -> str:
        parts = (self.stage, self.block, self.kind) if self.stage in TRANSFORMER_STAGES else self
        return ".".join(map(str, parts))

    @property
    def module(self) -> str:
        """The attention module this layer belongs to, as plans name it: `up.0.1`, `down.2.1`, `mid`, `double.7`."""
        if self.stage in TRANSFORMER_STAGES:
            return f"{self.stage}.{self.block}"
        return "mid" if self.stage == "mid" else f"{self.stage}.{self.block}.{self.attention}"

    def resolution_level(self, levels: int) -> int:
        """The resolution it works at, 0 the highest, in a UNet of so many: the index into `channels` and `heads`."""
        if self.stage in TRANSFORMER_STAGES:
            return 0
        return {"down": self.block, "mid": levels - 1, "up": levels - 1 - self.block}[self.stage]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The layout of a diffusion transformer that diffusers has."""

    class_name: str
    """diffusers' class."""
    latent_channels: int = 16
    """Channels of the latents that it denoises."""
    num_layers: int
    num_single_layers: int = 0
    """Blocks with one stream for both text and picture, behind those with two (Flux)."""
    dual_attention_layers: tuple[int, ...] = ()
    """Blocks with a second attention, of the picture to itself (SD3.5 medium)."""
    num_attention_heads: int
    attention_head_dim: int
    joint_attention_dim: int = 4096
    """Width of the text tokens."""
    pooled_projection_dim: int
    guidance_embeds: bool = False
    """Whether guidance is distilled into the network and a number that it reads (Flux dev)."""
    patch_size: int = 2
    """Latents along a side of what one token stands for: heights and widths of latents are multiples of it."""
    max_patches: int | None = None
    """Patches along a side that there are positions for; None: any number."""

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every attention layer, in diffusers' registration order."""
        stage: Stage = "double" if self.num_single_layers else "joint"
        blocks: list[Site] = []
        for block in range(self.num_layers):
            blocks.append(Site.of_block(stage, block, "joint"))
            blocks += [Site.of_block(stage, block, "self")] if block in self.dual_attention_layers else []
        return (*blocks, *(Site.of_block("single", block, "joint") for block in range(self.num_single_layers)))

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The blocks, in execution order."""
        return tuple(dict.fromkeys(site.module for site in self.sites))


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The layout of a Stable Diffusion UNet; defaults are SDXL's (stable-diffusion-xl-base-1.0, unet/config.json)."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    """Width of each resolution, highest resolution first."""
    transformer_layers_per_block: tuple[int, ...] = (0, 2, 10)
    """Transformer layers in each resolution's attentions; 0 where it has none."""
    num_attention_heads: tuple[int, ...] = (5, 10, 20)
    """Attention heads at each resolution (diffusers' misnamed `attention_head_dim`)."""
    cross_attention_dim: int = 2048
    """Width of the text tokens."""
    pooled_projection_dim: int | None = 1280
    """Width of the pooled text embedding; None for families without `text_time` conditioning (SD1.5)."""
    addition_time_embed_dim: int = 256
    """Width of each sinusoid of the six size numbers."""
    norm_num_groups: int = 32
    use_linear_projection: bool = True
    """Whether a transformer's first and last projections are linear layers (SDXL) or 1x1 convolutions (SD1.5)."""
    layers_per_block: int = 2

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that it denoises, without those that an inpainting UNet reads beside them."""
        return self.out_channels

    @property
    def patch_size(self) -> int:
        """A UNet reads every latent by itself."""
        return 1

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]

    @property
    def mid_depth(self) -> int:
        """Transformer layers in the middle block: as many as the lowest resolution that has any."""
        return next((depth for depth in reversed(self.transformer_layers_per_block) if depth), 1)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every attention layer, in diffusers' registration order (down, up, mid; self before cross in each layer).

        The position in this tuple is the N of published IP-Adapter keys, `ip_adapter.N.to_k_ip.weight`.
        """
        levels = len(self.block_out_channels)
        modules: list[tuple[Stage, int, int, int]] = []
        modules.extend(
            ("down", i, j, self.transformer_layers_per_block[i])
            for i in range(levels)
            for j in range(self.layers_per_block)
        )
        modules.extend(
            ("up", i, j, self.transformer_layers_per_block[-1 - i])
            for i in range(levels)
            for j in range(self.layers_per_block + 1)
        )
        modules.append(("mid", 0, 0, self.mid_depth))
        kinds: tuple[AttentionKind, ...] = ("self", "cross")
        return tuple(
            Site(stage, block, attention, layer, kind)
            for stage, block, attention, depth in modules
            for layer in range(depth)
            for kind in kinds
        )

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The attention modules in execution order (down, mid, up), as ComfyUI counts them: SDXL has eleven."""
        order = {"down": 0, "mid": 1, "up": 2}
        return tuple(dict.fromkeys(site.module for site in sorted(self.sites, key=lambda s: (order[s.stage], s[1:4]))))


Layout = UNetConfig | TransformerConfig
"""A network's layout, of which plans read `sites` and `modules` alone."""


@dataclass(frozen=True)
class BlockPlan:
    """The scale at which a style enters at each attention module; 0 where nothing is given.

    `weights` maps a prefix of a module's address (`up.0.1`, `up.0`, `up`, `mid`, `all`) to a scale; the longest prefix
    that fits a site wins.  `negative` maps prefixes where the reference stands in the *unconditional* row instead
    ("precise" transfer: at the layout block the style picture is what guidance pushes away from).
    """

    weights: Mapping[str, float]
    negative: Mapping[str, float] = field(default_factory=dict[str, float])

    def scale(self, site: Site) -> float:
        """The scale at a site, 0 where the plan names none."""
        return _longest_prefix(self.weights, site)

    def negative_scale(self, site: Site) -> float:
        """The scale at which the reference enters the unconditional row at a site."""
        return _longest_prefix(self.negative, site)

    def scaled(self, by: float) -> "BlockPlan":
        """The same plan, all scales multiplied."""
        return BlockPlan({k: v * by for k, v in self.weights.items()}, {k: v * by for k, v in self.negative.items()})

    def __bool__(self) -> bool:
        return any(self.weights.values()) or any(self.negative.values())


def shared_blocks(config: Layout) -> str:
    """The plan of StyleAligned: all of a UNet; in a transformer its single blocks where it has such (AlignedGen's code,
    arXiv 2509.17088), else all."""
    return "single=1" if any(name.startswith("single.") for name in config.modules) else "all"


def late_up_blocks(config: Layout) -> str:
    """The plan of all up blocks after the first that has attention, `up.1=1` in SDXL: swapped attention's place.

    Of a transformer, for which none was published, the plan of StyleAligned there.
    """
    if isinstance(config, TransformerConfig):
        return shared_blocks(config)
    blocks = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in config.modules if name.startswith("up.")))
    return ",".join(f"{block}=1" for block in blocks[1:] or blocks)


def _longest_prefix(weights: Mapping[str, float], site: Site) -> float:
    address = f"{site.module}."
    fitting = [prefix for prefix in weights if prefix == "all" or address.startswith(f"{prefix}.")]
    return weights[max(fitting, key=lambda prefix: -1 if prefix == "all" else len(prefix))] if fitting else 0.0


MAX_STRENGTH = 10.0
"""The largest strength: of a plan's block, a reference or a control."""

_TERM = re.compile(
    r"(?P<block>[a-z]\w*(?:\.\w+)*(?:-\d+)?|\d+)\s*[=:]\s*(?P<weight>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)",
    re.ASCII | re.IGNORECASE,
)
"""One term.  No two parts of it can match the same text, so that reading takes time in proportion to its length."""


def plan_to_text(plan: object) -> object:
    """Diffusers' nested dictionary as its JSON text, which `parse_block_plan` reads; anything else as it is.

    Raises PlanError when the dictionary holds what JSON does not.
    """
    if not isinstance(plan, Mapping):
        return plan
    try:
        return json.dumps(plan, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as unlike:
        raise PlanError(f"a plan's dictionary holds numbers, lists of numbers and dictionaries: {unlike}") from None


def parse_block_plan(plan: str | Mapping[str, object], config: Layout, presets: Mapping[str, BlockPlan]) -> BlockPlan:
    """Parse a plan in any of the spellings in use.

    Preset names joined by `+`; terms such as `up.0.1=1.2,down.2.1=0.5` or, for several blocks in a row,
    `single.10-37=1`; ComfyUI's `6:1,3:0.5`; and what diffusers'
    `set_ip_adapter_scale` takes, `{"up": {"block_0": [0, 1, 0]}, "mid": 0.5}`, as a dictionary or as its JSON text.

    Raises PlanError, naming what is known, when a preset or block does not exist, a block is given twice or a strength
    is not between 0 and MAX_STRENGTH.
    """
    text = str(plan_to_text(plan)).strip()
    if text.startswith("{"):
        return BlockPlan(_parse_nested(text, config))
    names = [name.strip() for name in text.split("+")]
    if all(name in presets for name in names):
        parts = [presets[name] for name in names]
        return BlockPlan(
            {k: v for part in parts for k, v in part.weights.items()},
            {k: v for part in parts for k, v in part.negative.items()},
        )
    known = ", ".join(presets)
    weights: dict[str, float] = {}
    for term in filter(None, (part.strip() for part in text.split(","))):
        match = _TERM.fullmatch(term)
        if match is None:
            strange = next((name for name in map(str.strip, term.split("+")) if name not in presets), term)
            raise PlanError(
                f"cannot read {_abbreviate(term)} in a plan: give one of {known}, or terms such as "
                f"up.0.1=1,down.2.1=0.5{did_you_mean(strange, presets)}"
            )
        for block in _parse_blocks(match["block"], config):
            if block in weights:
                raise PlanError(f"the plan {_abbreviate(text)} gives the block {block} twice")
            weights[block] = _parse_strength(float(match["weight"]), match["weight"])
    if not weights:
        raise PlanError(f"the plan {_abbreviate(text)} is empty: give one of {known}, or terms such as up.0.1=1")
    return BlockPlan(weights)


def _parse_blocks(name: str, config: Layout) -> list[str]:
    """The blocks of a term: one, or several in a row, `single.10-37`."""
    first, dash, last = name.partition("-")
    if not dash:
        return [_parse_block(name, config)]
    between = [first, f"{first.rpartition('.')[0]}.{last}"]
    begin, end = (config.modules.index(each) if each in config.modules else -1 for each in between)
    if not 0 <= begin <= end:
        raise PlanError(f"there are no blocks {_abbreviate(name)} in this model: it has {_listed_modules(config)}")
    return list(config.modules[begin : end + 1])


def _listed_modules(config: Layout) -> str:
    """The modules for messages; of a transformer's many blocks the first and the last of each kind."""
    if not isinstance(config, TransformerConfig):
        return ", ".join(config.modules)
    stages = dict.fromkeys(name.split(".")[0] for name in config.modules)
    rows = [[name for name in config.modules if name.startswith(f"{stage}.")] for stage in stages]
    return ", ".join(f"{row[0]} to {row[-1]}" for row in rows)


def _parse_block(name: str, config: Layout) -> str:
    modules = config.modules
    if name.isdigit() and isinstance(config, TransformerConfig):
        raise PlanError(
            f"blocks are counted in a UNet alone, and this model is a transformer: give {_listed_modules(config)}"
        )
    if name.isdigit():
        number = name.lstrip("0") or "0"
        if len(number) > 4 or int(number) >= len(modules):
            raise PlanError(
                f"there is no block {_abbreviate(name)}: this model has {len(modules)}, counted from 0 in running order"
            )
        return modules[int(number)]
    known = {"all", *modules, *(m.rsplit(".", 1)[0] for m in modules), *(m.split(".")[0] for m in modules)}
    if name not in known:
        raise PlanError(
            f"there is no block {_abbreviate(name)} in this model: it has {_listed_modules(config)}"
            f"{did_you_mean(name, sorted(known))}"
        )
    return name


def _parse_strength(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_STRENGTH:
        raise PlanError(f"a strength in a plan is a number from 0 to {MAX_STRENGTH:g}, not {_abbreviate(where)}")
    return float(value)


def _parse_nested(text: str, config: Layout) -> dict[str, float]:
    """Diffusers' nested dictionary: a stage, in it `block_N`, in it a strength for all its attentions or one for each.

    What is not named is 0, as there.  A list of one is for all, as there.
    """
    if isinstance(config, TransformerConfig):
        raise PlanError(f"a plan's dictionary is of a UNet's blocks; this model has {_listed_modules(config)}")
    try:
        stages: dict[str, object] = json.loads(text, object_pairs_hook=_reject_repeated)
    except (ValueError, RecursionError) as broken:
        raise PlanError(f"the plan {_abbreviate(text)} begins as JSON and is none: {broken}") from None
    blocks: dict[str, list[str]] = {}  # the attentions of `up.0`, by that name
    for module in config.modules:
        blocks.setdefault(module.rsplit(".", 1)[0], []).append(module)
    given: dict[str, object] = {}
    for stage, inside in stages.items():
        mine = [block for block in blocks if block.split(".")[0] == stage]
        if not mine:
            raise PlanError(f"a plan's dictionary has down, mid and up, not {_abbreviate(stage)}")
        named = cast("dict[str, object]", inside) if isinstance(inside, dict) and stage != "mid" else None
        if named is not None:
            spelt = {f"block_{block.split('.')[1]}": block for block in mine}
            for name, value in named.items():
                if name not in spelt:
                    has = ", ".join(spelt)
                    raise PlanError(
                        f"{stage} of this model has {has}, not {_abbreviate(name)}{did_you_mean(name, spelt)}"
                    )
                given[spelt[name]] = value
        else:
            given |= dict.fromkeys(mine, cast("object", inside))
    weights: dict[str, float] = {}
    for block, value in given.items():
        modules = blocks[block]
        each = cast("list[object]", value) if isinstance(value, list) else [value]
        if len(each) not in (1, len(modules)):
            raise PlanError(
                f"{block} takes one strength, or {len(modules)} for its attentions one by one, and the plan gives "
                f"{len(each)}"
            )
        each = each * len(modules) if len(each) == 1 else each
        weights |= {module: _parse_strength(one, json.dumps(one)) for module, one in zip(modules, each, strict=True)}
    return {module: weight for module, weight in weights.items() if weight}


def _reject_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise PlanError("a plan's dictionary gives a block twice")
    return dict(pairs)


def _abbreviate(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
