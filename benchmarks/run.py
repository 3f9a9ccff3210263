"""Side by side with diffusers: the same weights, the same pictures, one process run, alternating.

    python benchmarks/run.py [--rounds 7] [--steps 25] [--model FOLDER] [--out FILE]

Measured in fp32 and bf16: cold start to the first picture on disk and peak memory (a fresh process each), and seconds
a picture once loaded (both in this process, alternating).  Pictures are compared before anything is timed; in
fp32 a difference above one of 255 levels is an error.  It says nothing of quality, and nothing of speed on a GPU.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
Side = Literal["ours", "diffusers"]
Dtype = Literal["float32", "bfloat16"]
BUILT_IN = ROOT / "src/instantstyle/assets/emoji"
SIDES: tuple[Side, ...] = ("ours", "diffusers")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
Draw = Callable[[int], Any]
"""A seed to a PIL picture."""

PROMPT, GUIDANCE = "a cat", 3.0
LEVELS = 1
"""How far two fp32 pictures may lie apart, of 255: rounding at the last conversion to bytes."""


@dataclass(frozen=True)
class Case:
    """What both sides generate."""

    model: Path
    reference: Path
    dtype: Dtype
    steps: int


def ours(case: Case) -> Draw:
    """Our model, loaded; draws one picture a call."""
    import instantstyle as ist

    # The one adapter that both sides can read: by default ours would take the style-only file.
    model = ist.load(case.model, adapter=case.model / "ip_adapter.safetensors", dtype=case.dtype, device="cpu")
    reference = ist.StyleReference(case.reference)

    def draw(seed: int) -> Any:
        request = ist.Request(PROMPT, references=[reference], seed=seed, steps=case.steps, guidance=GUIDANCE)
        return ist.generate(model, request).images[0]

    return draw


def diffusers(case: Case) -> Draw:
    """The same folder in diffusers' own pipeline with the same adapter at the same blocks."""
    import torch
    from diffusers import StableDiffusionXLPipeline  # pyright: ignore[reportPrivateImportUsage] (exported lazily)
    from PIL import Image

    from instantstyle.families import EMOJI

    kind: Any = StableDiffusionXLPipeline  # its own types are partly unknown
    pipeline = kind.from_pretrained(case.model, dtype=getattr(torch, case.dtype), add_watermarker=False)
    pipeline.load_ip_adapter(case.model, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(style_scale())
    pipeline.set_progress_bar_config(disable=True)
    reference = Image.open(case.reference).convert("RGB")
    size = pipeline.vae.config.sample_size

    def draw(seed: int) -> Any:
        return pipeline(
            prompt=PROMPT,
            ip_adapter_image=reference,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=case.steps,
            guidance_scale=GUIDANCE,
            guidance_rescale=EMOJI.guidance_rescale,
            width=size,
            height=size,
        ).images[0]

    return draw


def style_scale() -> dict[str, dict[str, list[float]]]:
    """The emoji family's style preset in diffusers' nested words, where what is not named is muted."""
    from instantstyle.families import EMOJI

    scale: dict[str, dict[str, list[float]]] = {"down": {}, "up": {}}
    for site in EMOJI.unet.sites:
        if site.stage != "mid":
            block = scale[site.stage].setdefault(f"block_{site.block}", [])
            if len(block) == site.attention:
                block.append(EMOJI.presets["style"].scale(site))
    return {stage: blocks for stage, blocks in scale.items() if blocks}


LOAD: dict[Side, Callable[[Case], Draw]] = {"ours": ours, "diffusers": diffusers}


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall: float
    cpu: float
    peak: float = 0.0
    """MiB of resident memory at most."""


def cold(side: Side, case: Case, folder: Path) -> Cost:
    """A fresh process: import, load, draw one picture, write it.  Time from its start to its end."""
    argv = [sys.executable, __file__, "--worker", side, "--dtype", case.dtype, "--model", str(case.model)]
    argv += ["--reference", str(case.reference), "--steps", str(case.steps), "--out", str(folder / f"{side}.png")]
    start = time.perf_counter()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr
    with child.stderr:
        stderr = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{side} failed in its own process:\n{stderr.decode()}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB on Linux
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**20)


def warm(draw: Draw, seed: int) -> Cost:
    """One picture from a loaded model."""
    wall, cpu = time.perf_counter(), time.process_time()
    draw(seed)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def difference(draws: dict[Side, Draw], seeds: Sequence[int]) -> int:
    """The largest difference between the two sides' pictures over all seeds, in levels of 255."""
    import numpy as np

    pairs = ([np.asarray(draws[side](seed), dtype=np.int16) for side in SIDES] for seed in seeds)
    return max(int(np.abs(a - b).max()) for a, b in pairs)


def measure(case: Case, rounds: int, folder: Path) -> tuple[int, dict[Side, list[Cost]], dict[Side, list[Cost]]]:
    """The largest difference, warm costs and cold costs.  The side that goes first alternates by round.

    Raises RuntimeError when fp32 pictures differ: their speeds are not comparable.
    """
    draws: dict[Side, Draw] = {side: LOAD[side](case) for side in SIDES}
    largest = difference(draws, range(3))
    if case.dtype == "float32" and largest > LEVELS:
        raise RuntimeError(f"the pictures differ by {largest} of 255 levels in fp32, so there is nothing to compare")
    hot: dict[Side, list[Cost]] = {side: [] for side in SIDES}
    fresh: dict[Side, list[Cost]] = {side: [] for side in SIDES}
    for i in range(rounds):
        for side in SIDES if i % 2 else SIDES[::-1]:
            hot[side].append(warm(draws[side], seed=100 + i))
    for i in range(rounds):
        for side in SIDES if i % 2 else SIDES[::-1]:
            fresh[side].append(cold(side, case, folder))
    return largest, hot, fresh


def _cell(values: Sequence[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def rows(dtype: Dtype, hot: dict[Side, list[Cost]], fresh: dict[Side, list[Cost]]) -> list[str]:
    """Markdown rows: medians with the least and the greatest value, and the ratio of medians."""
    table: list[tuple[str, dict[Side, list[float]], int]] = [
        ("a picture, seconds", {s: [c.wall for c in hot[s]] for s in SIDES}, 3),
        ("a picture, processor seconds", {s: [c.cpu for c in hot[s]] for s in SIDES}, 3),
        ("cold start to first picture, seconds", {s: [c.wall for c in fresh[s]] for s in SIDES}, 2),
        ("the same, processor seconds", {s: [c.cpu for c in fresh[s]] for s in SIDES}, 2),
        ("peak memory of that process, MiB", {s: [c.peak for c in fresh[s]] for s in SIDES}, 0),
    ]
    lines: list[str] = []
    for name, values, digits in table:
        ratio = statistics.median(values["diffusers"]) / statistics.median(values["ours"])
        cells = " | ".join(_cell(values[side], digits) for side in SIDES)
        lines.append(f"| {dtype} | {name} | {cells} | {ratio:.2f} |")
    return lines


def hardware() -> list[str]:
    """Hardware and versions, as a Markdown list."""
    import diffusers as peer
    import torch
    import transformers

    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux has it
        cpuinfo = ""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "src"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    processor = names[0] if names else platform.processor() or platform.machine()
    return [
        f"- {date.today()}, commit {commit.strip() or 'unknown'}{' with local changes' if changed else ''}",
        f"- {processor}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU used, "
        f"load average {os.getloadavg()[0]:.1f} at the end",
        f"- {torch.get_num_threads()} thread; Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {peer.__version__}, transformers {transformers.__version__}",
    ]


def picture(folder: Path, model: Path) -> Path:
    """A reference already of the image encoder's size, so that the two sides' resizing is not what differs."""
    import json

    from PIL import Image

    side = json.loads((model / "image_encoder/config.json").read_text())["image_size"]
    drawn = Image.radial_gradient("L").resize((side, side))
    path = folder / "reference.png"
    Image.merge(
        "RGB", [drawn, drawn.rotate(90).point(range(255, -1, -1)), drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    ).save(path)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, measure, write Markdown and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--model", type=Path, help="a folder in diffusers' format of the emoji family")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/DATE.md")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, help="only this one")
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    if args.worker:
        _one_thread()
        LOAD[args.worker](Case(args.model, args.reference, args.dtype, args.steps))(0).save(args.out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model: Path = args.model or BUILT_IN
        what = "the built-in emoji model" if model == BUILT_IN else f"a model given by hand, {model.name}"
        reference = picture(folder, model)
        _one_thread()
        notes: list[str] = []
        table: list[str] = []
        for dtype in DTYPES if args.dtype is None else (args.dtype,):
            largest, hot, fresh = measure(Case(model, reference, dtype, args.steps), args.rounds, folder)
            notes.append(f"- {dtype}: the two sides' pictures differ by at most {largest} of 255 levels (three seeds)")
            table += rows(dtype, hot, fresh)
    page = [
        "# Side by side with diffusers",
        "",
        f"`python benchmarks/run.py --rounds {args.rounds} --steps {args.steps}` on {what}; prompt {PROMPT!r}, one "
        f"reference at the style blocks, guidance {GUIDANCE:g}.",
        "",
        *hardware(),
        *notes,
        "",
        f"Medians of {args.rounds} alternating runs, least and greatest in brackets; the last column is diffusers "
        "over ours: above 1 we take less.",
        "",
        "| dtype | what | ours | diffusers | ratio |",
        "|---|---|---|---|---|",
        *table,
    ]
    text = "\n".join(page) + "\n"
    out: Path = args.out or ROOT / f"benchmarks/results/{date.today()}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)


def _one_thread() -> None:
    """One thread, set after every import, for some set it themselves: two are slower when cores are shared."""
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
