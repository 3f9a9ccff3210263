"""Two threads that have one core between them: as a program is that has another busy one beside it."""

import os
import subprocess
import sys

import pytest

from instantstyle.utils.threads import COUNT_VARIABLES, WAIT_VARIABLES

LOOP = """
import os, time
import instantstyle, torch
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # after torch: the runtime counted its cores before

def seconds(threads):
    torch.set_num_threads(threads)
    x = torch.ones(200_000)
    x.sin()
    begin = time.process_time()
    for _ in range(60):
        x.sin()
    return time.process_time() - begin

print(max(seconds(2) / seconds(1) for _ in range(2)))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind a process to a core")
def test_threads_that_wait_leave_the_core_to_those_that_work() -> None:
    """Processor time of two threads on one core over that of one: spinning threads use up whole time slices."""
    settings = {name: value for name, value in os.environ.items() if name not in (*WAIT_VARIABLES, *COUNT_VARIABLES)}
    done = subprocess.run([sys.executable, "-c", LOOP], env=settings, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2
