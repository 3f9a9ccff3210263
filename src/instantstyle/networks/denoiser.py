"""Denoiser: the one thing that the engine calls, whatever the network; and what its rows are conditioned on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.networks.attention import Attend, CrossAttentionKV, plain
from instantstyle.networks.unet import Residuals, UNet


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What rows read besides their latents, a row for each; it is the same at every step."""

    prompt_embeds: Float[Tensor, "rows tokens context_dim"]
    pooled_prompt_embeds: Float[Tensor, "rows pooled_dim"] | None = None
    """For families that add it to the time embedding (SDXL, Flux, Stable Diffusion 3)."""
    time_ids: Float[Tensor, "rows 6"] | None = None
    """SDXL's (original height, width, crop top, left, target height, width) in pixels, in float32."""
    kv: CrossAttentionKV | None = None
    """The text's keys and values by site, once `Denoiser.precompute_kv` projected them."""
    guidance: Float[Tensor, " rows"] | None = None
    """Of networks with distilled guidance (Flux dev): the scale that each row is told."""

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def repeat_interleave(self, count: int) -> "Conditioning":
        """Every row `count` times, one after the other."""

        def repeat(x: Tensor) -> Tensor:
            return x.repeat_interleave(count, 0)

        return self._map(repeat)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        optional = (self.pooled_prompt_embeds, self.time_ids, self.guidance)
        pooled, time_ids, guidance = (None if x is None else change(x) for x in optional)
        kv = None if self.kv is None else {site: (change(k), change(v)) for site, (k, v) in self.kv.items()}
        return Conditioning(change(self.prompt_embeds), pooled, time_ids, kv, guidance)

    @staticmethod
    def collate(parts: "Sequence[Conditioning]") -> "Conditioning":
        """The rows of several, one below the other; all of them have the same fields."""
        if len(parts) == 1:
            return parts[0]
        kvs = [part.kv for part in parts if part.kv is not None]
        kv = {
            site: (torch.cat([each[site][0] for each in kvs]), torch.cat([each[site][1] for each in kvs]))
            for site in (kvs[0] if kvs else ())
        }
        return Conditioning(
            torch.cat([part.prompt_embeds for part in parts]),
            _concatenated([part.pooled_prompt_embeds for part in parts]),
            _concatenated([part.time_ids for part in parts]),
            kv if kvs else None,
            _concatenated([part.guidance for part in parts]),
        )


def _concatenated(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts epsilon, v, x0 or velocity of noisy latents, with attention as an argument of the call.

    Equal denoisers are the same network: the engine stacks the rows of runs whose denoisers are equal.
    """

    def precompute_kv(self, conditioning: Conditioning) -> Conditioning:
        """The conditioning with what can be projected once a run; a network without cross-attention gives it back."""
        ...

    def __call__(
        self,
        latents: Float[Tensor, "rows channels height width"],
        timesteps: Float[Tensor, " rows"],
        conditioning: Conditioning,
        *,
        attend: Attend = plain,
        residuals: Residuals | None = None,
    ) -> Float[Tensor, "rows out_channels height width"]:
        """The prediction.  `timesteps` are in training steps, 0 to 999, and may differ from row to row."""
        ...


@dataclass(frozen=True)
class UNetDenoiser:
    """A UNet as a denoiser; two of the same UNet are equal."""

    unet: UNet

    def precompute_kv(self, conditioning: Conditioning) -> Conditioning:
        """With the text's keys and values at every cross-attention, which do not depend on the step."""
        return replace(conditioning, kv=self.unet.precompute_kv(conditioning.prompt_embeds))

    def __call__(
        self,
        latents: Float[Tensor, "rows channels height width"],
        timesteps: Float[Tensor, " rows"],
        conditioning: Conditioning,
        *,
        attend: Attend = plain,
        residuals: Residuals | None = None,
    ) -> Float[Tensor, "rows out_channels height width"]:
        """The UNet's prediction for rows whose conditioning was precomputed."""
        c = conditioning if conditioning.kv is not None else self.precompute_kv(conditioning)
        assert c.kv is not None
        return self.unet(
            latents, timesteps, c.kv, c.pooled_prompt_embeds, c.time_ids, attend=attend, residuals=residuals
        )


def make_time_ids(size: tuple[int, int], rows: int, device: torch.device) -> Float[Tensor, "rows 6"]:
    """SDXL's size conditioning of pictures of (width, height) pixels, nothing cropped.

    In float32 whatever the model's dtype: bfloat16 would make 1000 pixels of 1003.
    """
    width, height = size
    return torch.tensor([[height, width, 0, 0, height, width]], device=device, dtype=torch.float32).repeat(rows, 1)
