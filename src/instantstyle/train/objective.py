# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The loss of an adapter's training (arXiv 2308.06721, section 3).

The network upstream of the first trained block does not read the reference, and runs without a graph.  Picture,
reference, noise, timestep and dropout of a row depend on the step and the row's number alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.blocks import Site
from instantstyle.errors import InputError
from instantstyle.methods.instantstyle import add_image_prompt
from instantstyle.model import Model
from instantstyle.networks.attention import KeyValue, plain
from instantstyle.networks.prediction import prediction_target
from instantstyle.train.adapter import TrainableAdapter, unit_prompt
from instantstyle.train.data.dataset import Batch, BatchSampler, FeatureDataset, Prefetcher
from instantstyle.train.trainer import MicroBatch


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Settings of the loss; dropout rates are those of IP-Adapter's published script."""

    drop_text: float = 0.05
    """Share of rows without their caption."""
    drop_image: float = 0.05
    """Share without their reference."""
    drop_both: float = 0.05
    """Share without either; the three exclude one another."""
    min_snr: float = 0.0
    """Gamma of min-SNR weighting (arXiv 2303.09556, section 3.4); 0 weights all times alike."""
    noise_offset: float = 0.0
    """How much of the noise is the same all over a channel."""
    timestep_power: float = 1.0
    """Exponent of the uniform timesteps: below 1 more of them are noisy, where broad colours are determined."""
    seed: int = 0

    def __post_init__(self) -> None:
        drops = (self.drop_text, self.drop_image, self.drop_both)
        if min(drops) < 0 or sum(drops) > 1:
            raise InputError(
                f"{' + '.join(map(str, drops))} of the rows are to lose text, reference or both: at most 1"
            )
        if self.min_snr < 0 or self.noise_offset < 0 or self.timestep_power <= 0:
            raise InputError("min_snr and noise_offset are at least 0, and timestep_power (--early) is above 0")


class NoiseSchedule:
    """The noise schedule that a checkpoint was trained with, and what its network predicts."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the checkpoint's scheduler_config.json, whatever sampler it names.  Raises InputError."""
        scheduler: Any = cast("Any", DDIMScheduler).from_config(dict(config))
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.clamp(0, 1)
        """[timesteps]: the signal's share of the variance."""
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"a model that predicts {self.prediction_type!r} cannot be trained here")

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(
        self,
        latents: Float[Tensor, "rows channels height width"],
        noise: Float[Tensor, "rows channels height width"],
        timesteps: Tensor,
    ) -> tuple[Float[Tensor, "rows channels height width"], Float[Tensor, "rows channels height width"]]:
        """The noisy latents at these timesteps, and the network's target (`prediction_target`)."""
        alpha_squared = self.alphas_cumprod.to(latents.device)[timesteps][:, None, None, None]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        target = prediction_target(latents, noise, alpha, sigma, self.prediction_type)
        return alpha * latents + sigma * noise, target

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Float[Tensor, " rows"]:
        """The weight of a row's squared error: min-SNR's weight of x0's error, in terms of the prediction's."""
        if not gamma:
            return torch.ones(len(timesteps), device=timesteps.device)
        alpha_squared = self.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alpha_squared / (1 - alpha_squared)
        # min(snr, gamma) / snr, and for a velocity min(snr, gamma) / (snr + 1); without noise snr is infinite.
        weight = (gamma / snr).clamp(max=1)
        return weight if self.prediction_type == "epsilon" else weight * alpha_squared


class AdapterLoss:
    """The loss of a micro-batch, for `Trainer`."""

    def __init__(
        self,
        model: Model,
        net: TrainableAdapter,
        features: FeatureDataset,
        sampler: BatchSampler,
        config: LossConfig,
        *,
        bf16: bool = False,
    ) -> None:
        """`bf16` runs the adapter in bfloat16, as the model is then to be loaded; its weights stay in float32."""
        self.model, self.sampler, self.config, self.bf16 = model, sampler, config, bf16
        self.features, self.schedule = features, NoiseSchedule(model.scheduler_config)
        self._upstream, self._downstream = model.unet.split_at(net.first_module)
        self._prefetchers: dict[int, Prefetcher] = {}
        with torch.no_grad():
            text = model.encode_prompt([""])
            scale = (
                0.0 if model.family.force_zeros_for_empty_prompt else 1.0
            )  # what stands for no text when pictures are made
            self._empty_context = text.prompt_embeds * scale
            self._empty_pooled = None if text.pooled_prompt_embeds is None else text.pooled_prompt_embeds * scale

    def __call__(self, net: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """The mean over the rows of a micro-batch."""
        prefetcher = self._prefetchers.setdefault(
            micro_batch.size, Prefetcher(lambda step, offset: self._read(step, offset, micro_batch.size))
        )
        batch: Batch = prefetcher(micro_batch.step, micro_batch.offset)
        model, device = self.model, self.model.device
        own = slice(micro_batch.offset, micro_batch.offset + micro_batch.size)
        rng = np.random.default_rng([self.config.seed, 3, micro_batch.step])
        dropout, u = rng.random((2, micro_batch.global_size))[:, own]
        timesteps = torch.from_numpy((u**self.config.timestep_power * len(self.schedule)).astype(np.int64)).to(device)
        drop_text, drop_image = self._dropout_masks(dropout)
        noised, target = self.schedule.add_noise(
            batch.latents.to(device), self._noise(batch.latents.shape, micro_batch).to(device), timesteps
        )
        with torch.no_grad():
            context, pooled = self._text(batch, drop_text.to(device))
            text = model.unet.precompute_kv(context)
            time_ids = None if pooled is None else batch.time_ids.to(device)
            state = self._upstream(noised.to(model.dtype), timesteps.float(), text, pooled, time_ids)
        image_embeds = batch.image_embeds.to(device) * ~drop_image.to(device)[:, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            image: dict[Site, KeyValue] = net(image_embeds)
        prediction = self._downstream(state, text, attend=add_image_prompt(plain, unit_prompt(image)))
        error = (prediction.float() - target).square().mean(dim=(1, 2, 3))
        return (error * self.schedule.min_snr_weight(timesteps, self.config.min_snr)).mean()

    def _read(self, step: int, offset: int, size: int) -> Batch:
        own = slice(offset, offset + size)
        return self.features.read(self.sampler.rows(step)[own], self.sampler.references(step)[own])

    def _dropout_masks(self, dropout: np.ndarray) -> tuple[Tensor, Tensor]:
        """Masks of the rows without text and of those without reference, by uniform numbers in [0, 1)."""
        c = self.config
        image_only, text_only = (
            dropout < c.drop_image,
            (dropout >= c.drop_image) & (dropout < c.drop_image + c.drop_text),
        )
        both = dropout >= 1 - c.drop_both
        return torch.from_numpy(text_only | both), torch.from_numpy(image_only | both)

    def _noise(self, shape: torch.Size, micro_batch: MicroBatch) -> Float[Tensor, "rows channels height width"]:
        """Row by row, so that it does not depend on the process that computes it."""
        seeds = [[self.config.seed, 4, micro_batch.step, micro_batch.offset + i] for i in range(micro_batch.size)]
        rngs = [np.random.default_rng(seed) for seed in seeds]
        noise = np.stack([rng.standard_normal(tuple(shape[1:]), np.float32) for rng in rngs])
        if self.config.noise_offset:
            noise += self.config.noise_offset * np.stack([rng.standard_normal((shape[1], 1, 1)) for rng in rngs])
        return torch.from_numpy(noise)

    def _text(self, batch: Batch, drop_text: Tensor) -> tuple[Tensor, Tensor | None]:
        model = self.model
        context, pooled = batch.prompt_embeds, batch.pooled_prompt_embeds
        if context is None:
            text = model.encode_prompt(batch.captions)
            context, pooled = text.prompt_embeds, text.pooled_prompt_embeds
        context = torch.where(drop_text[:, None, None], self._empty_context, context.to(model.device, model.dtype))
        if pooled is None or self._empty_pooled is None:
            return context, None
        return context, torch.where(drop_text[:, None], self._empty_pooled, pooled.to(model.device, model.dtype))
