"""Content subtraction: taking what a reference shows out of its image features.

    features = CLIP_image(reference) - w * CLIP_text(content)

with both embeddings from one CLIP and un-normalised (InstantStyle, arXiv 2404.02733, section 3.1: features of one space
can be subtracted).  Pure functions of embeddings; the variants `normalised` and `projected` are this project's, and
`masked` is MaskST's (arXiv 2502.07466).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from instantstyle.errors import InputError

Subtraction = Literal["paper", "normalised", "projected", "masked"]


def subtract_content(
    image: Float[Tensor, "n dim"], texts: Float[Tensor, "m dim"], weight: float, how: Subtraction = "paper"
) -> Float[Tensor, "n dim"]:
    """The image embeddings without the content that the texts name.

    paper       image - weight * text, as the published code does it (several texts: their mean); neither is normalised,
                so what a weight does depends on the norms of both.
    normalised  the same between directions, the image's own length given back: a weight means the same in every model.
    projected   the part of the image that lies in the span of the texts, removed; weight 1 leaves none of it, and an
                image that shows nothing of the content is not changed at all.
    masked      the image's elements that agree most with the text, made zero (MaskST, arXiv 2502.07466): of the
                products of the two directions, element by element, those in the higher of two clusters.
    """
    match how:
        case "paper":
            return image - weight * texts.mean(0)
        case "normalised":
            without = F.normalize(image, dim=-1) - weight * F.normalize(texts, dim=-1).mean(0)
            return F.normalize(without, dim=-1) * image.square().sum(-1, keepdim=True).sqrt()
        case "projected":
            span = _orthonormal_basis(texts.float()).to(image.dtype)
            return image - weight * (image @ span.T) @ span
        case "masked":
            agreement = F.normalize(image, dim=-1) * F.normalize(texts, dim=-1).mean(0)
            return image - weight * torch.where(_upper_cluster(agreement), image, 0)


def _orthonormal_basis(texts: Float[Tensor, "m dim"]) -> Float[Tensor, "rank dim"]:
    """Unit vectors at right angles that span the texts; words that say the same make one."""
    linalg: Any = torch.linalg
    _, sizes, directions = linalg.svd(texts, full_matrices=False)
    return directions[sizes > 1e-4 * sizes[0]]


def _upper_cluster(x: Float[Tensor, "n dim"]) -> Bool[Tensor, "n dim"]:
    """Which numbers of each row lie in the higher of two clusters: k-means in one dimension, its best split exactly."""
    ordered = x.double().sort(dim=-1).values
    below = torch.arange(1, x.shape[-1], device=x.device)
    above = x.shape[-1] - below
    sums = ordered.cumsum(-1)
    # Least spread within the clusters is most between them: the sum of squared means, each as often as it is met.
    between = sums[:, :-1].square() / below + (sums[:, -1:] - sums[:, :-1]).square() / above
    return x > ordered.gather(-1, between.argmax(-1, keepdim=True))


def nearest_text(image: Float[Tensor, "n dim"], texts: Float[Tensor, "m dim"]) -> list[int]:
    """For each image the index of the text whose direction is nearest to it."""
    nearness = F.normalize(image, dim=-1) @ F.normalize(texts, dim=-1).T
    return [int(index) for index in nearness.argmax(-1)]


def weighted_average(embeddings: Float[Tensor, "n *rest"], weights: Sequence[float]) -> Float[Tensor, "1 *rest"]:
    """One embedding of several, each with its share of the weights."""
    shares = torch.tensor(weights, dtype=embeddings.dtype, device=embeddings.device)
    return ((shares / shares.sum()) @ embeddings.flatten(1)).reshape(1, *embeddings.shape[1:])


def effective_weight(weights: Sequence[float]) -> float:
    """The weight of several references together: the mean weight, each with its share of the weights.

    Equal weights w give w, and a reference of weight zero is as if it were not there.  Raises InputError when all are.
    """
    if not any(weights):
        raise InputError("every reference has weight 0: there is nothing to combine")
    return sum(weight * weight for weight in weights) / sum(weights)
