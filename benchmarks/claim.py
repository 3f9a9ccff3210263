# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Is an adapter of the style blocks alone "quite similar" to a whole one that is muted, as InstantStyle's paper says?

    python benchmarks/claim.py --folder FOLDER [--minutes 25] [--seeds 3] [--looks 200] [--count 96] [--estimate]

In the emoji world, on the frozen shipped UNet, with the same pictures, steps and rows a step, some seeds each:

    mute     all blocks, each picture its own reference; all but the style blocks muted when pictures are made
    style    the style blocks from scratch, each picture its own reference
    paired   the style blocks from scratch, the reference another thing in the same look

`loud` is the whole adapter with no block muted, `without` no reference at all.  Each is scored on held-out cells by the
referee's judges.  The two processes of `--processes` train side by side; stopped or killed and run again, it goes on
where it was.  FOLDER holds the bank (drawn when it is not there), what the shipped model makes of it, the pace at which
it learns here, by which the steps are chosen, and the adapters; what was made by another model is left alone.

Same steps are not the same time: `mute` also pays for the whole graph.  Seeds change which rows are seen, their
captions, times and noise; the projection begins alike.  The UNet has learned together with an adapter of its own at the
style blocks: the question is what *these* trainings find there, not whether style could live elsewhere.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from instantstyle.evaluate.classifiers import HELD_OUT
from instantstyle.evaluate.measurements import measure, measure_bounds
from instantstyle.evaluate.metrics import Interval, bootstrap
from instantstyle.evaluate.plots import plot_intervals
from instantstyle.evaluate.tasks import STEPS, Setting, Task, held_out_tasks, run_tasks
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.data.feature_cache import fit_to_square
from instantstyle.train.emoji.adapter import train_adapter
from instantstyle.train.emoji.dataset import CaptionEmbeddings, TrainingSet, caption_choices
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.image_bank import core_bank as drawn_bank
from instantstyle.train.emoji.vae import encode_many
from instantstyle.train.tracking import with_adapter
from instantstyle.utils.atomic_files import atomic_write, remove_stale_temp_files, write_atomic
from instantstyle.utils.images import write_png

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks/results/claim.md"
Floats = npt.NDArray[np.float64]
Columns = Mapping[str, Floats]
"""Of one training, a number a question for each measure."""

ARMS: Mapping[str, tuple[str, Literal["same", "paired"]]] = {
    "mute": ("all", "same"),
    "style": ("style", "same"),
    "paired": ("style", "paired"),
}
"""The blocks that learn, and what the reference is."""
MEASURES = {
    f"content right, {HELD_OUT}": "content right",
    f"style right, {HELD_OUT}": "treatment right",
    f"four-way right, {HELD_OUT}": "four-way right",
    "ground lightness off": "lightness off",
    "ground colour off": "colour off",
    f"excess nats, {HELD_OUT}": "leak, nats",
}
"""What is compared, by the judges' names and the page's.  The last three are better when smaller."""

_EACH, _PIECE = 48, 256
_SPEED: Mapping[str, float] = {"all": 90.0, "style": 130.0}
"""Rows a second of one core by the blocks that learn: a guess until `speed` has measured them."""
_PREPARED, _DRAWN = 0.015, 0.35
"""Core seconds a picture, for the estimate: read by the encoders; drawn in `STEPS` steps and judged."""


@dataclass(frozen=True)
class Seeded(TrainingSet):
    """A corpus whose steps are another run's: rows are what a step draws first, and everything after them differs."""

    seed: int = 0

    def rows(self, count: int, rng: np.random.Generator, often: np.ndarray | None = None) -> np.ndarray:
        """Rows drawn at random."""
        cast("np.random.PCG64", rng.bit_generator).advance(self.seed << 64)
        return super().rows(count, rng, often)


def first_looks(bank: ImageBank, looks: int) -> ImageBank:
    """The bank's first so many styles."""
    rows = int(np.searchsorted(bank.style, looks))  # styles stand one after another
    return replace(bank, pictures=bank.pictures[:rows], concept=bank.concept[:rows], style=bank.style[:rows])


def corpus(model: Model, folder: Path, looks: int, processes: int = 1) -> TrainingSet:
    """The pictures as the shipped model reads them: computed once, kept in the folder."""
    bank = first_looks(drawn_bank(folder / f"bank-{looks}", looks, processes=processes), looks)
    said = caption_choices(bank, seed=9)
    texts = ("", *sorted({text for several in said for text in several}))
    number = {text: i for i, text in enumerate(texts)}
    mark = f"{model.weights_fingerprint[:12]}-{looks}"

    def words() -> Tensor:
        short = [fit_to_square(model, text)[0] for text in texts]
        parts = [model.encode_prompt(short[i : i + _PIECE]) for i in range(0, len(short), _PIECE)]
        return torch.cat(
            [
                torch.cat([p.prompt_embeds.flatten(1), cast("Tensor", p.pooled_prompt_embeds)], dim=1).half()
                for p in parts
            ]
        )

    def embeds() -> Tensor:
        shown = [bank.pictures[i : i + _PIECE] for i in range(0, len(bank.pictures), _PIECE)]
        return torch.cat([model.encode_image([Image.fromarray(np.asarray(x)) for x in each]).float() for each in shown])

    packed = _kept(folder / f"words-{mark}.pt", words)
    width = model.family.unet.pooled_projection_dim or 0
    read = CaptionEmbeddings(
        texts, packed[:, :-width].unflatten(1, (model.family.max_text_tokens, -1)), packed[:, -width:].float()
    )
    return TrainingSet(
        bank,
        _kept(folder / f"latents-{mark}.pt", lambda: encode_many(model.vae, bank.pictures)),
        read,
        np.array([[number[text] for text in several] for several in said]),
        _kept(folder / f"embeds-{mark}.pt", embeds),
    )


@torch.no_grad()
def _kept(file: Path, make: Callable[[], Tensor]) -> Tensor:
    if not file.exists():
        made = make()
        with atomic_write(file) as partial_file:
            torch.save(made, partial_file)
    return torch.load(file, weights_only=True, mmap=True)


def speed(model: Model, read: TrainingSet, folder: Path, batch: int) -> Mapping[str, float]:
    """Rows a second of one core by the blocks that learn: measured once, and kept with the model it was measured of."""
    file = folder / f"speed-{model.weights_fingerprint[:12]}-{batch}.json"
    if not file.exists():
        torch.set_num_threads(1)
        found: dict[str, float] = {}
        for blocks in _SPEED:
            with tempfile.TemporaryDirectory() as there:
                began = time.process_time()
                plan = model.family.presets[blocks]
                train_adapter(Path(there), blocks, model.unet, plan, "same", read, steps=12, batch=batch)
                found[blocks] = 12 * batch / (time.process_time() - began)
        write_atomic(file, json.dumps(found).encode())
    return json.loads(file.read_text("utf-8"))


@dataclass(frozen=True)
class Size:
    """How much is trained and asked."""

    looks: int
    steps: int
    batch: int
    drawn: int
    count: int

    def file(self, folder: Path, model: Model, run: str) -> Path:
        """Where a run's measures are kept: by all that they depend on."""
        trained = "" if run == "without" else f"-{self.looks}-{self.steps}-{self.batch}"
        return folder / f"{run}-{model.weights_fingerprint[:12]}{trained}-{self.drawn}-{self.count}.npz"


def trial(folder: Path, size: Size, asked: Sequence[Task], run: str) -> str:
    """Train one arm with one seed, draw and measure; kept by its name, and returned when all is there."""
    name, number = run.split("-")
    plans = {name: "style", "loud": "all"} if name == "mute" else {name: "style"}
    torch.set_num_threads(1)
    model = load("emoji", device="cpu", dtype="float32")
    files = {each: size.file(folder, model, f"{each}-{number}") for each in plans}
    if all(file.exists() for file in files.values()):
        return run
    read = corpus(model, folder, size.looks)
    seeded = Seeded(read.bank, read.latents, read.words, read.choices, read.embeds, int(number))
    blocks, reference = ARMS[name]
    plan = model.family.presets[blocks]
    state = f"{run}-{model.weights_fingerprint[:12]}-{size.looks}-{size.steps}-{size.batch}"
    adapter = train_adapter(
        folder, state, model.unet, plan, reference, seeded, steps=size.steps, batch=size.batch, lr=1e-3
    )
    for each, file in files.items():
        print(f"{each}-{number} draws {size.count} pictures", flush=True)
        _judge(with_adapter(model, adapter), Setting(plan=plans[each]), asked, size.drawn, file)
    return run


def _worker() -> None:
    """A process of the pool ends with the one that started it: trainings save first, as SIGTERM asks them to."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=follow, daemon=True).start()


def _ending(work: Callable[[str], str], run: str) -> str:
    """In a worker: a run that was stopped, and has saved, is to be this worker's last."""
    try:
        return work(run)
    except KeyboardInterrupt:
        os._exit(1)


def side_by_side(work: Callable[[str], str], runs: Sequence[str], processes: int) -> None:
    """Do all runs, so many at once; stopped by SIGINT or SIGTERM, no other is begun and trainings are saved."""
    if processes == 1:
        for run in runs:
            print(f"{work(run)} done", file=sys.stderr, flush=True)
        return

    def stop(*_: object) -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        raise KeyboardInterrupt

    began, before = time.monotonic(), signal.signal(signal.SIGTERM, stop)
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_worker)
    try:
        waiting = [pool.submit(_ending, work, run) for run in runs]
        for done, each in enumerate(as_completed(waiting), start=1):
            minutes = (time.monotonic() - began) / 60
            left = minutes / done * (len(runs) - done)
            said = f"{each.result()} done: {done} of {len(runs)} runs, {minutes:.0f} minutes, about {left:.0f} to go"
            print(said, file=sys.stderr, flush=True)
    except (KeyboardInterrupt, BrokenProcessPool) as ended:
        raise SystemExit(f"stopped ({type(ended).__name__}): the same command goes on where it was") from ended
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def _judge(model: Model, way: Setting, asked: Sequence[Task], steps: int, file: Path) -> None:
    if file.exists():
        return
    columns = measure(asked, run_tasks(model, asked, way, steps).pixels)
    with atomic_write(file) as partial_file, partial_file.open("wb") as out:
        np.savez(out, **cast("Any", compared(columns)))


def compared(columns: Mapping[str, npt.NDArray[Any]]) -> Columns:
    """The compared measures of what the suite measured."""
    off = {axis: columns[f"ground {axis}"] - columns[f"reference ground {axis}"] for axis in "Lab"}
    more = {"ground lightness off": np.abs(off["L"]), "ground colour off": np.hypot(off["a"], off["b"])}
    every = {**columns, **more}
    return {name: np.asarray(every[name], np.float64) for name in MEASURES}


def seconds(
    speeds: Mapping[str, float], looks: int, steps: int, batch: int, seeds: int, count: int, processes: int
) -> Iterator[tuple[str, float]]:
    """What it will cost: core seconds a part, and minutes in all when cores are free."""
    parts = {
        "reading the pictures": looks * _EACH * _PREPARED,
        **{f"training {arm}": seeds * steps * batch / speeds[blocks] for arm, (blocks, _) in ARMS.items()},
        "drawing and judging": (seeds * (len(ARMS) + 1) + 1) * count * _DRAWN,
    }
    yield from parts.items()
    alone = parts.pop("reading the pictures")
    yield "minutes", (alone + sum(parts.values()) / processes) / 60


def fitting(
    minutes: float, speeds: Mapping[str, float], looks: int, batch: int, seeds: int, count: int, processes: int
) -> int:
    """The steps that fit the minutes; at least 20."""

    def lasts(steps: int) -> float:
        return dict(seconds(speeds, looks, steps, batch, seeds, count, processes))["minutes"]

    none, each = lasts(0), lasts(1000) - lasts(0)
    return max(20, int((minutes - none) / each * 1000))


def interval(of: Sequence[Floats], asked: Sequence[Task], bounds: tuple[float, float]) -> Interval:
    """The mean over seeds and questions; things, styles and seeds are drawn anew."""
    seeds = len(of)
    clusters: dict[str, Sequence[object]] = {
        "thing": [q.target for _ in range(seeds) for q in asked],
        "style": [repr(q.style) for _ in range(seeds) for q in asked],
    }
    if seeds > 1:
        clusters["seed"] = [seed for seed in range(seeds) for _ in asked]
    return bootstrap(np.concatenate(of), clusters, bounds)


def means(scores: Mapping[str, Sequence[Columns]], asked: Sequence[Task]) -> Mapping[str, Mapping[str, Interval]]:
    """Each arm's measures with their intervals."""
    return {
        arm: {m: interval([each[m] for each in found], asked, measure_bounds(m)) for m in MEASURES}
        for arm, found in scores.items()
    }


def figure(scores: Mapping[str, Sequence[Columns]], asked: Sequence[Task]) -> Image.Image:
    """The same as a picture: a small plot a measure, a line an arm."""
    found = means(scores, asked)
    return plot_intervals(list(found), {MEASURES[m]: [each[m] for each in found.values()] for m in MEASURES})


def page(scores: Mapping[str, Sequence[Columns]], asked: Sequence[Task], said: Sequence[str]) -> str:
    """The tables: each arm with its interval, its seeds one by one, and by how much it is apart from `mute`."""
    heads = ["", *MEASURES.values()]
    rows = [[arm, *map(str, each.values())] for arm, each in means(scores, asked).items()]
    single = [
        [f"{arm} {seed}", *(f"{np.nanmean(each[m]):.2f}" for m in MEASURES)]
        for arm, found in scores.items()
        if arm in (*ARMS, "loud")
        for seed, each in enumerate(found)
    ]
    apart = {
        arm: {
            m: interval(
                [a[m] - b[m] for a, b in zip(scores[arm], scores["mute"], strict=True)],
                asked,
                (measure_bounds(m)[0] - measure_bounds(m)[1], measure_bounds(m)[1] - measure_bounds(m)[0]),
            )
            for m in MEASURES
        }
        for arm in ("style", "paired", "loud")
    }
    differences = [[f"{arm} - mute", *(_signed(each) for each in found.values())] for arm, found in apart.items()]
    return "\n".join(
        [
            "# All blocks then mute, or the style blocks alone?",
            "",
            *said,
            "",
            "Means and 95 % intervals over questions and seeds; things, styles and seeds are resampled, and of seeds "
            "there are few. Of the first three measures more is better, of the others less: *off* is how far the "
            "ground lies from the reference's, in Lab; *leak* how much likelier the judge finds what the reference "
            "shows than what other references show.",
            "",
            *_table(heads, rows),
            "",
            "## Apart from `mute`, question by question",
            "",
            *_table(heads, differences),
            "",
            *(f"- {arm}: {_verdict(found)}" for arm, found in apart.items()),
            "",
            "## Seed by seed",
            "",
            *_table(heads, single),
            "",
        ]
    )


def _signed(each: Interval) -> str:
    return f"{each.mean:+.2f} ({each.low:+.2f} to {each.high:+.2f})"


def _verdict(found: Mapping[str, Interval]) -> str:
    told = [f"{MEASURES[m]} {each.mean:+.2f}" for m, each in found.items() if each.low > 0 or each.high < 0]
    alike = [MEASURES[m] for m, each in found.items() if each.low <= 0 <= each.high]
    return f"told apart by {', '.join(told) or 'nothing'}; not told apart by {', '.join(alike) or 'nothing'}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained, judge what is not judged, write the page."""
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
    given = parser.parse_args(argv)
    folder: Path = given.folder
    rest = (given.looks, given.batch, given.seeds, given.count, given.processes)

    def told(speeds: Mapping[str, float]) -> int:
        steps: int = given.steps or fitting(given.minutes, speeds, *rest)
        looks, *others = rest
        for part, cost in seconds(speeds, looks, steps, *others):
            said = " in all, by estimate" if part == "minutes" else " core seconds"
            print(f"{part}: {cost:.0f}{said}", file=sys.stderr, flush=True)
        return steps

    if given.estimate:
        print(told(_SPEED))
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temp_files(folder)
    asked = held_out_tasks(given.count)
    model = load("emoji", device="cpu", dtype="float32")
    read = corpus(model, folder, given.looks, given.processes)  # before the others need it
    speeds = speed(model, read, folder, given.batch)
    steps = told(speeds)
    size = Size(given.looks, steps, given.batch, given.drawn, given.count)
    runs = [f"{arm}-{seed}" for seed in range(given.seeds) for arm in ARMS]
    side_by_side(partial(trial, folder, size, asked), runs, given.processes)
    without = size.file(folder, model, "without")
    _judge(model, Setting("none"), asked, given.drawn, without)

    def kept(file: Path) -> Columns:
        with np.load(file) as columns:
            return {m: columns[m] for m in MEASURES}

    scores: dict[str, Sequence[Columns]] = {
        arm: [kept(size.file(folder, model, f"{arm}-{seed}")) for seed in range(given.seeds)] for arm in (*ARMS, "loud")
    }
    scores["without"] = [kept(without)]
    scores["the truth"] = [compared(measure(asked, np.stack([q.truth for q in asked])))]
    drawing = given.out.with_suffix(".png")
    pace = ", ".join(f"{rows:.0f} with {blocks}" for blocks, rows in speeds.items())
    said = [
        f"`python benchmarks/claim.py --folder FOLDER --steps {steps} --batch {given.batch} --seeds {given.seeds} "
        f"--looks {given.looks} --count {given.count}` on {date.today()}: {steps} steps of {given.batch} rows, "
        f"{given.looks} looks of at most {_EACH} things, {given.seeds} seeds; {given.count} questions about unseen "
        f"cells, {given.drawn} steps each. The frozen UNet is the shipped one (`{model.weights_fingerprint[:12]}`); "
        f"its style blocks are {', '.join(model.family.presets['style'].weights)}. A core trained on this many rows a "
        f"second by the blocks that learn: {pace}.",
        "",
        "`mute`: all blocks trained, each picture its own reference, all but the style blocks muted afterwards. "
        "`style`: the style blocks alone, the same. `paired`: the style blocks alone, the reference another thing in "
        "the same look. `loud`: as `mute`, and nothing muted.",
        "",
        f"![each arm's measures with their intervals]({drawing.name})",
    ]
    write_png(figure(scores, asked), drawing)
    write_atomic(given.out, page(scores, asked, said).encode())
    print(given.out.read_text("utf-8"))


if __name__ == "__main__":
    main()
