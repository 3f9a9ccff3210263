"""Is an adapter of the style blocks alone "quite similar" to a whole one that is muted, as InstantStyle's paper says?

    python benchmarks/claim.py --bank FOLDER [--steps 3000] [--seeds 3] [--looks 300] [--count 48] [--folder OUT]

In the emoji world, on the frozen built-in model, with the same pictures, steps and rows a step, three seeds each:

    mute     all blocks, each picture its own reference; the others muted when pictures are made
    style    the style blocks from scratch, each picture its own reference
    paired   the style blocks from scratch, the reference another thing in the same look

Each is scored on held-out cells by the probe's measures.  Same steps are not the same time: `mute` also pays for the
whole graph.  Run again, it goes on where it was.  FOLDER holds the trainer's bank (core.npy and core.json).
"""

import argparse
import io
import json
import statistics
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from instantstyle.evaluate.probe import cases, draw, score
from instantstyle.model import load
from instantstyle.pictures import png
from instantstyle.train.features import Options
from instantstyle.train.fit import Settings
from instantstyle.train.job import Job, prepare, train
from instantstyle.train.lesson import Teaching
from instantstyle.train.world.bank import core
from instantstyle.whole import whole

ARMS: dict[str, tuple[str, Literal["same", "paired"]]] = {
    "mute": ("all", "same"),
    "style": ("style", "same"),
    "paired": ("style", "paired"),
}
"""The blocks that learn, and what the reference is."""
MEASURES = ("lightness", "colour", "nearer", "content", "leak")


def shards(bank_folder: Path, folder: Path, looks: int) -> Path:
    """Pictures of the first so many looks of the bank as a webdataset, a tar for every fifty looks."""
    bank = core(bank_folder, looks)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, looks, 50):
        file = folder / f"{first:05}.tar"
        if file.exists():
            continue
        rows = np.flatnonzero((bank.style >= first) & (bank.style < min(first + 50, looks)))
        with whole(file) as partial, tarfile.open(partial, "w") as tar:
            for row in map(int, rows):
                said = {"caption": bank.caption(row, np.random.default_rng([5, row]), 0.35)}
                said["style"] = str(int(bank.style[row]))
                content = {
                    "png": png(Image.fromarray(np.asarray(bank.pictures[row]))),
                    "json": json.dumps(said).encode(),
                }
                for ending, data in content.items():
                    info = tarfile.TarInfo(f"{row:07}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def job(arm: str, seed: int, features: Path, folder: Path, steps: int, batch: int) -> Job:
    """One training."""
    blocks, reference = ARMS[arm]
    settings = Settings(steps=steps, batch=batch, lr=1e-3, warmup=200, average=0.999, decay="cosine", log_every=20)
    return Job(
        data=str(features),
        out=folder / f"{arm}-{seed}.safetensors",
        settings=settings,
        blocks=blocks,
        reference=reference,
        teaching=Teaching(seed=seed, min_snr=5.0, early=0.6),
        device="cpu",
    )


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Mean and spread of each measure over the seeds, an arm a row."""
    lines = [f"| arm | seeds | {' | '.join(MEASURES)} |", "|---|---|" + "---|" * len(MEASURES)]
    for arm, found in scores.items():
        cells = [f"{_mean(found, m):.3f} ± {_spread(found, m):.3f}" for m in MEASURES]
        lines.append(f"| {arm} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(found: list[dict[str, float]], measure: str) -> float:
    return statistics.fmean(s[measure] for s in found)


def _spread(found: list[dict[str, float]], measure: str) -> float:
    return statistics.stdev(s[measure] for s in found) if len(found) > 1 else 0.0


def main() -> None:
    """Train what is not trained, score what is not scored, print the table."""
    parser = argparse.ArgumentParser(description="The paper's claim, tested in the emoji world.")
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("claim"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--looks", type=int, default=300)
    parser.add_argument("--count", type=int, default=48, help="held-out questions")
    given = parser.parse_args()
    folder: Path = given.folder
    data = shards(given.bank, folder / "data", given.looks)
    prepare(str(data), folder / "features", Options(square=True), device="cpu")
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(given.seeds):
        for arm in ARMS:
            said = folder / f"{arm}-{seed}.json"
            if not said.exists():
                asked = job(arm, seed, folder / "features", folder, given.steps, given.batch)
                if train(asked) is None:
                    sys.exit(130)
                model = load("emoji", adapter=asked.out, device="cpu")
                questions = cases(given.count, model.family.size[0])
                bare = draw(model, questions, None)
                found = asdict(score(model, "style", questions, draw(model, questions, "style"), bare))
                with whole(said) as partial:
                    partial.write_text(json.dumps({m: found[m] for m in MEASURES}))
            scores[arm].append(json.loads(said.read_text()))
    print(table(scores))


if __name__ == "__main__":
    main()
