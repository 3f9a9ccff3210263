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


_Move = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and words for behind the bar."""


@contextmanager
def _shown(what: str, *, left: bool, visible: bool = True) -> Generator[tuple[_Move, Callable[[str], None], bool]]:
    """What moves a bar on stderr, what says a line there, and whether that is a terminal; elsewhere no bar is seen."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        *([TimeRemainingColumn()] if left else []),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, said="", visible=visible)

        def move(done: int, of: int, said: str) -> None:
            progress.update(task, completed=done, total=of, said=said, visible=True)

        yield move, lambda line: console.print(line, soft_wrap=True), console.is_terminal


@contextmanager
def bar(what: str) -> Generator[Tick]:
    """A bar while steps are taken where stderr is a terminal, and one line with seconds a step at the end anywhere."""
    began, done = time.perf_counter(), 0
    with _shown(what, left=True) as (move, say, _):

        def tick(step: int, total: int) -> None:
            nonlocal done
            done = step
            move(step, total, _pace(time.perf_counter() - began, step))

        yield tick
    if done:
        say(f"{what}: {done} steps, {_pace(time.perf_counter() - began, done)}")


def _pace(seconds: float, steps: int) -> str:
    return f"{seconds / steps:.3f} s a step"


Standing = Callable[[int, int, float, float], None]
"""Called with pictures drawn and in all, the seconds since the beginning and those that are left."""
EVERY = 30.0
"""Seconds between lines where stderr is no terminal."""


@contextmanager
def standing(what: str) -> Generator[Standing]:
    """A bar with the time that is left where stderr is a terminal, elsewhere a line now and then."""
    said = -EVERY
    with _shown(what, left=False, visible=False) as (move, say, terminal):

        def tick(done: int, of: int, seconds: float, left: float) -> None:
            nonlocal said
            when = f"{_minutes(seconds)} gone, about {_minutes(left)} left"
            move(done, of, when)
            if not terminal and (seconds - said >= EVERY or done == of):
                say(f"{what}: {done} of {of}, {when}")
                said = seconds

        yield tick


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
