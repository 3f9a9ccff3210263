"""A family's networks, loaded once on one device and in one dtype, and never changed afterwards.

`say` reads texts, `see` looks at pictures, `encode` and `decode` go between pictures and latents.  CLIP, VAE and
tokenizers are borrowed from transformers and diffusers, here and in `encoders`.  Requests are not known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan, TransformerConfig
from instantstyle.encoders.clip import ENCODE_BATCH_SIZE, ImageEncoder, TextEmbeddings, TextEncoder, to_unit_pixels
from instantstyle.encoders.prompt_weighting import PromptMode, encode_weighted_prompts
from instantstyle.encoders.t5 import encode_joint_text
from instantstyle.errors import InputError, InstantStyleError, did_you_mean
from instantstyle.families import Family
from instantstyle.networks.denoiser import Denoiser, UNetDenoiser
from instantstyle.networks.transformer_denoisers import DENOISERS
from instantstyle.networks.unet import UNet
from instantstyle.utils.images import ResizeMode
from instantstyle.weights.adapter import ENCODERS, Adapter
from instantstyle.weights.control import ControlNet
from instantstyle.weights.depth import DepthEstimator
from instantstyle.weights.fingerprint import sampled, weights_hash
from instantstyle.weights.lazy_weights import LazyWeights
from instantstyle.weights.resolve import ResolvedModel

OffloadMode = Literal["none", "reload", "sequential"]
"""What stays on the device: everything; all but the text and image encoders, which are read from their files for each
use; or the layer that computes, the rest waiting in main memory (accelerate's `cpu_offload`)."""

TEXT_TOWERS: Mapping[int, str] = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
"""Where the whole CLIP with image embeddings of a width is published."""


@dataclass(frozen=True)
class AdapterWithEncoder:
    """An adapter with the image encoder it was trained with."""

    adapter: Adapter
    image_encoder: ImageEncoder | None


@dataclass(frozen=True, eq=False)
class Model:
    """The networks of one checkpoint.  Made by `loading.load`."""

    family: Family
    network: nn.Module
    """What denoises: a UNet of ours, or a transformer of diffusers whose attention was given our processors."""
    vae: Any
    text_encoders: tuple[TextEncoder, ...]
    image_encoder: ImageEncoder | None
    adapter: Adapter | None
    style_adapter: Adapter | None
    """A second adapter that comes with the model, for a few blocks alone; plans within them speak through it."""
    adapters: Mapping[str, AdapterWithEncoder]
    """Every adapter by its name, that of `adapter` the first."""
    content_text_encoder: TextEncoder | None
    """A text encoder in the image encoder's space, where the model's own are in none or another."""
    controls: Mapping[str, ControlNet]
    """ControlNets by the kind of picture they read."""
    depth: DepthEstimator | None
    """What makes depth pictures for a ControlNet."""
    scheduler_config: Mapping[str, Any]
    vocabulary: tuple[str, ...]
    """Words for what pictures of this model's world show: what `content="auto"` chooses from."""
    device: torch.device
    dtype: torch.dtype
    source: ResolvedModel
    loras: tuple[tuple[str, float], ...] = ()
    """The LoRA files whose changes are in the weights, and how much of each."""
    offload_mode: OffloadMode = "none"

    @property
    def unet(self) -> UNet:
        """The UNet.  Raises InputError where the model is a transformer, and what asks is for UNets."""
        _ = self.family.unet
        return cast("UNet", self.network)

    @property
    def denoiser(self) -> Denoiser:
        """The network as the engine calls it."""
        layout = self.family.layout
        if isinstance(layout, TransformerConfig):
            return DENOISERS[layout.class_name](self.network)
        return UNetDenoiser(self.unet)

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str], reading: PromptMode = "plain") -> TextEmbeddings:
        """Read texts, by default as they stand.

        Raises InputError when one is longer than the encoders read plainly: nothing is dropped unsaid.
        """
        if self.family.is_transformer:
            if reading != "plain":
                raise InputError(
                    f"reading={reading!r} is for models that read CLIP alone; this one reads T5, which takes "
                    f"{self.family.max_text_tokens} tokens: give reading='plain'"
                )
            return encode_joint_text(self.text_encoders, texts, self.device)
        if reading != "plain":
            context, embeds = encode_weighted_prompts(
                self.text_encoders,
                texts,
                self.family.clip_skip,
                reading,
                self.device,
                final_norm=self.family.clip_skip_final_norm,
            )
            return TextEmbeddings(
                context, embeds if self.family.unet.pooled_projection_dim is not None else None, embeds
            )
        parts = [
            self._encode_prompt_chunk(texts[i : i + ENCODE_BATCH_SIZE]) for i in range(0, len(texts), ENCODE_BATCH_SIZE)
        ]
        context, pooled, embeds = (
            None if parts[0][i] is None else torch.cat([cast("Tensor", part[i]) for part in parts]) for i in range(3)
        )
        return TextEmbeddings(cast("Tensor", context), pooled, embeds)

    def _encode_prompt_chunk(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        encoded = [
            tower.encode(texts, self.family.clip_skip, self.device, final_norm=self.family.clip_skip_final_norm)
            for tower in self.text_encoders
        ]
        embeds = next((embeds for _, embeds in reversed(encoded) if embeds is not None), None)
        pooled = embeds if self.family.unet.pooled_projection_dim is not None else None
        return torch.cat([context for context, _ in encoded], dim=-1), pooled, embeds

    @torch.no_grad()
    def encode_content_text(self, texts: Sequence[str], width: int) -> Float[Tensor, "n width"]:
        """Un-normalised embeddings of texts in the space of image embeddings so wide, to be subtracted from them.

        Raises InputError, naming the encoder that is needed, when the model has no text encoder in that space.
        """
        tower, has = self.content_text_encoder, "no projection"
        if tower is not None:
            embeds = tower.encode(texts, 1, self.device)[1]
            if embeds is not None and embeds.shape[-1] == width:
                return embeds
        embeds = self.encode_prompt(texts).text_embeds
        if embeds is not None and embeds.shape[-1] == width:
            return embeds
        has = f"embeddings {embeds.shape[-1]} wide" if embeds is not None else has
        named = f" ({ENCODERS[width]})" if width in ENCODERS else ""
        example = f" such as {TEXT_TOWERS[width]}" if width in TEXT_TOWERS else ""
        raise InputError(
            f"content cannot be subtracted yet: for text the model {self.source.spec!r} has {has}, and this adapter's "
            f"image embeddings are {width} wide{named}, not one shared space: give the text encoder of the same CLIP "
            f"as content encoder{example}, or leave content out"
        )

    def encode_image(
        self, pictures: Sequence[Image.Image], fit: ResizeMode = "squash", adapter: Adapter | None = None
    ) -> Float[Tensor, "n embed_dim"]:
        """The un-normalised image embedding of each picture, by the encoder that goes with an adapter.

        Raises InputError when there is no image encoder.
        """
        return self._encoder_of(adapter).encode(self.preprocess_images(pictures, fit, adapter), hidden=False)

    def image_hidden_states(
        self, pictures: Sequence[Image.Image], fit: ResizeMode = "squash", adapter: Adapter | None = None
    ) -> Float[Tensor, "n sequence width"]:
        """The image encoder's last-but-one hidden states, which Plus adapters read."""
        return self._encoder_of(adapter).encode(self.preprocess_images(pictures, fit, adapter), hidden=True)

    def uncond_image_embeds(self, adapter: Adapter) -> Float[Tensor, "1 *features"]:
        """What stands for the picture in an unconditional row: zeros; for Plus adapters the hidden states of zeros."""
        if adapter.time_norms is not None:  # as diffusers' pipeline of Stable Diffusion 3 has it
            patches = (self._encoder_of(adapter).size // self._encoder_of(adapter).net.config.patch_size) ** 2
            return torch.zeros(1, patches, adapter.embed_dim, device=self.device, dtype=self.dtype)
        if adapter.is_plus:
            encoder = self._encoder_of(adapter)
            return encoder.encode(
                torch.zeros(1, 3, encoder.size, encoder.size, device=self.device, dtype=self.dtype), hidden=True
            )
        if adapter.biases is not None:  # XLabs: a black picture
            return self.encode_image([Image.new("RGB", (64, 64))], adapter=adapter)
        return torch.zeros(1, adapter.embed_dim, device=self.device, dtype=self.dtype)

    def preprocess_images(
        self, pictures: Sequence[Image.Image], fit: ResizeMode, adapter: Adapter | None = None
    ) -> Float[Tensor, "n 3 size size"]:
        """Pictures as the image encoder takes them, by default the model's own, else that of an adapter."""
        return self._encoder_of(adapter).preprocess(pictures, fit).to(self.device, self.dtype)

    def _encoder_of(self, adapter: Adapter | None = None) -> ImageEncoder:
        own = (
            next((each.image_encoder for each in self.adapters.values() if each.adapter is adapter), None)
            or self.image_encoder
        )
        if own is None:
            reads = "" if adapter is None else f" that gives {adapter.expected_features}"
            raise InputError(
                f"the model {self.source.spec!r} has no image encoder, so it cannot look at a reference: give "
                f"one{reads} as image encoder, such as h94/IP-Adapter/models/image_encoder"
            )
        return own

    def get_adapter(self, plan: BlockPlan | None = None, name: str | None = None) -> Adapter:
        """The adapter of a name; or for a plan the narrow one if it has every block the plan names, else the first.

        Raises InputError when the model has none, or none of this name.
        """
        if name is not None:
            if name not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                raise InputError(
                    f"the model has no adapter {name!r}: it has {known}{did_you_mean(name, self.adapters)}"
                )
            return self.adapters[name].adapter
        narrow = self.style_adapter
        if narrow is not None and plan is not None:
            cross = (site for site in self.family.layout.sites if site.kind == "cross")
            named = [s for s in narrow.places or tuple(cross) if plan.scale(s) or plan.negative_scale(s)]
            if all(site in narrow.keys for site in named):
                return narrow
        if self.adapter is None:
            raise InputError(
                f"the model {self.source.spec!r} has no IP-Adapter, so no style can enter: load it with adapter=..., "
                + (
                    "a file of XLabs' or InstantX', or use method style-aligned or swapped, which need none"
                    if self.family.is_transformer
                    else "a file or a hub path such as h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors"
                )
            )
        return self.adapter

    def encode_latents(self, picture: Image.Image) -> Float[Tensor, "1 channels height width"]:
        """The latents of a picture whose sides are multiples of the family's: the mean, not a sample."""
        return self.encode_pixels((to_unit_pixels(picture.convert("RGB")) * 2 - 1)[None])

    @torch.no_grad()
    def encode_pixels(
        self, shown: Float[Tensor, "n 3 pixel_height pixel_width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n channels height width"]:
        """The latents of pictures whose numbers go from -1 to 1; a sample where there is a generator, else the mean."""
        posterior = self.vae.encode(shown.to(self.device, self.vae.dtype)).latent_dist
        latents = posterior.mean if generator is None else posterior.sample(generator)
        mean, std = self._latent_statistics(latents)
        return ((latents - mean) / std * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "n channels height width"]) -> list[Image.Image]:
        """The pictures of latents, one at a time: a decoder needs more memory than the whole rest.

        Raises InstantStyleError when the decoder makes NaN or infinity of them, which would be shown as black.
        """
        mean, std = self._latent_statistics(latents)
        latents = (latents / self.vae.config.scaling_factor * std + mean).to(self.vae.dtype)
        decoded = [self.vae.decode(each[None], return_dict=False)[0][0] for each in latents]
        if not all(each.isfinite().all() for each in decoded):
            raise InstantStyleError(
                f"the decoder made NaN or infinity in {str(self.vae.dtype).removeprefix('torch.')}, which is no "
                "picture: load the model with dtype float32"
            )
        return [_image(each) for each in decoded]

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        given = (getattr(self.vae.config, name, None) for name in ("latents_mean", "latents_std"))
        mean, std = (None if x is None else torch.tensor(x).view(1, -1, 1, 1).to(like) for x in given)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0  # of Flux and Stable Diffusion 3
        return (shift if mean is None else mean), (1.0 if std is None else std)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along a side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def vocabulary_embeds(self, width: int) -> Float[Tensor, "words width"]:
        """The vocabulary in the space of image embeddings so wide.  Raises InputError when there is no such thing."""
        if not self.vocabulary:
            raise InputError(
                f"the model {self.source.spec!r} has no vocabulary to choose content='auto' from: say what the "
                "reference shows"
            )
        if width not in self._vocabulary:
            self._vocabulary[width] = self.encode_content_text(self.vocabulary, width)
        return self._vocabulary[width]

    @cached_property
    def _vocabulary(self) -> dict[int, Tensor]:
        return {}

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Every network by its part's name."""
        text_encoders = {
            f"text_encoder{f'_{i + 1}' if i else ''}": encoder.net for i, encoder in enumerate(self.text_encoders)
        }
        candidates = [self.image_encoder, *(adapter.image_encoder for adapter in self.adapters.values())]
        distinct = list({id(each.net): each.net for each in candidates if each is not None}.values())
        image_encoders = {f"image_encoder{f'_{i + 1}' if i else ''}": net for i, net in enumerate(distinct)}
        content = {} if self.content_text_encoder is None else {"content_encoder": self.content_text_encoder.net}
        adapters = {name: adapter.projection for name, adapter in self._adapters.items()}
        controls = {f"controlnet.{kind}": control.net for kind, control in self.controls.items()}
        depth = {} if self.depth is None else {"depth": self.depth.net}
        name = "transformer" if self.family.is_transformer else "unet"
        return {
            name: self.network,
            "vae": self.vae,
            **text_encoders,
            **image_encoders,
            **content,
            **adapters,
            **controls,
            **depth,
        }

    def weights_hash(self) -> str:
        """A hash over the bytes of every weight, as they are now."""
        return weights_hash(self._tensors())

    @cached_property
    def weights_fingerprint(self) -> str:
        """A fingerprint by which the same weights are known again; large tensors enter by a sample, so it is quick.

        Adapters that are read as plans ask for them are known by their projection and a row of every weight.
        """
        return weights_hash((name, sampled(tensor)) for name, tensor in self._tensors(peek=True))

    def _tensors(self, *, peek: bool = False) -> Iterator[tuple[str, Tensor]]:
        for part, net in self.networks.items():
            state = _offloaded_state(net) if self.offload_mode == "sequential" else net.state_dict()
            yield from ((f"{part}.{name}", tensor) for name, tensor in state.items())
        for name, adapter in self._adapters.items():
            biases = zip(("k.bias", "v.bias"), adapter.biases or (), strict=False)
            norms = (adapter.time_norms or {}).items()
            for kind, weights in (("k", adapter.keys), ("v", adapter.values), *biases, *norms):
                for site in weights:
                    sample = weights.first_row(site) if peek and isinstance(weights, LazyWeights) else weights[site]
                    yield f"{name}.{site}.{kind}", sample

    @property
    def _adapters(self) -> Mapping[str, Adapter]:
        others = {f"adapter.{name}": each.adapter for name, each in list(self.adapters.items())[1:]}
        named = {"adapter": self.adapter, "style_adapter": self.style_adapter, **others}
        return {name: adapter for name, adapter in named.items() if adapter is not None}


def _offloaded_state(net: nn.Module) -> Mapping[str, Tensor]:
    """The state of a network whose layers accelerate keeps elsewhere; of one that it does not, its own."""
    modeling: Any = import_module("accelerate.utils.modeling")
    has_hooks = any(hasattr(module, "_hf_hook") for module in net.modules())
    return modeling.get_state_dict_offloaded_model(net) if has_hooks else net.state_dict()


def _image(pixels: Tensor) -> Image.Image:
    """From -1..1 to eight bits, rounded as diffusers rounds."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((unit * 255).round().astype("uint8"))
