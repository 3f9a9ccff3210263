"""Live: how long after the slider moves is the new picture there, and how near is a draft to the picture that is kept?

    python benchmarks/live.py [--moves 20] [--out benchmarks/results/live.md]

Drafts of several settings are compared with 30 steps of the built-in model's own sampler, by PSNR and by CPU seconds.
Then the page is opened in Chromium (`make browser`), and the strength slider is moved; the time runs from the input
event until the new picture is decoded and shown.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from instantstyle.evaluate.metrics import psnr
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference
from instantstyle.serve.model_facts import live_settings
from instantstyle.utils.atomic_files import write_atomic
from instantstyle.utils.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
OUT = ROOT / "benchmarks/results/live.md"
CASES = (("neon", "a fox"), ("watercolour", "a castle"), ("chalk", "a cactus"), ("brush", "a rocket"))
DRAFTS: Sequence[tuple[str | None, int, float | None]] = (
    *((None, 8, 2.0), (None, 8, None), (None, 4, None), (None, 4, 1.0)),
    *(("dpm++", 4, None), ("unipc", 3, None), ("unipc", 4, None), ("unipc", 6, None)),
)
"""Sampler, steps, guidance; None is the model's own."""
MOVE = """async (value) => {
    const slider = document.querySelector('.slider.big input');
    const picture = document.querySelector('#stage .canvas .picture:not(.under)');
    const before = picture.getAttribute('src');
    const began = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    while (picture.getAttribute('src') === before || !picture.complete) await new Promise(requestAnimationFrame);
    return performance.now() - began;
}"""


def draw(model: Model, sampler: str | None, steps: int, guidance: float | None) -> tuple[np.ndarray, float]:
    """The pictures of all cases, [n, height, width, 3], and CPU seconds of one."""
    began = time.process_time()
    images = [
        generate(
            model,
            Request(
                prompt, references=[StyleReference(style)], seed=7, steps=steps, guidance=guidance, sampler=sampler
            ),
        ).images[0]
        for style, prompt in CASES
    ]
    seconds = (time.process_time() - began) / len(CASES)
    return np.stack([np.asarray(each) for each in images]), seconds


def page_latency(moves: int) -> np.ndarray:
    """Milliseconds from each move of the slider to its picture."""
    from playwright.sync_api import sync_playwright

    from studio_server import live_server

    chromium = next(found for name in ("chromium", "google-chrome") if (found := shutil.which(name)))
    with (
        tempfile.TemporaryDirectory() as folder,
        live_server(Path(folder)) as (address, _),
        sync_playwright() as playwright,
    ):
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        page: Any = playwright.chromium.launch(executable_path=chromium, args=arguments).new_page()
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        page.wait_for_selector("#stage .canvas .picture:not(.under):not([hidden])")
        page.wait_for_timeout(1000)
        return np.array([page.evaluate(MOVE, f"{0.5 + 0.05 * (i % 20):.2f}") for i in range(moves + 2)][2:])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    load_begin = os.getloadavg()[0]
    latency = page_latency(given.moves)
    load_end = os.getloadavg()[0]
    model = load()
    kept, full = draw(model, None, 30, None)
    rows = [["the model's", "30", "the model's", f"{full:.2f}", ""]]
    for sampler, steps, guidance in DRAFTS:
        pixels, seconds = draw(model, sampler, steps, guidance)
        scale = "the model's" if guidance is None else f"{guidance:g}"
        rows.append([sampler or "the model's", str(steps), scale, f"{seconds:.2f}", f"{psnr(pixels, kept):.1f}"])
    p50, p95 = np.percentile(latency, [50, 95])
    text = [
        "# Live drafts",
        "",
        f"`python benchmarks/live.py --moves {given.moves}`, {date.today()}, built-in model, {os.cpu_count()} cores.",
        "",
        f"From a move of the slider to its picture in the page: **p50 {p50:.0f} ms, p95 {p95:.0f} ms** over "
        f"{len(latency)} moves, by {live_settings(model)}; load average {load_begin:.1f} at the begin and "
        f"{load_end:.1f} at the end (1 is one busy core).",
        "",
        f"Four pictures ({', '.join(f'{prompt} in {style}' for style, prompt in CASES)}), CPU seconds of one on one "
        "thread, and PSNR in dB to the picture of 30 steps:",
        "",
        *markdown_table(["sampler", "steps", "guidance", "CPU seconds", "PSNR"], rows),
        "",
    ]
    write_atomic(given.out, "\n".join(text).encode())
    print("\n".join(text))


if __name__ == "__main__":
    main()
