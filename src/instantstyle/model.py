"""A family's networks, loaded once on one device and in one dtype, and never changed afterwards.

`say` reads texts, `see` looks at pictures, `encode` and `decode` go between pictures and latents.  CLIP, VAE and
tokenizers are borrowed from transformers and diffusers, here and in `encoders`.  Requests are not known here.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan
from instantstyle.device import pick_device, pick_dtype
from instantstyle.encoders import BATCH, Eyes, Text, Tower, load_eyes, load_tower, pixels
from instantstyle.errors import InputError, InstantStyleError, WeightsError
from instantstyle.families import Family
from instantstyle.nets.unet import UNet
from instantstyle.pictures import Fit
from instantstyle.weights.adapter import Adapter, load_adapter
from instantstyle.weights.control import ControlNet, load_controls
from instantstyle.weights.depth import Depth, load_depth
from instantstyle.weights.find import Found, family_of, find
from instantstyle.weights.networks import count_parameters, load_part, load_unet


@dataclass(frozen=True, eq=False)
class Model:
    """The networks of one checkpoint.  Made by `load`."""

    family: Family
    unet: UNet
    vae: Any
    towers: tuple[Tower, ...]
    eyes: Eyes | None
    adapter: Adapter | None
    style_adapter: Adapter | None
    """A second adapter that comes with the model, for a few blocks alone; plans within them speak through it."""
    controls: Mapping[str, ControlNet]
    """ControlNets by the kind of picture they read."""
    depth: Depth | None
    """What makes depth pictures for a ControlNet."""
    scheduler_config: Mapping[str, Any]
    vocabulary: tuple[str, ...]
    """Words for what pictures of this model's world show: what `content="auto"` chooses from."""
    device: torch.device
    dtype: torch.dtype
    found: Found

    @torch.no_grad()
    def say(self, texts: Sequence[str]) -> Text:
        """Read texts.  Raises InputError when one is longer than the encoders read: nothing is dropped unsaid."""
        parts = [self._say(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        context, pooled, embeds = (
            None if parts[0][i] is None else torch.cat([cast("Tensor", part[i]) for part in parts]) for i in range(3)
        )
        return Text(cast("Tensor", context), pooled, embeds)

    def _say(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        said = [tower.say(texts, self.family.clip_skip) for tower in self.towers]
        embeds = next((embeds for _, embeds in reversed(said) if embeds is not None), None)
        pooled = embeds if self.family.unet.pooled_dim is not None else None
        return torch.cat([context for context, _ in said], dim=-1), pooled, embeds

    def see(self, pictures: Sequence[Image.Image], fit: Fit = "squash") -> Float[Tensor, "n embed_dim"]:
        """The un-normalised image embedding of each picture.  Raises InputError when there is no image encoder."""
        return self._eyes().look(self.prepare(pictures, fit), hidden=False)

    def see_hidden(self, pictures: Sequence[Image.Image], fit: Fit = "squash") -> Float[Tensor, "n sequence width"]:
        """The image encoder's last-but-one hidden states, which Plus adapters read."""
        return self._eyes().look(self.prepare(pictures, fit), hidden=True)

    def see_nothing(self, adapter: Adapter) -> Tensor:
        """What stands for the picture in an unconditional row: zeros, or for Plus adapters the sight of zeros."""
        eyes = self._eyes()
        if adapter.plus:
            return eyes.look(torch.zeros(1, 3, eyes.size, eyes.size, device=self.device, dtype=self.dtype), hidden=True)
        return torch.zeros(1, adapter.embed_dim, device=self.device, dtype=self.dtype)

    def prepare(self, pictures: Sequence[Image.Image], fit: Fit) -> Float[Tensor, "n 3 size size"]:
        """Pictures as the image encoder takes them: square, and scaled as its preprocessor_config.json says."""
        return self._eyes().prepare(pictures, fit).to(self.device, self.dtype)

    def _eyes(self) -> Eyes:
        if self.eyes is None:
            raise InputError(f"the model {self.found.spec!r} has no image encoder, so it cannot look at a reference")
        return self.eyes

    def need_adapter(self, plan: BlockPlan | None = None) -> Adapter:
        """The adapter for a plan: the narrow one if it has every block the plan names, else the model's own.

        Raises InputError when the model has none.
        """
        narrow = self.style_adapter
        if narrow is not None and plan is not None:
            named = [s for s in self.family.unet.sites if s.kind == "cross" and (plan.at(s) or plan.against(s))]
            if all(site in narrow.keys for site in named):
                return narrow
        if self.adapter is None:
            raise InputError(
                f"the model {self.found.spec!r} has no IP-Adapter, so no style can enter: load it with adapter=..., "
                "a file or a hub path such as h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors"
            )
        return self.adapter

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> Float[Tensor, "1 channels height width"]:
        """The latents of a picture whose sides are multiples of the family's: the mean, not a sample."""
        shown = (pixels(picture.convert("RGB")) * 2 - 1)[None].to(self.device, self.vae.dtype)
        latents = self.vae.encode(shown).latent_dist.mean
        mean, std = self._latent_statistics(latents)
        return ((latents - mean) / std * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n channels height width"]) -> list[Image.Image]:
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
        return (0.0 if mean is None else mean), (1.0 if std is None else std)

    @property
    def scale(self) -> int:
        """Pixels along a side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @cached_property
    def vocabulary_embeds(self) -> Float[Tensor, "words dim"]:
        """The vocabulary in the space shared with images.  Raises InputError when there is no such thing."""
        if not self.vocabulary:
            raise InputError(
                f"the model {self.found.spec!r} has no vocabulary to choose content='auto' from: say what the "
                "reference shows"
            )
        embeds = self.say(self.vocabulary).embeds
        if embeds is None:
            raise InputError(f"no text encoder of the model {self.found.spec!r} shares a space with its image encoder")
        return embeds

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Every network by its part's name."""
        towers = {f"text_encoder{f'_{i + 1}' if i else ''}": tower.net for i, tower in enumerate(self.towers)}
        eyes = {} if self.eyes is None else {"image_encoder": self.eyes.net}
        adapters = {name: adapter.projection for name, adapter in self._adapters.items()}
        controls = {f"controlnet.{kind}": control.net for kind, control in self.controls.items()}
        depth = {} if self.depth is None else {"depth": self.depth.net}
        return {"unet": self.unet, "vae": self.vae, **towers, **eyes, **adapters, **controls, **depth}

    def hash(self) -> str:
        """A hash over the bytes of every weight, as they are now."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self._tensors():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """The hash of the weights, computed when first asked for (a few seconds for a large checkpoint)."""
        return self.hash()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for part, net in self.networks.items():
            yield from ((f"{part}.{name}", tensor) for name, tensor in net.state_dict().items())
        for name, adapter in self._adapters.items():
            for kind, weights in (("k", adapter.keys), ("v", adapter.values)):
                yield from ((f"{name}.{site}.{kind}", weight) for site, weight in weights.items())

    @property
    def _adapters(self) -> Mapping[str, Adapter]:
        named = {"adapter": self.adapter, "style_adapter": self.style_adapter}
        return {name: adapter for name, adapter in named.items() if adapter is not None}


def load(
    model: str | Path = "emoji",
    *,
    adapter: str | Path | None = None,
    controls: Mapping[str, str | Path] | None = None,
    depth: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Model:
    """Load a model: a built-in's name, "sdxl", "sd15", a folder in diffusers' layout, or a hub id.

    `adapter` is an IP-Adapter file or its path on the hub, by default the one that comes with the model.  `controls`
    are ControlNets by kind (`controls.KINDS`, or any name for pictures given as they are): folders, files or hub ids,
    beside those that come with the model; `depth` is a depth model of transformers for the kind depth.  `device` auto
    and `dtype` auto are as `instantstyle.device` decides.

    Raises WeightsError when files are missing, damaged or do not fit each other, InputError for an unknown device.
    """
    diffusers: Any = importlib.import_module("diffusers")  # late: this takes seconds, and a wrong folder should not

    where, found = pick_device(device), find(model, adapter)
    family = _with_index(family_of(found.config("unet/config.json")), found)
    kind = pick_dtype(dtype, where, count_parameters(family.unet))
    unet = load_unet(found.folder / "unet", family.unet, kind, where)
    towers = tuple(
        load_tower(found, f"text_encoder{suffix}", f"tokenizer{suffix}", kind, where)
        for suffix in ("", "_2")
        if found.has(f"text_encoder{suffix}")
    )
    wide = sum(int(tower.net.config.hidden_size) for tower in towers)
    if wide != family.unet.context_dim:
        raise WeightsError(
            f"the text encoders in {found.folder} give {wide} numbers a token, and the UNet reads "
            f"{family.unet.context_dim}"
        )
    family = dataclasses.replace(family, text_length=towers[0].length)
    vae_config = found.config("vae/config.json")
    # SDXL's VAE overflows in float16 and says so.
    vae_kind = torch.float32 if kind == torch.float16 and vae_config.get("force_upcast", True) else kind
    eyes = load_eyes(found, kind, where)
    return Model(
        family=family,
        unet=unet,
        vae=load_part(diffusers.AutoencoderKL, found.folder / "vae", vae_kind, where),
        towers=towers,
        eyes=eyes,
        adapter=_adapter(found.adapter, family, eyes, kind, where),
        style_adapter=_adapter(found.style_adapter, family, eyes, kind, where),
        controls=load_controls(controls or {}, found.folder, family, kind, where),
        depth=None if depth is None else load_depth(depth, where),
        scheduler_config=found.config("scheduler/scheduler_config.json"),
        vocabulary=_vocabulary(found),
        device=where,
        dtype=kind,
        found=found,
    )


def _with_index(family: Family, found: Found) -> Family:
    """The family with what this checkpoint's own files say: its size, and what an empty negative prompt is."""
    side = found.config("unet/config.json").get("sample_size")
    levels = len(found.config("vae/config.json").get("block_out_channels") or (1,) * 4)
    index = found.config("model_index.json") if found.has("model_index.json") else {}
    changes: dict[str, Any] = {"zero_empty": bool(index.get("force_zeros_for_empty_prompt", family.zero_empty))}
    if isinstance(side, int):
        changes["size"] = (side * 2 ** (levels - 1),) * 2
    return dataclasses.replace(family, **changes)


def _adapter(
    file: Path | None, family: Family, eyes: Eyes | None, dtype: torch.dtype, device: torch.device
) -> Adapter | None:
    if file is None:
        return None
    adapter = load_adapter(file, family.unet, dtype=dtype, device=device)
    if eyes is not None:
        config = eyes.net.config
        adapter.check_encoder(int(config.hidden_size if adapter.plus else config.projection_dim))
    return adapter


def _vocabulary(found: Found) -> tuple[str, ...]:
    path = found.folder / "vocabulary.json"
    if not path.is_file():
        return ()
    try:
        words: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(words, list) or not all(isinstance(word, str) for word in cast("list[object]", words)):
        raise WeightsError(f"{path} must be a JSON list of words")
    return tuple(cast("list[str]", words))


def _image(pixels: Tensor) -> Image.Image:
    """From -1..1 to eight bits, rounded as diffusers rounds."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((unit * 255).round().astype("uint8"))
