"""How much can each kind of conditioning change the built-in model: self-attention, cross-attention to text, LoRA?

    python benchmarks/reach.py [--model FOLDER] [--count 12] [--steps 10] [--out benchmarks/results/reach.md]

First single predictions with larger interventions than any method's: if replacing every self-attention's output by the
reference's does not change the predicted x0, no method that shares keys and values will.  Then images, method by
method.  Cells, styles and concepts are trained ones; labels are by the model's own CLIP.
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
from instantstyle.evaluate.ground_truth import TRAINED_SETS
from instantstyle.evaluate.metrics import Pixels, background_correlation
from instantstyle.evaluate.tasks import Setting, Task, make_task, run_tasks
from instantstyle.loading import load
from instantstyle.methods.ddim_inversion import NoiseLevel
from instantstyle.methods.prompts import encode_prompts
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, CrossAttentionKV, HeadsTensor, plain
from instantstyle.networks.prediction import predict_x0_eps, prediction_type
from instantstyle.sampling.schedulers import make_scheduler

TIMESTEPS = (999, 900, 700, 400)
"""Timesteps of the single predictions."""
SiteFilter = Callable[[Site], bool]
AttentionOverride = Callable[[HeadsTensor, HeadsTensor, HeadsTensor], Tensor]
SETTINGS: Sequence[tuple[str, Setting]] = (
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
ground's lightness and colour with the reference's, and how often the model's own CLIP finds what was tasks for.

| method | levels | ground lightness r | ground colour r | thing found |
|---|---|---|---|---|"""


@dataclass(frozen=True)
class Effect:
    """How an intervention changes the predicted x0."""

    change: float
    """The norm of the change, as a share of the norm of x0."""
    towards: float
    """The change's projection on the difference to the reference's predicted x0: 1 would be all of it."""


def trained_tasks(count: int, seed: int = 5) -> list[Task]:
    """Tasks of trained cells, transform families in equal numbers."""
    rng, tasks = np.random.default_rng(seed), list[Task]()
    while len(tasks) < count:
        target, icon_set = str(rng.choice(TRAINED_CONCEPTS)), str(rng.choice(list(TRAINED_SETS)))
        if splits().trains(target, icon_set):
            family = TRAINED_FAMILIES[len(tasks) % len(TRAINED_FAMILIES)]
            tasks.append(make_task(target, icon_set, sample_transform(rng, [family]), rng, 3000 + len(tasks)))
    return tasks


@torch.no_grad()
def measure_effects(model: Model, tasks: Sequence[Task]) -> dict[str, list[Effect]]:
    """Of each intervention the effect at each of `TIMESTEPS`; rows are truths and then references of other styles."""
    n, alphas_cumprod = len(tasks), make_scheduler(model, None).alphas_cumprod
    own, shown = (
        torch.cat([model.encode_latents(Image.fromarray(each).resize(model.family.size)) for each in pictures])
        for pictures in ([q.truth for q in tasks], [tasks[i - 1].reference for i in range(len(tasks))])
    )
    texts = encode_prompts(model, [q.prompt for q in tasks] + [""] * n)
    empty = encode_prompts(model, [""] * 2 * n)
    text_kv, empty_kv = model.unet.precompute_kv(texts.prompt_embeds), model.unet.precompute_kv(empty.prompt_embeds)
    width, height = model.family.size
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(2 * n, 6)
    there = torch.arange(2 * n)
    there[:n] += n

    def where(place: SiteFilter, override: AttentionOverride) -> Attend:
        def attend(
            site: Site,
            q: HeadsTensor,
            k: HeadsTensor,
            v: HeadsTensor,
            *,
            bias: Tensor | None = None,
            tokens: object = None,
        ) -> HeadsTensor:
            if site.kind == "self" and place(site):
                return override(q, k, v)
            return plain(site, q, k, v, bias=bias)

        return attend

    def swap(q: HeadsTensor, k: HeadsTensor, v: HeadsTensor) -> Tensor:
        return plain(ANY_SITE, q, k[there], v[there])

    def take(q: HeadsTensor, k: HeadsTensor, v: HeadsTensor) -> Tensor:
        return plain(ANY_SITE, q, k, v)[there]

    def mute(q: HeadsTensor, k: HeadsTensor, v: HeadsTensor) -> Tensor:
        return torch.zeros_like(q)

    blocks = {term.split("=")[0] for term in late_up_blocks(model.family.unet).split(",")}

    def upper(site: Site) -> bool:
        return site.module.rsplit(".", 1)[0] in blocks

    style = model.family.presets["style"]

    def blank(at_style: bool) -> CrossAttentionKV:
        return {site: (empty_kv if bool(style.scale(site)) == at_style else text_kv)[site] for site in text_kv}

    interventions: dict[str, tuple[CrossAttentionKV, Attend]] = {
        "keys and values of late self-attention from the reference (swapped)": (text_kv, where(upper, swap)),
        "the same in every self-attention": (text_kv, where(_always, swap)),
        "the whole answer of every self-attention from the reference": (text_kv, where(_always, take)),
        "every self-attention silent": (text_kv, where(_always, mute)),
        "no text at the style blocks": (blank(True), plain),
        "no text elsewhere": (blank(False), plain),
    }
    out: dict[str, list[Effect]] = {name: [] for name in interventions}
    for time in TIMESTEPS:
        level = NoiseLevel(time, float(alphas_cumprod[time]) ** 0.5, (1 - float(alphas_cumprod[time])) ** 0.5)
        noise = torch.randn(2 * n, *own.shape[1:], generator=torch.Generator().manual_seed(time))
        x = level.alpha * torch.cat([own, shown]) + level.sigma * noise

        def predict_x0(text: CrossAttentionKV, attend: Attend, x: Tensor = x, level: NoiseLevel = level) -> Tensor:
            when = torch.full((2 * n,), float(level.timestep))
            return predict_x0_eps(
                model.unet(x, when, text, texts.pooled_prompt_embeds, time_ids, attend=attend),
                x,
                level.alpha,
                level.sigma,
                prediction_type(model.scheduler_config),
            )[0]

        bare = predict_x0(text_kv, plain)
        difference = bare[n:] - bare[:n]
        for name, change in interventions.items():
            moved = (predict_x0(*change) - bare)[:n]
            towards = float((moved * difference).sum() / difference.square().sum())
            norm = float((moved.square().sum() / bare[:n].square().sum()).sqrt())
            out[name].append(Effect(norm, towards))
    return out


ANY_SITE = Site("mid", 0, 0, 0, "self")
"""Any site: plain attention does not depend on it."""


def _always(site: Site) -> bool:
    return True


def row(name: str, model: Model, tasks: Sequence[Task], images: Pixels, bare: Pixels) -> str:
    """A method's line of the table."""
    references = np.stack([q.reference for q in tasks])
    lightness, colour = background_correlation(images, references)
    right = np.mean(
        [a == q.target for a, q in zip(clip_labels(model, [Image.fromarray(p) for p in images]), tasks, strict=True)]
    )
    levels = np.abs(images.astype(int) - bare).mean()
    return f"| {name} | {levels:.1f} | {lightness:.2f} | {colour:.2f} | {right:.0%} |"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reach.md")
    args = parser.parse_args()
    model, tasks = load(args.model), trained_tasks(args.count)
    command = f"    python benchmarks/reach.py --count {args.count} --steps {args.steps}"
    lines = [HEAD.format(command=command, weights=model.weights_fingerprint[:12], count=args.count)]
    lines += [
        "| changed | " + " | ".join(f"time {time}" for time in TIMESTEPS) + " |",
        "|---" * (1 + len(TIMESTEPS)) + "|",
    ]
    for name, found in measure_effects(model, tasks[:8]).items():
        lines.append(f"| {name} | " + " | ".join(f"{each.change:.3f}, {each.towards:+.3f}" for each in found) + " |")
    lines.append(PICTURES.format(steps=args.steps))
    bare: Pixels | None = None
    for name, setting in SETTINGS:
        print(f"drawing {name}", file=sys.stderr)
        images = run_tasks(model, tasks, setting, args.steps).pixels
        bare = images if bare is None else bare
        lines.append(row(name, model, tasks, images, bare))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
