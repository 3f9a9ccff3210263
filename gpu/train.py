"""The built-in model, trained further on a GPU: more things, 128 pixels, from a finished model or from nothing.

    python -m gpu.train STAGES [--things 700] [--side 128] [--begin MODEL] [--steps joint=20000 ...] [--minutes 9]

STAGES are those of `python -m instantstyle.train.emoji`, and `floors`, what the result is worth.  The drawings come
from the pack (gpu/pack.py).  A command that is cut short leaves checkpoints in out/gpu/training, and the same command
goes on.  Every command ends by writing the model as it then is, in diffusers' layout and in pieces, into the results:
a machine that is new begins from there (--begin, a folder or its manifest), with its optimisers anew.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpu import ROOT, kit, pack
from instantstyle.errors import InputError, InstantStyleError
from instantstyle.train.emoji.image_bank import broad_labels, choose_things
from instantstyle.train.emoji.stages import TrainingStages
from instantstyle.train.emoji.warm_start import warm_start

STAGES = ("bank", "vae", "text", "clip", "unet", "look", "joint", "adapter", "control", "floors")
SHIPPED = ROOT / "src/instantstyle/assets/emoji"
STEPS = {
    "vae": 8_000,
    "text": 3_000,
    "clip": 8_000,
    "unet": 12_000,
    "look": 5_000,
    "joint": 20_000,
    "adapter": 3_000,
    "control": 6_000,
}
"""Optimiser steps when none are named: a guess at what half an hour holds, to be set from the first command's speed."""
BATCHES = {"vae": 128, "text": 512, "unet": 512, "look": 512, "joint": 512, "adapter": 512, "control": 512}
RESERVE = 1.5
"""Minutes of a command that are kept for writing the model."""


def prepare(given: argparse.Namespace) -> TrainingStages:
    """Drawings unpacked, the training begun: whatever is there already is kept.  Raises InputError without a pack."""
    home = kit.work(given.dry)
    drawings = home / pack.FILE.name
    if given.dry and not drawings.exists():
        pack.toy(drawings)
    os.environ["INSTANTSTYLE_CACHE"] = str(home / "cache")
    if not drawings.exists() and not (home / "cache").exists():
        raise InputError(
            f"there are no drawings in {drawings}: write them with python -m gpu.pack, and bring them along"
        )
    pack.unpack(drawings, home / "cache")
    pack.forget()
    taught, batches = (
        choose_things(given.things),
        {**BATCHES, **dict.fromkeys(BATCHES, given.batch)} if given.batch else BATCHES,
    )
    steps = {**STEPS, **dict(given.steps)}
    processes = given.processes or os.cpu_count() or 1
    more: dict[str, Any] = {"things": taught, "side": given.side, "batches": batches, "processes": processes}
    recipe = TrainingStages(home / "training", steps, tuple(given.styles), **more)
    if given.begin and not any(recipe.folder.glob("*.pt")):
        source = Path(given.begin)
        model = kit.join(source, home / "begun") if source.suffix == ".json" else source
        warm_start(recipe.folder, model, len(taught) + len(broad_labels(taught)))
    return recipe


def run(recipe: TrainingStages, stages: Sequence[str], clock: kit.Clock) -> bool:
    """Run stages in order until time is up; whether all are through."""
    began = time.monotonic()
    try:
        with clock:
            for stage in stages:
                print(f"== {stage}, {time.monotonic() - began:.0f} s in", flush=True)
                getattr(recipe, stage)()
    except KeyboardInterrupt as stopped:
        print(f"time is up: {stopped}", flush=True)
        return False
    return True


def export(recipe: TrainingStages) -> Path | None:
    """The model as it is, into the results; None before a UNet was trained."""
    done = recipe.ran()
    if "unet" not in done and "joint" not in done:
        return None
    # Stages that are not through have checkpoints: at as many steps as they have, they only write what they have.
    steps = {**recipe.steps, **{stage: count for stage, (count, _) in done.items()}}
    now = TrainingStages(
        recipe.folder,
        steps,
        recipe.styles,
        things=recipe.things,
        side=recipe.side,
        batches=recipe.batches,
        processes=recipe.processes,
    )
    for stage in ("joint", "adapter"):
        if stage in done:
            getattr(now, stage)()
    now.export()
    return recipe.folder / "emoji"


def floors(model: Path, count: int, steps: int) -> int:
    """What the model is worth, in a process of its own; its exit status."""
    out = kit.results() / "floors.md"
    command = [sys.executable, "-m", "instantstyle.evaluate.acceptance", "--model", str(model), "--out", str(out)]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [*command, "--count", str(count), "--steps", str(steps)], check=False, env={**os.environ, "PYTHONPATH": paths}
    ).returncode


def _named(text: str) -> tuple[str, int]:
    stage, _, count = text.partition("=")
    if stage not in STEPS or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: give a stage and its steps, such as joint=20000")
    return stage, int(count)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write, judge."""
    parser = kit.options(__doc__)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--things", type=int, help="how many it learns to draw (700 with the whole pack)")
    parser.add_argument("--side", type=int, default=128, choices=(64, 128), help="how large it draws them, in pixels")
    parser.add_argument("--styles", type=int, nargs=2, help="looks of the two banks, each given to 48 things")
    parser.add_argument("--begin", help="a model to begin from: shipped, a folder, or the manifest of its pieces")
    parser.add_argument("--steps", type=_named, nargs="*", default=(), metavar="STAGE=N")
    parser.add_argument("--batch", type=int, help="rows a step, instead of each stage's own")
    parser.add_argument("--processes", type=int, help="how many draw the banks; all cores when not given")
    parser.add_argument("--count", type=int, default=96, help="questions of the floors")
    given = parser.parse_args(argv)
    given.things = given.things or (20 if given.dry else 700)
    given.styles = given.styles or ([10, 8] if given.dry else [4000, 500])
    if given.dry:
        given.batch, given.processes = given.batch or 4, given.processes or 1
        given.steps = {**dict.fromkeys(STEPS, 2), **dict(given.steps)}.items()
    given.begin = str(SHIPPED) if given.begin == "shipped" else given.begin
    if given.device == "cpu":
        print("there is no GPU: this is the same on the processor, and slow", file=sys.stderr)
    else:
        torch.set_num_threads(os.cpu_count() or 1)
    reserve = 0.0 if given.dry else min(RESERVE, given.minutes / 4)
    clock, stages = kit.Clock(given.minutes - reserve), [stage for stage in given.stages if stage != "floors"]
    try:
        recipe = prepare(given)
        through = run(recipe, stages, clock)
        model = export(recipe)
        logs = [f"== {log.stem}\n{log.read_text()}" for log in sorted(recipe.folder.glob("*.csv"))]
        (kit.results() / "losses.txt").write_text("\n".join(logs))
        if model is not None:
            print(f"the model is in {kit.split(model, kit.results())}")
            if "floors" in given.stages and through:
                floors(model, given.count, 1 if given.dry else 25)
    except InstantStyleError as error:
        sys.exit(f"error: {error}")
    if not through:
        print("the same command goes on")


if __name__ == "__main__":
    main()
