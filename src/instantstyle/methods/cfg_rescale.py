"""Classifier-free guidance (arXiv 2207.12598), further terms of it, and its rescaling (arXiv 2305.08891)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def classifier_free_guidance(
    unconditional: Float[Tensor, "rows channels height width"] | None,
    conditional: Float[Tensor, "rows channels height width"],
    guidance: float,
    rescale: float = 0.0,
    extra: Sequence[tuple[float, Float[Tensor, "rows channels height width"]]] = (),
) -> Float[Tensor, "rows channels height width"]:
    """u + g (c - u) + sum of w (c - e) over the further terms (w, e), its spread brought back to c's by `rescale`.

    Without an unconditional prediction it is c + sum of w (c - e); and c itself where there is no term either.
    """
    guided = conditional if unconditional is None else unconditional + guidance * (conditional - unconditional)
    for weight, other in extra:
        guided = guided + weight * (conditional - other)
    return guided if guided is conditional else rescale_noise_cfg(guided, conditional, rescale)


def rescale_noise_cfg(
    guided: Float[Tensor, "rows channels height width"],
    conditional: Float[Tensor, "rows channels height width"],
    share: float,
) -> Float[Tensor, "rows channels height width"]:
    """g * (share * std(c) / std(g) + 1 - share), row by row: guidance's direction, the conditional prediction's spread.

    Lin et al., section 3.4, with `share` their phi, 0 to 1; 0 changes nothing, to the bit.
    """
    if not share:
        return guided
    every = (1, 2, 3)
    # A prediction of one value throughout has no spread to divide by.
    spread = conditional.std(every, keepdim=True) / guided.std(every, keepdim=True).clamp_min(1e-12)
    return guided * (share * spread + 1 - share)
