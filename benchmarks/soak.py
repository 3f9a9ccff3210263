"""A training killed again and again gives the losses of one that was not: SIGKILL, the same command, ten times.

    python benchmarks/soak.py [--minutes 60] [--kills 10] [--folder FOLDER] [--seed 0] [--out FILE]

Trains a small adapter of the built-in model on its own reference pictures, once undisturbed for about half of the
minutes and once killed at random, and compares the two `losses.csv` and the two adapters to the bit.  Kills are of
three kinds, a third each: while it starts, while it trains, and while a checkpoint is written; they fall at random
steps and not at random times, so that a busy machine changes nothing.  Exit code 1 when the two differ, or when the run
ended before it was killed as often as asked, of each kind a third.

Given the same FOLDER again it goes on: what was trained is not trained again, but kills are counted anew.  It says
nothing of a machine that loses power, nor of a disk that forgets what it was told to keep.
"""

import argparse
import csv
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Literal

from instantstyle.utils.atomic_files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = ROOT / "src/instantstyle/assets/emoji"
OUT = ROOT / "benchmarks/results/soak.md"
BATCH = 4
Kind = Literal["training", "saving", "starting"]
KINDS: Sequence[Kind] = ("training", "saving", "starting")


@dataclass(frozen=True)
class Kill:
    """One that happened."""

    kind: Kind
    """Where it was when the kill came: while saving, half a checkpoint is left."""
    step: int
    """Steps in the log by then."""
    seconds: float
    """Since that process was started."""


def pictures(folder: Path) -> Path:
    """The reference pictures of the examples, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for shown in sorted((ROOT / "examples/references").glob("*.png")):
        (folder / shown.name).write_bytes(shown.read_bytes())
        (folder / shown.name).with_suffix(".txt").write_text(f"a {shown.stem.replace('-', ' ')}")
    return folder


def command(data: Path, out: Path, steps: int) -> list[str]:
    """The training, saving often; of a copy of the model, for the soak is long and the model may be made anew."""
    model = out.parent / "model"
    if not model.exists():
        shutil.copytree(BUILT_IN, model)
    argv = [sys.executable, "-m", "instantstyle", "train", "adapter", "--data", str(data), "--out", str(out)]
    argv += ["--model", str(model)]
    argv += ["--steps", str(steps), "--batch", str(BATCH), "--save-seconds", "1", "--log-every", "5"]
    return [*argv, "--reference", "same", "--device", "cpu", "--sheet-every", "0"]


def fitting(folder: Path, minutes: float) -> int:
    """The steps that two trainings take in so many minutes, by the pace of one of forty; kept in the folder."""
    kept = folder / "steps"
    if not kept.exists():
        argv = command(pictures(folder / "pictures"), folder / "pace.safetensors", 40)
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stderr
        pace = float(re.findall(r"([\d.]+) samples/s", said)[-1]) / BATCH  # starting is not in it
        write_atomic(kept, str(max(40, int(minutes * 30 * pace))).encode())
    return int(kept.read_text())


class Run:
    """The training that is killed."""

    def __init__(self, argv: Sequence[str], work: Path, said: IO[str]) -> None:
        self._argv, self._said = argv, said
        self.work, self.losses = work, work / "losses.csv"
        self.started = 2.0
        """Seconds from the start of a process to its first row, as last seen."""

    def killed(self, kind: Kind, after: int, rng: random.Random) -> Kill | None:
        """Start it, and kill it once the log has more than `after` steps; None when it ended before."""
        had, grown, began = self.step(), False, time.monotonic()
        child = subprocess.Popen(self._argv, stderr=self._said, stdout=subprocess.DEVNULL)

        def waited(seconds: float) -> bool:
            """Whether it still runs after so long."""
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                return True
            if code:
                raise RuntimeError(f"the training ended with {code}: {self._said.name} says why")
            return False

        if kind == "starting":
            runs = waited(rng.random() * self.started)
        else:
            while runs := waited(0.02):
                if not grown and self.step() > had:
                    self.started, grown = time.monotonic() - began, True
                if self.step() > after:
                    break
            if runs and kind == "training":
                runs = waited(rng.random() * 0.2)
            while kind == "saving" and runs and not self.parts():
                runs = waited(0.001)
        if not runs:
            return None
        child.kill()
        child.wait()
        kind = "saving" if self.parts() else "training" if grown or self.step() > had else "starting"
        return Kill(kind, self.step(), time.monotonic() - began)

    def finish(self) -> None:
        """Run it to its end."""
        subprocess.run(self._argv, check=True, stderr=self._said, stdout=subprocess.DEVNULL)

    def parts(self) -> bool:
        """Whether half a checkpoint lies there."""
        return next(self.work.glob(".*.part"), None) is not None

    def step(self) -> int:
        """The last step in the log."""
        try:
            with self.losses.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
                rows = file.read().split(b"\r\n")
            return int(rows[-2].split(b",")[0])
        except (OSError, ValueError, IndexError):  # no log yet, or only its head
            return 0


def shot(run: Run, kills: int, steps: int, rng: random.Random) -> list[Kill]:
    """Kill it so often at random steps, and let it end; fewer when it ended before."""
    asked: list[Kind] = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(asked)
    done: list[Kill] = []
    for kind, after in zip(asked, sorted(rng.randrange(steps * 8 // 10) for _ in asked), strict=True):
        while True:
            kill = run.killed(kind, after, rng)
            if kill is None:
                return done
            done.append(kill)
            print(f"kill {len(done)}: {kill.kind}, step {kill.step}", file=sys.stderr, flush=True)
            if kind != "saving" or kill.kind == "saving":
                break  # else the checkpoint was whole before the kill came
    run.finish()
    return done


def page(done: Sequence[Kill], steps: int, kills: int, minutes: float, same: bool, said: str) -> str:
    """What happened, as Markdown."""
    resumed = re.findall(r"(?:resumed at step (\d+)|begins)$", said, re.MULTILINE)
    by_kind = ", ".join(f"{sum(kill.kind == kind for kill in done)} while {kind}" for kind in KINDS)
    lines = [
        "# A training that is killed again and again",
        "",
        f"`python benchmarks/soak.py --steps {steps} --kills {kills}` on {date.today()}: {steps} steps of {BATCH} rows "
        f"once undisturbed and once with {len(done)} SIGKILLs ({by_kind}); {minutes:.1f} minutes in all, at the end a "
        f"load of {os.getloadavg()[2]:.1f} on {os.cpu_count()} cores.",
        "",
        f"The losses of all steps and the adapters are **{'the same to the bit' if same else 'DIFFERENT'}**. The "
        f"killed run went on from the steps {', '.join(step or '0' for step in resumed)}.",
        "",
        "| kill | while | steps in the log | seconds after the start |",
        "|---|---|---|---|",
        *(f"| {n} | {kill.kind} | {kill.step} | {kill.seconds:.1f} |" for n, kill in enumerate(done, 1)),
    ]
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the two."""
    parser = argparse.ArgumentParser(description="Kill a training at random, and compare it with an undisturbed one.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, help="instead of as many as the minutes hold")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    steps = given.steps or fitting(folder, given.minutes)
    print(f"{steps} steps in {folder}", file=sys.stderr, flush=True)
    data = pictures(folder / "pictures")
    whole, broken = folder / "whole.safetensors", folder / "killed.safetensors"
    subprocess.run(command(data, whole, steps), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"undisturbed: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr, flush=True)
    with (folder / "killed.log").open("a+") as said:
        run = Run(command(data, broken, steps), Path(f"{broken}.work"), said)
        done = shot(run, given.kills, steps, random.Random(given.seed))
        said.seek(0)
        told = said.read()
    pairs = [(Path(f"{whole}.work/losses.csv"), run.losses), (whole, broken)]
    same = all(one.read_bytes() == other.read_bytes() for one, other in pairs)
    with run.losses.open(newline="") as log:
        same = same and [int(row["step"]) for row in csv.DictReader(log)] == list(range(1, steps + 1))
    minutes = (time.monotonic() - began) / 60
    write_atomic(given.out, page(done, steps, given.kills, minutes, same, told).encode())
    print(f"{steps} steps, {len(done)} kills, {minutes:.1f} minutes: {'the same' if same else 'DIFFERENT'}")
    short = len(done) < given.kills or any(sum(k.kind == kind for k in done) < given.kills // 3 for kind in KINDS)
    sys.exit(not same or short)


if __name__ == "__main__":
    main()
