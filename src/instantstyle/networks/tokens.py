"""Which tokens of a transformer's attention are the picture's, and where they stand.

In a transformer text and picture attend to one another in one sequence, and where a token stands is said by rotary
position embedding (RoPE, arXiv 2104.09864), which turns queries and keys.  Here positions are an argument of attention
and no property of a vector: queries and keys come unrotated, so that a picture's extra keys may have no position
(IP-Adapter), statistics are taken of unrotated vectors (StyleAligned), and a method places a reference's keys itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Rope(NamedTuple):
    """Angles of rotary position embedding for neighbouring channels, each angle given twice.

    Cosines and sines broadcast to [rows, heads, tokens, dim]: [tokens, dim], or [rows, 1, tokens, dim] where rows
    differ.
    """

    cos: Tensor
    sin: Tensor

    def at(self, tokens: slice) -> "Rope":
        """The angles of some tokens."""
        return Rope(self.cos[..., tokens, :], self.sin[..., tokens, :])

    def rows(self, rows: slice) -> "Rope":
        """The angles of some rows."""
        return self if self.cos.ndim == 2 else Rope(self.cos[rows], self.sin[rows])

    @staticmethod
    def join(parts: "Sequence[Rope]") -> "Rope":
        """The angles of tokens one after the other."""
        return Rope(torch.cat([part.cos for part in parts], dim=-2), torch.cat([part.sin for part in parts], dim=-2))


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the tokens of one attention are, and where they stand."""

    image: slice
    """The picture's, among the queries and among the layer's own keys."""
    text: slice
    """The text's; of length 0 where only the picture attends."""
    query_rope: Rope | None = None
    """Positions of the queries; None: they have none."""
    key_rope: Rope | None = None

    def rows(self, rows: slice) -> "Tokens":
        """The same for some rows."""
        ropes = (None if rope is None else rope.rows(rows) for rope in (self.query_rope, self.key_rope))
        return Tokens(self.image, self.text, *ropes)

    def with_keys(self, *parts: slice) -> "Tokens":
        """For keys that stand where these parts of the layer's own stand, one part after the other."""
        if self.key_rope is None:
            return self
        return replace(self, key_rope=Rope.join([self.key_rope.at(part) for part in parts]))


def rotate(x: Float[Tensor, "rows heads tokens dim"], rope: Rope | None) -> Float[Tensor, "rows heads tokens dim"]:
    """Queries or keys, [rows, heads, tokens, dim], turned to their positions in float32; as they are without `rope`."""
    if rope is None:
        return x
    real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (x.float() * rope.cos + turned.float() * rope.sin).to(x.dtype)
