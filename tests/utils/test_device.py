"""Number formats and threads are decided from what the machine can do, and what the user set is respected."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from instantstyle.utils import device as policy
from instantstyle.utils.threads import COUNT_VARIABLES, WAIT_VARIABLES, max_threads

CPU = torch.device("cpu")
LARGE = policy.SMALL_UNET + 1


@pytest.mark.parametrize(
    ("flags", "fast"),
    [((), False), (("avx512f", "avx2"), False), (("avx512_bf16",), True), (("amx_bf16", "amx_tile"), True)],
)
def test_a_large_network_is_bfloat16_on_processors_that_compute_in_it_alone(
    flags: tuple[str, ...], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "cpu_flags", lambda: frozenset(flags))
    assert policy.bf16_is_fast("cpu") is fast
    assert policy.pick_dtype("auto", CPU, LARGE) is (torch.bfloat16 if fast else torch.float32)
    assert policy.pick_dtype("auto", CPU, 1000) is torch.float32
    assert policy.pick_dtype("bfloat16", CPU, LARGE) is torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Turing says yes to torch's plain question, and computes by way of float32.
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        is_bf16_supported=lambda including_emulation=True: native or including_emulation,
    )
    monkeypatch.setattr(policy, "torch", SimpleNamespace(**{**vars(torch), "cuda": cuda}))
    assert policy.bf16_is_fast("cuda") is native
    assert policy.pick_dtype("auto", torch.device("cuda"), 1000) is (torch.bfloat16 if native else torch.float16)


def test_this_processor_has_the_flags_that_the_system_lists() -> None:
    assert policy.cpu_flags() or not Path("/proc/cpuinfo").exists()


def _environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES} | variables


@pytest.mark.parametrize(
    ("given", "code", "expected"),
    [
        ({}, "import instantstyle", "PASSIVE"),
        ({}, "import torch, instantstyle", "None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "import instantstyle", "ACTIVE"),
        ({"GOMP_SPINCOUNT": "100"}, "import instantstyle", "None"),
    ],
)
def test_waiting_is_passive_unless_the_user_asked_or_torch_is_there(
    given: dict[str, str], code: str, expected: str
) -> None:
    line = f"{code}, os; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run(
        [sys.executable, "-c", line], env=_environment(**given), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_threads_are_at_most_the_physical_cores_and_a_number_that_was_set_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in COUNT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 1)
    assert max_threads() == 1
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 10_000)
    assert max_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert max_threads() is None


def test_the_number_of_threads_is_lowered_and_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(policy, "max_threads", lambda: 1)
        policy.limit_threads()
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(policy, "max_threads", lambda: 2)
        policy.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
