"""How far can a style reach into the built-in model by each door: self-attention, the text's answer, low-rank changes?

    python benchmarks/reach.py [--model FOLDER] [--count 12] [--steps 10] [--out benchmarks/results/reach.md]

First single predictions, in which a door is opened wider than any method opens it: if the whole answer of every
self-attention, taken from the reference, moves the expected picture by nothing, no way of sharing keys and values will.
Then pictures, method by method.  Cells, looks and things are trained ones; no judge is asked but the model's own CLIP.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from instantstyle.blocks import Site, late_up_blocks
from instantstyle.emoji.splits import TRAINED_CONCEPTS, splits
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, sample_transform
from instantstyle.evaluate.block_probe import clip_labels
from instantstyle.evaluate.ground_truth import TRAINED_SETS, Pixels
from instantstyle.evaluate.metrics import background_correlation
from instantstyle.evaluate.tasks import Setting, Task, make_task, run_tasks
from instantstyle.loading import load
from instantstyle.methods.ddim_inversion import NoiseLevel
from instantstyle.methods.prompts import encode_prompts
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, CrossAttentionKV, HeadsTensor, plain
from instantstyle.networks.prediction import predict_x0_eps, prediction_type
from instantstyle.sampling.schedulers import make_scheduler

TIMES = (999, 900, 700, 400)
"""Times of the single predictions, in training steps."""
Where = Callable[[Site], bool]
Answer = Callable[[HeadsTensor, HeadsTensor, HeadsTensor], Tensor]
WAYS: Sequence[tuple[str, Setting]] = (
    ("no reference", Setting("none")),
    ("instantstyle", Setting()),
    ("style-aligned", Setting("style-aligned")),
    ("style-aligned, weight 4", Setting("style-aligned", strength=4.0)),
    ("swapped", Setting("swapped")),
    ("swapped, calibrate", Setting("swapped", options={"calibrate": True})),
    ("stylekeeper", Setting("stylekeeper")),
    ("stylestudio", Setting("stylestudio")),
    ("stylestudio, weight 0.5", Setting("stylestudio", strength=0.5)),
)


HEAD = """# How far can a style reach into the built-in model, by each door?

{command}

Weights {weights}. {count} questions about trained cells, guidance 2; a question has the same noise for all methods.

One prediction: how much the expected picture changes, as a share of its length, and how much of the way to what is
expected of the reference it goes.
"""
PICTURES = """
Pictures of {steps} steps: mean difference to the picture without a reference in levels of 255, correlation of the
ground's lightness and colour with the reference's, and how often the model's own CLIP finds what was asked for.

| method | levels | ground lightness r | ground colour r | thing found |
|---|---|---|---|---|"""


@dataclass(frozen=True)
class Reach:
    """What a change of a prediction does to the picture that is expected, as it was expected without."""

    change: float
    """The length of the change, as a share of the picture's."""
    towards: float
    """How much of the way to the picture that is expected of the reference it goes: 1 would be all of it."""


def trained(count: int, seed: int = 5) -> list[Task]:
    """Questions about trained cells, their looks' families in equal numbers."""
    rng, asked = np.random.default_rng(seed), list[Task]()
    while len(asked) < count:
        thing, drawer = str(rng.choice(TRAINED_CONCEPTS)), str(rng.choice(list(TRAINED_SETS)))
        if splits().trains(thing, drawer):
            family = TRAINED_FAMILIES[len(asked) % len(TRAINED_FAMILIES)]
            asked.append(make_task(thing, drawer, sample_transform(rng, [family]), rng, 3000 + len(asked)))
    return asked


@torch.no_grad()
def reaches(model: Model, asked: Sequence[Task]) -> dict[str, list[Reach]]:
    """By what is changed, its reach at each of `TIMES`; rows are pictures and then references of other looks."""
    n, kept = len(asked), make_scheduler(model, None).alphas_cumprod
    own, shown = (
        torch.cat([model.encode_latents(Image.fromarray(each).resize(model.family.size)) for each in pictures])
        for pictures in ([q.truth for q in asked], [asked[i - 1].reference for i in range(len(asked))])
    )
    texts = encode_prompts(model, [q.prompt for q in asked] + [""] * n)
    silent = encode_prompts(model, [""] * 2 * n)
    said, unsaid = model.unet.precompute_kv(texts.prompt_embeds), model.unet.precompute_kv(silent.prompt_embeds)
    width, height = model.family.size
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(2 * n, 6)
    there = torch.arange(2 * n)
    there[:n] += n

    def where(place: Where, answer: Answer) -> Attend:
        def attend(
            site: Site, q: HeadsTensor, k: HeadsTensor, v: HeadsTensor, *, bias: Tensor | None = None
        ) -> HeadsTensor:
            if site.kind == "self" and place(site):
                return answer(q, k, v)
            return plain(site, q, k, v, bias=bias)

        return attend

    def swap(q: HeadsTensor, k: HeadsTensor, v: HeadsTensor) -> Tensor:
        return plain(SOME, q, k[there], v[there])

    def take(q: HeadsTensor, k: HeadsTensor, v: HeadsTensor) -> Tensor:
        return plain(SOME, q, k, v)[there]

    def mute(q: HeadsTensor, k: HeadsTensor, v: HeadsTensor) -> Tensor:
        return torch.zeros_like(q)

    blocks = {term.split("=")[0] for term in late_up_blocks(model.family.unet).split(",")}

    def upper(site: Site) -> bool:
        return site.module.rsplit(".", 1)[0] in blocks

    style = model.family.presets["style"]

    def blank(at_style: bool) -> CrossAttentionKV:
        return {site: (unsaid if bool(style.scale(site)) == at_style else said)[site] for site in said}

    changes: dict[str, tuple[CrossAttentionKV, Attend]] = {
        "keys and values of late self-attention from the reference (swapped)": (said, where(upper, swap)),
        "the same in every self-attention": (said, where(_always, swap)),
        "the whole answer of every self-attention from the reference": (said, where(_always, take)),
        "every self-attention silent": (said, where(_always, mute)),
        "no text at the style blocks": (blank(True), plain),
        "no text elsewhere": (blank(False), plain),
    }
    out: dict[str, list[Reach]] = {name: [] for name in changes}
    for time in TIMES:
        level = NoiseLevel(time, float(kept[time]) ** 0.5, (1 - float(kept[time])) ** 0.5)
        noise = torch.randn(2 * n, *own.shape[1:], generator=torch.Generator().manual_seed(time))
        x = level.alpha * torch.cat([own, shown]) + level.sigma * noise

        def expected(text: CrossAttentionKV, attend: Attend, x: Tensor = x, level: NoiseLevel = level) -> Tensor:
            when = torch.full((2 * n,), float(level.timestep))
            return predict_x0_eps(
                model.unet(x, when, text, texts.pooled_prompt_embeds, sizes, attend=attend),
                x,
                level.alpha,
                level.sigma,
                prediction_type(model.scheduler_config),
            )[0]

        bare = expected(said, plain)
        apart = bare[n:] - bare[:n]
        for name, change in changes.items():
            moved = (expected(*change) - bare)[:n]
            towards = float((moved * apart).sum() / apart.square().sum())
            length = float((moved.square().sum() / bare[:n].square().sum()).sqrt())
            out[name].append(Reach(length, towards))
    return out


SOME = Site("mid", 0, 0, 0, "self")
"""A site for attention of our own, which does not ask where it is."""


def _always(site: Site) -> bool:
    return True


def row(name: str, model: Model, asked: Sequence[Task], drawn: Pixels, bare: Pixels) -> str:
    """A method's line of the table."""
    references = np.stack([q.reference for q in asked])
    lightness, colour = background_correlation(drawn, references)
    right = np.mean(
        [a == q.target for a, q in zip(clip_labels(model, [Image.fromarray(p) for p in drawn]), asked, strict=True)]
    )
    levels = np.abs(drawn.astype(int) - bare).mean()
    return f"| {name} | {levels:.1f} | {lightness:.2f} | {colour:.2f} | {right:.0%} |"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reach.md")
    given = parser.parse_args()
    model, asked = load(given.model), trained(given.count)
    command = f"    python benchmarks/reach.py --count {given.count} --steps {given.steps}"
    lines = [HEAD.format(command=command, weights=model.weights_fingerprint[:12], count=given.count)]
    lines += ["| changed | " + " | ".join(f"time {time}" for time in TIMES) + " |", "|---" * (1 + len(TIMES)) + "|"]
    for name, found in reaches(model, asked[:8]).items():
        lines.append(f"| {name} | " + " | ".join(f"{each.change:.3f}, {each.towards:+.3f}" for each in found) + " |")
    lines.append(PICTURES.format(steps=given.steps))
    bare: Pixels | None = None
    for name, way in WAYS:
        print(f"drawing {name}", file=sys.stderr)
        drawn = run_tasks(model, asked, way, given.steps).pixels
        bare = drawn if bare is None else bare
        lines.append(row(name, model, asked, drawn, bare))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
