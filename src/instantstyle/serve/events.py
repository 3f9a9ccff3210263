"""EventBoard: what the engine thread tells, read by any number of event streams; and the streams themselves.

A reader holds two numbers and no queue, so a slow one costs nothing: changes of state are read from the store after
the last number it saw, and of progress and previews only the newest is kept.  Previews carry no id: a client that
comes back gets every change of state it missed and the present preview.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from instantstyle.serve.rows import FINISHED, Event
from instantstyle.serve.store import JobStore

RECENT = 1024
"""Events kept in memory, so that readers that keep up ask the store nothing."""
PING_SECONDS = 15.0
STALL_SECONDS = 30.0
"""A client that takes nothing for so long is dropped; it may come back with its Last-Event-ID."""


@dataclass(frozen=True)
class Message:
    """One message of a stream: with an id where it is a change of state, without where only the newest counts."""

    kind: str
    data: Mapping[str, Any]
    id: int | None = None


class EventBoard:
    """Written from any thread, read on one event loop."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._live: dict[tuple[str, str], tuple[int, Mapping[str, Any]]] = {}  # (job, kind) -> (tick, data)
        self._tick = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self._woken = False
        self.closed = False

    def attach(self) -> None:
        """Say which loop the readers are on; to be called on it."""
        self._loop = asyncio.get_running_loop()

    def tell(self, event: Event | None) -> None:
        """A change of state that the store holds by now; None is ignored."""
        if event is None:
            return
        with self._lock:
            self._recent.append(event)
            if event.kind in FINISHED:
                for kind in ("progress", "preview"):
                    self._live.pop((event.job, kind), None)
        self._notify()

    def tell_live(self, job: str, kind: str, data: Mapping[str, Any]) -> None:
        """Progress or a preview, in place of the one before."""
        with self._lock:
            self._tick += 1
            self._live[job, kind] = self._tick, data
        self._notify()

    def close(self) -> None:
        """End every stream; on the loop."""
        self.closed = True
        self._wake()

    def close_soon(self) -> None:
        """The same from anywhere, a signal's handler too."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.close)

    @property
    def readers(self) -> int:
        """Streams that are open."""
        return len(self._waiting)

    def _notify(self) -> None:
        # Not marked woken before there is a loop: nobody would ever wake.
        with self._lock:
            loop = None if self._woken else self._loop
            self._woken = self._loop is not None
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._woken = False
        for waiting in self._waiting:
            waiting.set()

    def _after(self, seq: int, tick: int, job: str | None) -> tuple[list[Event], list[tuple[str, str, Any]], int]:
        """Events after a number, what is live after a tick, and the newest tick."""
        with self._lock:
            recent = list(self._recent)
            live = [(of, kind, data) for (of, kind), (at, data) in self._live.items() if at > tick]
            newest = self._tick
        if job is not None:
            live = [each for each in live if each[0] == job]
        if recent and recent[0].seq <= seq + 1:
            return [e for e in recent if e.seq > seq and (job is None or e.job == job)], live, newest
        return self._store.events(seq, job), live, newest

    def forget(self, job: str) -> None:
        """Drop what is live of a job: partial pictures stay until their reader has them."""
        with self._lock:
            for each in [each for each in self._live if each[0] == job]:
                del self._live[each]

    async def follow(
        self, after: int, job: str | None = None, ping: float = PING_SECONDS
    ) -> AsyncGenerator[Message | None, None]:
        """Messages later than an event's number; None where nothing happened for a while.

        Of one job until it is over, of all until the server ends.
        """
        waiting, tick = asyncio.Event(), 0
        self._waiting.add(waiting)
        try:
            while not self.closed:
                waiting.clear()  # before reading: what comes meanwhile sets it again
                events, live, tick = self._after(after, tick, job)
                for event in events:
                    after = event.seq
                    if job is None and event.data.get("draft"):
                        continue  # live drafts are their page's own affair
                    yield Message(event.kind, {"job": event.job, **event.data}, event.seq)
                    if job is not None and event.kind in FINISHED:
                        return
                for of, kind, data in live:
                    if job is None and (data.get("draft") or kind.startswith("partial")):
                        continue
                    yield Message(kind, {"job": of, **data})
                if not events and not live:
                    try:
                        async with asyncio.timeout(ping):
                            await waiting.wait()
                    except TimeoutError:
                        yield None
        finally:
            self._waiting.discard(waiting)


def encoded(message: Message | None) -> bytes:
    """A message in the format of text/event-stream; None is a comment that keeps the connection alive."""
    if message is None:
        return b": ping\n\n"
    head = "" if message.id is None else f"id: {message.id}\n"
    return f"{head}event: {message.kind}\ndata: {json.dumps(message.data)}\n\n".encode()


class EventStream(StreamingResponse):
    """A stream whose generators are closed as soon as the client has gone or stalls, however that was noticed."""

    media_type = "text/event-stream"

    def __init__(
        self, messages: AsyncGenerator[Any, None], encode: Callable[[Any], bytes] = encoded, first: bytes = b": ok\n\n"
    ) -> None:
        self._messages, self._encode, self._first = messages, encode, first
        self._lines = self._encoded()
        super().__init__(self._lines, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def _encoded(self) -> AsyncGenerator[bytes, None]:
        if self._first:
            yield self._first
        async for message in self._messages:
            yield self._encode(message)

    async def stream_response(self, send: Send) -> None:
        """Send until the messages end, the client leaves, or it has not read for STALL_SECONDS."""

        async def send_or_drop(message: Any) -> None:
            async with asyncio.timeout(STALL_SECONDS):
                await send(message)

        try:
            with suppress(TimeoutError):
                await super().stream_response(send_or_drop)
        finally:  # cancelled while it waits for a slow client, the generators would wait for the garbage collector
            await self._lines.aclose()
            await self._messages.aclose()
