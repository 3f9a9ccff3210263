"""Which device and which dtype a model is loaded on: the one place that decides."""

from collections.abc import Mapping

import torch

from instantstyle.errors import InputError, did_you_mean

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SMALL = 100_000_000
"""Parameters of a UNet up to which float32 costs a CPU neither memory nor time worth sparing."""


def pick_device(device: str | torch.device) -> torch.device:
    """The device of a name; auto is CUDA, then Apple's, then the CPU.  Raises InputError."""
    if device == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        picked = torch.device(device)
    except RuntimeError:
        known = ("auto", "cpu", "cuda", "mps")
        raise InputError(
            f"there is no device {device!r}: give {', '.join(known)}{did_you_mean(str(device), known)}"
        ) from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(picked.type, False) or (picked.index or 0) >= max(1, torch.cuda.device_count()):
        raise InputError(f"this machine has no device {str(device)!r} that can be used: give auto or cpu")
    return picked


def pick_dtype(dtype: str | torch.dtype, device: torch.device, parameters: int = 0) -> torch.dtype:
    """The dtype of a name, for a UNet of so many parameters.  Raises InputError.

    Auto is bfloat16 where the device computes with it and float16 on other GPUs; on a CPU without bfloat16, and for
    small networks on any CPU, float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if parameters > SMALL and _cpu_has_bfloat16() else torch.float32
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
    if dtype not in DTYPES:
        raise InputError(f"there is no dtype {dtype!r}: give auto, {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, rather than by way of float32.  Torch keeps the question private."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and bool(ask()) for ask in asked)
