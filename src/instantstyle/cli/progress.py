"""Progress on stderr with seconds a step, and the silence of other libraries meanwhile."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

OnStep = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""
OnPicture = Callable[[int, int, float, float], None]
"""Called with pictures drawn and in all, the seconds since the beginning and those that are left."""
SECONDS_BETWEEN_LINES = 30.0
"""Where stderr is no terminal."""

_Update = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and the text behind the bar."""


def hush() -> None:
    """Keep the advice of borrowed libraries off stderr; to be called before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def _progress(
    title: str, *, time_left: bool, visible: bool = True
) -> Generator[tuple[_Update, Callable[[str], None], bool]]:
    """Functions that move a bar and print a line on stderr, and whether that is a terminal: if not, there is no bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        *([TimeRemainingColumn()] if time_left else []),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None, status="", visible=visible)

        def update(done: int, total: int, status: str) -> None:
            progress.update(task, completed=done, total=total, status=status, visible=True)

        yield update, lambda line: console.print(line, soft_wrap=True), console.is_terminal


@contextmanager
def bar(title: str) -> Generator[OnStep]:
    """A bar while steps are taken where stderr is a terminal, and one line with seconds a step at the end anywhere."""
    start, done = time.perf_counter(), 0
    with _progress(title, time_left=True) as (update, print_line, _):

        def on_step(step: int, total: int) -> None:
            nonlocal done
            done = step
            update(step, total, _pace(time.perf_counter() - start, step))

        yield on_step
    if done:
        print_line(f"{title}: {done} steps, {_pace(time.perf_counter() - start, done)}")


def _pace(seconds: float, steps: int) -> str:
    return f"{seconds / max(steps, 1):.3f} s a step"


@contextmanager
def standing(title: str) -> Generator[OnPicture]:
    """A bar with the time that is left where stderr is a terminal, elsewhere a line now and then."""
    last_line = -SECONDS_BETWEEN_LINES
    with _progress(title, time_left=False, visible=False) as (update, print_line, terminal):

        def on_picture(done: int, total: int, seconds: float, left: float) -> None:
            nonlocal last_line
            status = f"{_duration(seconds)} gone, about {_duration(left)} left"
            update(done, total, status)
            if not terminal and (seconds - last_line >= SECONDS_BETWEEN_LINES or done == total):
                print_line(f"{title}: {done} of {total}, {status}")
                last_line = seconds

        yield on_picture


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
