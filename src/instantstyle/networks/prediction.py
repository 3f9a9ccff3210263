"""What a denoiser predicts: epsilon, v, x0 or velocity, and the way from one to the other.

Of noisy latents x = alpha x0 + sigma eps a network says eps ("epsilon"), v = alpha eps - sigma x0 ("v_prediction",
arXiv 2202.00512) or x0 ("sample"); with alpha = 1 - sigma, velocity eps - x0 ("flow_prediction", arXiv 2210.02747).
The names are diffusers'.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "n channels height width"]
Coefficient = float | Float[Tensor, "..."]
"""Alpha or sigma: one for all, or one for each row in a shape that broadcasts."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def prediction_type(scheduler_config: Mapping[str, Any]) -> str:
    """What the network of a checkpoint predicts, by its scheduler_config.json; epsilon where that does not say."""
    flow = str(scheduler_config.get("_class_name")).startswith("FlowMatch")
    return "flow_prediction" if flow else str(scheduler_config.get("prediction_type", "epsilon"))


def predict_x0_eps(
    prediction: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], alpha: Coefficient, sigma: Coefficient, kind: str
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """x0 and eps of noisy latents, by what the network predicts of them."""
    match kind:
        case "v_prediction":
            return alpha * x - sigma * prediction, alpha * prediction + sigma * x
        case "sample":
            return prediction, (x - alpha * prediction) / sigma
        case "flow_prediction":
            return x - sigma * prediction, x + alpha * prediction
        case _:
            return (x - sigma * prediction) / alpha, prediction


def prediction_target(
    x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], alpha: Coefficient, sigma: Coefficient, kind: str
) -> Float[Tensor, "*shape"]:
    """What the network is to predict of alpha x0 + sigma eps."""
    match kind:
        case "v_prediction":
            return alpha * eps - sigma * x0
        case "sample":
            return x0
        case "flow_prediction":
            return eps - x0
        case _:
            return eps
