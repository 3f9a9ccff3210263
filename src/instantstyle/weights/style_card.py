"""Style cards and encoders: which of a card's embeddings are of the encoder at hand, and embeddings for new cards."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.errors import WeightsError
from instantstyle.request.style_card import EncoderEmbeddings, Float32Array, StyleCard, float_array
from instantstyle.weights.adapter import ENCODERS

NEAR = 0.1
"""How far apart, relative to its length, two sights of the probe picture may be of one encoder: half precision moves
an embedding by a hundredth or two, and another encoder sees something else altogether."""


def matching_embeddings(
    card: StyleCard, probe: Float[Tensor, "dim"], *, hidden: bool = False
) -> Float[Tensor, "n *sequence width"]:
    """What the encoder that sees the probe picture so saw of the card's pictures, float32 on the CPU.

    Raises WeightsError when the card was made for other encoders, or holds no hidden states and they are asked for.
    """
    own = _array(probe)
    sight = next((each for each in card.sights if _same(each.probe.array, own)), None)
    if sight is None:
        has = "; ".join(each.encoder for each in card.sights)
        raise WeightsError(
            f"the style card {card.name!r} was made for another image encoder ({has}) than this model's ({_wide(own)})"
            + _advice(card)
        )
    if hidden and sight.hidden is None:
        raise WeightsError(
            f"the style card {card.name!r} holds no hidden states of {sight.encoder}, which a Plus adapter reads"
            + _advice(card)
        )
    held = sight.hidden if hidden else sight.embeds
    assert held is not None
    return torch.from_numpy(held.array.copy())  # pyright: ignore[reportUnknownMemberType]


def make_embeddings(
    spec: str,
    probe: Float[Tensor, "dim"],
    embeds: Float[Tensor, "n dim"],
    hidden: Float[Tensor, "n sequence width"] | None = None,
) -> EncoderEmbeddings:
    """What a card is to keep of an encoder's look at its pictures; `spec` is the model it belongs to."""
    own = _array(probe)
    states = None if hidden is None else float_array(_array(hidden))
    return EncoderEmbeddings(f"{_wide(own)}, of {spec}"[:200], float_array(own), float_array(_array(embeds)), states)


def _array(tensor: Tensor) -> Float32Array:
    return np.asarray(tensor.detach().float().cpu().numpy(), np.float32)


def _same(one: Float32Array, other: Float32Array) -> bool:
    return one.shape == other.shape and bool(np.linalg.norm(one - other) <= NEAR * np.linalg.norm(other))


def _wide(probe: Float32Array) -> str:
    return f"{len(probe)} wide" + (f" ({ENCODERS[len(probe)]})" if len(probe) in ENCODERS else "")


def _advice(card: StyleCard) -> str:
    if not card.thumbnails:
        return ": make a card of its picture with this model"
    return (
        f": let this model look at the card's own picture (--re-embed), or make a card for it "
        f"(instantstyle style make {card.name!r} --model ...)"
    )
