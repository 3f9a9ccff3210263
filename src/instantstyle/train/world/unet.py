# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""The base UNet: v-prediction on latents with a zero-terminal-SNR schedule, conditioned on text alone.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,      v = sqrt(a_t) e - sqrt(1 - a_t) x_0
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTokenizer

from instantstyle.families import EMOJI
from instantstyle.nets.unet import UNet
from instantstyle.train.loop import device, train
from instantstyle.train.world.bank import Bank
from instantstyle.train.world.clip import Clip, ids_of

SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
"""The scheduler the model is trained for and shipped with (DDIM)."""


@dataclass(frozen=True)
class Words:
    """Text as the UNet reads it, computed once for every caption a run may meet."""

    texts: tuple[str, ...]
    context: Float[Tensor, "texts tokens context_dim"]
    pooled: Float[Tensor, "texts pooled_dim"]


@torch.no_grad()
def read(net: Clip, tokenizer: CLIPTokenizer, texts: list[str], batch: int = 256) -> Words:
    """Both towers' last-but-one hidden states, joined, and the pooled embedding of the second: SDXL's conditioning."""
    contexts, pools = list[Tensor](), list[Tensor]()
    for i in range(0, len(texts), batch):
        ids = ids_of(tokenizer, texts[i : i + batch])
        one = net.text_1(input_ids=ids, output_hidden_states=True)
        two = net.text_2(input_ids=ids, output_hidden_states=True)
        contexts.append(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1).half())
        pools.append(two.text_embeds)
    return Words(tuple(texts), torch.cat(contexts), torch.cat(pools))


def captions(bank: Bank, seed: int, each: int = 2, styled: float = 0.35) -> list[list[str]]:
    """For every picture a few captions to choose from, drawn once so that their text can be read ahead."""
    rng = np.random.default_rng(seed)
    return [[bank.caption(row, rng, styled) for _ in range(each)] for row in range(len(bank.concept))]


def sizes(rows: int) -> Float[Tensor, "rows 6"]:
    """SDXL's size conditioning: original size, crop corner, target size, each (height, width)."""
    side = float(EMOJI.size[0])
    return torch.tensor([[side, side, 0, 0, side, side]], device=device()).expand(rows, 6)


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor], latents: Float[Tensor, "n c h w"], rng: np.random.Generator
) -> Tensor:
    """Mean squared error of v, weighted so that no time counts much more than others.

    (min(snr, 5) + 1) / (snr + 1): after min-SNR (Hang et al., arXiv 2303.09556, section 3.4) with gamma 6.
    """
    at = device()
    alphas, latents = _alphas().to(at), latents.to(at).float()
    time = torch.from_numpy(((np.arange(len(latents)) + rng.random()) / len(latents) * 1000).astype(np.int64)).to(at)
    kept = alphas[time].clamp(0, 1)
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(at)
    signal, spread = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
    target = signal * noise - spread * latents
    error = (predict(signal * latents + spread * noise, time) - target).square().mean(dim=(1, 2, 3))
    snr = kept / (1 - kept).clamp_min(1e-6)
    return (error * (snr.clamp(max=5) + 1) / (snr + 1)).mean()


@cache
def _alphas() -> Tensor:
    return cast("Any", DDIMScheduler.from_config(SCHEDULE)).alphas_cumprod


def train_unet(
    folder: Path,
    latents: Float[Tensor, "n c h w"],
    words: Words,
    choices: np.ndarray,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
) -> UNet:
    """Train the base UNet on text (resumable): a tenth of the captions empty.  Returns it with averaged weights.

    `choices[row]` numbers the captions of a picture in `words`; number 0 is the empty one.
    """
    net = new_unet()

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([13, number])
        rows = rng.integers(len(latents), size=batch)
        text = choices[rows, rng.integers(choices.shape[1], size=batch)]
        text[rng.random(batch) < 0.1] = 0
        context, pooled = words.context[text].to(device()).float(), words.pooled[text].to(device())

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            return net(noised, time.float(), net.read(context), pooled, sizes(batch))

        return diffusion_loss(predict, latents[rows], rng)

    weights = train("unet", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, decay=0.9995)
    net.load_state_dict({**net.state_dict(), **weights})
    return net.eval()


def new_unet() -> UNet:
    """An untrained UNet of the built-in family; its last layer starts at zero."""
    torch.manual_seed(2)
    net = UNet(EMOJI.unet)
    nn.init.zeros_(net.conv_out.weight)
    if net.conv_out.bias is not None:
        nn.init.zeros_(net.conv_out.bias)
    return net
