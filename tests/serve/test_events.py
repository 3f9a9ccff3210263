"""Events: told in order, resumed by number, by any number of readers, and no burden of slow ones."""

import asyncio
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from instantstyle.serve.events import EventBoard, EventStream, Message
from instantstyle.serve.store import JobStore
from studio_server import live_server

QUICK: dict[str, Any] = {"prompt": "a cat", "steps": 3, "guidance": 1.0, "seed": 5}


def run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a loop of a thread of its own: a browser test in this process keeps one in the main thread."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def read(client: TestClient | httpx.Client, path: str, **headers: str) -> list[tuple[int | None, str, dict[str, Any]]]:
    """All messages of a stream that ends by itself."""
    found: list[tuple[int | None, str, dict[str, Any]]] = []
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            number = int(lines["id"]) if "id" in lines else None
            found.append((number, lines["event"], json.loads(lines["data"])))
    return found


def test_a_job_tells_its_life_and_goes_on_after_a_number(client: TestClient) -> None:
    view = client.post("/v1/jobs", json={**QUICK, "steps": 30}).json()
    told = read(client, view["events"])
    kinds = [kind for number, kind, _ in told if number is not None]
    assert kinds == ["queued", "running", "done"]
    assert any(kind == "progress" and data["steps"] == 30 for _, kind, data in told)
    numbers = [number for number, _, _ in told if number is not None]
    assert numbers == sorted(numbers)
    rest = read(client, view["events"], **{"Last-Event-ID": str(numbers[0])})
    assert [kind for _, kind, _ in rest] == ["running", "done"]
    over = client.get(view["events"], headers={"Last-Event-ID": str(numbers[-1])})
    assert over.status_code == 204  # an EventSource ends for good at this


@pytest.mark.parametrize("number", ["-1", "x", "1" * 30, "٣", str(2**63)])
def test_a_wrong_number_is_refused(client: TestClient, number: str) -> None:
    view = client.post("/v1/jobs", json=QUICK).json()
    answer = client.get(view["events"], headers=cast("Any", {"Last-Event-ID": number.encode()}))
    assert answer.status_code == 400


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = JobStore(tmp_path / "s.sqlite3")
    yield made
    made.close()


def put(store: JobStore, board: EventBoard, **given: Any) -> str:
    job, event = store.put("{}", client="c", options={}, **given)
    board.tell(event)
    return job


def test_fifty_readers_all_get_the_end_and_drafts_are_nobodys_business(store: JobStore) -> None:
    board = EventBoard(store)

    async def run() -> None:
        board.attach()
        job = put(store, board)
        put(store, board, draft=True)

        async def one() -> list[str]:
            return [message.kind async for message in board.follow(0, job) if message is not None]

        readers = [asyncio.create_task(one()) for _ in range(50)]
        await asyncio.sleep(0.02)
        assert board.readers == 50
        claimed = store.claim(job)
        assert claimed is not None
        board.tell(claimed[2])
        threading.Thread(target=lambda: board.tell(store.finish(job, 1, "done", {}))).start()
        kinds = await asyncio.gather(*readers)
        assert all(each[0] == "queued" and each[-1] == "done" for each in kinds)
        everything = board.follow(0)
        seen = [await anext(everything) for _ in range(3)]
        await everything.aclose()
        assert {message.data["job"] for message in seen if message is not None} == {job}
        assert board.readers == 0

    run_apart(run())


def test_a_thousand_events_cost_a_reader_that_sleeps_nothing(store: JobStore) -> None:
    """1,000 previews of 100 kB to somebody who does not read: only the newest is held."""
    board = EventBoard(store)

    async def run() -> None:
        board.attach()
        job = put(store, board)
        reader = board.follow(0, job)
        first = await anext(reader)
        assert first is not None
        tracemalloc.start()
        for i in range(1000):
            board.tell_live(job, "preview", {"image": f"{i}" + "x" * 100_000})
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
        tracemalloc.stop()
        message = await anext(reader)
        assert message is not None
        assert message.data["image"].startswith("999")
        claimed = store.claim(job)
        assert claimed is not None
        board.tell(store.finish(job, 1, "done", {}))
        rest = [message.kind async for message in reader if message is not None]
        assert rest[-1] == "done"

    run_apart(run())


def test_events_older_than_memory_come_from_the_store(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instantstyle.serve.events.RECENT", 4)
    board = EventBoard(store)

    async def run() -> None:
        board.attach()
        jobs = [put(store, board) for _ in range(700)]
        reader = board.follow(0)
        told = [await anext(reader) for _ in range(700)]
        await reader.aclose()
        assert [message.data["job"] for message in told if message is not None] == jobs

    run_apart(run())


def test_one_that_stalls_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instantstyle.serve.events.STALL_SECONDS", 0.05)
    closed: list[bool] = []

    async def messages() -> Any:
        try:
            while True:
                yield Message("preview", {})
        finally:
            closed.append(True)

    async def run() -> None:
        async def send(message: Any) -> None:
            if b"preview" in message.get("body", b""):
                await asyncio.sleep(60)  # a client that does not read

        began = time.monotonic()
        await EventStream(cast("Any", messages())).stream_response(send)
        assert time.monotonic() - began < 5
        assert closed == [True]

    run_apart(run())


def test_leaving_and_stopping_end_streams_at_once(tmp_path: Path) -> None:
    began = 0.0
    with live_server(tmp_path) as (address, studio):
        host, port = address.removeprefix("http://").split(":")
        for _ in range(3):
            raw = socket.create_connection((host, int(port)))
            raw.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert b"200" in raw.recv(4096)
            limit = time.monotonic() + 5
            while not studio.board.readers:
                assert time.monotonic() < limit
                time.sleep(0.01)
            raw.close()
        limit = time.monotonic() + 5
        while studio.board.readers:
            assert time.monotonic() < limit
            time.sleep(0.01)
        stays = socket.create_connection((host, int(port)))
        stays.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        stays.recv(4096)
        began = time.monotonic()
    assert time.monotonic() - began < 5  # an open stream does not hold the end up
    stays.close()


def test_a_thousand_events_to_a_slow_reader_of_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads nothing is dropped and holds no memory; one that reads gets the newest and the end."""
    monkeypatch.setattr("instantstyle.serve.events.STALL_SECONDS", 0.5)
    with ExitStack() as resources:
        address, studio = resources.enter_context(live_server(tmp_path))
        host, port = address.removeprefix("http://").split(":")
        studio.worker.stop()  # the job stands still: this test tells its events
        job, event = studio.store.put("{}", client="c", options={})
        studio.board.tell(event)
        slow = resources.enter_context(socket.socket())
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert b"200" in slow.recv(64)
        told: list[str] = []

        def follow() -> None:
            with httpx.stream("GET", f"{address}/v1/jobs/{job}/events", timeout=60) as answer:
                told.extend(line[:40] for line in answer.iter_lines() if line)

        reader = threading.Thread(target=follow)
        reader.start()
        wait_until(lambda: studio.board.readers == 2)
        tracemalloc.start()
        for i in range(1000):
            studio.board.tell_live(job, "preview", {"image": f"{i} " + "x" * 100_000})
            time.sleep(0.003)
        wait_until(lambda: studio.board.readers == 1)  # the slow one was dropped
        assert tracemalloc.get_traced_memory()[1] < 50_000_000  # of 100 MB that were told
        tracemalloc.stop()
        claimed = studio.store.claim(job)
        assert claimed is not None
        studio.board.tell(claimed[2])
        studio.board.tell(studio.store.finish(job, 1, "done", {}))
        reader.join(60)
        assert not reader.is_alive()
        kinds = [line.removeprefix("event: ") for line in told if line.startswith("event: ")]
        assert [kind for kind in kinds if kind != "preview"] == ["queued", "running", "done"]
        assert kinds.count("preview") >= 1


def wait_until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)
