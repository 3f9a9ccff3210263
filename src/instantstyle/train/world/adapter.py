# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The built-in model's IP-Adapter: a projection, and keys and values for the image's tokens at chosen blocks.

Two ways to train it.  *Same picture*, as IP-Adapter is published: the reference is the target, and all blocks learn
(InstantStyle mutes most of them later).  *Paired*: the reference is another thing in the target's style, and only the
blocks of a plan learn; everything upstream of them runs without a graph.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan, Site
from instantstyle.families import EMOJI
from instantstyle.methods.image_prompt import image_prompt
from instantstyle.nets.attention import plain
from instantstyle.nets.projection import ImageProjection
from instantstyle.nets.unet import UNet
from instantstyle.train.loop import device, train
from instantstyle.train.world.bank import Bank
from instantstyle.train.world.unet import Words, diffusion_loss, sizes
from instantstyle.weights.adapter import Adapter

Reference = Literal["same", "paired"]
_SAID = 0.9
"""How often the text is given, and how often the reference is: the rest is dropped, each on its own."""


class Trained(nn.Module):
    """An adapter's weights as parameters; keys and values begin as copies of the text's."""

    def __init__(self, unet: UNet, plan: BlockPlan) -> None:
        super().__init__()
        torch.manual_seed(4)
        config = unet.config
        self.sites = tuple(s for s in config.sites if s.kind == "cross" and plan.at(s))
        self.projection = ImageProjection(config.pooled_dim or 0, config.context_dim, EMOJI.image_tokens)
        copies = [unet.attention(site) for site in self.sites]
        self.keys = nn.ParameterList([layer.to_k.weight.detach().clone() for layer in copies])
        self.values = nn.ParameterList([layer.to_v.weight.detach().clone() for layer in copies])

    @property
    def adapter(self) -> Adapter:
        """The same tensors as the rest of the library knows them."""
        keys: dict[Site, Tensor] = dict(zip(self.sites, self.keys, strict=True))
        values: dict[Site, Tensor] = dict(zip(self.sites, self.values, strict=True))
        width = self.projection.proj.in_features
        return Adapter(self.projection, keys, values, width, EMOJI.image_tokens)


def train_adapter(
    folder: Path,
    name: str,
    unet: UNet,
    plan: BlockPlan,
    reference: Reference,
    bank: Bank,
    latents: Float[Tensor, "n c h w"],
    embeds: Float[Tensor, "n embed"],
    words: Words,
    choices: np.ndarray,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
) -> Adapter:
    """Train an adapter for a frozen UNet (resumable); `choices[row]` numbers the captions of a picture in `words`."""
    net = Trained(unet, plan)
    unet.requires_grad_(False).to(device())
    first_module = next(m for m in unet.config.modules if any(site.module == m for site in net.sites))
    first, rest = unet.upto(first_module)
    said = BlockPlan({"all": 1.0})

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([17, number])
        rows = rng.integers(len(latents), size=batch)
        seen = rows if reference == "same" else _others(bank, rows, rng)
        text = choices[rows, rng.integers(choices.shape[1], size=batch)]
        text[rng.random(batch) > _SAID] = 0
        shown = torch.from_numpy((rng.random(batch) < _SAID).astype(np.float32))
        tokens = net.adapter.tokens((embeds[seen] * shown[:, None]).to(device()))
        image = net.adapter.read(tokens, plan, unet.config)
        attend = image_prompt(plain, said, image, None)

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            with torch.no_grad():
                read = unet.read(words.context[text].to(device()).float())
                state = first(noised, time.float(), read, words.pooled[text].to(device()), sizes(batch))
            return rest(state, read, attend=attend)

        return diffusion_loss(predict, latents[rows], rng)

    weights = train(name, net, loss, folder=folder, steps=steps, lr=lr, batch=batch, decay=0.999)
    net.load_state_dict(weights)
    unet.cpu()
    return net.requires_grad_(False).adapter


def _others(bank: Bank, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row another row of the same style."""
    mates = [bank.rows_of_style[int(bank.style[row])] for row in rows]
    picks = [int(rng.integers(len(m) - 1)) for m in mates]
    return np.array([m[p] if m[p] != row else m[-1] for m, p, row in zip(mates, picks, rows, strict=True)])
