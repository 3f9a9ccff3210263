"""What a training step of a style adapter costs at SDXL's full size, in bfloat16 on random weights.

    python -m gpu.adapter_step [--minutes 9] [--dry]

Ours learns the style blocks or all blocks from features read before, with AdamW plain or fused; beside it the
arithmetic of IP-Adapter's published script, diffusers' UNet and all blocks.  Encoders are in neither.  One GPU: what
sharding over several costs is not measured here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline

from gpu import kit
from gpu.speed import files
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.data.dataset import Batch, BatchSampler, FeatureDataset
from instantstyle.train.objective import AdapterLoss, LossConfig
from instantstyle.train.trainer import MicroBatch

Step = Callable[[], Any]


class AtHand(FeatureDataset):
    """The same rows at every step, from memory."""

    def __init__(self, rows: Batch) -> None:
        self.rows = rows

    def read(self, *_: object, **__: object) -> Batch:
        """The rows."""
        return self.rows


def ours(model: Model, preset: str, batch: int, side: int, *, fused: bool) -> Step:
    """Our step for the blocks of a preset; latents are `side` wide."""
    config, make, pixels = model.unet.config, torch.Generator().manual_seed(0), 8.0 * side
    wide = config.pooled_projection_dim or 0
    rows = Batch(
        torch.randn(batch, config.in_channels, side, side, generator=make),
        torch.randn(batch, wide, generator=make),
        torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]]).repeat(batch, 1),
        torch.randn(batch, 77, config.cross_attention_dim, generator=make),
        torch.randn(batch, wide, generator=make),
        ("",) * batch,
    )
    net = TrainableAdapter(model.unet, model.family.presets[preset]).to(model.device)
    order = BatchSampler([(side, side)] * batch, np.zeros(batch, np.int64), "same", batch, 0)
    lesson = AdapterLoss(model, net, AtHand(rows), order, LossConfig(), bf16=True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-2, fused=fused)

    numbers = count()

    def step() -> None:
        lesson(net, MicroBatch(next(numbers), 0, batch, batch)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def published(unet: Any, batch: int, side: int) -> Step:
    """The step of the published script with diffusers' UNet, whose adapter is loaded."""
    at, pixels = unet.device, 8.0 * side
    wide, pooled = unet.config.cross_attention_dim, unet.encoder_hid_proj.image_projection_layers[0]
    embed = pooled.image_embeds.in_features
    unet.requires_grad_(False)
    learns = [p for each in unet.attn_processors.values() if hasattr(each, "to_k_ip") for p in each.parameters()]
    learns += list(unet.encoder_hid_proj.parameters())
    for parameter in learns:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learns, lr=1e-4, weight_decay=1e-2)
    noises: Any = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents = torch.randn(batch, unet.config.in_channels, side, side, device=at)
    context, seen = torch.randn(batch, 77, wide, device=at), torch.randn(batch, 1, embed, device=at)
    sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], device=at).repeat(batch, 1)
    added = {"text_embeds": torch.randn(batch, embed, device=at), "time_ids": sizes, "image_embeds": [seen]}

    def step() -> None:
        noise, time = torch.randn_like(latents), torch.randint(0, 1000, (batch,), device=at)
        with torch.autocast(at.type, torch.bfloat16):
            said = unet(noises.add_noise(latents, noise, time), time, context, added_cond_kwargs=added).sample
        F.mse_loss(said.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def main(argv: Sequence[str] | None = None) -> None:
    """All rows."""
    given = kit.options(__doc__).parse_args(argv)
    at, side = torch.device(given.device), 8 if given.dry else 128
    figures = kit.Figures("adapter_step", dry=given.dry, clock=kit.Clock(given.minutes))
    folder, repeats = files(dry=given.dry), 1 if given.dry else 5
    model = load(folder, dtype="bfloat16", device=given.device)

    def measure(what: str, batch: int, make: Callable[[], Step]) -> None:
        def row() -> dict[str, float]:
            found = kit.timed(make(), at, repeats, warm=1 if given.dry else 3)
            return {**found, "rows a second": batch / found["seconds"]}

        figures.measure(f"{what}, batch {batch}", row)

    batches = (2,) if given.dry else (1, 4, 16, 32)
    for batch in batches:
        for preset in ("style", "all"):
            measure(f"ours, {preset}", batch, partial(ours, model, preset, batch, side, fused=False))
        measure("ours, style, fused AdamW", batch, partial(ours, model, "style", batch, side, fused=True))
    if any(f"published, all, batch {batch}" not in figures.rows for batch in batches):
        del model
        pipeline: Any = StableDiffusionXLPipeline
        pipeline = pipeline.from_pretrained(folder, dtype=torch.bfloat16)
        pipeline.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
        unet = pipeline.unet.to(at)
        for batch in batches:
            measure("published, all", batch, partial(published, unet, batch, side))
    figures.finish()


if __name__ == "__main__":
    main()
