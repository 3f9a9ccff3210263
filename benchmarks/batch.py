"""A batch killed again and again: every row drawn once, and how near its rate comes to the engine's own.

    python benchmarks/batch.py [--rows 10000] [--kills 5] [--steps 2] [--concurrency 16] [--folder FOLDER] [--out FILE]

Draws `rows` unlike requests of the built-in model by `instantstyle batch`, killed (SIGKILL) at random rows and started
again by the same command; then the first rows by an engine alone at the same concurrency, no files written.  Counts
rows, pictures and names; a picture that was drawn twice has a time of writing later than its first.  Exit code 1 when a
row is missing or was drawn twice.  A killed process loses what it had in flight: at most `concurrency` rows each.
"""

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import instantstyle
from instantstyle.batch.table import RequestBuilder
from instantstyle.sampling import Engine
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks/results/batch.md"
THINGS = ("a cat", "a dog", "a house", "a rocket", "a tree", "an apple", "a fish", "a key")
STYLES = ("neon", "hatching", "pixel", "watercolour", "blueprint", "chalk")


def make_table(file: Path, rows: int, steps: int) -> list[dict[str, Any]]:
    """Unlike requests: things, styles, weights, guidance and seeds in turn."""
    table = [
        {
            "prompt": THINGS[i % len(THINGS)],
            "style": STYLES[i % len(STYLES)],
            "weight": (0.6, 0.8, 1.0)[i % 3],
            "guidance": (1.0, 2.0, 3.0)[i % 3],
            "steps": steps,
            "seed": i,
        }
        for i in range(rows)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in table))
    return table


def drawn(out: Path) -> dict[str, int]:
    """The pictures there are, with their times of writing."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}


def draw_with_kills(table: Path, out: Path, rows: int, kills: int, concurrency: int, seed: int) -> tuple[float, int]:
    """Seconds of drawing in all, starts not counted, and how many pictures were written twice."""
    rng, twice, seconds = random.Random(seed), 0, 0.0
    first: dict[str, int] = {}
    places = sorted(rng.sample(range(concurrency, rows - concurrency), kills))
    argv = [sys.executable, "-m", "instantstyle", "batch", str(table), "--out", str(out)]
    argv += ["--concurrency", str(concurrency)]
    for place in [*places, None]:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, began = len(drawn(out)), None
        while process.poll() is None:
            time.sleep(0.05)
            there = len(drawn(out))
            if there > before and began is None:
                began = time.monotonic()
            if place is not None and there >= place:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        seconds += 0.0 if began is None else time.monotonic() - began
        now = drawn(out)
        twice += sum(now[name] != at for name, at in first.items())
        first = {**now, **first}
    return seconds, twice


def engine_rate(table: list[dict[str, Any]], folder: Path, concurrency: int) -> float:
    """Rows a second of an engine alone, as many in flight at once, no file written."""
    model, builder = instantstyle.load(), RequestBuilder(folder)
    engine, waiting = Engine(model), iter([builder.build(row) for row in table])
    began, done, flying = time.monotonic(), 0, list[Any]()
    while True:
        while len(flying) < concurrency and (request := next(waiting, None)) is not None:
            flying.append(engine.submit(request))
        if not flying:
            return done / (time.monotonic() - began)
        engine.step()
        done += sum(run.done for run in flying)
        flying = [run for run in flying if not run.done]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        rows = make_table(folder / "jobs.jsonl", given.rows, given.steps)
        load = os.getloadavg()[0]
        out = folder / "pictures"
        seconds, twice = draw_with_kills(
            folder / "jobs.jsonl", out, given.rows, given.kills, given.concurrency, given.seed
        )
        parquet: Any = importlib.import_module("pyarrow.parquet")
        manifest: list[dict[str, Any]] = parquet.read_table(out / "manifest.parquet").to_pylist()
        once = sorted(row["row"] for row in manifest if row["state"] == "done") == list(range(1, given.rows + 1))
        rate = given.rows / seconds
        alone = engine_rate(rows[: max(200, given.rows // 10)], folder, given.concurrency)
    numbers = (given.rows, given.kills, "yes" if once else "NO", twice, f"{rate:.2f}", f"{alone:.2f}", rate / alone)
    table = markdown_table(
        ["rows", "kills", "every row once", "written twice", "batch, rows/s", "engine, rows/s", "ratio"],
        [[f"{x:.2f}" if isinstance(x, float) else str(x) for x in numbers]],
    )
    flags = " ".join(f"--{name} {getattr(given, name)}" for name in ("rows", "kills", "steps", "concurrency"))
    about = (
        f"`python benchmarks/batch.py {flags}`, {date.today()}, built-in, {os.cpu_count()} cores, load {load:.0f} "
        "at its start. Seconds are counted from each process's first picture to its end; the engine draws part of the "
        "same rows and writes no file."
    )
    text = "\n".join(["# A batch under kills", "", about, "", *table, ""])
    write_atomic(given.out, text.encode())
    print(text)
    sys.exit(0 if once and not twice else 1)


if __name__ == "__main__":
    main()
