# pyright: reportUnknownMemberType=false

"""Which attention modules have a say at all: how far a prediction moves when one of them reads another text.

A probe with an adapter tells where style *enters*; it cannot where nothing that a block says is heard.
"""

import numpy as np
import torch
from torch import Tensor

from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.staged.captions import Column
from instantstyle.train.emoji.staged.data import TrainingData
from instantstyle.train.emoji.staged.sampling import alphas_at, joined
from instantstyle.train.emoji.unet import square_time_ids


@torch.no_grad()
def text_reach(
    unet: UNet, data: TrainingData, side: int, time: int, count: int = 24, seed: int = 1
) -> dict[str, float]:
    """By module, the change of v when its cross-attention reads another picture's caption, to 1 of v's own length.

    `all` has every module read another caption, and `pooled` the pooled embedding.  Pictures are `count` rows drawn by
    `seed`, seen through noise of one time.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(data.bank.concept), size=count)
    latents = data.latents[side][torch.from_numpy(rows)].float()
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    at = torch.full((count,), time)
    noisy, size = joined(latents, noise, at), square_time_ids(count, side)
    context, pooled = data.captions.of(rows, np.full(count, int(Column.THING)))
    own, other = unet.precompute_kv(context), unet.precompute_kv(context.roll(1, 0))

    def apart(v: Tensor) -> float:
        return float((v - told).norm() / told.norm())

    told = unet(noisy, at.float(), own, pooled, size)
    found = {
        module: apart(
            unet(noisy, at.float(), {s: (other if s.module == module else own)[s] for s in own}, pooled, size)
        )
        for module in unet.config.modules
    }
    found["all"] = apart(unet(noisy, at.float(), other, pooled, size))
    return {**found, "pooled": apart(unet(noisy, at.float(), own, pooled.roll(1, 0), size))}


@torch.no_grad()
def caption_worth(
    unet: UNet, data: TrainingData, side: int, times: tuple[int, int] = (600, 950), count: int = 320, seed: int = 3
) -> tuple[float, float]:
    """What a caption of the thing is worth: the error of v with another picture's caption less that with its own.

    Mean squared errors over `count` rows drawn by `seed`, at times drawn evenly from a range.  Returns the difference
    and the error with its own caption.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(data.bank.concept), size=count)
    latents = data.latents[side][torch.from_numpy(rows)].float()
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    at = torch.from_numpy(rng.integers(*times, size=count))
    kept = alphas_at(at)
    target = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    context, pooled = data.captions.of(rows, np.full(count, int(Column.THING)))

    def error(context: Tensor, pooled: Tensor) -> float:
        v = unet(
            joined(latents, noise, at), at.float(), unet.precompute_kv(context), pooled, square_time_ids(count, side)
        )
        return float((v - target).square().mean())

    own = error(context, pooled)
    return error(context.roll(1, 0), pooled.roll(1, 0)) - own, own
