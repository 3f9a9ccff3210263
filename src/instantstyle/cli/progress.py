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


Standing = Callable[[int, int, float, float], None]
"""Called with pictures drawn and in all, the seconds since the beginning and those that are left."""
EVERY = 30.0
"""Seconds between lines where stderr is no terminal."""


@contextmanager
def standing(what: str) -> Generator[Standing]:
    """A bar with the time that is left where stderr is a terminal, elsewhere a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    said = -EVERY
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, left="", visible=False)

        def tick(done: int, of: int, seconds: float, left: float) -> None:
            nonlocal said
            when = f"{_minutes(seconds)} gone, about {_minutes(left)} left"
            progress.update(task, completed=done, total=of, left=when, visible=True)
            if not console.is_terminal and (seconds - said >= EVERY or done == of):
                console.print(f"{what}: {done} of {of}, {when}", soft_wrap=True)
                said = seconds

        yield tick


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
