"""What reads texts and looks at pictures: CLIP's towers with their tokenizers and preprocessing, from transformers.

Batching, devices of the answers and what a family makes of them are the business of `model`.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from instantstyle.errors import InputError, WeightsError
from instantstyle.utils.images import Fit, fit_square
from instantstyle.weights.clip_vocab import clip_vocabulary
from instantstyle.weights.resolve import Found, encoder_layout, read_json
from instantstyle.weights.single_file import Part
from instantstyle.weights.strict_load import fill_part, load_part
from instantstyle.weights.tensor_files import open_tensors

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

    def say(self, texts: Sequence[str], skip: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The hidden states `skip` from the end (1: the last, with its norm), and the embedding where it projects."""
        out = self.net(self.ids(texts).to(device), output_hidden_states=True)
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


class Lent(nn.Module):
    """An encoder that is read from its files for every use and let go after it: slower, and in nobody's way."""

    def __init__(self, make: Callable[[], Any], config: Any) -> None:
        super().__init__()
        self.make, self.config = make, config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.make()(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of the network itself, read for this."""
        return self.make().state_dict(*args, **kwargs)


def lent(make: Callable[[], Any]) -> Lent:
    """A network to be made for every use.  It is made once now, so that files that do not fit are an error at once."""
    return Lent(make, make().config)


def load_tower(
    found: Found, part: Part, tokenizer: str, dtype: torch.dtype, device: torch.device, *, keep: bool = True
) -> Tower:
    """A text encoder of a model and its tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    config = found.config(f"{part}/config.json")
    projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    single = found.single
    if single is None:

        def make() -> Any:
            return load_part(kind, found.folder / part, dtype, device)

        return Tower(load_tokenizer(found.folder / tokenizer), make() if keep else lent(make))

    def convert() -> Any:
        empty = transformers.CLIPTextConfig(**{name: x for name, x in config.items() if name != "architectures"})
        return fill_part(lambda: kind(empty), lambda net: single.tensors(part, net), str(single.path), dtype, device)

    vocabulary, merges = clip_vocabulary()
    # As published: SDXL's second tower pads with the token 0, all others with the end of the text.
    padding = {"pad_token": "!"} if part == "text_encoder_2" else {}
    tokens = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **padding)
    return Tower(tokens, convert() if keep else lent(convert))


def load_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    try:
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # a dozen kinds, none of them documented
        raise WeightsError(f"cannot read the tokenizer in {folder}: {e}") from e


def load_content_tower(folder: Path, dtype: torch.dtype, device: torch.device, *, keep: bool = True) -> Tower:
    """The text tower in a CLIP's folder, which may hold the whole CLIP, and its tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")

    def make() -> Any:
        kind = transformers.CLIPTextModelWithProjection
        return load_part(kind, folder, dtype, device, besides=r"vision_model\.|visual_projection\.|logit_scale$")

    inside = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    return Tower(load_tokenizer(inside), make() if keep else lent(make))


def load_eyes(found: Found, where: Path, dtype: torch.dtype, device: torch.device, *, keep: bool = True) -> Eyes:
    """An image encoder of a folder or a single file, with its preprocessing or else CLIP's.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    kind = transformers.CLIPVisionModelWithProjection
    if where.is_dir():

        def make() -> Any:
            return load_part(kind, where, dtype, device, besides=r"text_model\.|text_projection\.|logit_scale$")

        folders = (where,) if found.single is not None else (found.folder / "feature_extractor", where)
        said = next((path for folder in folders if (path := folder / "preprocessor_config.json").is_file()), None)
    else:
        layout = encoder_layout(where)

        def make() -> Any:
            empty = transformers.CLIPVisionConfig(**layout)
            return fill_part(lambda: kind(empty), lambda net: _vision_tensors(where), str(where), dtype, device)

        said = None
    config = read_json(said) if said is not None else {}
    mean = config.get("image_mean", (0.48145466, 0.4578275, 0.40821073))
    std = config.get("image_std", (0.26862954, 0.26130258, 0.27577711))
    net = make() if keep else lent(make)
    # The network itself says what it takes; a feature extractor may be the safety checker's, of another size.
    return Eyes(net, int(net.config.image_size), tuple(mean), tuple(std))


def _vision_tensors(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        wanted = (name for name in file.shapes if name.startswith(("vision_model.", "visual_projection.")))
        return {name: file.read(name) for name in wanted if not name.endswith("position_ids")}


def pixels(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """A picture as numbers from 0 to 1."""
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1).float() / 255
