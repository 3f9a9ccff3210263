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
from instantstyle.nets.attention import Attend, plain
from instantstyle.nets.projection import ImageProjection
from instantstyle.nets.unet import UNet
from instantstyle.train.loop import device, train
from instantstyle.train.world.corpus import Corpus
from instantstyle.train.world.unet import diffusion_loss, sizes
from instantstyle.weights.adapter import Adapter

Reference = Literal["same", "paired"]
_DROPPED = 0.1
"""How often the text is left out, and how often the reference is, each on its own."""


class Trained(nn.Module):
    """An adapter's weights as parameters; keys and values begin as copies of the text's."""

    def __init__(self, unet: UNet, plan: BlockPlan) -> None:
        super().__init__()
        torch.manual_seed(4)
        config = unet.config
        self.config, self.plan = config, plan
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

    def attend(self, embeds: Float[Tensor, "rows embed"], heard: Float[Tensor, " rows"] | None = None) -> Attend:
        """Attention that sees these pictures at the trained sites; `heard` 0 makes a row's picture unheard there."""
        image = self.adapter.read(self.adapter.tokens(embeds), self.plan, self.config)
        if heard is not None:
            image = {site: (keys, values * heard[:, None, None, None]) for site, (keys, values) in image.items()}
        return image_prompt(plain, BlockPlan({"all": 1.0}), image, None)


def train_adapter(
    folder: Path,
    name: str,
    unet: UNet,
    plan: BlockPlan,
    reference: Reference,
    corpus: Corpus,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
) -> Adapter:
    """Train an adapter for a frozen UNet (resumable)."""
    net = Trained(unet, plan)
    unet.requires_grad_(False).to(device())
    first_module = next(m for m in unet.config.modules if any(site.module == m for site in net.sites))
    first, rest = unet.upto(first_module)

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([17, number])
        rows = corpus.rows(batch, rng)
        context, pooled = corpus.captions(rows, styled=0.35, dropped=_DROPPED, rng=rng)
        shown = torch.from_numpy((rng.random(batch) >= _DROPPED).astype(np.float32)).to(device())
        attend = net.attend(corpus.seen(rows if reference == "same" else corpus.others(rows, rng)) * shown[:, None])

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            with torch.no_grad():
                state = first(noised, time.float(), unet.read(context), pooled, sizes(batch))
            return rest(state, unet.read(context), attend=attend)

        return diffusion_loss(predict, corpus.latents[rows], rng, early=0.6)

    weights = train(name, net, loss, folder=folder, steps=steps, lr=lr, batch=batch, decay=0.999)
    net.load_state_dict(weights)
    unet.cpu()
    return net.requires_grad_(False).adapter
