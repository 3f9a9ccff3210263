"""A network value that shares all but some tensors with the one it came from, which stays as it is."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.errors import WeightsError, did_you_mean

_Net = TypeVar("_Net", bound=nn.Module)


def with_weight_deltas(net: _Net, deltas: Mapping[str, Float[Tensor, "..."]]) -> _Net:
    """`net` with `deltas` added to the parameters they name, as `up_blocks.0.attentions.1.proj_in.weight`.

    Sums are taken in float32 and kept in the parameter's own dtype and on its device.  Only the changed tensors are new
    memory.  Raises WeightsError, nothing made, for a parameter that does not exist or a delta of another shape.
    """
    parameters = dict(net.named_parameters())
    for name, delta in deltas.items():
        if name not in parameters:
            raise WeightsError(f"the network has no parameter {name!r} to change{did_you_mean(name, parameters)}")
        if delta.shape != parameters[name].shape:
            raise WeightsError(
                f"the change of {name!r} has the shape {tuple(delta.shape)}, and the parameter "
                f"{tuple(parameters[name].shape)}: it is for another family"
            )
    return _replace_parameters(net, {name: _sum(parameters[name], delta) for name, delta in deltas.items()})


def _sum(parameter: Tensor, delta: Tensor) -> nn.Parameter:
    changed = parameter.detach().float() + delta.detach().to(parameter.device).float()
    return nn.Parameter(changed.to(parameter.dtype), requires_grad=False)


def _replace_parameters(module: _Net, changed: Mapping[str, nn.Parameter]) -> _Net:
    """The module with some parameters replaced, down the path to each; whatever lies off those paths is shared."""
    new = copy.copy(module)
    # Parameters, children and hooks lie in dictionaries, which a shallow copy shares: what is registered in the one
    # would be registered in the other.
    new.__dict__.update({name: own.copy() for name, own in vars(module).items() if isinstance(own, dict)})
    for name, parameter in changed.items():
        if "." not in name:
            new.register_parameter(name, parameter)
    for child in {name.split(".")[0] for name in changed if "." in name}:
        inner = {name.removeprefix(f"{child}."): p for name, p in changed.items() if name.startswith(f"{child}.")}
        new.add_module(child, _replace_parameters(module.get_submodule(child), inner))
    return new
