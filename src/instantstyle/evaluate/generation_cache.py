"""Pictures kept by what they were made from, and drawn by workers: what is there is never drawn again.

A picture is a PNG named by the hash of its question, way, steps and the model's weights, with its cost inside.  So two
workers, two subsets and two sweeps share what they have in common, and whatever is interrupted goes on.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from PIL import Image

from instantstyle.errors import InstantStyleError
from instantstyle.evaluate.classifiers import pixels_of
from instantstyle.evaluate.experiments import Job, resolve_experiments
from instantstyle.evaluate.tasks import GUIDANCE, Outputs, Setting, Task, run_tasks
from instantstyle.model import Model
from instantstyle.utils.atomic_files import remove_stale_temp_files
from instantstyle.utils.images import load_image, read_texts
from instantstyle.utils.images import write_png as write

LoadModelFn = Callable[[], Model]
"""Loads the model anew, in a process of its own; to be sent there, so a function of a module or a partial of one."""
_COST = "parameters"
"""The PNG text chunk that holds a picture's cost, and what it was made from."""


@dataclass(frozen=True)
class ImageCache:
    """The pictures of one model and number of steps in a folder."""

    folder: Path
    identity: str
    """Of the model's weights."""
    steps: int

    def path(self, question: Task, way: Setting) -> Path:
        """Where a picture is, or will be."""
        said = (question.to_dict(), asdict(resolve_experiments(way)), self.identity, self.steps, GUIDANCE)
        return self.folder / f"{sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]}.png"

    def has(self, question: Task, way: Setting) -> bool:
        """Whether it is there."""
        return self.path(question, way).name in self._there or self.path(question, way).is_file()

    @cached_property
    def _there(self) -> frozenset[str]:
        return frozenset(path.name for path in self.folder.glob("*.png"))

    def get(self, questions: Sequence[Task], way: Setting) -> Outputs:
        """Pictures that are there, and what one of them cost on the mean."""
        paths = [self.path(question, way) for question in questions]
        costs = np.array([self.cost(path) for path in paths])
        seconds, evaluations = costs[:, :2].mean(0)
        pixels = pixels_of([load_image(path) for path in paths])
        return Outputs(pixels, float(seconds), float(evaluations), costs[:, 2].tolist())

    @staticmethod
    def cost(path: Path) -> tuple[float, float, float]:
        """Seconds of a core, rows through the UNet, and seconds of a core for its fit, as far as there was one."""
        seconds, rows, fit = json.loads(read_texts(path)[_COST])["cost"]
        return float(seconds), float(rows), float(fit)

    def draw(self, model: Model, job: Job) -> None:
        """Draw a job and keep its pictures."""
        made = run_tasks(model, job.tasks, job.setting, self.steps)
        for question, pixels, fit in zip(job.tasks, made.pixels, made.fit_seconds, strict=True):
            said = {
                "thing": question.target,
                "shown": question.reference_content,
                "cell": question.cell,
                "way": asdict(resolve_experiments(job.setting)),
                "cost": [made.seconds, made.unet_rows, fit],
            }
            write(Image.fromarray(pixels), self.path(question, job.setting), line=json.dumps(said))


@dataclass(frozen=True)
class CacheProgress:
    """How far the drawing is."""

    done: int
    """Pictures drawn now."""
    total: int
    """Pictures that had to be drawn."""
    seconds: float
    """Since it began."""
    seconds_left: float
    """Seconds that are left, told from what the jobs so far took for their estimated cost."""


ProgressFn = Callable[[CacheProgress], None]


def draw_jobs(
    kept: ImageCache,
    todo: Sequence[Job],
    model: Model,
    workers: int = 1,
    load: LoadModelFn | None = None,
    watch: ProgressFn | None = None,
) -> float:
    """Draw all jobs; with `load` in so many processes of one thread each, else here.  Returns the seconds it took.

    Stopped at any time it leaves whole pictures alone.  Raises InstantStyleError when a worker dies, and what a job
    raises.
    """
    kept.folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temp_files(kept.folder)
    began, done, cost = time.perf_counter(), 0, 0.0
    whole, pictures = sum(job.cost for job in todo), sum(len(job.tasks) for job in todo)
    workers = min(workers, len(todo))
    finished = _here(kept, todo, model) if workers <= 1 or load is None else _spread(kept, todo, workers, load)
    for job in finished:
        done, cost = done + len(job.tasks), cost + job.cost
        if watch is not None:
            gone = time.perf_counter() - began
            watch(CacheProgress(done, pictures, gone, gone * (whole - cost) / cost))
    return time.perf_counter() - began


def _here(kept: ImageCache, todo: Sequence[Job], model: Model) -> Iterator[Job]:
    for job in todo:
        kept.draw(model, job)
        yield job


def _spread(kept: ImageCache, todo: Sequence[Job], workers: int, load: LoadModelFn) -> Iterator[Job]:
    """Hand each idle worker the next job.  Processes, since one thread each is the fastest on cores that are shared."""
    context = multiprocessing.get_context("spawn")
    left, busy = list(reversed(todo)), dict[Connection, Job]()
    lines: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, kept, load), daemon=True)
            process.start()
            theirs.close()
            lines[ours] = process
            busy[ours] = left.pop()
            with suppress(ConnectionError):  # its death is told where its answer is awaited
                ours.send(busy[ours])
        while busy:
            for line in wait(list(busy)):
                assert isinstance(line, Connection)
                try:
                    failure: BaseException | None = line.recv()
                except (EOFError, ConnectionError) as died:
                    raise InstantStyleError(
                        "a worker that draws pictures died, perhaps of too little memory; what it had drawn is kept: "
                        "run the same command again, with --jobs 1 if it happens again"
                    ) from died
                if failure is not None:
                    raise failure
                job = busy.pop(line)
                if left:
                    busy[line] = left.pop()
                    with suppress(ConnectionError):
                        line.send(busy[line])
                yield job
    finally:
        for line, process in lines.items():
            line.close()
            process.terminate()
        for process in lines.values():
            process.join(10)


def _work(line: Connection, kept: ImageCache, load: LoadModelFn) -> None:
    """A worker: draws what it is sent until nobody sends, answering None or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # leaving no unfinished file
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        try:
            model = load()
        except Exception as failure:
            line.recv()
            line.send(failure)
            return
        while True:
            job: Job = line.recv()
            try:
                kept.draw(model, job)
            except Exception as failure:
                line.send(failure)
                return
            line.send(None)


def _end_with_parent() -> None:
    """In a worker: end it as SIGTERM does once its parent is gone, however that went; a job may have minutes to go."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
