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
from instantstyle.utils.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = ROOT / "src/instantstyle/assets/emoji"
OUT = ROOT / "benchmarks/results/soak.md"
BATCH = 4
Kind = Literal["training", "saving", "starting"]
KINDS: Sequence[Kind] = ("training", "saving", "starting")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    kind: Kind
    """What the training was doing: while saving, a partial checkpoint is left."""
    step: int
    """Steps in the log at that time."""
    seconds: float
    """Since that process was started."""


def pictures(folder: Path) -> Path:
    """The reference pictures of the examples, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in sorted((ROOT / "examples/references").glob("*.png")):
        (folder / image.name).write_bytes(image.read_bytes())
        (folder / image.name).with_suffix(".txt").write_text(f"a {image.stem.replace('-', ' ')}")
    return folder


def command(data: Path, out: Path, steps: int) -> list[str]:
    """The training command, saving often; on a copy of the model, which may change in a long run."""
    model = out.parent / "model"
    if not model.exists():
        shutil.copytree(BUILT_IN, model)
    argv = [sys.executable, "-m", "instantstyle", "train", "adapter", "--data", str(data), "--out", str(out)]
    argv += ["--model", str(model)]
    argv += ["--steps", str(steps), "--batch", str(BATCH), "--save-seconds", "1", "--log-every", "5"]
    return [*argv, "--reference", "same", "--device", "cpu", "--sheet-every", "0"]


def steps_in(folder: Path, minutes: float) -> int:
    """The steps of two trainings in so many minutes, by the speed of one of 40 steps; cached in the folder."""
    cached = folder / "steps"
    if not cached.exists():
        argv = command(pictures(folder / "pictures"), folder / "pace.safetensors", 40)
        log = subprocess.run(argv, check=True, capture_output=True, text=True).stderr
        speed = float(re.findall(r"([\d.]+) samples/s", log)[-1]) / BATCH  # starting is not in it
        write_atomic(cached, str(max(40, int(minutes * 30 * speed))).encode())
    return int(cached.read_text())


class KilledTraining:
    """A training that is started and killed."""

    def __init__(self, argv: Sequence[str], work: Path, log: IO[str]) -> None:
        self._argv, self._log = argv, log
        self.work, self.losses = work, work / "losses.csv"
        self.started = 2.0
        """Seconds from the start of the last process to its first step."""

    def start_and_kill(self, kind: Kind, after: int, rng: random.Random) -> Kill | None:
        """Start it, and kill it once the log has more than `after` steps; None when it ended before."""
        first, stepped, began = self.step(), False, time.monotonic()
        child = subprocess.Popen(self._argv, stderr=self._log, stdout=subprocess.DEVNULL)

        def runs_after(seconds: float) -> bool:
            """Whether it still runs after so many seconds."""
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                return True
            if code:
                raise RuntimeError(f"the training ended with {code}: {self._log.name} says why")
            return False

        if kind == "starting":
            runs = runs_after(rng.random() * self.started)
        else:
            while runs := runs_after(0.02):
                if not stepped and self.step() > first:
                    self.started, stepped = time.monotonic() - began, True
                if self.step() > after:
                    break
            if runs and kind == "training":
                runs = runs_after(rng.random() * 0.2)
            while kind == "saving" and runs and not self.parts():
                runs = runs_after(0.001)
        if not runs:
            return None
        child.kill()
        child.wait()
        kind = "saving" if self.parts() else "training" if stepped or self.step() > first else "starting"
        return Kill(kind, self.step(), time.monotonic() - began)

    def finish(self) -> None:
        """Run it to its end."""
        subprocess.run(self._argv, check=True, stderr=self._log, stdout=subprocess.DEVNULL)

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


def kill_repeatedly(run: KilledTraining, kills: int, steps: int, rng: random.Random) -> list[Kill]:
    """Kill it `kills` times at random steps, and let it finish; fewer where it finished before."""
    kinds: list[Kind] = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(kinds)
    done: list[Kill] = []
    for kind, after in zip(kinds, sorted(rng.randrange(steps * 8 // 10) for _ in kinds), strict=True):
        while True:
            kill = run.start_and_kill(kind, after, rng)
            if kill is None:
                return done
            done.append(kill)
            print(f"kill {len(done)}: {kill.kind}, step {kill.step}", file=sys.stderr, flush=True)
            if kind != "saving" or kill.kind == "saving":
                break  # else the checkpoint was whole before the kill came
    run.finish()
    return done


def page(done: Sequence[Kill], steps: int, kills: int, minutes: float, same: bool, log: str) -> str:
    """The results as Markdown."""
    resumed = re.findall(r"(?:resumed at step (\d+)|begins)$", log, re.MULTILINE)
    by_kind = ", ".join(f"{sum(kill.kind == kind for kill in done)} while {kind}" for kind in KINDS)
    rows = [[str(n), kill.kind, str(kill.step), f"{kill.seconds:.1f}"] for n, kill in enumerate(done, 1)]
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
        *markdown_table(["kill", "while", "steps in the log", "seconds after the start"], rows),
    ]
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Train undisturbed and killed, and compare."""
    parser = argparse.ArgumentParser(description="Kill a training at random, and compare it with an undisturbed one.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, help="instead of as many as the minutes hold")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    steps = args.steps or steps_in(folder, args.minutes)
    print(f"{steps} steps in {folder}", file=sys.stderr, flush=True)
    data = pictures(folder / "pictures")
    undisturbed, killed = folder / "whole.safetensors", folder / "killed.safetensors"
    subprocess.run(command(data, undisturbed, steps), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"undisturbed: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr, flush=True)
    with (folder / "killed.log").open("a+") as log:
        run = KilledTraining(command(data, killed, steps), Path(f"{killed}.work"), log)
        done = kill_repeatedly(run, args.kills, steps, random.Random(args.seed))
        log.seek(0)
        log_text = log.read()
    pairs = [(Path(f"{undisturbed}.work/losses.csv"), run.losses), (undisturbed, killed)]
    same = all(one.read_bytes() == other.read_bytes() for one, other in pairs)
    with run.losses.open(newline="") as losses:
        same = same and [int(row["step"]) for row in csv.DictReader(losses)] == list(range(1, steps + 1))
    minutes = (time.monotonic() - began) / 60
    write_atomic(args.out, page(done, steps, args.kills, minutes, same, log_text).encode())
    print(f"{steps} steps, {len(done)} kills, {minutes:.1f} minutes: {'the same' if same else 'DIFFERENT'}")
    short = len(done) < args.kills or any(sum(k.kind == kind for k in done) < args.kills // 3 for kind in KINDS)
    sys.exit(not same or short)


if __name__ == "__main__":
    main()
