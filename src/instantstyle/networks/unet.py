"""The UNet of Stable Diffusion 1.5 and XL, its parameters named as diffusers publishes them.

The forward pass is a flat list of stages from one `UNetState` to the next, so it can be split before any attention
module: `head, tail = unet.split_at("up.0.1")`, and `unet(...)` is `tail(head(...))`.  Everything that may
differ between two calls is an argument; the network keeps nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.blocks import Site, Stage, UNetConfig
from instantstyle.errors import InputError, PlanError, did_you_mean
from instantstyle.networks.attention import (
    Attend,
    Attention,
    CrossAttentionKV,
    SpatialTransformer,
    TransformerLayer,
    plain,
)
from instantstyle.networks.layers import MLP, Downsample, ResBlock, Upsample, sinusoidal_embedding

__all__ = ["CrossAttentionKV", "Residuals", "UNet", "UNetHead", "UNetState", "UNetTail"]

Residuals = tuple[Sequence[Tensor], Tensor]
"""A ControlNet's residuals: one tensor for every skip of the down path, and one for the middle block."""


@dataclass(frozen=True)
class UNetState:
    """The state between two stages of the forward pass."""

    x: Float[Tensor, "rows channels height width"]
    """The feature map."""
    skips: tuple[Tensor, ...]
    """Feature maps of the down path that the up path has yet to concatenate, the next one last."""
    time_emb: Float[Tensor, "rows time_dim"]
    """The embedding of the timestep, and of pooled text and time ids where the family has them."""
    residuals: Residuals | None = None
    """A ControlNet's residuals until they are added, behind the middle block."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "UNetState":
        """The state with every tensor changed: `state.map(lambda t: t[rows])` picks or repeats rows."""
        residuals = self.residuals and ([change(r) for r in self.residuals[0]], change(self.residuals[1]))
        return UNetState(change(self.x), tuple(change(s) for s in self.skips), change(self.time_emb), residuals)


@runtime_checkable
class UNetHead(Protocol):
    """The network up to a split: arguments as `UNet.forward`."""

    def __call__(
        self,
        latents: Tensor,
        time: Tensor,
        text: CrossAttentionKV,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        *,
        attend: Attend = plain,
        residuals: Residuals | None = None,
    ) -> UNetState: ...


@runtime_checkable
class UNetTail(Protocol):
    """The network from a split on: the prediction, shaped like the latents."""

    def __call__(self, state: UNetState, text: CrossAttentionKV, *, attend: Attend = plain) -> Tensor: ...


StageFn = Callable[[UNetState, CrossAttentionKV, Attend], UNetState]
StageIterator = Iterator[tuple[str, StageFn]]
"""Stages, each with the name of the attention module that it is, or an empty name."""


class UNet(nn.Module):
    """Predicts epsilon, v or x0 from noisy latents, a timestep and a text, as the checkpoint was trained."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config, c = config, config
        first = c.block_out_channels[0]
        self.conv_in = nn.Conv2d(c.in_channels, first, 3, padding=1)
        self.time_embedding = MLP(first, c.time_dim)
        if c.pooled_projection_dim is not None:
            self.add_embedding = MLP(c.pooled_projection_dim + 6 * c.addition_time_embed_dim, c.time_dim)

        levels = len(c.block_out_channels)
        skips, width = [first], first
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            is_last = level == levels - 1
            self.down_blocks.append(Block(c, level, width, [0] * c.layers_per_block, None if is_last else Downsample))
            width = c.block_out_channels[level]
            skips += [width] * (c.layers_per_block + (not is_last))
        self.mid_block = MidBlock(c)
        for level in reversed(range(levels)):
            joined = [skips.pop() for _ in range(c.layers_per_block + 1)]
            self.up_blocks.append(Block(c, level, width, joined, Upsample if level else None))
            width = c.block_out_channels[level]
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, first)
        self.conv_out = nn.Conv2d(first, c.out_channels, 3, padding=1)

    def precompute_kv(self, context: Float[Tensor, "rows tokens context_dim"]) -> CrossAttentionKV:
        """The text's keys and values at every cross-attention; they do not depend on the step, so read once a run."""
        return {site: self.attention(site).project_kv(context) for site in self.config.sites if site.kind == "cross"}

    def attention(self, site: Site) -> Attention:
        """The attention layer at a site."""
        if site.stage == "mid":
            module = self.mid_block.attentions[0]
        else:
            blocks = self.down_blocks if site.stage == "down" else self.up_blocks
            module = cast("nn.ModuleList", blocks[site.block].attentions)[site.attention]
        layers = cast("SpatialTransformer", module).transformer_blocks
        return cast("TransformerLayer", layers[site.layer]).attention(site.kind)

    def forward(
        self,
        latents: Float[Tensor, "rows in_channels height width"],
        time: Float[Tensor, " rows"],
        text: CrossAttentionKV,
        pooled: Float[Tensor, "rows pooled_dim"] | None = None,
        sizes: Float[Tensor, "rows 6"] | None = None,
        *,
        attend: Attend = plain,
        residuals: Residuals | None = None,
    ) -> Float[Tensor, "rows out_channels height width"]:
        """The prediction for `latents`.

        `time` is in training steps (0 to 999), one a row; `text` is what `precompute_kv` gives; `sizes` are SDXL's time
        ids (original height, width, crop top, left, target height, width) in pixels; `attend` is what every attention
        layer does with its queries, keys and values; `residuals` come from a ControlNet.

        Raises InputError when the family needs `pooled` and `sizes` and they are missing, or the residuals do not fit.
        """
        state = self._start(latents, time, pooled, sizes, residuals)
        for _, step in self._stages():
            state = step(state, text, attend)
        return self._finish(state)

    def split_at(self, where: Site | str) -> tuple[UNetHead, UNetTail]:
        """The network split before an attention module, or a site's; `tail(head(...))` is the forward pass.

        Nothing upstream of the module a plan first names depends on the style, so the head may run without a graph,
        and once for several references.  Raises PlanError when there is no such module.
        """
        name = where.module if isinstance(where, Site) else where
        if name not in self.config.modules:
            known = ", ".join(self.config.modules)
            raise PlanError(
                f"there is no block {name!r} to split at: it has {known}{did_you_mean(name, self.config.modules)}"
            )
        # Stages are listed anew at each call: a copy of the network that shares most tensors must run its own modules.

        def head(
            latents: Tensor,
            time: Tensor,
            text: CrossAttentionKV,
            pooled: Tensor | None = None,
            sizes: Tensor | None = None,
            *,
            attend: Attend = plain,
            residuals: Residuals | None = None,
        ) -> UNetState:
            state = self._start(latents, time, pooled, sizes, residuals)
            for module, step in self._stages():
                if module == name:
                    break
                state = step(state, text, attend)
            return state

        def tail(state: UNetState, text: CrossAttentionKV, *, attend: Attend = plain) -> Tensor:
            steps = list(self._stages())
            cut = [module for module, _ in steps].index(name)
            for _, step in steps[cut:]:
                state = step(state, text, attend)
            return self._finish(state)

        return head, tail

    def _start(
        self,
        latents: Tensor,
        time: Tensor,
        pooled: Tensor | None,
        sizes: Tensor | None,
        residuals: Residuals | None,
    ) -> UNetState:
        c = self.config
        time_emb = self.time_embedding(sinusoidal_embedding(time, c.block_out_channels[0]).to(latents.dtype))
        if c.pooled_projection_dim is not None:
            if pooled is None or sizes is None:
                raise InputError("this UNet is conditioned on the pooled text and six sizes: give `pooled` and `sizes`")
            time_ids = sinusoidal_embedding(sizes.flatten(), c.addition_time_embed_dim).to(latents.dtype)
            time_emb = time_emb + self.add_embedding(torch.cat([pooled, time_ids.reshape(len(sizes), -1)], dim=-1))
        x = self.conv_in(latents)
        return UNetState(x, (x,), time_emb, residuals)

    def _stages(self) -> StageIterator:
        for i, block in enumerate(cast("list[Block]", list(self.down_blocks))):
            yield from block.down_stages("down", i)
        yield from self.mid_block.stages()
        yield "", _add_controlnet_residuals
        for i, block in enumerate(cast("list[Block]", list(self.up_blocks))):
            yield from block.up_stages("up", i)

    def _finish(self, state: UNetState) -> Tensor:
        return self.conv_out(F.silu(self.conv_norm_out(state.x)))


def _add_controlnet_residuals(state: UNetState, text: CrossAttentionKV, attend: Attend) -> UNetState:
    """Add a ControlNet's residuals to the middle and to all that the up path will join."""
    if state.residuals is None:
        return state
    down, mid = state.residuals
    if len(down) != len(state.skips):
        raise InputError(
            f"{len(down)} ControlNet residuals were given, but this UNet has {len(state.skips)} places for them: "
            "the ControlNet is for another UNet"
        )
    skips = tuple(skip + residual for skip, residual in zip(state.skips, down, strict=True))
    return UNetState(state.x + mid, skips, state.time_emb)


class Block(nn.Module):
    """One resolution of the down or up path: residual blocks, attentions where it has any, a resize."""

    def __init__(
        self,
        c: UNetConfig,
        level: int,
        width_in: int,
        joined: list[int],
        resize: "type[Downsample | Upsample] | None",
    ) -> None:
        super().__init__()
        out = c.block_out_channels[level]
        widths = [width_in] + [out] * (len(joined) - 1)
        pairs = zip(widths, joined, strict=True)
        self.resnets = nn.ModuleList(
            ResBlock(width + skip, out, c.time_dim, c.norm_num_groups) for width, skip in pairs
        )
        args = (
            out,
            c.cross_attention_dim,
            c.num_attention_heads[level],
            c.transformer_layers_per_block[level],
            c.norm_num_groups,
            c.use_linear_projection,
        )
        self.attentions = (
            nn.ModuleList(SpatialTransformer(*args) for _ in joined) if c.transformer_layers_per_block[level] else None
        )
        self.downsamplers = nn.ModuleList([resize(out)]) if resize is Downsample else None
        self.upsamplers = nn.ModuleList([resize(out)]) if resize is Upsample else None

    def down_stages(self, stage: Stage, block: int) -> StageIterator:
        """The stages of a block of the down path: every result is kept as a skip."""
        for j, resnet in enumerate(self.resnets):
            yield "", _residual(resnet)
            if self.attentions is not None:
                yield _attention(self.attentions[j], (stage, block, j))
            yield "", _push_skip
        for resize in self.downsamplers or ():
            yield "", _downsample(resize)
            yield "", _push_skip

    def up_stages(self, stage: Stage, block: int) -> StageIterator:
        """The stages of a block of the up path: each residual block concatenates a skip."""
        for j, resnet in enumerate(self.resnets):
            yield "", _pop_skip
            yield "", _residual(resnet)
            if self.attentions is not None:
                yield _attention(self.attentions[j], (stage, block, j))
        for resize in self.upsamplers or ():
            yield "", _upsample(resize)


class MidBlock(nn.Module):
    """The lowest resolution once more, with an attention between two residual blocks."""

    def __init__(self, c: UNetConfig) -> None:
        super().__init__()
        width = c.block_out_channels[-1]
        self.resnets = nn.ModuleList(ResBlock(width, width, c.time_dim, c.norm_num_groups) for _ in range(2))
        attention = SpatialTransformer(
            width,
            c.cross_attention_dim,
            c.num_attention_heads[-1],
            c.mid_depth,
            c.norm_num_groups,
            c.use_linear_projection,
        )
        self.attentions = nn.ModuleList([attention])

    def stages(self) -> StageIterator:
        """Residual block, attention, residual block."""
        yield "", _residual(self.resnets[0])
        yield _attention(self.attentions[0], ("mid", 0, 0))
        yield "", _residual(self.resnets[1])


def _residual(resnet: nn.Module) -> StageFn:
    return lambda state, text, attend: _with_x(state, resnet(state.x, state.time_emb))


def _attention(module: nn.Module, at: tuple[Stage, int, int]) -> tuple[str, StageFn]:
    name = Site(*at, 0, "cross").module
    return name, lambda state, text, attend: _with_x(state, module(state.x, text, at, attend))


def _downsample(resize: nn.Module) -> StageFn:
    return lambda state, text, attend: _with_x(state, resize(state.x))


def _upsample(resize: nn.Module) -> StageFn:
    # To the size of the skip that is joined next, which is not twice ours when a latent side was odd.
    return lambda state, text, attend: _with_x(state, resize(state.x, state.skips[-1].shape[-2:]))


def _push_skip(state: UNetState, text: CrossAttentionKV, attend: Attend) -> UNetState:
    return dataclasses.replace(state, skips=(*state.skips, state.x))


def _pop_skip(state: UNetState, text: CrossAttentionKV, attend: Attend) -> UNetState:
    return dataclasses.replace(state, x=torch.cat([state.x, state.skips[-1]], dim=1), skips=state.skips[:-1])


def _with_x(state: UNetState, x: Tensor) -> UNetState:
    return dataclasses.replace(state, x=x)
