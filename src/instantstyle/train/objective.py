# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The loss that teaches an adapter (arXiv 2308.06721, section 3), for rows of which each is a function of its number.

The network upstream of the first block that learns never sees the reference, and runs without a graph.  What a row is
shown, its noise, its time and what is left out of it depend on the step and the row alone.
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
    """How a row is taught; the shares that are dropped are those of IP-Adapter's published script."""

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
    """Times are raised to this power: below 1 more of them are noisy ones, where broad colours are settled."""
    seed: int = 0

    def __post_init__(self) -> None:
        drops = (self.drop_text, self.drop_image, self.drop_both)
        if min(drops) < 0 or sum(drops) > 1:
            raise InputError(
                f"{' + '.join(map(str, drops))} of the rows are to lose text, reference or both: at most 1"
            )
        if self.min_snr < 0 or self.noise_offset < 0 or self.timestep_power <= 0:
            raise InputError("min_snr and noise_offset are at least 0, and early is above 0")


class NoiseSchedule:
    """How noisy a picture is at each of the checkpoint's training times, and what the network predicts of it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the checkpoint's scheduler_config.json, whatever sampler it names.  Raises InputError."""
        scheduler: Any = cast("Any", DDIMScheduler).from_config(dict(config))
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.clamp(0, 1)
        """The share of the signal's variance that is left at each time."""
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"a model that predicts {self.prediction_type!r} cannot be trained here")

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(
        self,
        latents: Float[Tensor, "rows channels height width"],
        noise: Float[Tensor, "rows channels height width"],
        time: Tensor,
    ) -> tuple[Float[Tensor, "rows channels height width"], Float[Tensor, "rows channels height width"]]:
        """The latents at these times, and what the network is to say of them."""
        alpha_squared = self.alphas_cumprod.to(latents.device)[time][:, None, None, None]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        target = prediction_target(latents, noise, alpha, sigma, self.prediction_type)
        return alpha * latents + sigma * noise, target

    def min_snr_weight(self, time: Tensor, gamma: float) -> Float[Tensor, " rows"]:
        """What the squared error of a row counts: min-SNR's weight of x0's error, in terms of the prediction's."""
        if not gamma:
            return torch.ones(len(time), device=time.device)
        kept = self.alphas_cumprod.to(time.device)[time]
        snr = kept / (1 - kept)
        # min(snr, gamma) / snr, and for a velocity min(snr, gamma) / (snr + 1); without noise snr is infinite.
        share = (gamma / snr).clamp(max=1)
        return share if self.prediction_type == "epsilon" else share * kept


class AdapterLoss:
    """The loss of a step's rows, for `Fit`."""

    def __init__(
        self,
        model: Model,
        net: TrainableAdapter,
        features: FeatureDataset,
        order: BatchSampler,
        teaching: LossConfig,
        *,
        half: bool = False,
    ) -> None:
        """`half` runs the adapter in bfloat16, as the model is then to be loaded; its weights stay in float32."""
        self.model, self.order, self.config, self.half = model, order, teaching, half
        self.features, self.schedule = features, NoiseSchedule(model.scheduler_config)
        self._first, self._rest = model.unet.split_at(net.first_module)
        self._ahead: dict[int, Prefetcher] = {}
        with torch.no_grad():
            said = model.encode_prompt([""])
            blank = (
                0.0 if model.family.force_zeros_for_empty_prompt else 1.0
            )  # what stands for no text when pictures are made
            self._no_context = said.prompt_embeds * blank
            self._no_pooled = None if said.pooled_prompt_embeds is None else said.pooled_prompt_embeds * blank

    def __call__(self, net: nn.Module, part: MicroBatch) -> Tensor:
        """The mean over the part's rows."""
        ahead = self._ahead.setdefault(part.size, Prefetcher(lambda step, first: self._read(step, first, part.size)))
        rows: Batch = ahead(part.step, part.offset)
        model, at = self.model, self.model.device
        mine = slice(part.offset, part.offset + part.size)
        rng = np.random.default_rng([self.config.seed, 3, part.step])
        lost, share = rng.random((2, part.global_size))[:, mine]
        time = torch.from_numpy((share**self.config.timestep_power * len(self.schedule)).astype(np.int64)).to(at)
        no_text, no_image = self._dropped(lost)
        noised, target = self.schedule.add_noise(
            rows.latents.to(at), self._noise(rows.latents.shape, part).to(at), time
        )
        with torch.no_grad():
            context, pooled = self._text(rows, no_text.to(at))
            text = model.unet.precompute_kv(context)
            sizes = None if pooled is None else rows.time_ids.to(at)
            state = self._first(noised.to(model.dtype), time.float(), text, pooled, sizes)
        seen = rows.image_embeds.to(at) * ~no_image.to(at)[:, None]
        with torch.autocast(at.type, torch.bfloat16, enabled=self.half):
            image: dict[Site, KeyValue] = net(seen)
        prediction = self._rest(state, text, attend=add_image_prompt(plain, unit_prompt(image)))
        error = (prediction.float() - target).square().mean(dim=(1, 2, 3))
        return (error * self.schedule.min_snr_weight(time, self.config.min_snr)).mean()

    def _read(self, step: int, first: int, count: int) -> Batch:
        mine = slice(first, first + count)
        return self.features.read(self.order.rows(step)[mine], self.order.references(step)[mine])

    def _dropped(self, lost: np.ndarray) -> tuple[Tensor, Tensor]:
        """Which rows lose their text, and which their reference, of numbers between 0 and 1."""
        t = self.config
        image_only, text_only = lost < t.drop_image, (lost >= t.drop_image) & (lost < t.drop_image + t.drop_text)
        both = lost >= 1 - t.drop_both
        return torch.from_numpy(text_only | both), torch.from_numpy(image_only | both)

    def _noise(self, shape: torch.Size, part: MicroBatch) -> Float[Tensor, "rows channels height width"]:
        """Row by row, so that a row's noise is the same whoever computes it."""
        seeds = [[self.config.seed, 4, part.step, part.offset + i] for i in range(part.size)]
        rngs = [np.random.default_rng(seed) for seed in seeds]
        noise = np.stack([rng.standard_normal(tuple(shape[1:]), np.float32) for rng in rngs])
        if self.config.noise_offset:
            noise += self.config.noise_offset * np.stack([rng.standard_normal((shape[1], 1, 1)) for rng in rngs])
        return torch.from_numpy(noise)

    def _text(self, rows: Batch, no_text: Tensor) -> tuple[Tensor, Tensor | None]:
        model = self.model
        context, pooled = rows.prompt_embeds, rows.pooled_prompt_embeds
        if context is None:
            said = model.encode_prompt(rows.captions)
            context, pooled = said.prompt_embeds, said.pooled_prompt_embeds
        context = torch.where(no_text[:, None, None], self._no_context, context.to(model.device, model.dtype))
        if pooled is None or self._no_pooled is None:
            return context, None
        return context, torch.where(no_text[:, None], self._no_pooled, pooled.to(model.device, model.dtype))
