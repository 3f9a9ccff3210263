"""The one place that decides device, number format and number of threads, from what the machine can do."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from instantstyle.errors import InputError, did_you_mean
from instantstyle.utils.threads import max_threads

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SMALL_UNET = 100_000_000
"""Parameters of a UNet up to which float32 costs a CPU neither memory nor time worth sparing."""
CPU_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Processor flags of Linux for bfloat16 products in hardware: Intel's and AMD's vectors, Intel's tiles, Arm's."""


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


def pick_dtype(dtype: str | torch.dtype, device: torch.device, num_parameters: int = 0) -> torch.dtype:
    """The dtype of a name, for a UNet of so many parameters.  Raises InputError.

    Auto is bfloat16 where the device computes in it and float16 on other GPUs; on a CPU without bfloat16, and for
    small networks on any CPU, float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if num_parameters > SMALL_UNET and bf16_is_fast(device) else torch.float32
        return torch.bfloat16 if bf16_is_fast(device) else torch.float16
    if dtype not in DTYPES:
        raise InputError(f"there is no dtype {dtype!r}: give auto, {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]


def bf16_is_fast(device: str | torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; where it does not, torch goes by way of float32, slower.

    For generation and training alike.  Apple's GPUs count as without: torch gives them float16.  Raises InputError.
    """
    picked = pick_device(device)
    if picked.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return picked.type == "cpu" and bool(cpu_flags() & CPU_BF16_FLAGS)


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's bfloat16 flags: Linux's list, and what torch's own queries (private, so maybe absent) answer."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    queries = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    supported = {flag for flag, name in queries.items() if (query := getattr(torch.cpu, name, None)) and query()}
    return frozenset(listed.partition(":")[2].split()) | supported


def limit_threads() -> None:
    """Let torch use at most one thread a physical core, where the user set no number; it never raises the number."""
    limit = max_threads()
    if limit is not None and torch.get_num_threads() > limit:
        torch.set_num_threads(limit)
