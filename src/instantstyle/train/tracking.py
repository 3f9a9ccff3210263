# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateImportUsage=false

"""Following a run: a line now and then, a CSV with a row a step, TensorBoard, and sheets of what the adapter draws.

Sheets matter most: the loss of an adapter hardly falls, while what it draws changes.
"""

import copy
import csv
import dataclasses
import importlib
import importlib.util
import io
import os
import platform
import resource
import sys
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
"""What a model with the adapter in it scores, by the names of the measures."""
_FIELDS: Sequence[str] = ("step", "loss", "grad_norm", "lr")


class MetricsLog:
    """`losses.csv`, and a file for TensorBoard where that is installed; rows after `first` are written anew.

    A full disk stops no training: what cannot be written is kept, and written as soon as there is room again.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.file, self._scores = folder / "losses.csv", folder / "scores.csv"
        self._held: dict[Path, bytes] = {}
        with atomic_write(self.file) as partial, partial.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(_FIELDS)
            writer.writerows(
                [row[name] for name in _FIELDS] for row in read_metrics(self.file) if int(row["step"]) <= first
            )
        if self._scores.exists():
            with self._scores.open(newline="") as read:
                heads, *kept = [row for row in csv.reader(read) if row] or [["step"]]
            with atomic_write(self._scores) as partial, partial.open("w", newline="") as out:
                there = [row for row in kept if len(row) == len(heads) and int(row[0]) <= first]
                csv.writer(out).writerows([heads, *there])
        self._board: Path | None = None
        if importlib.util.find_spec("tensorboard") is not None:
            named = f"events.out.tfevents.{int(time.time()):010}.{platform.node()}.{os.getpid()}"
            self._board = folder / "tensorboard" / named
            self._append(self._board, _begun(first + 1))

    def log(self, at: TrainingProgress) -> None:
        """Write the newest steps, each with what floats need to be read back as they are."""
        self._append(
            self.file, _lines([(row.step, repr(row.loss), repr(row.grad_norm), repr(row.lr)) for row in at.rows])
        )
        if self._board is not None:
            of_steps = [
                _scalars(row.step, {name: getattr(row, name) for name in ("loss", "grad_norm", "lr")})
                for row in at.rows
            ]
            self._append(self._board, b"".join([*of_steps, _scalars(at.step, {"samples a second": at.speed})]))

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Write what the referee says."""
        new = not self._scores.exists() and self._scores not in self._held
        said = [step, *(f"{value:.4f}" for value in scores.values())]
        self._append(self._scores, _lines([["step", *scores], said] if new else [said]))
        if self._board is not None:
            self._append(self._board, _scalars(step, {f"scores/{name}": value for name, value in scores.items()}))

    def close(self) -> None:
        """No more is to come."""
        for file in list(self._held):
            self._append(file, b"")

    def _append(self, file: Path, new: bytes) -> None:
        held = self._held.get(file, b"") + new
        if not held:
            return
        size = file.stat().st_size if file.exists() else 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as out:
                out.write(held)
        except OSError as refused:
            if file not in self._held:
                print(f"warning: {file} waits for room: {refused.strerror}", file=sys.stderr, flush=True)
            self._held[file] = held
            if file.exists():
                os.truncate(file, size)  # no half of a row is to stay
        else:
            self._held.pop(file, None)


def _lines(new: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(new)
    return text.getvalue().encode()


def _begun(step: int) -> bytes:
    """The head of a TensorBoard file: what earlier files say of this step and those after it holds no longer."""
    log: Any = importlib.import_module("tensorboard.compat.proto.event_pb2").SessionLog
    return _record(file_version="brain.Event:2") + _record(step=step, session_log=log(status=log.START))


def _scalars(step: int, values: Mapping[str, float]) -> bytes:
    """Values at a step, as TensorBoard reads them."""
    summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    each = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return _record(step=step, summary=summary(value=each))


def _record(**fields: Any) -> bytes:
    """An event as a TFRecord.

    torch's `SummaryWriter` writes from a thread of its own, which on a full disk ends with a traceback on stderr.
    """
    event: Any = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    writer: Any = importlib.import_module("tensorboard.summary.writer.record_writer").RecordWriter
    out = io.BytesIO()
    writer(out).write(event(wall_time=time.time(), **fields).SerializeToString())
    return out.getvalue()


def read_metrics(file: Path) -> list[dict[str, str]]:
    """The rows of a `losses.csv`, whole ones only; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as read:
        return [row for row in csv.DictReader(read) if all(row.get(name) for name in _FIELDS)]


class ConsoleLog:
    """A line on stderr at most every few seconds."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self._shown = every, -float("inf")

    def log(self, at: TrainingProgress) -> None:
        """Say where the run stands, if it is time or the last of it; warnings at once."""
        for warning in at.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - self._shown < self.every and at.step < at.steps and not at.stopped:
            return
        self._shown = now
        mean = sum(row.loss for row in at.rows) / len(at.rows)
        print(
            f"step {at.step}/{at.steps}  loss {mean:.4f}  lr {at.rows[-1].lr:.1e}  {at.speed:.1f} samples/s  "
            f"{_clock(at.left)} to go  {peak_memory() / 2**30:.2f} GiB",
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
        {site: weight.detach().to(model.device, model.dtype) for site, weight in given.items()}
        for given in (adapter.keys, adapter.values)
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
