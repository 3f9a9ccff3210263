"""Mixed precision that is also faster on a CPU: bfloat16 matrix products, float32 norms and attention.

`torch.autocast` alone gains a fifth, because group norms and the backward pass of attention are slow in bfloat16.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FP32_OPS = (F.group_norm, F.scaled_dot_product_attention)


class _FP32Ops(TorchFunctionMode):
    """Runs the operations that are slow in bfloat16 on a CPU in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _FP32_OPS:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(_full(each) for each in args), **{k: _full(v) for k, v in (kwargs or {}).items()})


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value


@contextmanager
def autocast_bf16(device: torch.device) -> Generator[None]:
    """Autocast to bfloat16 on `device`; on a CPU group norm and attention stay in float32."""
    with torch.autocast(device.type, torch.bfloat16):
        if device.type != "cpu":
            yield
            return
        with _FP32Ops():
            yield
