"""How this process shares the processor: waiting threads sleep, and there is at most one a physical core.

OpenMP's threads spin while they wait by default.  Beside one other busy program the last of them then waits for a
whole time slice of the scheduler, at every parallel operation.  The runtime reads its environment once, when torch
loads it, so `instantstyle/__init__` asks for passive waiting before that.  No torch here.
"""

import os
import sys

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What a user may have set about waiting: the standard's variable, GNU's and Intel's; any of them is respected."""
COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_wait_policy() -> None:
    """Ask OpenMP for passive waiting, unless the user asked for something or torch is loaded and it is too late."""
    if "torch" not in sys.modules and not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def wait_policy() -> str:
    """What the environment says about waiting, as `instantstyle doctor` shows it."""
    return ", ".join(f"{name}={os.environ[name]}" for name in WAIT_VARIABLES if name in os.environ) or "spinning"


def max_threads() -> int | None:
    """Physical cores that this process may use; None where the user set a number of threads, which then holds."""
    if any(name in os.environ for name in COUNT_VARIABLES):
        return None
    import psutil  # here, so that importing the package stays quick

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
