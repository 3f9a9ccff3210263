"""A family's networks, loaded once on one device and in one dtype, and never changed afterwards.

`say` reads texts, `see` looks at pictures, `encode` and `decode` go between pictures and latents.  CLIP, VAE and
tokenizers are borrowed from transformers and diffusers here and nowhere else.  Requests are not known here.
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

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan
from instantstyle.errors import InputError, InstantStyleError, WeightsError, nearest
from instantstyle.families import Family
from instantstyle.nets.unet import UNet
from instantstyle.pictures import Fit, fit_square
from instantstyle.weights.adapter import Adapter, load_adapter
from instantstyle.weights.find import Found, family_of, find, read_json
from instantstyle.weights.networks import load_part, load_unet

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
BATCH = 64
"""Texts or pictures that go through an encoder at a time."""


@dataclass(frozen=True)
class Text:
    """What the text encoders make of some texts."""

    context: Float[Tensor, "n tokens context_dim"]
    """What cross-attention reads: the hidden states of all towers, side by side."""
    pooled: Float[Tensor, "n pooled_dim"] | None
    """What SDXL adds to the time embedding; None for families without."""
    embeds: Float[Tensor, "n dim"] | None
    """Un-normalised, in the space that image embeddings share; None where no tower projects into one."""


@dataclass(frozen=True)
class Tower:
    """One text encoder with its tokenizer."""

    tokenizer: Any
    net: Any

    @property
    def length(self) -> int:
        """Tokens every text is padded to."""
        return min(int(self.tokenizer.model_max_length), int(self.net.config.max_position_embeddings))


@dataclass(frozen=True)
class Eyes:
    """The image encoder with the numbers of its preprocessing."""

    net: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
        contexts: list[Tensor] = []
        embeds: Tensor | None = None
        for tower in self.towers:
            ids = self._ids(tower, texts)
            out = tower.net(ids, output_hidden_states=True)
            skip = self.family.clip_skip
            contexts.append(out.last_hidden_state if skip == 1 else out.hidden_states[-skip])
            if hasattr(out, "text_embeds"):
                embeds = out.text_embeds
        return torch.cat(contexts, dim=-1), embeds if self.family.unet.pooled_dim is not None else None, embeds

    def _ids(self, tower: Tower, texts: Sequence[str]) -> Tensor:
        bare: list[list[int]] = tower.tokenizer(list(texts), verbose=False).input_ids
        for text, ids in zip(texts, bare, strict=True):
            if len(ids) > tower.length:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                left = tower.tokenizer.decode(ids[tower.length - 1 : -1]).strip()
                raise InputError(
                    f"the text {shown!r} is {len(ids) - 2} tokens long and this model reads {tower.length - 2}: it "
                    f"would not see {left[:60]!r}; say it in fewer words"
                )
        return tower.tokenizer(
            list(texts), padding="max_length", max_length=tower.length, return_tensors="pt"
        ).input_ids.to(self.device)

    def see(self, pictures: Sequence[Image.Image], fit: Fit = "squash") -> Float[Tensor, "n embed_dim"]:
        """The un-normalised image embedding of each picture.  Raises InputError when there is no image encoder."""
        return self._look(self.prepare(pictures, fit), hidden=False)

    def see_hidden(self, pictures: Sequence[Image.Image], fit: Fit = "squash") -> Float[Tensor, "n sequence width"]:
        """The image encoder's last-but-one hidden states, which Plus adapters read."""
        return self._look(self.prepare(pictures, fit), hidden=True)

    def see_nothing(self, adapter: Adapter) -> Tensor:
        """What stands for the picture in an unconditional row: zeros, or for Plus adapters the sight of zeros."""
        eyes = self._eyes()
        if adapter.plus:
            return self._look(
                torch.zeros(1, 3, eyes.size, eyes.size, device=self.device, dtype=self.dtype), hidden=True
            )
        return torch.zeros(1, adapter.embed_dim, device=self.device, dtype=self.dtype)

    def prepare(self, pictures: Sequence[Image.Image], fit: Fit) -> Float[Tensor, "n 3 size size"]:
        """Pictures as the image encoder takes them: square, and scaled as its preprocessor_config.json says."""
        eyes = self._eyes()
        pixels = torch.stack([_pixels(fit_square(picture.convert("RGB"), fit, eyes.size)) for picture in pictures])
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (eyes.mean, eyes.std))
        return ((pixels - mean) / std).to(self.device, self.dtype)

    @torch.no_grad()
    def _look(self, pixels: Tensor, *, hidden: bool) -> Tensor:
        net = self._eyes().net
        outs = [net(pixels[i : i + BATCH], output_hidden_states=hidden) for i in range(0, len(pixels), BATCH)]
        return torch.cat([out.hidden_states[-2] if hidden else out.image_embeds for out in outs])

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
        pixels = (_pixels(picture.convert("RGB")) * 2 - 1)[None].to(self.device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.mean
        mean, std = self._latent_statistics(latents)
        return ((latents - mean) / std * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n channels height width"]) -> list[Image.Image]:
        """The pictures of latents, one at a time: a decoder needs more memory than the whole rest.

        Raises InstantStyleError when the decoder makes NaN or infinity of them, which would be shown as black.
        """
        mean, std = self._latent_statistics(latents)
        latents = (latents / self.vae.config.scaling_factor * std + mean).to(self.vae.dtype)
        pixels = [self.vae.decode(each[None], return_dict=False)[0][0] for each in latents]
        if not all(each.isfinite().all() for each in pixels):
            raise InstantStyleError(
                f"the decoder made NaN or infinity in {str(self.vae.dtype).removeprefix('torch.')}, which is no "
                "picture: load the model with dtype float32"
            )
        return [_image(each) for each in pixels]

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
        return {"unet": self.unet, "vae": self.vae, **towers, **eyes, **adapters}

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
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Model:
    """Load a model: a built-in's name, "sdxl", "sd15", a folder in diffusers' layout, or a hub id.

    `adapter` is an IP-Adapter file or its path on the hub, by default the one that comes with the model.  `device` auto
    is CUDA, then Apple's, then the CPU; `dtype` auto is float32 on the CPU and half precision elsewhere.

    Raises WeightsError when files are missing, damaged or do not fit each other, InputError for an unknown device.
    """
    diffusers: Any = importlib.import_module("diffusers")  # late: these take seconds, and a wrong folder should not
    transformers: Any = importlib.import_module("transformers")

    where, found = pick_device(device), find(model, adapter)
    kind = pick_dtype(dtype, where)
    family = _with_index(family_of(found.config("unet/config.json")), found)
    unet = load_unet(found.folder / "unet", family.unet, kind, where)
    towers = tuple(
        _tower(found, f"text_encoder{suffix}", f"tokenizer{suffix}", kind, where)
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
    eyes = None
    if found.image_encoder is not None:
        eyes = _eyes(load_part(transformers.CLIPVisionModelWithProjection, found.image_encoder, kind, where), found)
    return Model(
        family=family,
        unet=unet,
        vae=load_part(diffusers.AutoencoderKL, found.folder / "vae", vae_kind, where),
        towers=towers,
        eyes=eyes,
        adapter=_adapter(found.adapter, family, eyes, kind, where),
        style_adapter=_adapter(found.style_adapter, family, eyes, kind, where),
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


def _tower(found: Found, part: str, tokenizer: str, dtype: torch.dtype, device: torch.device) -> Tower:
    transformers: Any = importlib.import_module("transformers")
    kinds = found.config(f"{part}/config.json").get("architectures") or ()
    name = "CLIPTextModelWithProjection" if "CLIPTextModelWithProjection" in kinds else "CLIPTextModel"
    net = load_part(getattr(transformers, name), found.folder / part, dtype, device)
    try:
        tokens = transformers.CLIPTokenizer.from_pretrained(found.folder / tokenizer, local_files_only=True)
    except Exception as e:  # a dozen kinds, none of them documented
        raise WeightsError(f"cannot read the tokenizer in {found.folder / tokenizer}: {e}") from e
    return Tower(tokens, net)


def _eyes(net: Any, found: Found) -> Eyes:
    """The encoder with its preprocessing, from whichever of the two folders people put it in; else CLIP's numbers."""
    folders = (found.folder / "feature_extractor", cast("Path", found.image_encoder))
    said = next((path for folder in folders if (path := folder / "preprocessor_config.json").is_file()), None)
    config = read_json(said) if said is not None else {}
    mean = config.get("image_mean", (0.48145466, 0.4578275, 0.40821073))
    std = config.get("image_std", (0.26862954, 0.26130258, 0.27577711))
    # The network itself says what it takes; a feature extractor may be the safety checker's, of another size.
    return Eyes(net, int(net.config.image_size), tuple(mean), tuple(std))


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


def pick_device(device: str | torch.device) -> torch.device:
    """The device of a name; auto is CUDA, then Apple's, then the CPU.  Raises InputError."""
    if device == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        picked = torch.device(device)
    except RuntimeError:
        known = ("auto", "cpu", "cuda", "mps")
        raise InputError(
            f"there is no device {device!r}: give {', '.join(known)}{nearest(str(device), known)}"
        ) from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(picked.type, False) or (picked.index or 0) >= max(1, torch.cuda.device_count()):
        raise InputError(f"this machine has no device {str(device)!r} that can be used: give auto or cpu")
    return picked


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name; auto is float32 on the CPU, where half precision gains little.  Raises InputError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
    if dtype not in DTYPES:
        raise InputError(f"there is no dtype {dtype!r}: give auto, {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")
    return DTYPES[dtype]


def _pixels(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1).float() / 255


def _image(pixels: Tensor) -> Image.Image:
    """From -1..1 to eight bits, rounded as diffusers rounds."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((unit * 255).round().astype("uint8"))
