"""The attention seam, and the UNet's transformer layers around it.

A layer computes queries, keys and values and passes them, with its site, to the function `attend`, an argument of the
forward call: a style method is that function.  Layers have no clock, no memory and no knowledge of styles.
Parameters are named as diffusers publishes them (`Transformer2DModel`, `BasicTransformerBlock`, `Attention`).
"""

from collections.abc import Iterator, Mapping
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.blocks import AttentionKind, Site, Stage
from instantstyle.networks.tokens import Tokens, rotate

HeadsTensor = Float[Tensor, "rows heads _tokens dim"]
"""Queries, keys or values, split into heads; `_tokens` is not bound, as queries and keys differ in it."""

KeyValue = tuple[Float[Tensor, "rows _heads _tokens _dim"], Float[Tensor, "rows _heads _tokens _dim"]]
"""Keys and values of one attention layer, split into heads.

Heads and dim are not bound: in a mapping over sites they differ from site to site.
"""

CrossAttentionKV = Mapping[Site, KeyValue]
"""The text's keys and values at every cross-attention, projected once a run."""


@runtime_checkable
class Attend(Protocol):
    """What an attention layer does with its queries, keys and values: [rows, heads, tokens, dim] each.

    A function that wraps another `attend` calls that one exactly once and uses `plain` for attention of its own, else
    what it wraps counts twice.
    """

    def __call__(
        self,
        site: Site,
        q: HeadsTensor,
        k: HeadsTensor,
        v: HeadsTensor,
        *,
        bias: Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> HeadsTensor:
        """The attention's output, shaped like `q`.

        `bias` is added to the scores before the softmax; it broadcasts to [rows, heads, queries, keys].  `tokens` says
        in a transformer which tokens are the picture's and where they stand: `q` and `k` are behind the network's
        norm of queries and keys, and not rotated yet.
        """
        ...


def plain(
    site: Site,
    q: Float[Tensor, "rows heads queries dim"],
    k: Float[Tensor, "rows heads keys dim"],
    v: Float[Tensor, "rows heads keys dim"],
    *,
    bias: Float[Tensor, "..."] | None = None,
    tokens: Tokens | None = None,
) -> Float[Tensor, "rows heads queries dim"]:
    """Scaled dot-product attention at every site, at the tokens' positions; of no keys at all, zeros."""
    if not k.shape[2]:
        return torch.zeros_like(q)
    if tokens is not None:
        q, k = rotate(q, tokens.query_rope), rotate(k, tokens.key_rope)
    if bias is not None:
        bias = (bias if bias.ndim > 1 else bias[None]).to(q.dtype)  # torch takes no mask of keys alone
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def split_heads(x: Float[Tensor, "rows tokens width"], heads: int) -> HeadsTensor:
    """[rows, tokens, heads * dim] -> [rows, heads, tokens, dim]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: HeadsTensor) -> Float[Tensor, "rows _tokens width"]:
    """[rows, heads, tokens, dim] -> [rows, tokens, heads * dim]."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of an attention layer; `to_out` is a list because it is published as `to_out.0`."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def project_kv(self, context: Float[Tensor, "rows tokens context_dim"]) -> KeyValue:
        """The context's keys and values, each [rows, heads, tokens, dim]."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def forward(
        self, x: Float[Tensor, "rows queries dim"], kv: KeyValue, site: Site, attend: Attend
    ) -> Float[Tensor, "rows queries dim"]:
        """The output for queries made of `x`, with given keys and values, by `attend`."""
        return self.to_out[0](join_heads(attend(site, split_heads(self.to_q(x), self.heads), *kv)))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each added to what came in."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, heads)
        self.attn2 = Attention(dim, context_dim, heads)
        self.ff = FeedForward(dim)

    def attention(self, kind: AttentionKind) -> Attention:
        """The layer's self- or cross-attention."""
        return self.attn1 if kind == "self" else self.attn2

    def forward(
        self,
        x: Float[Tensor, "rows tokens dim"],
        text: CrossAttentionKV,
        at: tuple[Stage, int, int, int],
        attend: Attend,
    ) -> Float[Tensor, "rows tokens dim"]:
        """`at` is the layer's address, without the kind of attention."""
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.project_kv(h), Site(*at, "self"), attend)
        cross = Site(*at, "cross")
        x = x + self.attn2(self.norm2(x), text[cross], cross, attend)
        return x + self.ff(self.norm3(x))


class FeedForward(nn.Module):
    """A gated layer four times as wide; index 1 was a dropout when the weights were published."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows tokens dim"]:
        return self.net[2](self.net[0](x))


class GEGLU(nn.Module):
    """Half of the outputs, gated by the GELU of the other half (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows tokens hidden"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class SpatialTransformer(nn.Module):
    """Transformer layers over the pixels of a feature map: the attention module that plans name."""

    def __init__(self, channels: int, context_dim: int, heads: int, depth: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerLayer(channels, context_dim, heads) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def layers(self) -> Iterator[TransformerLayer]:
        """The transformer's layers in order."""
        return iter(cast("list[TransformerLayer]", list(self.transformer_blocks)))

    def forward(
        self,
        x: Float[Tensor, "rows channels height width"],
        text: CrossAttentionKV,
        at: tuple[Stage, int, int],
        attend: Attend,
    ) -> Float[Tensor, "rows channels height width"]:
        """`at` is the module's address."""
        height = x.shape[2]
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for i, layer in enumerate(self.transformer_blocks):
            h = layer(h, text, (*at, i), attend)
        return x + (to_map(self.proj_out(h), height) if self.linear else self.proj_out(to_map(h, height)))


def to_tokens(x: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows tokens channels"]:
    """Pixels in reading order as tokens."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Float[Tensor, "rows tokens channels"], height: int) -> Float[Tensor, "rows channels height width"]:
    """Tokens in reading order as a picture `height` pixels high."""
    return x.transpose(1, 2).reshape(len(x), x.shape[2], height, -1)
