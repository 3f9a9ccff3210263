# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false, reportArgumentType=false
# pyright: reportPrivateUsage=false

"""What a training step costs: the style blocks alone, all blocks, and the arithmetic of IP-Adapter's published script.

    python benchmarks/training.py [--rounds 3] [--steps 10] [--batch 8]      at the built-in size, a fresh process each
    python benchmarks/training.py --sdxl                                     SDXL at 1024 pixels, counted, not run

Ours reads features computed before; the published script (github.com/tencent-ailab/IP-Adapter, tutorial_train_sdxl.py)
encodes picture, text and reference at every step, with diffusers' UNet and AdamW over projection and all blocks.  All
are in float32 and see the same shapes.  The SDXL rows count floating-point operations and saved activations on the meta
device; the published script's encoders are not in them.  It says nothing of what the adapters are worth.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = ROOT / "src/instantstyle/assets/emoji"
SIDES = ("style", "all", "published")


def ours(blocks: str, batch: int) -> Callable[[int], float]:
    """Our step, of features that are at hand; a step's number to its loss."""
    import numpy as np
    import torch

    from instantstyle.model import load
    from instantstyle.train.adapter import Trained
    from instantstyle.train.data import Features, Order, Rows
    from instantstyle.train.fit import Part
    from instantstyle.train.lesson import Lesson, Teaching

    model = load(BUILT_IN, device="cpu", dtype="float32")
    config, side = model.family.unet, float(model.family.size[0])
    said = model.say(["a cat"] * batch)
    rows = Rows(
        torch.randn(batch, config.in_channels, 8, 8),
        torch.randn(batch, config.pooled_dim or 0),
        torch.tensor([[side, side, 0, 0, side, side]]).repeat(batch, 1),
        said.context,
        said.pooled,
        ("a cat",) * batch,
    )

    class AtHand:
        def read(self, *_: object) -> Rows:
            return rows

    net = Trained(model.unet, model.family.presets[blocks])
    order = Order([(64, 64)] * batch, np.zeros(batch, np.int64), "same", batch, 0)
    lesson = Lesson(model, net, cast("Features", AtHand()), order, Teaching())
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-2)

    def step(number: int) -> float:
        loss = lesson(net, Part(number, 0, batch, batch))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def published(batch: int) -> Callable[[int], float]:
    """The published script's step, written with diffusers."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionXLPipeline

    pipeline: Any = cast("Any", StableDiffusionXLPipeline).from_pretrained(BUILT_IN, add_watermarker=False)
    pipeline.to(torch.float32)
    pipeline.load_ip_adapter(BUILT_IN, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    unet, vae, eyes = pipeline.unet, pipeline.vae, pipeline.image_encoder
    for part in (unet, vae, eyes, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    learns = [p for each in unet.attn_processors.values() if hasattr(each, "to_k_ip") for p in each.parameters()]
    learns += list(unet.encoder_hid_proj.parameters())
    for parameter in learns:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learns, lr=1e-4, weight_decay=1e-2)
    noises: Any = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pixels = torch.rand(batch, 3, 64, 64) * 2 - 1
    seen = torch.rand(batch, 3, eyes.config.image_size, eyes.config.image_size)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(batch, 1)

    def step(number: int) -> float:
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            context, _, pooled, _ = pipeline.encode_prompt(["a cat"] * batch, do_classifier_free_guidance=False)
            embeds = eyes(seen).image_embeds
        noise = torch.randn_like(latents)
        when = torch.randint(0, 1000, (batch,))
        more = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [embeds[:, None]]}
        said = unet(
            noises.add_noise(latents, noise, when), when, encoder_hidden_states=context, added_cond_kwargs=more
        ).sample
        loss = F.mse_loss(said.float(), noise.float())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def worker(side: str, steps: int, batch: int) -> dict[str, float]:
    """Seconds a step (the median after two for warming up), and peak memory in MiB."""
    import torch

    torch.set_num_threads(1)
    step = published(batch) if side == "published" else ours(side, batch)
    times: list[float] = []
    for number in range(steps + 2):
        began = time.process_time()
        step(number)
        times.append(time.process_time() - began)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": statistics.median(times[2:]),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,
    }


def counted(blocks: str) -> tuple[float, float, float]:
    """SDXL, one row at 1024 pixels in bfloat16: TFLOP of a step, GiB of saved activations, millions that learn."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from instantstyle.families import SDXL
    from instantstyle.nets.unet import UNet
    from instantstyle.train.adapter import Trained

    config, saved = SDXL.unet, dict[int, Any]()
    with torch.device("meta"), FlopCounterMode(display=False) as flops:
        unet = UNet(config).to(torch.bfloat16).requires_grad_(False)
        net = Trained(unet, SDXL.presets[blocks]).to("meta")
        first, rest = unet.upto(net.first)
        kind: dict[str, Any] = {"dtype": torch.bfloat16}
        x = torch.randn(1, 4, 128, 128)
        with torch.no_grad():
            text = unet.read(torch.randn(1, 77, 2048, **kind))
            state = first(x.to(**kind), torch.rand(1), text, torch.randn(1, 1280, **kind), torch.randn(1, 6))
        net = net.to(torch.bfloat16)
        weights = {p.untyped_storage()._cdata for p in (*unet.parameters(), *net.parameters())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            # Attention matrices are left out: the kernels that training uses keep none.
            *_, queries, keys = (0, 0, *tensor.shape)
            matrix = keys in (77, 4) or keys == queries >= 1024
            storage = tensor.untyped_storage()
            if storage._cdata not in weights and not matrix:
                saved[storage._cdata] = storage  # kept alive, so that its number is not given again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = rest(state, text, attend=net.attend(torch.randn(1, 1280, **kind))).float().square().mean()
        loss.backward()
    count = sum(p.numel() for p in net.parameters())
    return flops.get_total_flops() / 1e12, sum(storage.nbytes() for storage in saved.values()) / 2**30, count / 1e6


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sdxl", action="store_true")
    parser.add_argument("--worker", choices=SIDES)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(given.worker, given.steps, given.batch)))
        return
    if given.sdxl:
        print("| blocks | learn (M) | TFLOP a step | saved activations (GiB) |\n|---|---|---|---|")
        for blocks in ("style", "all"):
            flop, saved, learn = counted(blocks)
            print(f"| {blocks} | {learn:.1f} | {flop:.2f} | {saved:.2f} |")
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(given.rounds):
        for side in SIDES:
            argv = [
                sys.executable,
                __file__,
                "--worker",
                side,
                "--steps",
                str(given.steps),
                "--batch",
                str(given.batch),
            ]
            shown = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side].append(json.loads(shown.splitlines()[-1]))
    print(f"batch {given.batch}, {given.rounds} rounds, CPU seconds\n\n| | seconds a step | peak MiB |\n|---|---|---|")
    for side, costs in found.items():
        seconds, memory = (statistics.median(cost[what] for cost in costs) for what in ("seconds", "MiB"))
        print(f"| {side} | {seconds:.3f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
