# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A small CLIP: two text encoders and an image encoder with a shared embedding space.

Trained jointly from random weights it learns colours quickly and concepts hardly at all, so it is trained in two
stages.  First the text encoders, with a head that predicts the attributes a caption mentions.  Then the image encoder,
with a contrastive loss against captions and the same head.  Half of the captions name content alone and half describe
the style too: with content alone image embeddings would lose style.  A content caption matches every image of its
concept, so the contrastive target is uniform over all images that a caption matches.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from instantstyle.emoji.captions import SET_WORDS, content_phrase, describe_style
from instantstyle.emoji.sources import SETS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, StyleTransform
from instantstyle.families import EMOJI
from instantstyle.train.emoji.image_bank import SIDE, ImageBank
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.training import device, train_stage
from instantstyle.train.emoji.vae import to_tensor

EMBED = EMOJI.unet.pooled_projection_dim or 0
"""Width of the shared embedding space."""

_CONCEPTS_PER_BATCH, _STYLES_PER_BATCH = 16, 8
"""A batch has this many concepts in each of this many styles."""

_ATTRIBUTE_DIMS = (9, len(TRAINED_FAMILIES), len(SETS))
"""Outputs of the attribute head before the concept logits: three Lab colours, style kind, drawing set."""
_USES_INK = ("palette", "duotone", "hatching", "outline", "papercut", "halftone")
_USES_SECOND = ("palette", "neon", "papercut", "halftone")


@dataclass(frozen=True)
class Attributes:
    """Attributes of an image, and flags for those that a caption mentions (the others are left out of the loss)."""

    concept: int
    transform: StyleTransform
    set_name: str
    background: bool = True
    other_colours: bool = True
    family: bool = True
    drawing_set: bool = True

    def mentioned_in(self, text: str) -> "Attributes":
        """The same with the flags of what this style description mentions."""
        return dataclasses.replace(
            self,
            background=" on " in f" {text}",
            other_colours=False,
            family=self.transform.kind in text,
            drawing_set=SET_WORDS[self.set_name] in text,
        )

    def colours(self) -> tuple[list[float], list[float]]:
        """Three Lab colours as nine values (divided by 50), and a 0/1 mask of those that the loss includes."""
        uses_ink, uses_second = self.transform.kind in _USES_INK, self.transform.kind in _USES_SECOND
        mask = [self.background] * 3 + [self.other_colours and uses_ink] * 3 + [self.other_colours and uses_second] * 3
        return [*_lab(self.transform.background), *_lab(self.transform.foreground), *_lab(self.transform.accent)], [
            float(k) for k in mask
        ]


def _attribute_loss(predicted: Float[Tensor, "n facts"], attributes: Sequence[Attributes]) -> Tensor:
    """Loss of predicted attributes: cross-entropy of the classes and squared error of the colours, where flagged."""
    predicted_colours, family_logits, set_logits, concept_logits = predicted.float().split(
        [*_ATTRIBUTE_DIMS, predicted.shape[1] - sum(_ATTRIBUTE_DIMS)], dim=1
    )
    target_device = predicted.device
    colours, mask = (
        torch.tensor(x, device=target_device) for x in zip(*(a.colours() for a in attributes), strict=True)
    )
    families, sets = list(TRAINED_FAMILIES), list(SETS)
    total = F.cross_entropy(concept_logits, torch.tensor([a.concept for a in attributes], device=target_device))
    total = total + 2.0 * ((predicted_colours - colours).square() * mask).mean()
    for logits, names, values, weight in (
        (family_logits, families, [(a.transform.kind, a.family) for a in attributes], 1.0),
        (set_logits, sets, [(a.set_name, a.drawing_set) for a in attributes], 0.4),
    ):
        index = torch.tensor(
            [names.index(name) if mentioned else -100 for name, mentioned in values], device=target_device
        )
        if (index >= 0).any():
            total = total + weight * F.cross_entropy(logits, index)
    return total


def _lab(colour: tuple[int, int, int]) -> list[float]:
    return [float(v) / 50 for v in cv2.cvtColor(np.array([[colour]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0, 0]]


def make_tokenizer(banks: Sequence[ImageBank], size: int = 2048) -> CLIPTokenizer:
    """A BPE tokenizer in CLIP's format with `size` tokens before the special ones, trained on captions."""
    rng = np.random.default_rng(7)
    captions = [
        bank.caption(int(index), rng, 0.5) for bank in banks for index in rng.integers(len(bank.concept), size=30_000)
    ]
    tokens = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    untyped_tokenizer = cast("Any", tokens)  # the stub has no setters
    untyped_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    untyped_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(cast("Any", " "), "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=size - len(alphabet), initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learned = json.loads(tokens.to_str())["model"]
    ordered = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = dict.fromkeys([*sorted(alphabet), *ordered, "<|startoftext|>", "<|endoftext|>"])
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=cast("Any", merges), model_max_length=EMOJI.max_text_tokens)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids [n, max_text_tokens], padded and truncated."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=EMOJI.max_text_tokens, return_tensors="pt"
    )["input_ids"]


class Clip(nn.Module):
    """The three encoders, and heads that only training uses."""

    def __init__(self, tokenizer: CLIPTokenizer, labels: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text_1 = CLIPTextModel(_text_config(tokenizer, 64, 2, 2, 64, "quick_gelu"))
        self.text_2 = CLIPTextModelWithProjection(_text_config(tokenizer, 128, 3, 4, EMBED, "gelu"))
        self.image = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=160,
                intermediate_size=640,
                num_hidden_layers=4,
                num_attention_heads=5,
                image_size=SIDE,
                patch_size=8,
                projection_dim=EMBED,
                hidden_act="gelu",
            )
        )
        self.project_1 = nn.Linear(64, EMBED, bias=False)
        self.facts = nn.Linear(EMBED, sum(_ATTRIBUTE_DIMS) + labels)
        """The attribute head, shared by text and image embeddings."""
        self.temperature = nn.Parameter(torch.tensor(2.6))

    def encode_text(self, ids: Tensor) -> tuple[Float[Tensor, "n embed"], Float[Tensor, "n embed"]]:
        """Unnormalised text embeddings by the first and the second text encoder."""
        text_2 = self.text_2(input_ids=ids).text_embeds
        return self.project_1(self.text_1(input_ids=ids).pooler_output), text_2

    def encode_image(self, pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n embed"]:
        """Unnormalised image embeddings of images from -1 to 1."""
        return self.image(pixel_values=pictures).image_embeds


def _text_config(
    tokenizer: CLIPTokenizer, width: int, layers: int, heads: int, projection: int, act: str
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=EMOJI.max_text_tokens,
        projection_dim=projection,
        hidden_act=act,
        bos_token_id=cast("int", tokenizer.bos_token_id),
        eos_token_id=cast("int", tokenizer.eos_token_id),
        pad_token_id=cast("int", tokenizer.pad_token_id),
    )


def train_text(folder: Path, banks: Sequence[ImageBank], steps: int, lr: float = 1e-3, batch: int = 128) -> Clip:
    """Train the text encoders (resumable, as stage `text`) to predict the attributes that captions mention."""
    tokenizer, net = _make_clip(folder, banks)
    net.requires_grad_(False)
    for part in (net.text_1, net.text_2, net.project_1, net.facts):
        part.requires_grad_(True)

    def loss(batch_seed: int) -> Tensor:
        rng = np.random.default_rng([19, batch_seed])
        attributes, texts = list[Attributes](), list[str]()
        for _ in range(batch):
            bank, label_offset = (banks[0], 0) if rng.random() < 0.5 else (banks[1], len(banks[0].labels))
            label, style = int(rng.integers(len(bank.labels))), int(rng.integers(len(bank.treatments)))
            style_text = describe_style(bank.treatments[style], bank.sets[style], rng) if rng.random() < 0.6 else ""
            texts.append(", ".join(filter(None, [content_phrase(bank.labels[label], rng), style_text])))
            attributes.append(
                Attributes(label_offset + label, bank.treatments[style], bank.sets[style]).mentioned_in(style_text)
            )
        total = torch.zeros((), device=device())
        for embedding in net.encode_text(tokenize(tokenizer, texts).to(device())):
            total = total + _attribute_loss(net.facts(embedding), attributes)
        return total

    weights = train_stage("text", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, weight_decay=0.05)
    net.load_state_dict({**net.state_dict(), **weights})
    return net.eval()


def train_image(folder: Path, banks: Sequence[ImageBank], text: Clip, steps: int, lr: float = 1e-3) -> Clip:
    """Train the image encoder (resumable, as stage `clip`): contrastive loss with captions, and the attribute loss."""
    tokenizer, net = _make_clip(folder, banks)
    net.load_state_dict(text.state_dict())
    net.requires_grad_(False)
    net.image.requires_grad_(True)
    net.temperature.requires_grad_(True)

    def loss(batch_seed: int) -> Tensor:
        rng = np.random.default_rng([5, batch_seed])
        bank_index = int(rng.random() < 0.15)
        bank, label_offset = banks[bank_index], bank_index * len(banks[0].labels)
        indices = np.concatenate([rng.permutation(indices)[:_CONCEPTS_PER_BATCH] for indices in _styles(bank, rng)])
        with_style = rng.random(len(indices)) < 0.5
        texts, attributes = list[str](), list[Attributes]()
        for index, styled in zip(indices, with_style, strict=True):
            label, style = int(bank.concept[index]), int(bank.style[index])
            style_text = describe_style(bank.treatments[style], bank.sets[style], rng) if styled else ""
            texts.append(", ".join(filter(None, [content_phrase(bank.labels[label], rng), style_text])))
            attributes.append(Attributes(label_offset + label, bank.treatments[style], bank.sets[style]))
        concept, style = torch.from_numpy(bank.concept[indices]), torch.from_numpy(bank.style[indices])
        target = (concept[:, None] == concept[None]) & (
            (style[:, None] == style[None]) | ~torch.from_numpy(with_style)[:, None]
        )
        with torch.no_grad():
            text_embeds = net.encode_text(tokenize(tokenizer, texts).to(device()))[1]
        with autocast_bf16(device()):
            image = net.encode_image(to_tensor(bank.pictures[indices]).to(device())).float()
        logits = net.temperature.exp().clamp(max=50) * F.normalize(text_embeds, dim=-1) @ F.normalize(image, dim=-1).T
        target_weights = target.float().to(device())
        contrastive_loss = -(target_weights / target_weights.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
        contrastive_loss = (
            contrastive_loss
            - (target_weights / target_weights.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
        )
        return contrastive_loss + _attribute_loss(net.facts(image), attributes)

    size = _CONCEPTS_PER_BATCH * _STYLES_PER_BATCH
    weights = train_stage("clip", net, loss, folder=folder, steps=steps, lr=lr, batch=size, weight_decay=0.05)
    # The checkpoint also holds the text encoders as they were when it began; those given may have been trained further.
    net.load_state_dict({**text.state_dict(), **weights})
    return net.eval()


def _make_clip(folder: Path, banks: Sequence[ImageBank]) -> tuple[CLIPTokenizer, Clip]:
    tokenizer = cached_tokenizer(folder, banks)
    return tokenizer, Clip(tokenizer, sum(len(bank.labels) for bank in banks))


def cached_tokenizer(folder: Path, banks: Sequence[ImageBank]) -> CLIPTokenizer:
    """The tokenizer of a working folder, trained if it does not exist."""
    path = folder / "tokenizer"
    if not (path / "tokenizer_config.json").exists():
        make_tokenizer(banks).save_pretrained(path)
    return CLIPTokenizer.from_pretrained(path)


def _styles(bank: ImageBank, rng: np.random.Generator) -> list[np.ndarray]:
    return [bank.rows_of_style[int(s)] for s in rng.choice(len(bank.treatments), _STYLES_PER_BATCH, replace=False)]


@torch.no_grad()
def image_embeddings(net: Clip, pictures: np.ndarray, batch: int = 256) -> Float[Tensor, "n embed"]:
    """Unnormalised image embeddings of images [n, 64, 64, 3] uint8."""
    return torch.cat([net.encode_image(to_tensor(pictures[i : i + batch])) for i in range(0, len(pictures), batch)])


@torch.no_grad()
def agreement(net: Clip, tokenizer: CLIPTokenizer, bank: ImageBank, count: int = 1000) -> dict[str, float]:
    """Zero-shot accuracy over the bank's labels on `count` images, by text encoder."""
    indices = np.sort(np.random.default_rng(11).permutation(len(bank.concept))[:count])
    image = F.normalize(image_embeddings(net, bank.pictures[indices]), dim=-1)
    ids, targets = tokenize(tokenizer, [f"a {label}" for label in bank.labels]), torch.from_numpy(bank.concept[indices])
    text_1, text_2 = net.encode_text(ids)
    text_embeds = {"text_encoder": text_1, "text_encoder_2": text_2}
    correct = {k: (image @ F.normalize(t, dim=-1).T).argmax(1) == targets for k, t in text_embeds.items()}
    return {k: float(v.float().mean()) for k, v in correct.items()}
