# pyright: reportUnknownMemberType=false

"""Training data of the UNet and the adapters: latents, image embeddings and precomputed caption embeddings."""

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
"""Captions of each image: the first `CONTENT` name its content alone, the last `STYLED` its style as well."""

Text = tuple[Float[Tensor, "rows tokens context_dim"], Float[Tensor, "rows pooled_dim"]]
"""Prompt embeddings and pooled prompt embeddings of captions."""


@dataclass(frozen=True)
class CaptionEmbeddings:
    """Prompt embeddings of every caption of a run, computed once."""

    texts: tuple[str, ...]
    """The first is the empty caption."""
    prompt_embeds: Float[Tensor, "texts tokens context_dim"]
    pooled_prompt_embeds: Float[Tensor, "texts pooled_dim"]


@dataclass(frozen=True)
class TrainingSet:
    """Images by row: pixels, latents, caption embeddings and, for adapters, image embeddings."""

    bank: ImageBank
    latents: Float[Tensor, "n c h w"]
    caption_embeds: CaptionEmbeddings
    caption_indices: np.ndarray
    """[n, CONTENT + STYLED]: indices in `caption_embeds` of each image's captions."""
    embeds: Float[Tensor, "n embed"] | None = None

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.bank.pictures.shape[1])

    def sample_indices(self, count: int, rng: np.random.Generator, weights: np.ndarray | None = None) -> np.ndarray:
        """Indices [count] drawn at random with replacement, in proportion to `weights` [n] where they are given."""
        if weights is None:
            return rng.integers(len(self.latents), size=count)
        return rng.choice(len(weights), size=count, p=weights / weights.sum())

    def captions(
        self, indices: np.ndarray, styled: np.ndarray | float, dropped: float, rng: np.random.Generator
    ) -> Text:
        """A random caption for each image, on the training device.

        `styled` is the probability that it describes the style, `dropped` that it is empty.
        """
        column = rng.integers(CONTENT, size=len(indices))
        column = np.where(rng.random(len(indices)) < styled, CONTENT + rng.integers(STYLED, size=len(indices)), column)
        selected = self.caption_indices[indices, column]
        selected[rng.random(len(indices)) < dropped] = 0
        return self.caption_embeds.prompt_embeds[selected].to(
            device()
        ).float(), self.caption_embeds.pooled_prompt_embeds[selected].to(device())

    def to_device(self) -> "TrainingSet":
        """The same with all tensors on the training device (a few GB); unchanged where that is the CPU."""
        if device().type == "cpu":
            return self
        caption_embeds = replace(
            self.caption_embeds,
            prompt_embeds=self.caption_embeds.prompt_embeds.to(device()),
            pooled_prompt_embeds=self.caption_embeds.pooled_prompt_embeds.to(device()),
        )
        embeds = None if self.embeds is None else self.embeds.to(device())
        return replace(self, latents=self.latents.to(device()), caption_embeds=caption_embeds, embeds=embeds)

    def image_embeds(self, indices: np.ndarray) -> Float[Tensor, "rows embed"]:
        """Image embeddings of these images, on the training device."""
        assert self.embeds is not None, "this stage needs image embeddings"
        return self.embeds[indices].to(device())

    def same_style_rows(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each image the index of another image of the same style, which shows another concept."""
        candidates = [self.bank.rows_of_style[int(self.bank.style[index])] for index in indices]
        picks = [int(rng.integers(len(options) - 1)) for options in candidates]
        return np.array(
            [
                options[p] if options[p] != index else options[-1]
                for options, p, index in zip(candidates, picks, indices, strict=True)
            ]
        )


@torch.no_grad()
def encode_captions(net: Clip, tokenizer: CLIPTokenizer, texts: list[str], batch: int = 256) -> CaptionEmbeddings:
    """SDXL's text conditioning: both encoders' concatenated penultimate states, and the second's pooled output."""
    prompt_embeds, pooled_prompt_embeds = list[Tensor](), list[Tensor]()
    net.to(device())
    for i in range(0, len(texts), batch):
        ids = tokenize(tokenizer, texts[i : i + batch]).to(device())
        output_1 = net.text_1(input_ids=ids, output_hidden_states=True)
        output_2 = net.text_2(input_ids=ids, output_hidden_states=True)
        prompt_embeds.append(torch.cat([output_1.hidden_states[-2], output_2.hidden_states[-2]], dim=-1).half().cpu())
        pooled_prompt_embeds.append(output_2.text_embeds.cpu())
    net.cpu()
    return CaptionEmbeddings(tuple(texts), torch.cat(prompt_embeds), torch.cat(pooled_prompt_embeds))


@torch.no_grad()
def embed_images(net: Clip, pictures: npt.NDArray[np.uint8], batch: int = 256) -> Float[Tensor, "n embed"]:
    """Unnormalised image embeddings of images [n, side, side, 3] at the image encoder's resolution."""
    net.to(device())
    parts = [
        net.encode_image(to_tensor(pictures[i : i + batch]).to(device())).cpu() for i in range(0, len(pictures), batch)
    ]
    net.cpu()
    return torch.cat(parts)


def caption_choices(bank: ImageBank, seed: int) -> list[list[str]]:
    """Captions of every image, `CONTENT` and then `STYLED` of them, drawn once so that they can be precomputed."""
    rng, shares = np.random.default_rng(seed), [0.0] * CONTENT + [1.0] * STYLED
    return [[bank.caption(index, rng, share) for share in shares] for index in range(len(bank.concept))]
