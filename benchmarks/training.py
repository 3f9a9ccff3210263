# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false, reportArgumentType=false
# pyright: reportPrivateUsage=false

"""What a training step costs: the style blocks alone, all blocks, and the arithmetic of IP-Adapter's published script.

    python benchmarks/training.py [--rounds 3] [--steps 10] [--batch 8] [--skip timed|counted] [--out FILE]

At the built-in size it is run, a fresh process each, turn and turn about; at SDXL's, 1024 pixels, it is counted on the
meta device: floating-point operations and saved activations.  Ours reads cached features; the published script
(github.com/tencent-ailab/IP-Adapter, tutorial_train_sdxl.py) encodes picture, text and reference at every step, with
diffusers' UNet and AdamW over projection and all blocks.  All are in float32 on one thread and see the same shapes; of
what is counted its encoders are no part.  It says nothing of what adapters are worth, nor of a GPU's speed.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks/results/training.md"
BUILT_IN = ROOT / "src/instantstyle/assets/emoji"
SIDES = ("style", "all", "published")
NAMES = {"style": "ours, style blocks", "all": "ours, all blocks", "published": "published script's arithmetic"}


def ours(blocks: str, batch: int) -> Callable[[int], float]:
    """Our training step on cached features: from a step's number to its loss."""
    import numpy as np
    import torch

    from instantstyle.loading import load
    from instantstyle.train.adapter import TrainableAdapter
    from instantstyle.train.data.dataset import Batch, BatchSampler
    from instantstyle.train.objective import AdapterLoss, LossConfig
    from instantstyle.train.trainer import MicroBatch

    model = load(BUILT_IN, device="cpu", dtype="float32")
    config, side = model.family.unet, float(model.family.size[0])
    text = model.encode_prompt(["a cat"] * batch)
    batch_of_features = Batch(
        torch.randn(batch, config.in_channels, 8, 8),
        torch.randn(batch, config.pooled_projection_dim or 0),
        torch.tensor([[side, side, 0, 0, side, side]]).repeat(batch, 1),
        text.prompt_embeds,
        text.pooled_prompt_embeds,
        ("a cat",) * batch,
    )

    class CachedFeatures:
        def read(self, *_: object) -> Batch:
            return batch_of_features

    net = TrainableAdapter(model.unet, model.family.presets[blocks])
    sampler = BatchSampler([(64, 64)] * batch, np.zeros(batch, np.int64), "same", batch, 0)
    loss_fn = AdapterLoss(model, net, cast("Any", CachedFeatures()), sampler, LossConfig())
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-2)

    def step(number: int) -> float:
        loss = loss_fn(net, MicroBatch(number, 0, batch, batch))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def published(batch: int) -> Callable[[int], float]:
    """The published script's training step, written with diffusers."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionXLPipeline

    pipeline: Any = cast("Any", StableDiffusionXLPipeline).from_pretrained(BUILT_IN, add_watermarker=False)
    pipeline.to(torch.float32)
    pipeline.load_ip_adapter(BUILT_IN, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    unet, vae, image_encoder = pipeline.unet, pipeline.vae, pipeline.image_encoder
    for part in (unet, vae, image_encoder, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    parameters = [p for each in unet.attn_processors.values() if hasattr(each, "to_k_ip") for p in each.parameters()]
    parameters += list(unet.encoder_hid_proj.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    scheduler: Any = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pixels = torch.rand(batch, 3, 64, 64) * 2 - 1
    image_input = torch.rand(batch, 3, *(image_encoder.config.image_size,) * 2)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(batch, 1)

    def step(number: int) -> float:
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            context, _, pooled, _ = pipeline.encode_prompt(["a cat"] * batch, do_classifier_free_guidance=False)
            embeds = image_encoder(image_input).image_embeds
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,))
        conditions = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [embeds[:, None]]}
        prediction = unet(
            scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            encoder_hidden_states=context,
            added_cond_kwargs=conditions,
        ).sample
        loss = F.mse_loss(prediction.float(), noise.float())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


class SavedActivations:
    """While entered, measures the memory that autograd saves for the backward pass; weights are not counted."""

    def __init__(self, weights: Sequence[Any], counts: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> None:
        import torch

        self._weights = {p.untyped_storage()._cdata for p in weights}
        self._counts, self._kept = counts, dict[int, Any]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights and self._counts(tuple(tensor.shape)):
            self._kept[storage._cdata] = storage  # kept alive, so that its address is not reused
        return tensor

    def __enter__(self) -> "SavedActivations":
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._hooks.__exit__(*raised)

    @property
    def bytes(self) -> int:
        """Size of the saved tensors' storages."""
        return sum(storage.nbytes() for storage in self._kept.values())


def worker(side: str, steps: int, batch: int) -> dict[str, float]:
    """Seconds a step (the median after two for warming up), saved activations and peak memory in MiB."""
    import gc

    import torch

    torch.set_num_threads(1)
    step = published(batch) if side == "published" else ours(side, batch)
    weights = [each for each in gc.get_objects() if type(each) is torch.nn.Parameter]
    times: list[float] = []
    for number in range(steps + 2):
        began = time.process_time()
        step(number)
        times.append(time.process_time() - began)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    with SavedActivations(weights) as saved:
        step(steps + 2)
    return {"seconds": statistics.median(times[2:]), "saved": saved.bytes / 2**20, "peak": peak}


def count_sdxl_step(blocks: str) -> tuple[float, float, float]:
    """SDXL, one row at 1024 pixels in bfloat16: TFLOP of a step, GiB of saved activations, millions that learn."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from instantstyle.families import SDXL
    from instantstyle.networks.unet import UNet
    from instantstyle.train.adapter import TrainableAdapter

    config = SDXL.unet
    with torch.device("meta"), FlopCounterMode(display=False) as flops:
        unet = UNet(config).to(torch.bfloat16).requires_grad_(False)
        net = TrainableAdapter(unet, SDXL.presets[blocks]).to("meta")
        first, rest = unet.split_at(net.first_module)
        kind: dict[str, Any] = {"dtype": torch.bfloat16}
        x = torch.randn(1, 4, 128, 128)
        with torch.no_grad():
            text = unet.precompute_kv(torch.randn(1, 77, 2048, **kind))
            state = first(x.to(**kind), torch.rand(1), text, torch.randn(1, 1280, **kind), torch.randn(1, 6))
        net = net.to(torch.bfloat16)
        with SavedActivations([*unet.parameters(), *net.parameters()], _is_no_attention_matrix) as saved:
            loss = rest(state, text, attend=net.attend(torch.randn(1, 1280, **kind))).float().square().mean()
        loss.backward()
    learn = sum(p.numel() for p in net.parameters())
    return flops.get_total_flops() / 1e12, saved.bytes / 2**30, learn / 1e6


def _is_no_attention_matrix(shape: tuple[int, ...]) -> bool:
    """Whether it is not an attention matrix: the fused kernels used in training save none."""
    *_, queries, keys = (0, 0, *shape)
    return not (keys in (77, 4) or keys == queries >= 1024)


def time_built_in_steps(rounds: int, steps: int, batch: int) -> list[str]:
    """Times and memory of all sides, as a Markdown table."""
    from instantstyle.utils.markdown import markdown_table

    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            argv = [sys.executable, __file__, "--worker", side, "--steps", str(steps), "--batch", str(batch)]
            output = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[side].append(json.loads(output.splitlines()[-1]))
    medians = {s: {k: statistics.median(cost[k] for cost in costs) for k in costs[0]} for s, costs in runs.items()}
    theirs = medians["published"]
    rows: list[list[str]] = []
    for side, cost in medians.items():
        faster = theirs["seconds"] / cost["seconds"]
        memory = (f"{cost['saved']:.1f}", f"{cost['peak']:.0f}")
        rows.append([NAMES[side], f"{cost['seconds']:.3f}", f"{faster:.2f}", *memory])
    return markdown_table(["", "CPU seconds a step", "times faster", "saved activations (MiB)", "peak (MiB)"], rows)


def page(args: argparse.Namespace) -> str:
    """The results, with all that is needed to reproduce them."""
    import torch

    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before it began"
    parts = [
        "# What a training step costs",
        "",
        f"`python benchmarks/training.py --rounds {args.rounds} --steps {args.steps} --batch {args.batch}` on "
        f"{date.today()}, torch {torch.__version__}, {platform.machine()}, {load}.",
    ]
    if args.skip != "timed":
        parts += ["", f"## Run: the built-in model, batch {args.batch}, float32, one thread", ""]
        parts += [*time_built_in_steps(args.rounds, args.steps, args.batch), ""]
        parts += [
            "Medians over rounds, a fresh process each; peak memory is the process's, with torch and all networks that "
            "it loads. *Published* also encodes picture, reference and text at every step, as the script does."
        ]
    if args.skip != "counted":
        rows = {blocks: count_sdxl_step(blocks) for blocks in ("style", "all")}
        parts += ["", "## Counted: SDXL, one row at 1024 x 1024 in bfloat16, forward and backward", ""]
        parts += ["| blocks | learn (M) | TFLOP a step | saved activations (GiB) |", "|---|---|---|---|"]
        parts += [f"| {name} | {learn:.1f} | {flop:.2f} | {saved:.2f} |" for name, (flop, saved, learn) in rows.items()]
        (flop, saved, _), (more, larger, _) = rows["style"], rows["all"]
        parts += [
            "",
            "On torch's meta device: nothing was run. The style blocks alone take "
            f"{more / flop:.2f} times fewer operations and {larger / saved:.1f} times less memory for activations, "
            "because the network before them runs without a graph. VAE and encoders are not among the operations, "
            "attention's matrices not among the activations. The published script's UNet does what the row *all* does.",
        ]
    return "\n".join([*parts, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, and print it."""
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--skip", choices=("timed", "counted"), default="")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(worker(args.worker, args.steps, args.batch)))
        return
    from instantstyle.utils.atomic_files import write_atomic

    text = page(args)
    write_atomic(args.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
