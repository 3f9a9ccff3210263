# pyright: reportUnknownMemberType=false

"""What the UNet and the adapters learn from: pictures as latents and as embeddings, and captions read ahead."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from instantstyle.train.emoji.clip import Clip, tokenize
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.training import device
from instantstyle.train.emoji.vae import to_tensor

CONTENT, STYLED = 2, 2
"""Of each picture's captions the first say only what it shows, and the last how it looks too."""

Text = tuple[Float[Tensor, "rows tokens context_dim"], Float[Tensor, "rows pooled_dim"]]
"""Captions as the UNet reads them: context and pooled embedding."""


@dataclass(frozen=True)
class CaptionEmbeddings:
    """Text as the UNet reads it, computed once for every caption a run may meet."""

    texts: tuple[str, ...]
    """The first is the empty one."""
    context: Float[Tensor, "texts tokens context_dim"]
    pooled: Float[Tensor, "texts pooled_dim"]


@dataclass(frozen=True)
class TrainingSet:
    """Pictures by rows, in all the forms that training reads."""

    bank: ImageBank
    latents: Float[Tensor, "n c h w"]
    words: CaptionEmbeddings
    choices: np.ndarray
    """[n, CONTENT + STYLED]: the numbers in `words` of each picture's captions."""
    embeds: Float[Tensor, "n embed"] | None = None

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.bank.pictures.shape[1])

    def rows(self, count: int, rng: np.random.Generator, often: np.ndarray | None = None) -> np.ndarray:
        """Rows drawn at random; `often` says how often each is, to 1 of another, where not all alike."""
        if often is None:
            return rng.integers(len(self.latents), size=count)
        return rng.choice(len(often), size=count, p=often / often.sum())

    def captions(self, rows: np.ndarray, styled: np.ndarray | float, dropped: float, rng: np.random.Generator) -> Text:
        """A caption for each row, on the training device: shares `styled` and `dropped`."""
        column = rng.integers(CONTENT, size=len(rows))
        column = np.where(rng.random(len(rows)) < styled, CONTENT + rng.integers(STYLED, size=len(rows)), column)
        number = self.choices[rows, column]
        number[rng.random(len(rows)) < dropped] = 0
        return self.words.context[number].to(device()).float(), self.words.pooled[number].to(device())

    def to_device(self) -> "TrainingSet":
        """The same, held whole on a GPU where that is the training device: a few gigabytes that no step waits for."""
        if device().type == "cpu":
            return self
        words = replace(self.words, context=self.words.context.to(device()), pooled=self.words.pooled.to(device()))
        embeds = None if self.embeds is None else self.embeds.to(device())
        return replace(self, latents=self.latents.to(device()), words=words, embeds=embeds)

    def image_embeds(self, rows: np.ndarray) -> Float[Tensor, "rows embed"]:
        """Image embeddings of these rows, on the training device."""
        assert self.embeds is not None, "this stage needs image embeddings"
        return self.embeds[rows].to(device())

    def same_style_rows(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each row another row of the same style: another thing by the same hand in the same look."""
        mates = [self.bank.rows_of_style[int(self.bank.style[row])] for row in rows]
        picks = [int(rng.integers(len(m) - 1)) for m in mates]
        return np.array([m[p] if m[p] != row else m[-1] for m, p, row in zip(mates, picks, rows, strict=True)])


@torch.no_grad()
def encode_captions(net: Clip, tokenizer: CLIPTokenizer, texts: list[str], batch: int = 256) -> CaptionEmbeddings:
    """Both towers' last-but-one hidden states, joined, and the pooled embedding of the second: SDXL's conditioning."""
    contexts, pools = list[Tensor](), list[Tensor]()
    net.to(device())
    for i in range(0, len(texts), batch):
        ids = tokenize(tokenizer, texts[i : i + batch]).to(device())
        one = net.text_1(input_ids=ids, output_hidden_states=True)
        two = net.text_2(input_ids=ids, output_hidden_states=True)
        contexts.append(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1).half().cpu())
        pools.append(two.text_embeds.cpu())
    net.cpu()
    return CaptionEmbeddings(tuple(texts), torch.cat(contexts), torch.cat(pools))


@torch.no_grad()
def embed_images(net: Clip, pictures: npt.NDArray[np.uint8], batch: int = 256) -> Float[Tensor, "n embed"]:
    """Unnormalised image embeddings of pictures [n, side, side, 3] of the image encoder's own side."""
    net.to(device())
    parts = [
        net.encode_image(to_tensor(pictures[i : i + batch]).to(device())).cpu() for i in range(0, len(pictures), batch)
    ]
    net.cpu()
    return torch.cat(parts)


def caption_choices(bank: ImageBank, seed: int) -> list[list[str]]:
    """For every picture a few captions to choose from, drawn once so that their text can be read ahead."""
    rng, shares = np.random.default_rng(seed), [0.0] * CONTENT + [1.0] * STYLED
    return [[bank.caption(row, rng, share) for share in shares] for row in range(len(bank.concept))]
