# pyright: reportUnknownMemberType=false

"""Influence of each cross-attention module: the change of the prediction when it reads another caption.

A probe with an adapter shows where style is *set*, but not for modules that hardly change the output.
"""

import numpy as np
import torch
from torch import Tensor

from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.staged.captions import Column
from instantstyle.train.emoji.staged.data import TrainingData
from instantstyle.train.emoji.staged.sampling import alphas_cumprod_at, mix_noise
from instantstyle.train.emoji.unet import square_time_ids


@torch.no_grad()
def text_reach(
    unet: UNet, data: TrainingData, side: int, timestep: int, count: int = 24, seed: int = 1
) -> dict[str, float]:
    """Change of v, relative to its norm, when a module's cross-attention reads another image's caption, by module.

    `all` is the change when every module does, `pooled` with another pooled embedding.  Over `count` images drawn by
    `seed`, at one timestep.
    """
    rng = np.random.default_rng(seed)
    indices = rng.integers(len(data.bank.concept), size=count)
    latents = data.latents[side][torch.from_numpy(indices)].float()
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    timesteps = torch.full((count,), timestep)
    noisy_latents, time_ids = mix_noise(latents, noise, timesteps), square_time_ids(count, side)
    prompt_embeds, pooled_prompt_embeds = data.captions.lookup(indices, np.full(count, int(Column.THING)))
    own_kv, other_kv = unet.precompute_kv(prompt_embeds), unet.precompute_kv(prompt_embeds.roll(1, 0))

    def relative_change(v: Tensor) -> float:
        return float((v - prediction).norm() / prediction.norm())

    prediction = unet(noisy_latents, timesteps.float(), own_kv, pooled_prompt_embeds, time_ids)
    changes = {
        module: relative_change(
            unet(
                noisy_latents,
                timesteps.float(),
                {s: (other_kv if s.module == module else own_kv)[s] for s in own_kv},
                pooled_prompt_embeds,
                time_ids,
            )
        )
        for module in unet.config.modules
    }
    changes["all"] = relative_change(unet(noisy_latents, timesteps.float(), other_kv, pooled_prompt_embeds, time_ids))
    return {
        **changes,
        "pooled": relative_change(
            unet(noisy_latents, timesteps.float(), own_kv, pooled_prompt_embeds.roll(1, 0), time_ids)
        ),
    }


@torch.no_grad()
def caption_worth(
    unet: UNet, data: TrainingData, side: int, times: tuple[int, int] = (600, 950), count: int = 320, seed: int = 3
) -> tuple[float, float]:
    """Increase of the error of v when an image's caption is replaced by another image's.

    Mean squared errors over `count` images drawn by `seed`, at timesteps drawn uniformly from a range.  Returns the
    difference and the error with its own caption.
    """
    rng = np.random.default_rng(seed)
    indices = rng.integers(len(data.bank.concept), size=count)
    latents = data.latents[side][torch.from_numpy(indices)].float()
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    timesteps = torch.from_numpy(rng.integers(*times, size=count))
    alphas_cumprod = alphas_cumprod_at(timesteps)
    target = alphas_cumprod.sqrt() * noise - (1 - alphas_cumprod).sqrt() * latents
    prompt_embeds, pooled_prompt_embeds = data.captions.lookup(indices, np.full(count, int(Column.THING)))

    def error(prompt_embeds: Tensor, pooled_prompt_embeds: Tensor) -> float:
        v = unet(
            mix_noise(latents, noise, timesteps),
            timesteps.float(),
            unet.precompute_kv(prompt_embeds),
            pooled_prompt_embeds,
            square_time_ids(count, side),
        )
        return float((v - target).square().mean())

    own = error(prompt_embeds, pooled_prompt_embeds)
    return error(prompt_embeds.roll(1, 0), pooled_prompt_embeds.roll(1, 0)) - own, own
