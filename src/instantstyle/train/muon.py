# pyright: reportUnknownMemberType=false

"""Muon for a network's hidden matrices and AdamW for the rest, as one optimiser.

Muon (Jordan et al., https://kellerjordan.github.io/posts/muon) steps along the orthogonalised momentum.  torch's own
takes matrices only, so a convolution is given to it as its matrix [out, in x height x width], a view of its weights.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 16
"""A matrix with a side below this has no spectrum to speak of; AdamW takes it."""


class MuonAdamW:
    """Two optimisers that step together; the learning rate set on `param_groups` is AdamW's, Muon's keeps its ratio."""

    def __init__(
        self, net: nn.Module, lr: float, muon: float, adamw_prefixes: Iterable[str] = (), decay: float = 0.01
    ) -> None:
        """`muon` is Muon's learning rate where AdamW's is `lr`; names that begin with one of `apart` are AdamW's."""
        named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if _is_hidden(p) and not name.startswith(tuple(adamw_prefixes))]
        hidden_ids = {id(p) for p in hidden}
        self._matrices = [(p, nn.Parameter(p.detach().flatten(1))) for p in hidden]
        others = [p for _, p in named if id(p) not in hidden_ids]
        self._ratio = muon / lr
        self._adamw = torch.optim.AdamW(others, lr=lr, weight_decay=decay, betas=(0.9, 0.99))
        self._muon = torch.optim.Muon([view for _, view in self._matrices], lr=muon, weight_decay=decay)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """AdamW's groups: set `lr` here."""
        return self._adamw.param_groups

    def step(self) -> None:
        """One step of both."""
        for group in self._muon.param_groups:
            group["lr"] = self._ratio * self._adamw.param_groups[0]["lr"]
        for p, view in self._matrices:
            view.grad = None if p.grad is None else p.grad.flatten(1)
        self._adamw.step()
        self._muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none)
        for p, view in self._matrices:
            p.grad, view.grad = None, None

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"adamw": self._adamw.state_dict(), "muon": self._muon.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._adamw.load_state_dict(state_dict["adamw"])
        self._muon.load_state_dict(state_dict["muon"])


def _is_hidden(weight: Tensor) -> bool:
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) >= _SMALL
