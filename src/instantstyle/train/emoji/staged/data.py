# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

"""Training data of the stages: latents of the same images at 64 and at 128 pixels, and caption embeddings."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

import instantstyle
from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.model import Model
from instantstyle.train.emoji import image_bank as banks
from instantstyle.train.emoji.dataset import CaptionEmbeddings
from instantstyle.train.emoji.image_bank import SIDE, ImageBank
from instantstyle.train.emoji.staged.captions import CaptionTable, draw_captions
from instantstyle.train.emoji.vae import encode_many, to_tensor
from instantstyle.utils.atomic_files import atomic_write, write_atomic

LARGE = 128
"""Side of the final model's images in pixels."""
CAPTION_SEED = 29
SHIPPED = Path(instantstyle.__file__).parent / "assets" / "emoji"
"""The folder of the shipped model."""


@dataclass(frozen=True)
class TrainingData:
    """The core bank with its latents, captions and embeddings, row by row; every array is memory-mapped."""

    bank: ImageBank
    """At 128 px: pictures [n, 128, 128, 3]."""
    latents: Mapping[int, Float[Tensor, "n c h w"]]
    """By side in pixels, float16: [n, 32, 8, 8] at 64 and [n, 32, 16, 16] at 128."""
    captions: CaptionTable
    embeds: Float[Tensor, "n embed"] | None = None
    """Image embeddings, for the adapters."""


def prepare(folder: Path, styles: int = 1800, *, embeds: bool = False) -> TrainingData:
    """Render, encode and caption what a folder lacks, and open it.

    The encoders are the shipped model's: its VAE encoder is linear (an 8 x 8 patch to 32 numbers), whatever the side.
    """
    bank = banks.core_bank(folder / "bank", styles, TRAINED_CONCEPTS, LARGE)
    vae = vae_of(SHIPPED)
    small = _pictures(folder / "bank" / "core-small.npy", bank)
    latents = {
        SIDE: _tensor(folder / f"latents-{SIDE}.pt", lambda: encode_many(vae, small)),
        LARGE: _tensor(folder / f"latents-{LARGE}.pt", lambda: encode_many(vae, bank.pictures, batch=512)),
    }
    data = TrainingData(bank, latents, _captions(folder, bank))
    if not embeds:
        return data
    return replace(data, embeds=_tensor(folder / "embeds.pt", lambda: image_embeds_of(shipped(), small)))


def shipped() -> Model:
    """The shipped model, whose text and image encoders are reused."""
    return instantstyle.load("emoji")


def vae_of(model: Path) -> AutoencoderKL:
    """The VAE of a model's folder, float32, frozen."""
    vae = cast("Any", AutoencoderKL).from_pretrained(model / "vae").float()
    return cast("AutoencoderKL", vae.requires_grad_(False).eval())


@torch.no_grad()
def image_embeds_of(model: Model, pictures: npt.NDArray[np.uint8], batch: int = 256) -> Float[Tensor, "n embed"]:
    """Image embeddings, as at inference, of images [n, 64, 64, 3] uint8; float32."""
    image_encoder = model.image_encoder
    assert image_encoder is not None, "the shipped model has an image encoder"
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (image_encoder.mean, image_encoder.std))
    parts = [
        image_encoder.encode(((to_tensor(pictures[i : i + batch]) + 1) / 2 - mean) / std, hidden=False)
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts).float()


def _captions(folder: Path, bank: ImageBank) -> CaptionTable:
    texts_file = folder / "captions.json"
    if not texts_file.exists():
        texts, caption_indices = draw_captions(bank, CAPTION_SEED)
        with atomic_write(folder / "captions.npy") as unfinished, unfinished.open("wb") as out:
            np.save(out, caption_indices)
        write_atomic(texts_file, json.dumps(texts, ensure_ascii=False).encode())
    texts = cast("list[str]", json.loads(texts_file.read_text("utf-8")))
    prompt_embeds = _tensor(folder / "captions-context.pt", lambda: _encode_captions(folder, texts))
    pooled_prompt_embeds = torch.load(folder / "captions-pooled.pt", weights_only=True, mmap=True)
    caption_indices = np.load(folder / "captions.npy", mmap_mode="r")
    return CaptionTable(CaptionEmbeddings(tuple(texts), prompt_embeds, pooled_prompt_embeds), caption_indices)


@torch.no_grad()
def _encode_captions(folder: Path, texts: list[str], batch: int = 512) -> Float[Tensor, "texts tokens dim"]:
    model, prompt_embeds, pooled_prompt_embeds = shipped(), list[Tensor](), list[Tensor]()
    for i in range(0, len(texts), batch):
        encoded = model.encode_prompt(texts[i : i + batch])
        assert encoded.pooled_prompt_embeds is not None
        prompt_embeds.append(encoded.prompt_embeds.half())
        pooled_prompt_embeds.append(encoded.pooled_prompt_embeds.half())
    with atomic_write(folder / "captions-pooled.pt") as unfinished:
        torch.save(torch.cat(pooled_prompt_embeds), unfinished)
    return torch.cat(prompt_embeds)


def _pictures(file: Path, bank: ImageBank) -> npt.NDArray[np.uint8]:
    """The bank's images at 64 px, by area averaging, equal to a bank of that side."""
    if not file.exists():
        with atomic_write(file) as unfinished:
            small = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(bank.concept), SIDE, SIDE, 3))
            for row, picture in enumerate(bank.pictures):
                small[row] = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            small.flush()
    return np.load(file, mmap_mode="r")


def _tensor(file: Path, make: Callable[[], Tensor]) -> Tensor:
    if not file.exists():
        with atomic_write(file) as unfinished:
            torch.save(make(), unfinished)
    return torch.load(file, weights_only=True, mmap=True)
