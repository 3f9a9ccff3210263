"""What reads texts and looks at pictures: CLIP's towers with their tokenizers and preprocessing, from transformers.

Batching, devices of the answers and what a family makes of them are the business of `model`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.errors import InputError, WeightsError
from instantstyle.pictures import Fit, fit_square
from instantstyle.weights.find import Found, read_json
from instantstyle.weights.networks import load_part

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

    def ids(self, texts: Sequence[str]) -> Tensor:
        """The tokens of texts, [n, length].  Raises InputError when one is longer: nothing is dropped unsaid."""
        bare: list[list[int]] = self.tokenizer(list(texts), verbose=False).input_ids
        for text, ids in zip(texts, bare, strict=True):
            if len(ids) > self.length:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                left = self.tokenizer.decode(ids[self.length - 1 : -1]).strip()
                raise InputError(
                    f"the text {shown!r} is {len(ids) - 2} tokens long and this model reads {self.length - 2}: it "
                    f"would not see {left[:60]!r}; say it in fewer words"
                )
        return self.tokenizer(list(texts), padding="max_length", max_length=self.length, return_tensors="pt").input_ids

    def say(self, texts: Sequence[str], skip: int) -> tuple[Tensor, Tensor | None]:
        """The hidden states `skip` from the end (1: the last, with its norm), and the embedding where it projects."""
        out = self.net(self.ids(texts).to(self.net.device), output_hidden_states=True)
        return out.last_hidden_state if skip == 1 else out.hidden_states[-skip], getattr(out, "text_embeds", None)


@dataclass(frozen=True)
class Eyes:
    """The image encoder with the numbers of its preprocessing."""

    net: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, pictures: Sequence[Image.Image], fit: Fit) -> Float[Tensor, "n 3 size size"]:
        """Pictures as the encoder takes them: square, and scaled as its preprocessor_config.json says; on the CPU."""
        shown = torch.stack([pixels(fit_square(picture.convert("RGB"), fit, self.size)) for picture in pictures])
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        return (shown - mean) / std

    @torch.no_grad()
    def look(self, pixels: Tensor, *, hidden: bool) -> Tensor:
        """The embedding of prepared pictures, or the last-but-one hidden states."""
        outs = [self.net(pixels[i : i + BATCH], output_hidden_states=hidden) for i in range(0, len(pixels), BATCH)]
        return torch.cat([out.hidden_states[-2] if hidden else out.image_embeds for out in outs])


def load_tower(found: Found, part: str, tokenizer: str, dtype: torch.dtype, device: torch.device) -> Tower:
    """A text encoder of a model's folder and its tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    kinds = found.config(f"{part}/config.json").get("architectures") or ()
    name = "CLIPTextModelWithProjection" if "CLIPTextModelWithProjection" in kinds else "CLIPTextModel"
    net = load_part(getattr(transformers, name), found.folder / part, dtype, device)
    try:
        tokens = transformers.CLIPTokenizer.from_pretrained(found.folder / tokenizer, local_files_only=True)
    except Exception as e:  # a dozen kinds, none of them documented
        raise WeightsError(f"cannot read the tokenizer in {found.folder / tokenizer}: {e}") from e
    return Tower(tokens, net)


def load_eyes(found: Found, dtype: torch.dtype, device: torch.device) -> Eyes | None:
    """The image encoder with its preprocessing, from whichever of two folders people put it in; else CLIP's numbers.

    None where the model has none.  Raises WeightsError.
    """
    if found.image_encoder is None:
        return None
    transformers: Any = importlib.import_module("transformers")
    net = load_part(transformers.CLIPVisionModelWithProjection, found.image_encoder, dtype, device)
    folders = (found.folder / "feature_extractor", found.image_encoder)
    said = next((path for folder in folders if (path := folder / "preprocessor_config.json").is_file()), None)
    config = read_json(cast("Path", said)) if said is not None else {}
    mean = config.get("image_mean", (0.48145466, 0.4578275, 0.40821073))
    std = config.get("image_std", (0.26862954, 0.26130258, 0.27577711))
    # The network itself says what it takes; a feature extractor may be the safety checker's, of another size.
    return Eyes(net, int(net.config.image_size), tuple(mean), tuple(std))


def pixels(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """A picture as numbers from 0 to 1."""
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1).float() / 255
