"""Worker: the one thread that owns the model.  It claims jobs, steps them together and ends them.

Live drafts have an engine of their own on the same model, and go first: while one is drawn, other jobs move every
fourth step, so that a slider is followed at once and nobody starves.
"""

import base64
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from instantstyle.errors import InputError, InstantStyleError
from instantstyle.request import Request
from instantstyle.serve.events import EventBoard
from instantstyle.serve.images import ImageFiles
from instantstyle.serve.metrics import Metrics
from instantstyle.serve.outcomes import Outcomes, failure_sentence
from instantstyle.serve.rows import JobRow, State
from instantstyle.serve.store import JobStore
from instantstyle.utils.images import encode_png, encode_webp

if TYPE_CHECKING:
    from instantstyle.model import Model
    from instantstyle.sampling import Engine, Run

T = TypeVar("T")
PROGRESS_SECONDS, PREVIEW_SECONDS = 0.1, 0.4
PREVIEW_SIDE = 256
DRAFT_STEPS_PER_STEP = 4
"""Steps that drafts take for each step of the others."""


@dataclass(eq=False)
class Active:
    """A claimed job and its runs."""

    row: JobRow
    request: Request
    run: "Run"
    baseline: "Run | None" = None
    """The same without its reference, for the meter."""
    progress_at: float = 0.0
    preview_at: float = 0.0
    partials: int = 0
    cancelled: bool = False

    @property
    def runs(self) -> "list[Run]":
        """What is stepped."""
        return [self.run] if self.baseline is None else [self.run, self.baseline]

    @property
    def done(self) -> bool:
        """Whether nothing is left to step."""
        return self.run.done and (self.baseline is None or self.baseline.done or self.run.state != "done")


@dataclass
class _Unwritten:
    """The end of a job that the disk refused so far."""

    job: JobRow
    state: State
    outcome: dict[str, Any]
    images: list[Any] = field(default_factory=list[Any])


class Worker(threading.Thread):
    """Runs jobs until it is stopped.  Everything that touches the model goes through it: see `call`."""

    def __init__(
        self,
        store: JobStore,
        board: EventBoard,
        files: ImageFiles,
        load: "Callable[[], Model]",
        *,
        batch: int = 8,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._store, self._board, self._files, self._load = store, board, files, load
        self.batch, self.metrics = batch, metrics or Metrics()
        self.model: Model | None = None
        self.failure: str | None = None
        """Why there is no model, a sentence."""
        self.active: dict[str, Active] = {}
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = False
        self._cancels: set[str] = set()
        self._served: dict[str, int] = {}
        self._turn = self._steps = 0
        self._unwritten: list[_Unwritten] = []

    # -- what other threads call ---------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and the thread lives."""
        return self.model is not None and self.is_alive()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def cancel(self, job: str) -> None:
        """Stop a running job before its next step, and no other."""
        self._cancels.add(job)
        self._wake.set()

    def call(self, what: "Callable[[Model], T]") -> "Future[T]":
        """Have something done with the model between two steps."""
        future: Future[T] = Future()

        def run() -> T:
            if self.model is None:
                raise InstantStyleError(self.failure or "the model is still being loaded: try again in a moment")
            return what(self.model)

        self._calls.put((run, future))
        self._wake.set()
        return future

    def stop(self, timeout: float = 30.0) -> None:
        """End at the next step boundary; running jobs are queued again."""
        self._stopping = True
        self._wake.set()
        if self.is_alive():
            self.join(timeout)

    # -- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load the model, then work until stopped."""
        try:
            self.model = self._load()
        except Exception as failed:  # the page tells it; there is nothing to draw with
            self.failure = (
                str(failed) if isinstance(failed, InstantStyleError) else f"{type(failed).__name__}: {failed}"
            )
            return
        import torch

        from instantstyle.sampling import Engine

        torch.set_grad_enabled(False)
        self._outcomes = Outcomes(self.model, self._files)
        drafts, others = Engine(self.model), Engine(self.model)
        while not self._stopping:
            try:
                self._turn_once(drafts, others)
            except Exception as failed:  # whatever it was, the thread goes on with new engines and the next jobs
                self.metrics.log.exception("the engine failed", exc_info=failed)
                for each in list(self.active.values()):
                    self._fail(each.row, failed)
                drafts, others = Engine(self.model), Engine(self.model)
                self._wake.wait(0.2)
        for each in self.active.values():
            for run in each.runs:
                run.cancel()
            with suppress(sqlite3.Error):  # on a full disk: the next start queues it again
                self._board.tell(self._store.release(each.row.id, each.row.attempt))

    def _turn_once(self, drafts: "Engine", others: "Engine") -> None:
        """What clients asked for since, then one step of everything, then what came of it."""
        self._wake.clear()
        self._answer_calls()
        self._write_again()
        self._take_cancels()
        self._admit(drafts, others)
        if not self.active:
            self._wake.wait(1.0 if self._unwritten else 5.0)
            return
        self._step(drafts)
        self._steps += 1
        if not drafts.runs or self._steps % DRAFT_STEPS_PER_STEP == 0:
            self._step(others)
        self._after_step()

    def _step(self, engine: "Engine") -> None:
        if not engine.runs:
            return
        began = time.perf_counter()
        engine.step()
        self.metrics.step_seconds.observe(time.perf_counter() - began)

    def _answer_calls(self) -> None:
        while not self._calls.empty():
            run, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(run())
            except BaseException as failed:
                future.set_exception(failed)

    def _take_cancels(self) -> None:
        while self._cancels:
            each = self.active.get(self._cancels.pop())
            if each is not None:
                each.cancelled = True
                for run in each.runs:
                    run.cancel()
                self._end(each, "cancelled", {})

    def _admit(self, drafts: "Engine", others: "Engine") -> None:
        """Claim jobs while there is room: drafts first, then the client whose turn is longest ago."""
        while True:
            running = [each for each in self.active.values() if not each.row.draft]
            waiting = [each for each in self._store.waiting() if each[2] or len(running) < self.batch]
            if not waiting:
                return
            at_work = {each.row.client: 0 for each in running}
            for each in running:
                at_work[each.row.client] += 1

            def turn(place: tuple[int, tuple[str, str, bool]], busy: dict[str, int] = at_work) -> tuple[Any, ...]:
                index, (_, client, draft) = place
                return (not draft, busy.get(client, 0), self._served.get(client, -1), index)

            job, client, draft = min(enumerate(waiting), key=turn)[1]
            try:
                claimed = self._store.claim(job)
            except sqlite3.Error as refused:  # a full disk: it waits, and what runs goes on
                self.metrics.log.error("job %s could not be begun (%s); tried again", job, refused)
                self._wake.wait(0.0 if self.active else 0.5)
                return
            if claimed is None:
                continue
            self._turn += 1
            self._served[client] = self._turn
            row, text, event = claimed
            self._board.tell(event)
            self._begin(row, text, drafts if draft else others)

    def _begin(self, row: JobRow, text: str, engine: "Engine") -> None:
        try:
            request = Request.from_json(text)
            run = engine.submit(request)
        except Exception as refused:
            self._fail(row, refused)
            return
        self.active[row.id] = Active(row, request, run, self._outcomes.begin_baseline(row, request, engine))

    def _after_step(self) -> None:
        now = time.monotonic()
        for each in list(self.active.values()):
            if each.done:
                self._finish(each)
            elif not each.run.done:
                self._tell_progress(each, now)

    def _tell_progress(self, each: Active, now: float) -> None:
        run, draft = each.run, {"draft": True} if each.row.draft else {}
        at = run.progress()
        steps = at.steps
        if now - each.progress_at >= PROGRESS_SECONDS:
            each.progress_at = now
            self._board.tell_live(each.row.id, "progress", {"step": at.step, "steps": at.steps, **draft})
        wanted = int(each.row.options.get("partials", 0))
        if each.partials < wanted and run.state == "running" and run.step * (wanted + 1) >= steps * (each.partials + 1):
            each.partials += 1
            self._board.tell_live(each.row.id, f"partial.{each.partials}", {"image": self._preview(each, "PNG")})
        elif each.row.options.get("preview", True) and self._board.readers and run.state == "running" and run.step:
            if not each.preview_at:
                each.preview_at = now  # quick jobs need none
            elif now - each.preview_at >= PREVIEW_SECONDS:
                each.preview_at = now
                image = self._preview(each, "WEBP")
                if image is not None:
                    self._board.tell_live(each.row.id, "preview", {"step": run.step, "image": image, **draft})

    def _preview(self, each: Active, kind: str) -> str | None:
        """The first picture as it is expected to become, as a data URL; None where it cannot be decoded yet."""
        try:
            picture = each.run.preview()[0]
        except InstantStyleError:
            return None
        if kind == "PNG":
            return base64.b64encode(encode_png(picture)).decode()
        return "data:image/webp;base64," + base64.b64encode(encode_webp(picture, PREVIEW_SIDE)).decode()

    # -- ends ----------------------------------------------------------------------------------------------------

    def _finish(self, each: Active) -> None:
        if each.cancelled:
            return
        try:
            outcome, images = self._outcomes.record(each.row, each.request, each.run.result(), each.baseline)
        except Exception as failed:
            self._fail(each.row, failed)
            return
        self._end(each, "done", outcome, images)
        if each.row.draft:
            with suppress(sqlite3.Error):  # the next draft does it
                self._store.prune_drafts(32)

    def _fail(self, row: JobRow, failed: BaseException) -> None:
        said = str(failed) if isinstance(failed, InstantStyleError) else failure_sentence(failed)
        if not isinstance(failed, InstantStyleError):
            self.metrics.log.exception("job %s failed", row.id, exc_info=failed)
        each = self.active.get(row.id)
        kind = "input" if isinstance(failed, InputError) else "server"
        self._end(each or row, "failed", {"error": said, "kind": kind})

    def _end(
        self, each: Active | JobRow, state: State, outcome: dict[str, Any], images: list[Any] | None = None
    ) -> None:
        """Write a job's end and tell it; what the disk refuses is kept and tried again."""
        row = each.row if isinstance(each, Active) else each
        if isinstance(each, Active) and self.active.get(row.id) is each:
            del self.active[row.id]
        self.metrics.jobs.labels(state).inc()
        if isinstance(each, Active) and state == "done":
            self.metrics.job_seconds.observe(max(0.0, time.time() - row.created))
        ended = _Unwritten(row, state, outcome, images or [])
        if not self._write_end(ended):
            self._unwritten.append(ended)

    def _write_end(self, ended: _Unwritten) -> bool:
        try:
            event = self._store.finish(ended.job.id, ended.job.attempt, ended.state, ended.outcome, ended.images)
        except sqlite3.Error as refused:
            self.metrics.log.error("the end of job %s could not be written (%s); tried again", ended.job.id, refused)
            return False
        self._board.tell(event)
        return True

    def _write_again(self) -> None:
        self._unwritten = [each for each in self._unwritten if not self._write_end(each)]
