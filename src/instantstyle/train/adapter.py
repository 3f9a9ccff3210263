# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""An IP-Adapter that learns: nothing but a projection and the keys and values of chosen blocks is trainable."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan, Site
from instantstyle.errors import InputError
from instantstyle.methods.image_prompts import ImagePrompt
from instantstyle.methods.instantstyle import add_image_prompt
from instantstyle.networks.attention import Attend, KeyValue, plain
from instantstyle.networks.image_projection import ImageProjection
from instantstyle.networks.unet import UNet
from instantstyle.weights.adapter import Adapter


class TrainableAdapter(nn.Module):
    """An adapter with trainable weights; keys and values are initialised from the text's, or from another adapter."""

    def __init__(
        self,
        unet: UNet,
        plan: BlockPlan,
        *,
        embed_dim: int | None = None,
        tokens: int = 4,
        seed: int = 4,
        init_from: Adapter | None = None,
    ) -> None:
        """`embed_dim` is the image embedding's width, by default the pooled text's, which shares its space in SDXL.

        Raises InputError when the plan names no block to learn, or `init_from` is of another kind.
        """
        super().__init__()
        config = unet.config
        self.config, self.plan = config, plan
        self.sites = tuple(s for s in config.sites if s.kind == "cross" and plan.scale(s))
        if not self.sites or plan.negative:
            raise InputError("name the blocks that are to learn, such as style, all, or up.0.1=1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = ImageProjection(
                embed_dim or config.pooled_projection_dim or 0, config.cross_attention_dim, tokens
            )
        init_projection = init_from and init_from.projection
        if init_from is None:
            layers = [unet.attention(site) for site in self.sites]
            keys, values = [layer.to_k.weight for layer in layers], [layer.to_v.weight for layer in layers]
        else:
            if not isinstance(init_projection, ImageProjection) or init_from.token_count != tokens:
                raise InputError("only base adapters of as many tokens can be trained on, not Plus ones")
            init_from.check_encoder(self.projection.proj.in_features)
            self.projection.load_state_dict(init_projection.state_dict())
            missing = [site.module for site in self.sites if site not in init_from.keys]
            if missing:
                raise InputError(f"the adapter to begin with has no weights for {', '.join(dict.fromkeys(missing))}")
            keys, values = (
                [init_from.keys[site] for site in self.sites],
                [init_from.values[site] for site in self.sites],
            )
        self.keys = nn.ParameterList([weight.detach().float().clone() for weight in keys])
        self.values = nn.ParameterList([weight.detach().float().clone() for weight in values])

    @property
    def adapter(self) -> Adapter:
        """The same tensors as the rest of the library knows them."""
        keys: dict[Site, Tensor] = dict(zip(self.sites, self.keys, strict=True))
        values: dict[Site, Tensor] = dict(zip(self.sites, self.values, strict=True))
        proj = self.projection.proj
        return Adapter(
            self.projection, keys, values, proj.in_features, proj.out_features // self.config.cross_attention_dim
        )

    def ema_adapter(self, weights: Mapping[str, Tensor]) -> Adapter:
        """An adapter like this with other weights, by the names that they have here."""
        proj = self.projection.proj
        count = proj.out_features // self.config.cross_attention_dim
        projection = ImageProjection(proj.in_features, self.config.cross_attention_dim, count)
        mark = "projection."
        projection.load_state_dict({n.removeprefix(mark): w for n, w in weights.items() if n.startswith(mark)})
        keys, values = (
            {site: weights[f"{kind}.{i}"] for i, site in enumerate(self.sites)} for kind in ("keys", "values")
        )
        return Adapter(projection.requires_grad_(False), keys, values, proj.in_features, count)

    @property
    def first_module(self) -> str:
        """The attention module that first sees the reference, in running order."""
        return next(m for m in self.config.modules if any(site.module == m for site in self.sites))

    def forward(self, embeds: Float[Tensor, "rows embed"]) -> dict[Site, KeyValue]:
        """The keys and values of these pictures' tokens at every trained site."""
        adapter = self.adapter
        return dict(adapter.project_kv(adapter.image_tokens(embeds), self.plan, self.config))

    def attend(
        self, embeds: Float[Tensor, "rows embed"], reference_mask: Float[Tensor, " rows"] | None = None
    ) -> Attend:
        """Attention that sees these pictures at the trained sites; rows where `reference_mask` is 0 read none."""
        image = self(embeds)
        if reference_mask is not None:
            image = {
                site: (keys, values * reference_mask[:, None, None, None]) for site, (keys, values) in image.items()
            }
        return add_image_prompt(plain, unit_prompt(image))


def unit_prompt(image: Mapping[Site, KeyValue]) -> ImagePrompt:
    """Image tokens at scale 1 everywhere: an adapter is trained at full strength."""
    return ImagePrompt(image, dict.fromkeys(image, 1.0))
