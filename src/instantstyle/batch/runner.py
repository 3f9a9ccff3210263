"""Draw the pending rows of a journal: one engine, as many requests at once as asked for, pictures written whole."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instantstyle.batch.journal import Journal, PendingRow
from instantstyle.batch.table import RequestBuilder, without_pictures
from instantstyle.errors import InstantStyleError, PictureError
from instantstyle.meter import can_measure, measure, without_reference
from instantstyle.model import Model
from instantstyle.request import Request, Result, output_paths, read_metadata
from instantstyle.sampling import Engine
from instantstyle.sampling.resolve import resolve
from instantstyle.sampling.run import Run

OnRow = Callable[[int], None]
"""Called with the number of a row that is done or has failed."""


@dataclass
class _Row:
    """A row in flight."""

    row: PendingRow
    run: Run
    without: Run | None = None
    """The same seed without the reference, for the meter."""

    @property
    def over(self) -> bool:
        return self.run.done and (self.without is None or self.without.done)

    def cancel(self) -> None:
        self.run.cancel()
        if self.without is not None:
            self.without.cancel()


class BatchRunner:
    """Draws the rows of one journal by one model."""

    def __init__(
        self, model: Model, journal: Journal, builder: RequestBuilder, *, concurrency: int = 16, meter: bool = False
    ) -> None:
        """`concurrency` requests are in flight at once; `meter` also draws each without its reference, and compares."""
        self._model, self._journal, self._builder = model, journal, builder
        self._concurrency, self._meter = concurrency, meter
        self._engine = Engine(model)

    def run(self, on_row: OnRow | None = None) -> None:
        """Draw every pending row.  A row that fails is written down, and the others go on."""
        on_done: OnRow = on_row or _ignore
        waiting = self._journal.pending()
        in_flight: list[_Row] = []
        try:
            while True:
                while len(in_flight) < self._concurrency and (begun := self._begin_next(waiting, on_done)) is not None:
                    in_flight.append(begun)
                if not in_flight:
                    return
                self._engine.step()
                for each in [each for each in in_flight if each.over]:
                    in_flight.remove(each)
                    self._end(each)
                    on_done(each.row.number)
        finally:
            for each in in_flight:
                each.cancel()

    def _begin_next(self, waiting: Iterator[PendingRow], on_done: OnRow) -> _Row | None:
        """The next row that is to be drawn, submitted; rows that are drawn already or cannot be are written down."""
        for row in waiting:
            try:
                request = self._builder.build(row.fields)
                request = request if request.seed is not None else request.model_copy(update={"seed": self._seed(row)})
                if self._adopt(row, request):
                    on_done(row.number)
                    continue
                run = self._engine.submit(request)
                metered = self._meter and can_measure(self._model, run.request)
                return _Row(row, run, self._engine.submit(without_reference(run.request)) if metered else None)
            except InstantStyleError as refused:
                self._journal.failed(row.number, str(refused))
                on_done(row.number)
        return None

    def _seed(self, row: PendingRow) -> int:
        """The seed of a row that has none: the same whenever the batch goes on."""
        base = self._journal.fact("seed")
        if base is None:
            base = str(random.SystemRandom().getrandbits(62))
            self._journal.remember("seed", base)
        return int.from_bytes(hashlib.sha256(f"{base} {row.number}".encode()).digest()[:7])

    def _adopt(self, row: PendingRow, request: Request) -> bool:
        """Whether a row's pictures are whole on disk, from a run that died before it wrote so down."""
        paths = output_paths(self._journal.folder / row.name, request.count)
        if self._meter or not all(path.exists() for path in paths):
            return False
        wanted = resolve(self._model, request).request
        try:
            held = [read_metadata(path) for path in paths]
        except PictureError:
            return False
        if any(each.request != wanted or each.identity != self._model.weights_fingerprint for each in held):
            return False
        self._journal.done(row.number, 0.0, _outcome(self._journal.folder, paths, held[0].request, ()))
        return True

    def _end(self, each: _Row) -> None:
        try:
            result = each.run.result()
            path = self._journal.folder / each.row.name
            path.parent.mkdir(parents=True, exist_ok=True)
            paths = result.save(path)
            outcome = _outcome(self._journal.folder, paths, result.request, result.warnings)
            if each.without is not None:
                outcome["meter"] = self._measured(result, each.without.result())
            self._journal.done(each.row.number, result.seconds, outcome)
        except InstantStyleError as failure:
            self._journal.failed(each.row.number, str(failure))
        except Exception as failure:  # of this row's own run: the others go on
            self._journal.failed(each.row.number, f"{type(failure).__name__}: {failure}")

    def _measured(self, result: Result, without: Result) -> list[dict[str, Any]]:
        readings = measure(self._model, result.request, result.images, without.images)
        return [dict(reading.as_dict()) for reading in readings]


def _ignore(number: int) -> None:
    pass


def _outcome(folder: Path, paths: tuple[Path, ...], request: Request, warnings: tuple[str, ...]) -> dict[str, Any]:
    return {
        "files": [str(path.relative_to(folder)) for path in paths],
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths],
        "request": without_pictures(request.model_dump(mode="json")),
        "warnings": list(warnings),
    }


class Pace:
    """Rows a second and the seconds that are left, from the rows of this run alone."""

    def __init__(self, left: int) -> None:
        self._began, self._left, self.rows = time.monotonic(), left, 0

    def row(self) -> None:
        """One more is done."""
        self.rows += 1

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        """At the rate so far."""
        return self.seconds / max(self.rows, 1) * (self._left - self.rows)
