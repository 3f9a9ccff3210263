"""`python -m instantstyle.train.emoji bank vae text clip unet look joint adapter control export`, or by torchrun."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from instantstyle.emoji.sources import cache_folder
from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.errors import InstantStyleError
from instantstyle.train.emoji.image_bank import SIDE, choose_things
from instantstyle.train.emoji.stages import STAGE_STEPS, TrainingStages


def main() -> None:
    """Run the named stages in order."""
    stages = ("bank", "vae", "text", "clip", "unet", "look", "joint", "adapter", "control", "export")
    parser = argparse.ArgumentParser(description="Train the built-in model; every stage resumes where it was.")
    parser.add_argument("stages", nargs="+", choices=stages)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "training")
    parser.add_argument("--steps", type=int, help="optimiser steps of the named stages, instead of the recipe's")
    parser.add_argument("--things", type=int, help="how many things it learns to draw, instead of the shipped model's")
    parser.add_argument("--side", type=int, default=SIDE, help="how large it draws them, in pixels: 64 or 128")
    parser.add_argument("--batch", type=int, help="rows a step of the named stages and process, instead of their own")
    parser.add_argument("--processes", type=int, default=1, help="how many draw the banks")
    args = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    steps = {s: args.steps if args.steps and s in args.stages else count for s, count in STAGE_STEPS.items()}
    batches = {stage: args.batch for stage in args.stages if args.batch}
    try:
        taught = choose_things(args.things) if args.things else TRAINED_CONCEPTS
        more: dict[str, Any] = {"side": args.side, "batches": batches, "processes": args.processes}
        recipe = TrainingStages(args.folder, steps, things=taught, **more)
        for stage in args.stages:
            getattr(recipe, stage.replace("-", "_"))()
    except KeyboardInterrupt as stopped:
        print(stopped)
        sys.exit(130)
    except InstantStyleError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
