# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""A style classifier on latents (style kind and drawing set), and its loss, which the stage `joint` adds.

The squared error of v is minimal at the mean of all textures that are possible; a classifier trained on clean latents
rejects that mean.  It is applied to the predicted x_0 = sqrt(a) x_t - sqrt(1 - a) v: a perceptual loss in latent space,
as in Lin and Yang (arXiv 2401.00110).
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
"""Most noise (std) added to the latents in training, scaled by 1 - noise / 2: it makes the classifier robust."""


class StyleClassifier(nn.Module):
    """Logits of style kind and drawing set, from the mean and standard deviation of convolutional features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.enter = nn.Conv2d(EMOJI.unet.in_channels, _WIDTH, 3, padding=1)
        self.body = nn.Sequential(*(_Residual() for _ in range(_DEPTH)))
        self.norm = nn.GroupNorm(8, _WIDTH)
        self.family = nn.Linear(2 * _WIDTH, len(TRAINED_FAMILIES))
        self.hand = nn.Linear(2 * _WIDTH, len(SETS))

    def forward(self, latents: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n families"], Float[Tensor, "n sets"]]:
        """Logits of the style kind and of the drawing set."""
        features = F.silu(self.norm(self.body(self.enter(latents))))
        statistics = torch.cat([features.mean((2, 3)), features.std((2, 3))], dim=1)
        return self.family(statistics), self.hand(statistics)


class _Residual(nn.Module):
    """A residual block of two convolutions, initialised as the identity."""

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
        """`x` plus the output of the convolutions."""
        return x + self.inner(x)


class StyleLoss:
    """Cross-entropy of a frozen style classifier."""

    def __init__(self, classifier: StyleClassifier, bank: ImageBank) -> None:
        self._classifier = classifier.to(device()).requires_grad_(False).eval()
        self._family_labels, self._set_labels = labels(bank)

    def loss(self, latents: Float[Tensor, "n c h w"], indices: np.ndarray) -> Tensor:
        """Sum of both cross-entropies, mean over rows, with the styles of the bank's images `indices` as targets."""
        with autocast_bf16(device()):
            family_logits, set_logits = self._classifier(latents)
        return _cross_entropy(family_logits, set_logits, self._family_labels[indices], self._set_labels[indices])


def labels(bank: ImageBank) -> tuple[Tensor, Tensor]:
    """Class indices of every image: style kind [n] and drawing set [n]."""
    families, sets = list(TRAINED_FAMILIES), list(SETS)
    of_style = [(families.index(t.kind), sets.index(s)) for t, s in zip(bank.treatments, bank.sets, strict=True)]
    families_of_images, sets_of_images = torch.tensor(of_style)[torch.from_numpy(bank.style)].unbind(dim=1)
    return families_of_images, sets_of_images


def _cross_entropy(
    family_logits: Tensor, set_logits: Tensor, families: Tensor, sets: Tensor, smooth: float = 0.0
) -> Tensor:
    return sum(
        F.cross_entropy(logits.float(), targets.to(device()), label_smoothing=smooth)
        for logits, targets in ((family_logits, families), (set_logits, sets))
    ) + torch.zeros((), device=device())


def train_style_classifier(
    folder: Path, bank: ImageBank, latents: Float[Tensor, "n c h w"], steps: int, batch: int = 192, lr: float = 2e-3
) -> StyleLoss:
    """Train the classifier on clean latents (resumable, as stage `look`); returns its loss."""
    classifier, (families, sets) = StyleClassifier(), labels(bank)

    def loss(batch_seed: int) -> Tensor:
        rng = np.random.default_rng([37, batch_seed])
        indices = rng.integers(len(latents), size=batch)
        noise_level = torch.from_numpy(_NOISE * rng.random((batch, 1, 1, 1), dtype=np.float32) ** 2)
        noise = torch.from_numpy(rng.standard_normal((batch, *latents.shape[1:]), dtype=np.float32))
        noisy_latents = latents[indices].cpu().float() * (1 - noise_level / 2) + noise_level * noise
        with autocast_bf16(device()):
            family_logits, set_logits = classifier(noisy_latents.to(device()))
        return _cross_entropy(family_logits, set_logits, families[indices], sets[indices], smooth=0.05)

    weights = train_stage(
        "look", classifier, loss, folder=folder, steps=steps, lr=lr, batch=batch, weight_decay=0.05, ema_decay=0.99
    )
    classifier.load_state_dict(weights)
    return StyleLoss(classifier, bank)
