# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A reader of looks: a small network that tells treatment and drawing set off latents, and lends `joint` a second loss.

The squared error of v is content with the mean of all textures that are still possible; a reader that was taught on
true latents is not.  So what the UNet takes a noised latent to have been, x_0 = sqrt(a) x_t - sqrt(1 - a) v, is read
as well, and must look like what it is.  A perceptual loss in latent space, as in Lin and Yang (arXiv 2401.00110).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.emoji.sources import SETS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.families import EMOJI
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.mixed_precision import autocast_bf16
from instantstyle.train.emoji.training import device, train_stage

_WIDTH, _DEPTH = 128, 4
_NOISE = 0.8
"""Latents are dimmed and noised by up to this much, so that a reading does not hang on their finest grain."""


class StyleClassifier(nn.Module):
    """Logits of treatment family and of drawing set, from the mean and the spread of what convolutions see."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.enter = nn.Conv2d(EMOJI.unet.in_channels, _WIDTH, 3, padding=1)
        self.body = nn.Sequential(*(_Residual() for _ in range(_DEPTH)))
        self.norm = nn.GroupNorm(8, _WIDTH)
        self.family = nn.Linear(2 * _WIDTH, len(TRAINED_FAMILIES))
        self.hand = nn.Linear(2 * _WIDTH, len(SETS))

    def forward(self, latents: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n families"], Float[Tensor, "n sets"]]:
        """Logits of either."""
        seen = F.silu(self.norm(self.body(self.enter(latents))))
        said = torch.cat([seen.mean((2, 3)), seen.std((2, 3))], dim=1)
        return self.family(said), self.hand(said)


class _Residual(nn.Module):
    """Two convolutions beside the identity, which it is at first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(8, _WIDTH),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.GroupNorm(8, _WIDTH),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 1),
        )
        last = self.inner[-1]
        assert isinstance(last, nn.Conv2d)
        for weight in last.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """The residual."""
        return x + self.inner(x)


class StyleLoss:
    """How wrongly latents look, to a reader that learns no more."""

    def __init__(self, reader: StyleClassifier, bank: ImageBank) -> None:
        self._reader = reader.to(device()).requires_grad_(False).eval()
        self._family, self._hand = labels(bank)

    def loss(self, latents: Float[Tensor, "n c h w"], rows: np.ndarray) -> Tensor:
        """Mean cross-entropy of both readings of what should look like the bank's `rows`."""
        with autocast_bf16(device()):
            family, hand = self._reader(latents)
        return _wrong(family, hand, self._family[rows], self._hand[rows])


def labels(bank: ImageBank) -> tuple[Tensor, Tensor]:
    """Of every picture, the numbers of its family and of its set."""
    families, sets = list(TRAINED_FAMILIES), list(SETS)
    of_style = [(families.index(t.kind), sets.index(s)) for t, s in zip(bank.treatments, bank.sets, strict=True)]
    family, hand = torch.tensor(of_style)[torch.from_numpy(bank.style)].unbind(dim=1)
    return family, hand


def _wrong(family: Tensor, hand: Tensor, families: Tensor, hands: Tensor, smooth: float = 0.0) -> Tensor:
    return sum(
        F.cross_entropy(logits.float(), true.to(device()), label_smoothing=smooth)
        for logits, true in ((family, families), (hand, hands))
    ) + torch.zeros((), device=device())


def train_style_classifier(
    folder: Path, bank: ImageBank, latents: Float[Tensor, "n c h w"], steps: int, batch: int = 192, lr: float = 2e-3
) -> StyleLoss:
    """Train the reader (resumable, as stage `look`)."""
    reader, (families, hands) = StyleClassifier(), labels(bank)

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([37, number])
        rows = rng.integers(len(latents), size=batch)
        spread = torch.from_numpy(_NOISE * rng.random((batch, 1, 1, 1), dtype=np.float32) ** 2)
        grain = torch.from_numpy(rng.standard_normal((batch, *latents.shape[1:]), dtype=np.float32))
        dimmed = latents[rows].cpu().float() * (1 - spread / 2) + spread * grain
        with autocast_bf16(device()):
            family, hand = reader(dimmed.to(device()))
        return _wrong(family, hand, families[rows], hands[rows], smooth=0.05)

    weights = train_stage(
        "look", reader, loss, folder=folder, steps=steps, lr=lr, batch=batch, weight_decay=0.05, ema_decay=0.99
    )
    reader.load_state_dict(weights)
    return StyleLoss(reader, bank)
