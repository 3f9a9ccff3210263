"""IP-Adapters' projections of image features to tokens for attention.

Parameters are named as the published files name them (github.com/tencent-ailab/IP-Adapter, `ip_adapter.py` and
`resampler.py`).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.networks.attention import join_heads, split_heads


class ImageProjection(nn.Module):
    """One image embedding to a few tokens: a linear layer and a norm (the base IP-Adapter)."""

    def __init__(self, embed_dim: int, context_dim: int, tokens: int) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.proj = nn.Linear(embed_dim, tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, embedding: Float[Tensor, "n embed_dim"]) -> Float[Tensor, "n tokens context_dim"]:
        """Tokens for each embedding.  The unconditional tokens are those of zeros, which are not zero."""
        return self.norm(self.proj(embedding).reshape(len(embedding), -1, self.context_dim))


class MLPProjection(nn.Module):
    """One image embedding to many tokens: two linear layers and a norm (InstantX' adapter of Flux)."""

    def __init__(self, embed_dim: int, hidden_dim: int, context_dim: int, tokens: int) -> None:
        super().__init__()
        self.context_dim = context_dim
        layers = (nn.Linear(embed_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, tokens * context_dim))
        self.proj = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, embedding: Float[Tensor, "n embed_dim"]) -> Float[Tensor, "n tokens context_dim"]:
        """Tokens for each embedding."""
        return self.norm(self.proj(embedding).reshape(len(embedding), -1, self.context_dim))


class Resampler(nn.Module):
    """A Perceiver resampler of the image encoder's last-but-one hidden states, to a few tokens (IP-Adapter Plus)."""

    def __init__(
        self, embed_dim: int, context_dim: int, tokens: int, *, dim: int, depth: int, heads: int, ff_mult: int = 4
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(embed_dim, dim)
        self.proj_out = nn.Linear(dim, context_dim)
        self.norm_out = nn.LayerNorm(context_dim)
        pairs = (nn.ModuleList([PerceiverAttention(dim, heads), _feed_forward(dim, ff_mult)]) for _ in range(depth))
        self.layers = nn.ModuleList(pairs)

    def forward(self, hidden: Float[Tensor, "n sequence embed_dim"]) -> Float[Tensor, "n tokens context_dim"]:
        """Tokens for each picture's hidden states."""
        x = self.proj_in(hidden)
        latents = self.latents.expand(len(hidden), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Learned queries attend to the picture's tokens and to one another; heads are 64 wide."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, 64 * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * 64 * heads, bias=False)
        self.to_out = nn.Linear(64 * heads, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "n sequence dim"], latents: Float[Tensor, "n tokens dim"]
    ) -> Float[Tensor, "n tokens dim"]:
        latents = self.norm2(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(t, self.heads) for t in (self.to_q(latents), keys, values))
        return self.to_out(join_heads(F.scaled_dot_product_attention(q, k, v)))


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    inner = dim * mult
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)
    )
