# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""CLIP in small: two text towers and an image tower in one space.

Trained jointly from nothing the towers learn colours at once and things hardly ever, so it goes in two stages.  First
the text towers learn alone that whatever a caption says can be read off its embedding.  Then the image tower learns
into their space, by contrast with captions and by the same reading.  Half the captions say only what a picture shows
and half also how it looks: with content alone the image embedding would forget style.  A caption of content alone fits
every picture of that thing, so the contrastive target is spread over all the pictures a caption is true of.
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
"""Width of the space that text and pictures share."""

_THINGS, _STYLES = 16, 8
"""A batch is this many things in each of this many styles."""

_FACTS = (9, len(TRAINED_FAMILIES), len(SETS))
"""Widths of the facts before the thing's own: three Lab colours, the look's family, the hand."""
_USES_INK = ("palette", "duotone", "hatching", "outline", "papercut", "halftone")
_USES_SECOND = ("palette", "neon", "papercut", "halftone")


@dataclass(frozen=True)
class Attributes:
    """What is true of a picture, and which of it a caption says."""

    thing: int
    look: StyleTransform
    set_name: str
    ground: bool = True
    others: bool = True
    family: bool = True
    hand: bool = True

    def said_in(self, text: str) -> "Attributes":
        """Only the facts that this description of the look speaks of."""
        return dataclasses.replace(
            self,
            ground=" on " in f" {text}",
            others=False,
            family=self.look.kind in text,
            hand=SET_WORDS[self.set_name] in text,
        )

    def colours(self) -> tuple[list[float], list[float]]:
        """The nine Lab numbers (in fifties), and for each whether it is to be known."""
        ink, second = self.look.kind in _USES_INK, self.look.kind in _USES_SECOND
        known = [self.ground] * 3 + [self.others and ink] * 3 + [self.others and second] * 3
        return [*_lab(self.look.background), *_lab(self.look.foreground), *_lab(self.look.accent)], [
            float(k) for k in known
        ]


def _facts_loss(read: Float[Tensor, "n facts"], facts: Sequence[Attributes]) -> Tensor:
    """How wrong the facts are that were read off embeddings, over those that are to be known."""
    guessed_colours, family, hand, thing = read.float().split([*_FACTS, read.shape[1] - sum(_FACTS)], dim=1)
    at = read.device
    colours, known = (torch.tensor(x, device=at) for x in zip(*(f.colours() for f in facts), strict=True))
    families, sets = list(TRAINED_FAMILIES), list(SETS)
    total = F.cross_entropy(thing, torch.tensor([f.thing for f in facts], device=at))
    total = total + 2.0 * ((guessed_colours - colours).square() * known).mean()
    for guess, names, values, weight in (
        (family, families, [(f.look.kind, f.family) for f in facts], 1.0),
        (hand, sets, [(f.set_name, f.hand) for f in facts], 0.4),
    ):
        index = torch.tensor([names.index(name) if said else -100 for name, said in values], device=at)
        if (index >= 0).any():
            total = total + weight * F.cross_entropy(guess, index)
    return total


def _lab(colour: tuple[int, int, int]) -> list[float]:
    return [float(v) / 50 for v in cv2.cvtColor(np.array([[colour]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0, 0]]


def make_tokenizer(banks: Sequence[ImageBank], size: int = 2048) -> CLIPTokenizer:
    """Byte-pair codes in CLIP's format, learned from captions."""
    rng = np.random.default_rng(7)
    said = [bank.caption(int(row), rng, 0.5) for bank in banks for row in rng.integers(len(bank.concept), size=30_000)]
    tokens = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    whole = cast("Any", tokens)  # the stub has no setters
    whole.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    whole.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(cast("Any", " "), "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    spelled = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens.train_from_iterator(
        said,
        trainers.BpeTrainer(
            vocab_size=size - len(spelled), initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learned = json.loads(tokens.to_str())["model"]
    ordered = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = dict.fromkeys([*sorted(spelled), *ordered, "<|startoftext|>", "<|endoftext|>"])
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=cast("Any", merges), model_max_length=EMOJI.max_text_tokens)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token numbers [n, text_length], padded and cut."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=EMOJI.max_text_tokens, return_tensors="pt"
    )["input_ids"]


class Clip(nn.Module):
    """The three towers, and heads that live only while training."""

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
        self.facts = nn.Linear(EMBED, sum(_FACTS) + labels)
        """Reads the facts off an embedding, of a text or of a picture alike: one space, one reading."""
        self.temperature = nn.Parameter(torch.tensor(2.6))

    def encode_text(self, ids: Tensor) -> tuple[Float[Tensor, "n embed"], Float[Tensor, "n embed"]]:
        """Embeddings of texts by either tower, not normalised."""
        text_2 = self.text_2(input_ids=ids).text_embeds
        return self.project_1(self.text_1(input_ids=ids).pooler_output), text_2

    def encode_image(self, pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n embed"]:
        """Embeddings of pictures, not normalised."""
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
    """Train the text towers (resumable): whatever a caption says can be read off its embedding, by either tower."""
    tokenizer, net = _begin(folder, banks)
    net.requires_grad_(False)
    for part in (net.text_1, net.text_2, net.project_1, net.facts):
        part.requires_grad_(True)

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([19, number])
        facts, texts = list[Attributes](), list[str]()
        for _ in range(batch):
            bank, first = (banks[0], 0) if rng.random() < 0.5 else (banks[1], len(banks[0].labels))
            label, style = int(rng.integers(len(bank.labels))), int(rng.integers(len(bank.treatments)))
            said = describe_style(bank.treatments[style], bank.sets[style], rng) if rng.random() < 0.6 else ""
            texts.append(", ".join(filter(None, [content_phrase(bank.labels[label], rng), said])))
            facts.append(Attributes(first + label, bank.treatments[style], bank.sets[style]).said_in(said))
        total = torch.zeros((), device=device())
        for embedding in net.encode_text(tokenize(tokenizer, texts).to(device())):
            total = total + _facts_loss(net.facts(embedding), facts)
        return total

    weights = train_stage("text", net, loss, folder=folder, steps=steps, lr=lr, batch=batch, weight_decay=0.05)
    net.load_state_dict({**net.state_dict(), **weights})
    return net.eval()


def train_image(folder: Path, banks: Sequence[ImageBank], text: Clip, steps: int, lr: float = 1e-3) -> Clip:
    """Train the image tower into the text towers' space (resumable): contrast with captions, and the same facts."""
    tokenizer, net = _begin(folder, banks)
    net.load_state_dict(text.state_dict())
    net.requires_grad_(False)
    net.image.requires_grad_(True)
    net.temperature.requires_grad_(True)

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([5, number])
        which = int(rng.random() < 0.15)
        bank, first = banks[which], which * len(banks[0].labels)
        rows = np.concatenate([rng.permutation(rows)[:_THINGS] for rows in _styles(bank, rng)])
        with_look = rng.random(len(rows)) < 0.5
        texts, facts = list[str](), list[Attributes]()
        for row, styled in zip(rows, with_look, strict=True):
            label, style = int(bank.concept[row]), int(bank.style[row])
            said = describe_style(bank.treatments[style], bank.sets[style], rng) if styled else ""
            texts.append(", ".join(filter(None, [content_phrase(bank.labels[label], rng), said])))
            facts.append(Attributes(first + label, bank.treatments[style], bank.sets[style]))
        thing, style = torch.from_numpy(bank.concept[rows]), torch.from_numpy(bank.style[rows])
        target = (thing[:, None] == thing[None]) & (
            (style[:, None] == style[None]) | ~torch.from_numpy(with_look)[:, None]
        )
        with torch.no_grad():
            said_2 = net.encode_text(tokenize(tokenizer, texts).to(device()))[1]
        with autocast_bf16(device()):
            image = net.encode_image(to_tensor(bank.pictures[rows]).to(device())).float()
        likeness = net.temperature.exp().clamp(max=50) * F.normalize(said_2, dim=-1) @ F.normalize(image, dim=-1).T
        wanted = target.float().to(device())
        contrast = -(wanted / wanted.sum(1, keepdim=True) * likeness.log_softmax(1)).sum(1).mean()
        contrast = contrast - (wanted / wanted.sum(0, keepdim=True) * likeness.log_softmax(0)).sum(0).mean()
        return contrast + _facts_loss(net.facts(image), facts)

    size = _THINGS * _STYLES
    weights = train_stage("clip", net, loss, folder=folder, steps=steps, lr=lr, batch=size, weight_decay=0.05)
    # The checkpoint holds the text towers of its own day; the UNet reads those given, which may have learned since.
    net.load_state_dict({**text.state_dict(), **weights})
    return net.eval()


def _begin(folder: Path, banks: Sequence[ImageBank]) -> tuple[CLIPTokenizer, Clip]:
    tokenizer = cached_tokenizer(folder, banks)
    return tokenizer, Clip(tokenizer, sum(len(bank.labels) for bank in banks))


def cached_tokenizer(folder: Path, banks: Sequence[ImageBank]) -> CLIPTokenizer:
    """The tokenizer of a working folder, made when it is not there yet."""
    where = folder / "tokenizer"
    if not (where / "tokenizer_config.json").exists():
        make_tokenizer(banks).save_pretrained(where)
    return CLIPTokenizer.from_pretrained(where)


def _styles(bank: ImageBank, rng: np.random.Generator) -> list[np.ndarray]:
    return [bank.rows_of_style[int(s)] for s in rng.choice(len(bank.treatments), _STYLES, replace=False)]


@torch.no_grad()
def image_embeddings(net: Clip, pictures: np.ndarray, batch: int = 256) -> Float[Tensor, "n embed"]:
    """Unnormalised image embeddings of pictures [n, 64, 64, 3] uint8."""
    return torch.cat([net.encode_image(to_tensor(pictures[i : i + batch])) for i in range(0, len(pictures), batch)])


@torch.no_grad()
def agreement(net: Clip, tokenizer: CLIPTokenizer, bank: ImageBank, count: int = 1000) -> dict[str, float]:
    """Share of pictures whose nearest label text (of all the bank's labels) is right, by either text tower."""
    rows = np.sort(np.random.default_rng(11).permutation(len(bank.concept))[:count])
    image = F.normalize(image_embeddings(net, bank.pictures[rows]), dim=-1)
    ids, truth = tokenize(tokenizer, [f"a {label}" for label in bank.labels]), torch.from_numpy(bank.concept[rows])
    text_1, text_2 = net.encode_text(ids)
    named = {"text_encoder": text_1, "text_encoder_2": text_2}
    right = {k: (image @ F.normalize(t, dim=-1).T).argmax(1) == truth for k, t in named.items()}
    return {k: float(v.float().mean()) for k, v in right.items()}
