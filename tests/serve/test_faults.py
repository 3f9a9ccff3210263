"""kill -9: every accepted job finishes or says why, and none is told twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

import instantstyle.serve.store as store_module
from instantstyle.serve.store import FINISHED, JobStore, StoreTakenError

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


class Process:
    """`instantstyle serve` in a process of its own."""

    def __init__(self, data: Path) -> None:
        command = [sys.executable, "-m", "instantstyle", "serve", "--port", "0", "--no-open", "--data", str(data)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def ready(self) -> None:
        limit = time.monotonic() + 120
        while httpx.get(f"{self.address}/readyz").status_code != 200:
            assert time.monotonic() < limit
            time.sleep(0.1)

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def submit(address: str, accepted: list[str], seed: int) -> None:
    body: dict[str, Any] = {"prompt": "a cat", "steps": 4, "guidance": 1.0, "seed": seed}
    body["references"] = [{"image": "neon"}] if seed % 2 else []
    answer = httpx.post(f"{address}/v1/jobs", json=body, headers={"X-Client-Id": f"c{seed % 3}"})
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
    limit = time.monotonic() + 300
    while True:
        views = [httpx.get(f"{server.address}/v1/jobs/{job}").json() for job in accepted]
        if all(view["state"] in FINISHED for view in views):
            break
        assert time.monotonic() < limit, json.dumps(views)[:2000]
        time.sleep(0.3)
    for view in views:
        assert view["state"] == "done" or view["error"]
        for image in view["images"]:
            assert httpx.get(f"{server.address}{image['url']}").status_code == 200
    assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)  # uvicorn raises the signal again once all is closed
    assert list(data.rglob("*.part")) == []
    return check_store(data / "studio.sqlite3", set(accepted))


@pytest.mark.slow
def test_twenty_kills_of_the_server_under_load(tmp_path: Path) -> None:
    states = run_kills(tmp_path, 20)
    assert sum(states.values()) == 60


def test_one_kill_of_the_server(tmp_path: Path) -> None:
    assert run_kills(tmp_path, 1)["done"] == 3
