"""Similarity metrics that papers publish, by the user's own weights: CLIP-T, CLIP-I, DINO and CSD.

All are cosines of embeddings, from -1 to 1, computed in float32, neither scaled nor clamped.  CLIP-T is of a picture
and a text; the others are of two pictures: CLIP-I by CLIP's projected image embedding, DINO by the class token behind
the last norm, CSD by the two heads of `csd`.  Preprocessing is the one of each folder.  None of them is ground truth:
`CAUTION` says what they reward.  Nothing is ever fetched.
"""

import csv
import hashlib
import importlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.encoders.clip import TextEncoder, load_tokenizer
from instantstyle.errors import InputError, WeightsError
from instantstyle.utils import images
from instantstyle.utils.markdown import markdown_table
from instantstyle.weights.resolve import read_config
from instantstyle.weights.strict_load import from_pretrained_strict, silence_progress

CAUTION = (
    "CLIP-I and DINO to a reference reward copied content: a copy of the reference scores 1. CSD does so less, and a "
    "method that copies can still top it."
)
IMAGE_BATCH = 32
"""Images per forward pass."""
DINO: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "vit": ("ViTModel", {"add_pooling_layer": False}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
    "dinov3_vit": ("DINOv3ViTModel", {}),
}
"""The kinds of DINO by the `model_type` of their folders: a class of transformers, and how it is made."""
ScoreColumn = npt.NDArray[np.float64]
"""One metric of n images, [n]; NaN where there was nothing to compare with."""
Embed = Callable[[Float[Tensor, "n 3 h w"]], Mapping[str, Tensor]]
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class HashedImage:
    """An image file, equal to others with the same pixels, so that a copy of the reference scores exactly 1."""

    digest: str
    path: Path = field(compare=False)

    @classmethod
    def of(cls, path: str | Path) -> "HashedImage":
        """The image in a file.  Raises PictureError."""
        picture = images.load_image(path)
        return cls(hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest(), Path(path))


@dataclass(frozen=True)
class SimilarityTask:
    """An image with the prompt and images that it is compared with, each optional."""

    picture: HashedImage
    prompt: str | None = None
    reference: HashedImage | None = None
    truth: HashedImage | None = None


@dataclass(frozen=True)
class FeatureExtractor:
    """A network with its preprocessing: embeddings of images and, for CLIP, of texts."""

    source: Path
    preprocess: Callable[[Sequence[Image.Image]], Float[Tensor, "n 3 h w"]]
    embed: Embed
    """Embeddings [n, dim] by the metric's name."""
    embed_texts: Callable[[Sequence[str]], Float[Tensor, "n dim"]] | None = None

    @torch.no_grad()
    def image_embeddings(self, shown: Sequence[HashedImage]) -> dict[str, npt.NDArray[np.float64]]:
        """Embeddings of images, [n, dim] each.  Raises PictureError; WeightsError where the network takes others."""
        pixels = self.preprocess([images.load_image(each.path) for each in shown])
        try:
            embeddings = self.embed(pixels)
        except ValueError as e:  # the preprocessing beside the weights is another network's
            raise WeightsError(f"the network in {self.source} does not take what its preprocessing gives: {e}") from e
        return {name: self._checked(vectors) for name, vectors in embeddings.items()}

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Embeddings of texts, [n, dim].  Raises InputError for one that is too long."""
        assert self.embed_texts is not None
        return self._checked(self.embed_texts(texts))

    def _checked(self, vectors: Tensor) -> npt.NDArray[np.float64]:
        values = vectors.double().cpu().numpy()
        squared_norms = np.square(values).sum(-1)
        if not (np.isfinite(squared_norms) & (squared_norms > 0)).all():
            raise WeightsError(f"the network in {self.source} gives an embedding that is no direction: it is damaged")
        return values


def measure_similarity(
    extractors: Sequence[FeatureExtractor], tasks: Sequence[SimilarityTask], tick: Tick = lambda done, of: None
) -> dict[str, ScoreColumn]:
    """Every metric that extractors and tasks allow, by its name, in the order of the extractors.

    Raises InputError when they allow none, and as `FeatureExtractor.image_embeddings` does.
    """
    against = {"reference": [each.reference for each in tasks], "truth": [each.truth for each in tasks]}
    against = {whose: theirs for whose, theirs in against.items() if any(theirs)}
    texts = list(dict.fromkeys(each.prompt for each in tasks if each.prompt))
    used = [extractor for extractor in extractors if against or (extractor.embed_texts is not None and texts)]
    if not used:
        raise InputError("there is nothing to compare with: CLIP needs a prompt or a picture, DINO and CSD a picture")
    own = [each.picture for each in tasks]
    distinct = list(dict.fromkeys([*own, *(each for theirs in against.values() for each in theirs if each)]))
    places = {shown: i for i, shown in enumerate(distinct)}
    columns: dict[str, ScoreColumn] = {}
    for n, extractor in enumerate(used):
        parts: list[dict[str, npt.NDArray[np.float64]]] = []
        for i in range(0, len(distinct), IMAGE_BATCH):
            parts.append(extractor.image_embeddings(distinct[i : i + IMAGE_BATCH]))
            tick(n * len(distinct) + min(i + IMAGE_BATCH, len(distinct)), len(used) * len(distinct))
        if extractor.embed_texts is not None and texts:
            embeddings = dict(zip(texts, extractor.text_embeddings(texts), strict=True))
            vectors = np.concatenate([part["CLIP-I"] for part in parts])
            columns["CLIP-T"] = _cosines([(vectors[places[a.picture]], embeddings.get(a.prompt or "")) for a in tasks])
        for name in parts[0]:
            vectors = np.concatenate([part[name] for part in parts])
            for whose, theirs in against.items():
                pairs = zip(own, theirs, strict=True)
                columns[f"{name} to {whose}"] = _cosines(
                    [(vectors[places[a]], None if b is None else vectors[places[b]]) for a, b in pairs]
                )
    return columns


def _cosines(pairs: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]]) -> ScoreColumn:
    """Cosine similarities, exactly 1 for equal embeddings: the root of a square is exact."""

    def cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64] | None) -> float:
        return math.nan if b is None else float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))

    return np.array([cosine(a, b) for a, b in pairs])


def similarity_table(names: Sequence[str], columns: Mapping[str, ScoreColumn], digits: int = 3) -> list[list[str]]:
    """A header, a row an image, and for several the mean of each metric over the images that have it."""
    rows = [["picture", *columns]]
    rows += [[name, *(_number(c[i], digits) for c in columns.values())] for i, name in enumerate(names)]
    if len(names) > 1:
        rows.append(["mean", *(_number(float(np.nanmean(column)), digits) for column in columns.values())])
    return rows


def markdown_text(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, ending with a newline; the first row is the header."""
    return "\n".join(markdown_table(rows[0], rows[1:])) + "\n"


def encode_table(names: Sequence[str], columns: Mapping[str, ScoreColumn], suffix: str) -> bytes:
    """A file of the table: `.csv` to six digits and without the mean, or `.md`, with what the figures reward."""
    if suffix == ".md":
        return f"{markdown_text(similarity_table(names, columns))}\n{CAUTION}\n".encode(errors="surrogateescape")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(similarity_table(names, columns, 6)[: len(names) + 1])
    return text.getvalue().encode(errors="surrogateescape")


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def load_clip(folder: str | Path, device: torch.device) -> FeatureExtractor:
    """CLIP from a transformers folder with both encoders, tokenizer and preprocessing.  Raises WeightsError."""
    folder = Path(folder).expanduser()
    _model_type(folder, {"clip": ""}, "the folder of a whole CLIP", "openai/clip-vit-large-patch14")
    kind = importlib.import_module("transformers").CLIPModel
    prepare, tokenizer = _preprocessing(folder), load_tokenizer(folder)
    net = from_pretrained_strict(kind, folder, torch.float32, device)

    def embed(pixels: Tensor) -> Mapping[str, Tensor]:
        return {"CLIP-I": net.visual_projection(net.vision_model(pixels.to(device)).pooler_output)}

    def read(texts: Sequence[str]) -> Tensor:
        ids = TextEncoder(tokenizer, net.text_model).tokenize(texts).to(device)
        pooled = [net.text_model(ids[i : i + IMAGE_BATCH]).pooler_output for i in range(0, len(ids), IMAGE_BATCH)]
        return net.text_projection(torch.cat(pooled))

    return FeatureExtractor(folder, prepare, embed, read)


def load_dino(folder: str | Path, device: torch.device) -> FeatureExtractor:
    """DINO, DINOv2 or DINOv3 from a transformers folder.  Raises WeightsError."""
    folder = Path(folder).expanduser()
    kind, more = DINO[_model_type(folder, DINO, "the folder of a DINO", "facebook/dino-vitb16 or facebook/dinov2-base")]
    prepare = _preprocessing(folder)
    cls = getattr(importlib.import_module("transformers"), kind)
    net = from_pretrained_strict(cls, folder, torch.float32, device, besides=r"pooler\.", **more)
    return FeatureExtractor(folder, prepare, lambda pixels: {"DINO": net(pixels.to(device)).last_hidden_state[:, 0]})


def _model_type(folder: Path, known: Mapping[str, object], wanted: str, example: str) -> str:
    """The `model_type` of a folder.  Raises WeightsError when it is not among those that are known."""
    if not folder.is_dir():
        raise WeightsError(
            f"there is no folder {str(folder)!r}: give {wanted} as transformers saves it, such as a download of "
            f"{example} (nothing is fetched here)"
        )
    model_type = read_config(folder / "config.json").get("model_type")
    if model_type not in known:
        raise WeightsError(
            f"{folder} holds a network of the kind {model_type!r}, not {' or '.join(known)}: give {wanted}"
        )
    return str(model_type)


def _preprocessing(folder: Path) -> Callable[[Sequence[Image.Image]], Tensor]:
    """The preprocessing of preprocessor_config.json, by transformers with Pillow.  Raises WeightsError."""
    read_config(folder / "preprocessor_config.json")
    with silence_progress():
        try:
            processor: Any = importlib.import_module("transformers").AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, backend="pil"
            )
        except Exception as e:  # as many kinds as of weights
            message = (str(e).strip().splitlines() or [repr(e)])[0]
            raise WeightsError(f"cannot read the preprocessing in {folder}: {message[:200]}") from e
    return lambda shown: processor(images=list(shown), return_tensors="pt")["pixel_values"]
