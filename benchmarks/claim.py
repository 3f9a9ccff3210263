# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Is an adapter trained at the style blocks alone "quite similar" to a full one used there alone, as the paper says?

    python benchmarks/claim.py --folder FOLDER [--minutes 25] [--seeds 3] [--looks 200] [--count 96] [--estimate]

In the emoji world, on the frozen built-in UNet, with the same images, steps and batch size, some seeds each:

    mute     all blocks, each image its own reference; at inference all scales but the style blocks' are 0
    style    the style blocks from scratch, each image its own reference
    paired   the style blocks from scratch, the reference another concept in the same style

`loud` is the full adapter at all blocks, `without` no reference at all.  Each is scored on held-out cells by the
evaluation's classifiers.  The processes of `--processes` train side by side; resumable.  FOLDER holds the image bank
(rendered when it is not there), its features by the built-in model, the measured training speed, by which the number
of steps is chosen, and the adapters; files of another model are left alone.

The same steps are not the same time: `mute` also pays for the whole graph.  Seeds change the order of samples, their
captions, timesteps and noise; the image projection begins alike.  The UNet was trained together with an adapter of its
own at the style blocks: the comparison is of *these* trainings, not of whether style could be elsewhere.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from instantstyle.evaluate.measurements import measure_images
from instantstyle.evaluate.tasks import STEPS, Setting, Task, held_out_tasks, run_tasks
from instantstyle.evaluate.worker_pool import map_in_workers
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.data.feature_cache import truncate_caption
from instantstyle.train.emoji.adapter import train_adapter
from instantstyle.train.emoji.dataset import CaptionEmbeddings, TrainingSet, caption_choices
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.image_bank import core_bank as drawn_bank
from instantstyle.train.emoji.vae import encode_many
from instantstyle.train.tracking import with_adapter
from instantstyle.utils.atomic_files import atomic_write, remove_stale_temp_files, write_atomic
from instantstyle.utils.images import write_png

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.claim_page import ARMS, MEASURES, Columns, compared, figure, page  # noqa: E402

OUT = ROOT / "benchmarks/results/claim.md"
_PER_STYLE, _CHUNK = 48, 256
_SPEED: Mapping[str, float] = {"all": 90.0, "style": 130.0}
"""Samples a second of one core by trained blocks: an estimate until `training_speed` has measured them."""
_ENCODE_SECONDS, _GENERATE_SECONDS = 0.015, 0.35
"""Core seconds an image, for the estimate: encoded; generated in `STEPS` steps and measured."""


@dataclass(frozen=True)
class SeededTrainingSet(TrainingSet):
    """A training set whose random sequence is advanced by the seed: samples and all that a step draws after them."""

    seed: int = 0

    def sample_indices(self, count: int, rng: np.random.Generator, weights: np.ndarray | None = None) -> np.ndarray:
        """Indices drawn at random, [count]."""
        cast("np.random.PCG64", rng.bit_generator).advance(self.seed << 64)
        return super().sample_indices(count, rng, weights)


def first_styles(bank: ImageBank, count: int) -> ImageBank:
    """The bank's first `count` styles."""
    rows = int(np.searchsorted(bank.style, count))  # styles stand one after another
    return replace(bank, pictures=bank.pictures[:rows], concept=bank.concept[:rows], style=bank.style[:rows])


def training_set(model: Model, folder: Path, looks: int, processes: int = 1) -> TrainingSet:
    """The images' latents and embeddings by the built-in model: computed once, cached in the folder."""
    bank = first_styles(drawn_bank(folder / f"bank-{looks}", looks, processes=processes), looks)
    captions = caption_choices(bank, seed=9)
    texts = ("", *sorted({text for choices in captions for text in choices}))
    number = {text: i for i, text in enumerate(texts)}
    key = f"{model.weights_fingerprint[:12]}-{looks}"

    def text_embeds() -> Tensor:
        fitted = [truncate_caption(model, text)[0] for text in texts]
        parts = [model.encode_prompt(fitted[i : i + _CHUNK]) for i in range(0, len(fitted), _CHUNK)]
        return torch.cat(
            [
                torch.cat([p.prompt_embeds.flatten(1), cast("Tensor", p.pooled_prompt_embeds)], dim=1).half()
                for p in parts
            ]
        )

    def image_embeds() -> Tensor:
        chunks = [bank.pictures[i : i + _CHUNK] for i in range(0, len(bank.pictures), _CHUNK)]
        return torch.cat(
            [model.encode_image([Image.fromarray(np.asarray(x)) for x in each]).float() for each in chunks]
        )

    embeds = _cached(folder / f"words-{key}.pt", text_embeds)
    width = model.family.unet.pooled_projection_dim or 0
    captions_read = CaptionEmbeddings(
        texts, embeds[:, :-width].unflatten(1, (model.family.max_text_tokens, -1)), embeds[:, -width:].float()
    )
    return TrainingSet(
        bank,
        _cached(folder / f"latents-{key}.pt", lambda: encode_many(model.vae, bank.pictures)),
        captions_read,
        np.array([[number[text] for text in choices] for choices in captions]),
        _cached(folder / f"embeds-{key}.pt", image_embeds),
    )


@torch.no_grad()
def _cached(file: Path, make: Callable[[], Tensor]) -> Tensor:
    if not file.exists():
        made = make()
        with atomic_write(file) as partial_file:
            torch.save(made, partial_file)
    return torch.load(file, weights_only=True, mmap=True)


def training_speed(model: Model, data: TrainingSet, folder: Path, batch: int) -> Mapping[str, float]:
    """Samples a second of one core by trained blocks: measured once for a model, and cached."""
    file = folder / f"speed-{model.weights_fingerprint[:12]}-{batch}.json"
    if not file.exists():
        torch.set_num_threads(1)
        speeds: dict[str, float] = {}
        for blocks in _SPEED:
            with tempfile.TemporaryDirectory() as temporary:
                began = time.process_time()
                plan = model.family.presets[blocks]
                train_adapter(Path(temporary), blocks, model.unet, plan, "same", data, steps=12, batch=batch)
                speeds[blocks] = 12 * batch / (time.process_time() - began)
        write_atomic(file, json.dumps(speeds).encode())
    return json.loads(file.read_text("utf-8"))


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    looks: int
    steps: int
    batch: int
    drawn: int
    count: int

    def file(self, folder: Path, model: Model, run: str) -> Path:
        """Where a run's measures are cached: by all that they depend on."""
        trained = "" if run == "without" else f"-{self.looks}-{self.steps}-{self.batch}"
        return folder / f"{run}-{model.weights_fingerprint[:12]}{trained}-{self.drawn}-{self.count}.npz"


def train_and_measure(folder: Path, size: Size, tasks: Sequence[Task], run: str) -> str:
    """Train one arm with one seed, generate and measure; returns the run's name."""
    name, number = run.split("-")
    plans = {name: "style", "loud": "all"} if name == "mute" else {name: "style"}
    torch.set_num_threads(1)
    model = load("emoji", device="cpu", dtype="float32")
    files = {each: size.file(folder, model, f"{each}-{number}") for each in plans}
    if all(file.exists() for file in files.values()):
        return run
    data = training_set(model, folder, size.looks)
    seeded = SeededTrainingSet(
        data.bank, data.latents, data.caption_embeds, data.caption_indices, data.embeds, int(number)
    )
    blocks, reference = ARMS[name]
    plan = model.family.presets[blocks]
    state = f"{run}-{model.weights_fingerprint[:12]}-{size.looks}-{size.steps}-{size.batch}"
    adapter = train_adapter(
        folder, state, model.unet, plan, reference, seeded, steps=size.steps, batch=size.batch, lr=1e-3
    )
    for each, file in files.items():
        print(f"{each}-{number} draws {size.count} pictures", flush=True)
        _measure(with_adapter(model, adapter), Setting(plan=plans[each]), tasks, size.drawn, file)
    return run


def run_all(function: Callable[[str], str], runs: Sequence[str], processes: int) -> None:
    """Do all runs, `processes` at once; after SIGINT or SIGTERM none is begun, and trainings save their state."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    began, before = time.monotonic(), signal.signal(signal.SIGTERM, interrupt)
    try:
        with closing(map_in_workers(function, runs, processes)) as finished:
            for done, (run, _) in enumerate(finished, start=1):
                minutes = (time.monotonic() - began) / 60
                left = minutes / done * (len(runs) - done)
                progress = f"{run} done: {done} of {len(runs)} runs, {minutes:.0f} minutes, about {left:.0f} to go"
                print(progress, file=sys.stderr, flush=True)
    except (KeyboardInterrupt, BrokenProcessPool) as e:
        raise SystemExit(f"stopped ({type(e).__name__}): the same command goes on where it was") from e
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(model: Model, setting: Setting, tasks: Sequence[Task], steps: int, file: Path) -> None:
    if file.exists():
        return
    columns = measure_images(tasks, run_tasks(model, tasks, setting, steps).pixels)
    with atomic_write(file) as partial_file, partial_file.open("wb") as out:
        np.savez(out, **cast("Any", compared(columns)))


def estimated_seconds(
    speeds: Mapping[str, float], looks: int, steps: int, batch: int, seeds: int, count: int, processes: int
) -> Iterator[tuple[str, float]]:
    """Core seconds of each part, and last the minutes of all on idle cores."""
    parts = {
        "reading the pictures": looks * _PER_STYLE * _ENCODE_SECONDS,
        **{f"training {arm}": seeds * steps * batch / speeds[blocks] for arm, (blocks, _) in ARMS.items()},
        "drawing and judging": (seeds * (len(ARMS) + 1) + 1) * count * _GENERATE_SECONDS,
    }
    yield from parts.items()
    alone = parts.pop("reading the pictures")
    yield "minutes", (alone + sum(parts.values()) / processes) / 60


def steps_in(
    minutes: float, speeds: Mapping[str, float], looks: int, batch: int, seeds: int, count: int, processes: int
) -> int:
    """The number of training steps that fit the minutes; at least 20."""

    def minutes_of(steps: int) -> float:
        return dict(estimated_seconds(speeds, looks, steps, batch, seeds, count, processes))["minutes"]

    none, each = minutes_of(0), minutes_of(1000) - minutes_of(0)
    return max(20, int((minutes - none) / each * 1000))


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is not cached, and write the page."""
    parser = argparse.ArgumentParser(description="The paper's claim, tested in the emoji world.")
    parser.add_argument("--folder", type=Path, required=True, help="where all but the page lies")
    parser.add_argument("--minutes", type=float, default=25, help="how many the steps are to fit, by the estimate")
    parser.add_argument("--steps", type=int, help="instead of as many as the minutes hold")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--looks", type=int, default=200, help="styles that are learned from")
    parser.add_argument("--count", type=int, default=96, help="held-out questions")
    parser.add_argument("--drawn", type=int, default=STEPS, help="steps of drawing")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--estimate", action="store_true", help="only say what it will cost")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    folder: Path = args.folder
    rest = (args.looks, args.batch, args.seeds, args.count, args.processes)

    def estimate(speeds: Mapping[str, float]) -> int:
        steps: int = args.steps or steps_in(args.minutes, speeds, *rest)
        looks, *others = rest
        for part, cost in estimated_seconds(speeds, looks, steps, *others):
            unit = " in all, by estimate" if part == "minutes" else " core seconds"
            print(f"{part}: {cost:.0f}{unit}", file=sys.stderr, flush=True)
        return steps

    if args.estimate:
        print(estimate(_SPEED))
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temp_files(folder)
    tasks = held_out_tasks(args.count)
    model = load("emoji", device="cpu", dtype="float32")
    data = training_set(model, folder, args.looks, args.processes)  # before the others need it
    speeds = training_speed(model, data, folder, args.batch)
    steps = estimate(speeds)
    size = Size(args.looks, steps, args.batch, args.drawn, args.count)
    runs = [f"{arm}-{seed}" for seed in range(args.seeds) for arm in ARMS]
    run_all(partial(train_and_measure, folder, size, tasks), runs, args.processes)
    without = size.file(folder, model, "without")
    _measure(model, Setting("none"), tasks, args.drawn, without)

    def load_columns(file: Path) -> Columns:
        with np.load(file) as columns:
            return {m: columns[m] for m in MEASURES}

    scores: dict[str, Sequence[Columns]] = {
        arm: [load_columns(size.file(folder, model, f"{arm}-{seed}")) for seed in range(args.seeds)]
        for arm in (*ARMS, "loud")
    }
    scores["without"] = [load_columns(without)]
    scores["the truth"] = [compared(measure_images(tasks, np.stack([task.truth for task in tasks])))]
    drawing = args.out.with_suffix(".png")
    pace = ", ".join(f"{rows:.0f} with {blocks}" for blocks, rows in speeds.items())
    notes = [
        f"`python benchmarks/claim.py --folder FOLDER --steps {steps} --batch {args.batch} --seeds {args.seeds} "
        f"--looks {args.looks} --count {args.count}` on {date.today()}: {steps} steps of {args.batch} rows, "
        f"{args.looks} looks of at most {_PER_STYLE} things, {args.seeds} seeds; {args.count} questions about unseen "
        f"cells, {args.drawn} steps each. The frozen UNet is the shipped one (`{model.weights_fingerprint[:12]}`); "
        f"its style blocks are {', '.join(model.family.presets['style'].weights)}. A core trained on this many rows a "
        f"second by the blocks that learn: {pace}.",
        "",
        "`mute`: all blocks trained, each picture its own reference, all but the style blocks muted afterwards. "
        "`style`: the style blocks alone, the same. `paired`: the style blocks alone, the reference another thing in "
        "the same look. `loud`: as `mute`, and nothing muted.",
        "",
        f"![each arm's measures with their intervals]({drawing.name})",
    ]
    write_png(figure(scores, tasks), drawing)
    write_atomic(args.out, page(scores, tasks, notes).encode())
    print(args.out.read_text("utf-8"))


if __name__ == "__main__":
    main()
