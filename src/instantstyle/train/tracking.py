# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateImportUsage=false

"""Logging of a run: progress lines, a CSV with a row a step, TensorBoard, and grids of samples.

Samples matter most: the loss of an adapter hardly falls while its pictures change.
"""

import copy
import csv
import dataclasses
import importlib
import importlib.util
import io
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from instantstyle.model import Model
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine
from instantstyle.train.trainer import TrainingProgress
from instantstyle.utils.atomic_files import atomic_write
from instantstyle.utils.images import image_grid, write_png
from instantstyle.weights.adapter import Adapter

EvalFn = Callable[[Model], Mapping[str, float]]
"""The scores of a model with the adapter, by metric."""
Scalar = tuple[int, str, float]
"""Step, name, value."""
_FIELDS: Sequence[str] = ("step", "loss", "grad_norm", "lr")


class MetricsLog:
    """`losses.csv` and `scores.csv`, and TensorBoard's event files where it is installed.

    Rows after step `start` are dropped, which the resumed run writes anew.  A full disk stops no training: what cannot
    be written is kept, and written as soon as there is room again.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.file, self._scores = folder / "losses.csv", folder / "scores.csv"
        self._unwritten: dict[Path, bytes] = {}
        _write_table(self.file, [_FIELDS, *([row[name] for name in _FIELDS] for row in _until(self.file, start))])
        if self._scores.exists():
            with self._scores.open(newline="") as file:
                header, *metrics = [row for row in csv.reader(file) if row] or [["step"]]
            complete = [row for row in metrics if len(row) == len(header) and int(row[0]) <= start]
            _write_table(self._scores, [header, *complete])
        has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        self._board = TensorBoardLog(folder / "tensorboard", start + 1) if has_tensorboard else None

    def log(self, progress: TrainingProgress) -> None:
        """Write the newest steps; floats in full, so that they are read back as they are."""
        metrics = progress.metrics
        self._append(
            self.file, _csv([(row.step, repr(row.loss), repr(row.grad_norm), repr(row.lr)) for row in metrics])
        )
        if self._board is not None:
            values = [(row.step, name, getattr(row, name)) for row in metrics for name in ("loss", "grad_norm", "lr")]
            self._board.add([*values, (progress.step, "samples a second", progress.samples_per_second)])

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores of a step."""
        new = not self._scores.exists() and self._scores not in self._unwritten
        row = [step, *(f"{value:.4f}" for value in scores.values())]
        self._append(self._scores, _csv([["step", *scores], row] if new else [row]))
        if self._board is not None:
            self._board.add([(step, f"scores/{name}", value) for name, value in scores.items()])

    def close(self) -> None:
        """Try once more to write what is kept, and close the files."""
        for file in list(self._unwritten):
            self._append(file, b"")
        if self._board is not None:
            self._board.close()

    def _append(self, file: Path, new: bytes) -> None:
        content = self._unwritten.get(file, b"") + new
        if not content:
            return
        size = file.stat().st_size if file.exists() else 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as out:
                out.write(content)
        except OSError as error:
            if file not in self._unwritten:
                _warn_full(file, error)
            self._unwritten[file] = content
            if file.exists():
                os.truncate(file, size)  # no half of a row is to stay
        else:
            self._unwritten.pop(file, None)


class TensorBoardLog:
    """Scalars by torch's SummaryWriter, whose background thread may fail without a traceback.

    The thread ends when the disk is full, and leaves the event file as it is.  A later value opens a new writer, which
    purges the steps that were not written and writes them anew.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """`first_step` is the first to be logged; what earlier event files hold of it and later steps is purged."""
        self.folder = folder
        self._first_step = first_step
        self._written: list[Scalar] = []
        """Those of the newest step: a new writer purges whole steps."""
        self._unwritten: list[Scalar] = []
        self._writer: Any = None
        self._full, self._opened = False, 0
        self._previous_hook, self._hook = threading.excepthook, self._on_thread_error
        threading.excepthook = self._hook
        self.add([])

    def add(self, scalars: Sequence[Scalar]) -> None:
        """Write values, in the order of their steps; or keep them while the disk is full, which is said once."""
        self._unwritten += scalars
        try:
            if self._writer is None:
                lost = [*self._written, *self._unwritten]
                self._writer = self._open(min([step for step, _, _ in lost], default=self._first_step))
                self._written, self._unwritten = [], lost
            for step, name, value in self._unwritten:
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            if not self._full:
                _warn_full(self.folder, error)
            self._full = True
            return
        if self._unwritten:
            newest = max(step for step, _, _ in self._unwritten)
            self._written = [each for each in (*self._written, *self._unwritten) if each[0] == newest]
        self._unwritten, self._full = [], False

    def close(self) -> None:
        """Write what is kept, if there is room now, and end the writer."""
        self.add([])
        if self._writer is not None:
            self._writer.close()
        if threading.excepthook is self._hook:
            threading.excepthook = self._previous_hook

    def _open(self, purge_step: int) -> Any:
        while int(time.time()) <= self._opened:  # event files are read in the order of the seconds in their names
            time.sleep(0.05)
        make: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        before = set(self.folder.glob("*"))
        try:
            writer = make(str(self.folder), purge_step=purge_step)
        except OSError:
            for file in set(self.folder.glob("*")) - before:  # it has no header
                file.unlink(missing_ok=True)
            raise
        self._opened = int(time.time())
        return writer

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """The writer raises its thread's OSError in `add` as well, where it is dealt with."""
        of_tensorboard = type(error.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(error.exc_value, OSError)):
            self._previous_hook(error)


def _warn_full(path: Path, error: OSError) -> None:
    print(f"warning: {path} waits for room: {error.strerror}", file=sys.stderr, flush=True)


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _write_table(file: Path, rows: Sequence[Sequence[object]]) -> None:
    with atomic_write(file) as partial:
        partial.write_bytes(_csv(rows))


def _until(file: Path, step: int) -> list[dict[str, str]]:
    return [row for row in read_metrics(file) if int(row["step"]) <= step]


def read_metrics(file: Path) -> list[dict[str, str]]:
    """The rows of a `losses.csv`, whole ones only; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as read:
        return [row for row in csv.DictReader(read) if all(row.get(name) for name in _FIELDS)]


class ConsoleLog:
    """A line on stderr at most every few seconds."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self._reported = every, -float("inf")

    def log(self, progress: TrainingProgress) -> None:
        """Print a progress line, if it is time or the last; warnings at once."""
        for warning in progress.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - self._reported < self.every and progress.step < progress.steps and not progress.stopped:
            return
        self._reported = now
        mean = sum(row.loss for row in progress.metrics) / len(progress.metrics)
        print(
            f"step {progress.step}/{progress.steps}  loss {mean:.4f}  lr {progress.metrics[-1].lr:.1e}  "
            f"{progress.samples_per_second:.1f} samples/s  "
            f"{_clock(progress.seconds_left)} to go  {peak_memory() / 2**30:.2f} GiB",
            file=sys.stderr,
            flush=True,
        )


@dataclass(frozen=True)
class SampleGrids:
    """Prompts by rows, references by columns, drawn with the adapter as it is."""

    folder: Path
    prompts: Sequence[str]
    references: Sequence[Image.Image]
    plan: str
    steps: int = 20

    def draw(self, model: Model, adapter: Adapter, step: int) -> Path:
        """Draw a sheet, all its pictures together, and write it."""
        engine = Engine(with_adapter(model, adapter))
        runs = [
            [
                engine.submit(Request(prompt, references=[StyleReference(r)], plan=self.plan, seed=i, steps=self.steps))
                for r in self.references
            ]
            for i, prompt in enumerate(self.prompts)
        ]
        engine.run()
        pictures = [[run.result().images[0] for run in row] for row in runs]
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = image_grid([list(self.references), *pictures], rows=["", *(prompt[:24] for prompt in self.prompts)])
        return write_png(sheet, self.folder / f"{step:07}.png")


def with_adapter(model: Model, adapter: Adapter) -> Model:
    """The same networks with this adapter, in their dtype and on their device, in place of their own."""
    keys, values = (
        {site: weight.detach().to(model.device, model.dtype) for site, weight in weights.items()}
        for weights in (adapter.keys, adapter.values)
    )
    projection = copy.deepcopy(adapter.projection).to(model.device, model.dtype).requires_grad_(False)
    placed = Adapter(projection, keys, values, adapter.embed_dim, adapter.token_count)
    return dataclasses.replace(model, adapter=placed, style_adapter=None)


def peak_memory() -> int:
    """Bytes of memory taken at most so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
