"""kill -9, a full disk, a client that vanishes, a clock that is moved: every accepted job finishes or says why."""

import base64
import io
import json
import logging
import os
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import instantstyle.serve.store as store_module
from instantstyle.serve.limits import Limits
from instantstyle.serve.rows import FINISHED
from instantstyle.serve.store import JobStore, StoreTakenError
from studio_server import live_server

SOURCE = str(Path(__file__).parents[2] / "src")
# A process that puts, begins, ends and cancels as the studio does, with no model to load.
PROCESS = """
import random, sys, threading, time
from pathlib import Path
from instantstyle.serve.store import JobStore
store = JobStore(Path(sys.argv[1]))
store.recover()
chance = random.Random(sys.argv[2])
def puts():
    for i in range(10000):
        key = f"{sys.argv[2]}-{i}"
        for _ in range(2):
            job, event = store.put('{"prompt": "a"}', client=f"c{i % 5}", options={}, key=key)
            print(job, flush=True)
        if chance.random() < 0.1:
            store.cancel(job)
        time.sleep(0.002)
threading.Thread(target=puts, daemon=True).start()
while True:
    for job, client, draft in store.waiting()[:3]:
        claimed = store.claim(job)
        if claimed:
            row, text, event = claimed
            time.sleep(0.002 * chance.random())
            state = "done" if store.job(job).wanted else "cancelled"
            image = (f"{row.n:032x}", 1, 1, "a", {})
            store.finish(job, row.attempt, state, {}, [image] if state == "done" else [])
    time.sleep(0.001)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}


def check_store(path: Path, accepted: set[str]) -> Counter[str]:
    """No accepted job is missing, each has one last event equal to its state, and no number was used twice."""
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    states: dict[str, str] = dict(db.execute("SELECT id, state FROM jobs").fetchall())
    assert accepted <= states.keys()
    events: dict[str, list[str]] = {}
    for job, kind in db.execute("SELECT job, kind FROM events ORDER BY seq").fetchall():
        events.setdefault(job, []).append(kind)
    for job, state in states.items():
        ends = [kind for kind in events[job] if kind in FINISHED]
        assert len(ends) == (state in FINISHED), (job, state, events[job])
        assert events[job][-1] == state
    images: dict[str, int] = Counter(job for (job,) in db.execute("SELECT job FROM images").fetchall())
    assert all(images[job] == (state == "done") for job, state in states.items())
    db.close()
    return Counter(states.values())


def test_twenty_kills_of_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "studio.sqlite3"
    accepted: set[str] = set()
    chance = random.Random(3)
    for turn in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), str(turn)],
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        assert process.stdout is not None
        accepted.add(process.stdout.readline().strip())  # it works by now
        time.sleep(0.05 * chance.random())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        accepted |= {line for line in rest[:-1] if len(line) == 32}
        process.stdout.close()
        process.wait()
    store = JobStore(path)
    told = store.recover()
    assert all(event.kind in ("queued", "failed", "cancelled") for event in told)
    assert store.counts()["running"] == 0
    store.close()
    states = check_store(path, accepted)
    assert states["done"] > 0
    assert sum(states.values()) > 20


def test_a_job_that_ends_the_server_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    store = JobStore(path)
    job, _ = store.put("{}", client="c", options={})
    for attempt in range(1, 6):
        claimed = store.claim(job)
        assert claimed is not None
        assert claimed[0].attempt == attempt
        store.close()
        store = JobStore(path)
        store.recover()
    row = store.job(job)
    assert row is not None
    assert row.state == "failed"
    assert "5 times" in row.outcome["error"]
    assert store.finish(job, 5, "done", {}) is None  # a late engine says nothing
    with pytest.raises(StoreTakenError, match="another studio"):
        JobStore(path)
    store.close()


def test_the_clock_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order and numbers come from the database and not from the clock."""
    store = JobStore(tmp_path / "s.sqlite3")
    now = [2e9]
    monkeypatch.setattr(store_module.time, "time", lambda: now[0])
    jobs: list[str] = []
    for moved in (0, -1e9, 5e8):
        now[0] += moved
        jobs.append(store.put("{}", client="c", options={})[0])
    assert [job for job, _, _ in store.waiting()] == jobs
    assert [event.job for event in store.events(0)] == jobs
    assert [row.id for row in store.jobs(limit=5)] == jobs[::-1]
    store.close()


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_server_is_left() -> Generator[None]:
    """A test that fails leaves no server behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Process:
    """`instantstyle serve` in a process of its own, no file of which may grow beyond `file_bytes`."""

    def __init__(self, data: Path, file_bytes: int | None = None) -> None:
        command = [sys.executable, "-m", "instantstyle", "serve", "--port", "0", "--no-open", "--data", str(data)]
        if file_bytes is not None:
            limit = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes},) * 2)"
            command[1:3] = [
                "-c",
                f"{limit}; sys.argv[0] = 'instantstyle'; runpy.run_module('instantstyle', run_name='__main__')",
            ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True)
        STARTED.append(self.process)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def ready(self) -> None:
        limit = time.monotonic() + 300
        while httpx.get(f"{self.address}/readyz", timeout=60).status_code != 200:
            assert time.monotonic() < limit
            time.sleep(0.1)

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        code = self.process.wait(120)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def submit(address: str, accepted: list[str], seed: int) -> None:
    body: dict[str, Any] = {"prompt": "a cat", "steps": 4, "guidance": 1.0, "seed": seed}
    body["references"] = [{"image": "neon"}] if seed % 2 else []
    answer = httpx.post(f"{address}/v1/jobs", json=body, headers={"X-Client-Id": f"c{seed % 3}"}, timeout=60)
    assert answer.status_code == 202, answer.text
    accepted.append(answer.json()["id"])


def run_kills(data: Path, kills: int) -> Counter[str]:
    accepted: list[str] = []
    chance = random.Random(7)
    for turn in range(kills):
        server = Process(data)
        if turn % 2:
            server.ready()  # else it is killed while it loads, with requests accepted already
        for i in range(3):
            submit(server.address, accepted, 10 * turn + i)
        time.sleep(chance.random())
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server = Process(data)
    server.ready()
    limit = time.monotonic() + 900
    while True:
        views = [httpx.get(f"{server.address}/v1/jobs/{job}", timeout=60).json() for job in accepted]
        if all(view["state"] in FINISHED for view in views):
            break
        assert time.monotonic() < limit, json.dumps(views)[:2000]
        time.sleep(0.3)
    for view in views:
        assert view["state"] == "done" or view["error"]
        for image in view["images"]:
            assert httpx.get(f"{server.address}{image['url']}", timeout=60).status_code == 200
    assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)  # uvicorn raises the signal again once all is closed
    assert list(data.rglob("*.part")) == []
    return check_store(data / "studio.sqlite3", set(accepted))


@pytest.mark.slow
def test_twenty_kills_of_the_server_under_load(tmp_path: Path) -> None:
    states = run_kills(tmp_path, 20)
    assert sum(states.values()) == 60


def test_one_kill_of_the_server(tmp_path: Path) -> None:
    assert run_kills(tmp_path, 1)["done"] == 3


def finish_all(address: str, jobs: list[str]) -> list[dict[str, Any]]:
    """The views of jobs once all are over."""
    limit = time.monotonic() + 300
    while True:
        views = [httpx.get(f"{address}/v1/jobs/{job}", timeout=60).json() for job in jobs]
        if all(view["state"] in FINISHED for view in views):
            return views
        assert time.monotonic() < limit, [view["state"] for view in views]
        time.sleep(0.2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk: Path) -> None:
    """Jobs that were taken end or say why, new ones are refused with a sentence, and with room all goes on."""
    data = small_disk / "data"
    server = Process(data)
    server.ready()
    accepted: list[str] = []
    submit(server.address, accepted, 1)
    assert finish_all(server.address, accepted)[0]["state"] == "done"
    for seed in range(2, 6):  # these are queued or run while the disk fills up
        submit(server.address, accepted, seed)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    refused = [
        httpx.post(
            f"{server.address}/v1/jobs",
            json={"prompt": "a cat", "steps": 2, "references": [{"image": "neon"}]},
            timeout=60,
        )
        for _ in range(3)
    ]
    for answer in refused:
        assert answer.status_code in (202, 507), answer.text  # what fits into the pages there are is taken
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
        else:
            assert "disk" in answer.json()["error"]["message"]
    sent = httpx.post(f"{server.address}/v1/inputs", content=noise_png(), timeout=60)
    assert sent.status_code == 507
    assert str(small_disk) not in sent.text  # no path of the server is told
    assert httpx.get(f"{server.address}/healthz", timeout=60).status_code == 200
    time.sleep(2)  # it goes on without room
    ballast.unlink()
    views = finish_all(server.address, accepted)
    for view in views:
        assert view["state"] == "done" or "room" in view["error"] or "disk" in view["error"], view
    submit(server.address, accepted, 9)
    assert finish_all(server.address, accepted)[-1]["state"] == "done"
    assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    check_store(data / "studio.sqlite3", set(accepted))
    assert [path.name for path in data.rglob("*") if path.name.endswith(".part")] == []


def noise_png() -> bytes:
    """A picture that does not compress, of about 200 kB."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(3 * 256 * 256)).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """The same by a limit on the size of a file, which needs no right to mount: pictures are refused, nobody else."""
    server = Process(tmp_path, file_bytes=150_000)
    server.ready()
    sent = httpx.post(f"{server.address}/v1/inputs", content=noise_png(), timeout=60)
    assert sent.status_code == 507
    assert "no room left" in sent.json()["error"]["message"]
    assert str(tmp_path) not in sent.text
    taken, full = 0, 0
    accepted: list[str] = []
    picture = base64.b64encode(noise_png()).decode()
    for seed in range(12):
        reference = {"image": "neon"} if seed % 2 else {"image": f"data:image/png;base64,{picture}"}
        answer = httpx.post(
            f"{server.address}/v1/jobs",
            json={"prompt": "a cat", "steps": 2, "guidance": 1.0, "seed": seed, "references": [reference]},
            timeout=60,
        )
        assert answer.status_code in (202, 507), answer.text
        taken, full = taken + (answer.status_code == 202), full + (answer.status_code == 507)
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
    assert full > 0
    assert httpx.get(f"{server.address}/healthz", timeout=60).status_code == 200
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server = Process(tmp_path)  # with room again
    server.ready()
    views = finish_all(server.address, accepted)
    assert all(view["state"] == "done" or "room" in view["error"] for view in views)
    assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    check_store(tmp_path / "studio.sqlite3", set(accepted))


BODIES = {
    "json": (b"/v1/jobs", b"application/json", b'{"prompt": "a cat", "references": [{"image": "data:image/png;base64,'),
    "multipart": (
        b"/v1/jobs",
        b"multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="p"; filename="p.png"\r\n\r\n' + 2_000_000 * b"x",
    ),
    "edits": (b"/v1/images/edits", b"multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name"),
    "inputs": (b"/v1/inputs", b"image/png", b"\x89PNG\r\n"),
    "styles": (b"/v1/styles", b"multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name"),
}


def test_a_client_that_vanishes_while_it_sends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with live_server(tmp_path) as (address, studio):
        host, port = address.removeprefix("http://").split(":")
        for path, kind, body in BODIES.values():
            for reset in (False, True):
                raw = socket.create_connection((host, int(port)))
                head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %b\r\nContent-Length: 9000000\r\n\r\n"
                raw.sendall(head % (path, kind) + body)
                time.sleep(0.05)
                if reset:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.close()
        view = httpx.post(f"{address}/v1/jobs?wait=60", json={"prompt": "a cat", "steps": 2}, timeout=90).json()
        assert view["state"] == "done"
        assert studio.store.counts() == {"queued": 0, "running": 0, "done": 1}
        assert sorted(path.name for path in (tmp_path / "inputs").iterdir()) == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_clock_may_be_moved_while_a_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock set back or forth by hours loses no job, and nobody is told to come back in an hour."""
    real, moved = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + moved[0])
    limits = Limits(queued=1)
    with live_server(tmp_path, limits=limits, batch=1) as (address, studio):
        for shift in (-7200.0, 7200.0):
            jobs: list[str] = []
            answer = None
            for i in range(4):
                body = {"prompt": "a cat", "steps": 12, "seed": i}
                answer = httpx.post(f"{address}/v1/jobs", json=body, timeout=60)
                if answer.status_code == 202:
                    jobs.append(answer.json()["id"])
                moved[0] += shift
            assert answer is not None
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert all(view["state"] == "done" for view in finish_all(address, jobs))
        assert studio.pace() is not None
        times = [row.n for row in studio.store.jobs(limit=10)]
        assert times == sorted(times, reverse=True)
