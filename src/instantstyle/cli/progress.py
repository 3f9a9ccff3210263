"""Progress on stderr with seconds a step, and the quiet that other libraries keep meanwhile."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

Tick = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


def hush() -> None:
    """Keep the advice of borrowed libraries off stderr; to be called before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def bar(what: str) -> Generator[Tick]:
    """A bar while steps are taken where stderr is a terminal, and one line with seconds a step at the end anywhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        TimeRemainingColumn(),
    )
    began, done = time.perf_counter(), 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, pace="")

        def tick(step: int, total: int) -> None:
            nonlocal done
            done = step
            progress.update(task, completed=step, total=total, pace=_pace(time.perf_counter() - began, step))

        yield tick
    if done:
        console.print(f"{what}: {done} steps, {_pace(time.perf_counter() - began, done)}", soft_wrap=True)


def _pace(seconds: float, steps: int) -> str:
    return f"{seconds / steps:.3f} s a step"
