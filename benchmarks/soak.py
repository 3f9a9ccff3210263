"""A training killed at random gives the losses of one that was not: SIGKILL, the same command again, ten times.

    python benchmarks/soak.py [--minutes 60] [--kills 10] [--folder FOLDER] [--seed 0]

Trains a small adapter of the built-in model on its own reference pictures, once undisturbed for about half of the
minutes and once killed at random moments, and compares the two `losses.csv` and the two adapters to the bit.
Exit code 1 when they differ, or when the run ended before it was killed as often as asked.  It says nothing of
a machine that loses power, nor of a disk that forgets what it was told to keep.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = ROOT / "src/instantstyle/assets/emoji"
BATCH = 4
STARTING = 5.0
"""Seconds at least between two kills: some are to fall into the start, which takes longer on a busy machine."""


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
    argv += ["--steps", str(steps), "--batch", str(BATCH), "--save-seconds", "2", "--log-every", "5"]
    return [*argv, "--reference", "same", "--device", "cpu", "--sheet-every", "0"]


def pace(folder: Path) -> float:
    """Seconds a step takes, as a run of forty says at its end; starting is not in it."""
    argv = command(pictures(folder / "pictures"), folder / "pace.safetensors", 40)
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stderr
    return BATCH / float(re.findall(r"([\d.]+) samples/s", said)[-1])


def killed(argv: list[str], kills: int, seconds: float, rng: random.Random) -> int:
    """Run to the end, killed at random moments of about so many seconds in all; how many kills fell before the end."""
    done = 0
    while True:
        child = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            left = None if done >= kills else STARTING + rng.random() * seconds / max(kills, 1)
            code = child.wait(left)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            done += 1
            print(f"kill {done}", file=sys.stderr, flush=True)
            continue
        if code:
            raise RuntimeError(f"the training ended with {code}: run it by hand to see why")
        return done


def main() -> None:
    """Compare the two."""
    parser = argparse.ArgumentParser(description="Kill a training at random, and compare it with an undisturbed one.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, help="instead of as many as the minutes hold")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    half = given.minutes * 30
    steps = given.steps or max(40, int(half / pace(folder)))
    data = pictures(folder / "pictures")
    whole, broken = folder / "whole.safetensors", folder / "killed.safetensors"
    began = time.monotonic()
    subprocess.run(command(data, whole, steps), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kills = killed(command(data, broken, steps), given.kills, time.monotonic() - began, random.Random(given.seed))
    pairs = [(Path(f"{whole}.work/losses.csv"), Path(f"{broken}.work/losses.csv")), (whole, broken)]
    same = all(one.read_bytes() == other.read_bytes() for one, other in pairs)
    minutes = (time.monotonic() - began) / 60
    print(f"{steps} steps, {kills} kills, {minutes:.1f} minutes: {'the same' if same else 'DIFFERENT'}")
    sys.exit(not same or kills < given.kills)


if __name__ == "__main__":
    main()
