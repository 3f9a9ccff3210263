"""What guidance overdoes: predictions pushed away from others spread wider than any that the model was trained on."""

from jaxtyping import Float
from torch import Tensor


def rescale_noise_cfg(
    guided: Float[Tensor, "rows channels height width"],
    conditional: Float[Tensor, "rows channels height width"],
    share: float,
) -> Float[Tensor, "rows channels height width"]:
    """x = g * (s * std(c) / std(g) + 1 - s): guidance's direction, the conditional prediction's spread, row by row.

    Lin et al., arXiv 2305.08891, section 3.4, with `share` their phi; 0 changes nothing, to the bit.
    """
    if not share:
        return guided
    every = (1, 2, 3)
    # A prediction of one value throughout has no spread to divide by.
    spread = conditional.std(every, keepdim=True) / guided.std(every, keepdim=True).clamp_min(1e-12)
    return guided * (share * spread + 1 - share)
