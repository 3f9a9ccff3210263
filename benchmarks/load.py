"""The studio under load: simulated clients with unlike requests.  Is anything lost or mixed, and how long does it take?

    python benchmarks/load.py [--clients 50] [--minutes 5] [--solo 24] [--out benchmarks/results/load.md]

Starts `instantstyle serve` with the built-in model in a process of its own.  Each client sends a request, waits for its
picture, fetches it, and sends the next, of another prompt, style, method, strength, number of steps and seed.  When the
time is up all jobs are waited for; then some of the requests are drawn one at a time by the same engine, alone, and
compared with what the studio gave.  Exit code 1 when a job was lost, failed or differs from its solo run.
"""

import argparse
import asyncio
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from instantstyle.request.style_card import list_style_cards
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.images import compare_images
from instantstyle.utils.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks/results/load.md"
PROMPTS = ("a cat", "a fox", "a rocket", "a castle", "an octopus", "a sailboat", "a mushroom", "a lion", "a cactus")
METHODS = ("instantstyle", "instantstyle", "instantstyle", "ip-adapter", "style-aligned", "none")
ROUNDING = 2
"""Of 255: what another batch shape may change in a pixel."""


@dataclass
class Served:
    """One request and what came of it."""

    request: Mapping[str, Any]
    job: str
    seconds: float
    """From the first attempt to send it to the picture in hand."""
    state: str
    picture: bytes = b""


@dataclass
class Log:
    """What all clients saw."""

    served: list[Served] = field(default_factory=list[Served])
    accepted: list[str] = field(default_factory=list[str])
    refusals: Counter[int] = field(default_factory=Counter[int])
    memory: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Seconds since the begin, and MB that the server holds."""


def make_request(chance: random.Random) -> dict[str, Any]:
    """A request as JSON, unlike the others."""
    method = chance.choice(METHODS)
    request: dict[str, Any] = {
        "prompt": chance.choice(PROMPTS),
        "method": method,
        "steps": chance.randint(4, 10),
        "guidance": chance.choice((1.0, 2.0, 3.0)),
        "seed": chance.randrange(2**31),
    }
    if method != "none":
        card = chance.choice(sorted(list_style_cards(own=False)))
        request["references"] = [{"image": card, "weight": round(chance.uniform(0.4, 1.4), 2)}]
    return request


async def client(address: str, number: int, until: float, log: Log) -> None:
    """One client, from its first request to the end of its last."""
    chance = random.Random(number)
    headers = {"X-Client-Id": f"load-{number}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120) as http:
        while time.monotonic() < until:
            request, began = make_request(chance), time.monotonic()
            answer = await http.post("/v1/jobs?preview=false", json=request)
            while answer.status_code == 429:
                log.refusals[429] += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                answer = await http.post("/v1/jobs?preview=false", json=request)
            if answer.status_code != 202:
                log.refusals[answer.status_code] += 1
                continue
            job = answer.json()["id"]
            log.accepted.append(job)
            view = answer.json()
            while view["state"] in ("queued", "running"):
                view = (await http.get(f"/v1/jobs/{job}?wait=60")).json()
            picture = (await http.get(view["images"][0]["url"])).content if view["images"] else b""
            log.served.append(Served(request, job, time.monotonic() - began, view["state"], picture))


async def watch(process: int, begin: float, until: float, log: Log) -> None:
    """The memory of the server, every two seconds."""
    while time.monotonic() < until:
        status = Path(f"/proc/{process}/status").read_text("utf-8")
        held = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        log.memory.append((time.monotonic() - begin, int(held.split()[1]) / 1024))
        await asyncio.sleep(2)


async def run(address: str, process: int, clients: int, seconds: float) -> tuple[Log, float]:
    """All clients at once; and how long they took until the last picture."""
    log, begin = Log(), time.monotonic()
    watching = asyncio.create_task(watch(process, begin, begin + seconds, log))
    await asyncio.gather(*(client(address, i, begin + seconds, log) for i in range(clients)))
    await watching
    return log, time.monotonic() - begin


def start(data: Path) -> tuple[subprocess.Popen[str], str]:
    """A server that is ready, and its address."""
    command = [sys.executable, "-m", "instantstyle", "serve", "--port", "0", "--no-open", "--data", str(data)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    while httpx.get(f"{address}/readyz", timeout=60).status_code != 200:
        time.sleep(0.2)
    return server, address


def draw_alone(served: Sequence[Served]) -> tuple[list[int], float]:
    """The largest difference of a channel between each picture and its solo run, and seconds of a job on its own."""
    from instantstyle.loading import load
    from instantstyle.pipeline import generate
    from instantstyle.request import Request

    model = load()
    generate(model, Request("a cat", steps=2))  # what the first run alone pays
    apart: list[int] = []
    began, seconds = time.monotonic(), 0.0
    for each in served:
        began = time.monotonic()
        alone = generate(model, Request.from_fields(dict(each.request))).images[0]
        seconds += time.monotonic() - began
        with Image.open(io.BytesIO(each.picture)) as picture:
            apart.append(compare_images(alone, picture)["largest"])
    return apart, seconds / max(1, len(served))


def main() -> int:
    """Run it and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--solo", type=int, default=24, help="how many requests are drawn again alone")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address = start(Path(folder))
        load_before = os.getloadavg()[0]
        log, seconds = asyncio.run(run(address, server.pid, given.clients, 60 * given.minutes))
        load_after = os.getloadavg()[0]
        states = {job: httpx.get(f"{address}/v1/jobs/{job}", timeout=60).json()["state"] for job in log.accepted}
        server.terminate()
        server.wait(60)
        assert server.stdout is not None
        server.stdout.close()
    done = [each for each in log.served if each.state == "done" and each.picture]
    apart, alone = draw_alone(random.Random(0).sample(done, min(given.solo, len(done))))
    lost = len(log.accepted) - sum(state == "done" for state in states.values())
    mixed = sum(largest > ROUNDING for largest in apart)
    times = np.array([each.seconds for each in done])
    quantiles = (*np.percentile(times, [50, 95]), times.max())
    memory = np.array([held for _, held in log.memory])
    warm, end = memory[len(memory) // 4 : len(memory) // 2].mean(), memory[-len(memory) // 4 :].mean()
    rows = [
        ["jobs accepted", f"{len(log.accepted)}"],
        ["lost, failed or unfinished", f"{lost}"],
        ["answers other than 202", ", ".join(f"{n} x {status}" for status, n in log.refusals.items()) or "none"],
        ["drawn again alone", f"{len(apart)}"],
        ["of them the same but for rounding (at most 2 of 255)", f"{len(apart) - mixed}"],
        ["largest difference of a channel", f"{max(apart, default=0)} of 255"],
        ["jobs a second", f"{len(done) / seconds:.2f}"],
        ["jobs a second, one at a time, the same engine", f"{1 / alone:.2f}"],
        ["seconds from request to picture, p50 / p95 / longest", " / ".join(f"{x:.1f}" for x in quantiles)],
        ["memory of the server, second and last quarter", f"{warm:.0f} MB, {end:.0f} MB"],
        ["load average of the machine, begin and end", f"{load_before:.1f}, {load_after:.1f}"],
    ]
    text = [
        "# The studio under load",
        "",
        f"`python benchmarks/load.py --clients {given.clients} --minutes {given.minutes:g}`, {date.today()}, built-in "
        f"model, {os.cpu_count()} cores, one thread for the engine.  {given.clients} clients, each with one request at "
        "a time: nine prompts, the style cards of the library, five methods, strengths of 0.4 to 1.4, 4 to 10 steps, "
        "guidance of 1 to 3.",
        "",
        *markdown_table(["", ""], rows),
        "",
        "Solo runs come after the load; where others use the machine too, the two throughputs are of different "
        "minutes.",
        "",
    ]
    write_atomic(given.out, "\n".join(text).encode())
    print("\n".join(text))
    return 1 if lost or mixed else 0


if __name__ == "__main__":
    sys.exit(main())
