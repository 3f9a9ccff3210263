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
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from instantstyle.errors import InputError, WeightsError
from instantstyle.utils.images import ResizeMode, resize_square
from instantstyle.weights.clip_vocab import clip_vocabulary
from instantstyle.weights.resolve import ResolvedModel, encoder_layout, is_siglip, read_config
from instantstyle.weights.single_file import ComponentName
from instantstyle.weights.strict_load import from_pretrained_strict, load_state
from instantstyle.weights.tensor_files import open_tensors

ENCODE_BATCH_SIZE = 64
"""Texts or pictures that go through an encoder at a time."""


@dataclass(frozen=True)
class TextEmbeddings:
    """What the text encoders make of some texts."""

    prompt_embeds: Float[Tensor, "n tokens context_dim"]
    """What cross-attention reads: the hidden states of all towers, side by side."""
    pooled_prompt_embeds: Float[Tensor, "n pooled_dim"] | None
    """What SDXL adds to the time embedding; None for families without."""
    text_embeds: Float[Tensor, "n dim"] | None
    """Un-normalised, in the space that image embeddings share; None where no tower projects into one."""


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder with its tokenizer."""

    tokenizer: Any
    net: Any
    truncates: bool = False
    """Whether a longer text is cut, since another encoder reads the whole of it; else it is refused."""

    special_tokens = 2
    """Tokens that begin and end every text."""

    @property
    def max_length(self) -> int:
        """Tokens every text is padded to."""
        return min(int(self.tokenizer.model_max_length), int(self.net.config.max_position_embeddings))

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "n length"]:
        """The tokens of texts, [n, length].  Raises InputError when one is longer: nothing is dropped unsaid."""
        if self.truncates:
            long = {"padding": "max_length", "max_length": self.max_length, "truncation": True}
            return self.tokenizer(list(texts), **long, return_tensors="pt").input_ids
        bare: list[list[int]] = self.tokenizer(list(texts)).input_ids
        for text, ids in zip(texts, bare, strict=True):
            if len(ids) > self.max_length:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                read = self.max_length - self.special_tokens
                raise InputError(
                    f"the text {shown!r} is {len(ids) - self.special_tokens} tokens long and this model reads {read}: "
                    f"it would not see {self.left_over(text)[:60]!r}; say it in fewer words"
                )
        return self.tokenizer(
            list(texts), padding="max_length", max_length=self.max_length, return_tensors="pt"
        ).input_ids

    def left_over(self, text: str) -> str:
        """What of a text is beyond the length that is read."""
        ids: list[int] = self.tokenizer([text], verbose=False).input_ids[0]
        return self.tokenizer.decode(ids[self.max_length - 1 : -1]).strip() if len(ids) > self.max_length else ""

    def network(self) -> Any:
        """The network, read from its files where it is for every use."""
        return self.net.load() if isinstance(self.net, ReloadedModule) else self.net

    def encode(
        self, texts: Sequence[str], skip: int, device: torch.device, *, final_norm: bool = False
    ) -> tuple[Float[Tensor, "n length width"], Float[Tensor, "n embed_dim"] | None]:
        """The hidden states `skip` from the end (1: the last, with its norm), and the embedding where it projects.

        `final_norm` applies the norm to a hidden state before the last too.
        """
        net = self.network()
        out = net(self.tokenize(texts).to(device), output_hidden_states=True)
        hidden = out.last_hidden_state if skip == 1 else out.hidden_states[-skip]
        if final_norm and skip > 1:
            hidden = getattr(net, "text_model", net).final_layer_norm(hidden)
        return hidden, getattr(out, "text_embeds", None)


@dataclass(frozen=True)
class ImageEncoder:
    """The image encoder with the numbers of its preprocessing."""

    net: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def preprocess(self, pictures: Sequence[Image.Image], fit: ResizeMode) -> Float[Tensor, "n 3 size size"]:
        """Pictures as the encoder takes them: square, and scaled as its preprocessor_config.json says; on the CPU."""
        shown = torch.stack(
            [to_unit_pixels(resize_square(picture.convert("RGB"), fit, self.size)) for picture in pictures]
        )
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        return (shown - mean) / std

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "n 3 size size"], *, hidden: bool) -> Float[Tensor, "n *features"]:
        """The embedding of prepared pictures, or the last-but-one hidden states."""
        outs = [
            self.net(pixels[i : i + ENCODE_BATCH_SIZE], output_hidden_states=hidden)
            for i in range(0, len(pixels), ENCODE_BATCH_SIZE)
        ]
        return torch.cat([out.hidden_states[-2] if hidden else _image_embeds(out) for out in outs])


def _image_embeds(out: Any) -> Tensor:
    """CLIP's projected embedding; SigLIP projects nothing, and pools by attention."""
    return out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output


class ReloadedModule(nn.Module):
    """An encoder that is read from its files for every use and let go after it: slower, and in nobody's way."""

    def __init__(self, make: Callable[[], Any], config: Any) -> None:
        super().__init__()
        self.load, self.config = make, config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of the network itself, read for this."""
        return self.load().state_dict(*args, **kwargs)


def reload_on_use(make: Callable[[], Any]) -> ReloadedModule:
    """A network to be made for every use.  It is made once now, so that files that do not fit are an error at once."""
    return ReloadedModule(make, make().config)


def load_text_encoder(
    source: ResolvedModel,
    part: ComponentName,
    tokenizer: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep: bool = True,
    truncates: bool = False,
) -> TextEncoder:
    """A text encoder of a model and its tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    config = source.config(f"{part}/config.json")
    projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    single = source.single
    if single is None:

        def make() -> Any:
            return from_pretrained_strict(kind, source.folder / part, dtype, device)

        return TextEncoder(
            load_tokenizer(source.folder / tokenizer), make() if keep else reload_on_use(make), truncates
        )

    def convert() -> Any:
        empty = transformers.CLIPTextConfig(**{name: x for name, x in config.items() if name != "architectures"})
        return load_state(lambda: kind(empty), lambda net: single.tensors(part, net), str(single.path), dtype, device)

    vocabulary, merges = clip_vocabulary()
    # As published: SDXL's second tower pads with the token 0, all others with the end of the text.
    padding = {"pad_token": "!"} if part == "text_encoder_2" else {}
    tokens = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **padding)
    return TextEncoder(_without_length_warning(tokens), convert() if keep else reload_on_use(convert))


def load_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    try:
        return _without_length_warning(transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception as e:  # a dozen kinds, none of them documented
        raise WeightsError(f"cannot read the tokenizer in {folder}: {e}") from e


def _without_length_warning(tokenizer: Any) -> Any:
    """The tokenizer without transformers' warning of long texts: they are refused here, or read in chunks."""
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load_content_text_encoder(
    folder: Path, dtype: torch.dtype, device: torch.device, *, keep: bool = True
) -> TextEncoder:
    """The text tower in a CLIP's folder, which may hold the whole CLIP, and its tokenizer.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")

    def make() -> Any:
        kind = transformers.CLIPTextModelWithProjection
        return from_pretrained_strict(
            kind, folder, dtype, device, besides=r"vision_model\.|visual_projection\.|logit_scale$"
        )

    inside = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    return TextEncoder(load_tokenizer(inside), make() if keep else reload_on_use(make))


def load_image_encoder(
    source: ResolvedModel, where: Path, dtype: torch.dtype, device: torch.device, *, keep: bool = True
) -> ImageEncoder:
    """An image encoder of a folder or a single file, with its preprocessing or else CLIP's.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    kind, siglip = transformers.CLIPVisionModelWithProjection, False
    if where.is_dir():
        siglip = is_siglip(encoder_layout(where))
        kind = transformers.SiglipVisionModel if siglip else kind

        def make() -> Any:
            return from_pretrained_strict(
                kind, where, dtype, device, besides=r"text_model\.|text_projection\.|logit_(scale|bias)$"
            )

        folders = (where,) if source.single is not None else (source.folder / "feature_extractor", where)
        preprocessing = next(
            (path for folder in folders if (path := folder / "preprocessor_config.json").is_file()), None
        )
    else:
        layout = encoder_layout(where)

        def make() -> Any:
            empty = transformers.CLIPVisionConfig(**layout)
            return load_state(lambda: kind(empty), lambda net: _vision_tensors(where), str(where), dtype, device)

        preprocessing = None
    config = read_config(preprocessing) if preprocessing is not None else {}
    grey = (0.5, 0.5, 0.5)
    mean = config.get("image_mean", grey if siglip else (0.48145466, 0.4578275, 0.40821073))
    std = config.get("image_std", grey if siglip else (0.26862954, 0.26130258, 0.27577711))
    net = make() if keep else reload_on_use(make)
    # The network itself says what it takes; a feature extractor may be the safety checker's, of another size.
    return ImageEncoder(net, int(net.config.image_size), tuple(mean), tuple(std))


def _vision_tensors(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        wanted = (name for name in file.shapes if name.startswith(("vision_model.", "visual_projection.")))
        return {name: file.read(name) for name in wanted if not name.endswith("position_ids")}


def to_unit_pixels(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """A picture as numbers from 0 to 1."""
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1).float() / 255
