# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

"""The joint stage's second loss: what the UNet takes a latent to have been, and whether it looks like what it is."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from instantstyle.emoji.sources import SETS
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES, sample_transform
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.style_classifier import labels, train_style_classifier
from instantstyle.train.emoji.unet import SCHEDULE, diffusion_loss


def bank(styles: int = 6, each: int = 4) -> ImageBank:
    rng = np.random.default_rng(0)
    families, sets = list(TRAINED_FAMILIES), list(SETS)
    return ImageBank(
        np.zeros((styles * each, 8, 8, 3), np.uint8),
        np.zeros(styles * each, np.int64),
        np.repeat(np.arange(styles), each),
        ("a",),
        tuple(sample_transform(rng, [families[i % 3]]) for i in range(styles)),
        tuple(sets[i % 2] for i in range(styles)),
    )


def test_labels_are_of_each_pictures_own_style() -> None:
    family, hand = labels(bank(styles=6, each=4))
    assert family.tolist() == [i // 4 % 3 for i in range(24)]
    assert hand.tolist() == [i // 4 % 2 for i in range(24)]


@pytest.mark.parametrize("early", [0.6, 1.0])
def test_a_network_that_knows_v_is_judged_by_the_true_latents(early: float) -> None:
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v, for every time but the last, which holds nothing of the picture."""
    alphas: Tensor = cast("Any", DDIMScheduler.from_config(SCHEDULE)).alphas_cumprod
    latents, seen, given = torch.randn(64, 4, 2, 2), dict[str, Tensor](), dict[str, Tensor]()

    def perfect(noised: Tensor, time: Tensor) -> Tensor:

        kept = alphas[time].clamp(0, 1)[:, None, None, None]
        noise = (noised - kept.sqrt() * latents) / (1 - kept).sqrt()
        given["time"] = time
        return kept.sqrt() * noise - (1 - kept).sqrt() * latents

    def judge(taken: Tensor, time: Tensor) -> Tensor:
        seen.update(taken=taken, time=time)
        return torch.tensor(5.0)

    loss = diffusion_loss(perfect, latents, np.random.default_rng(1), timestep_power=early, x0_loss=judge)
    assert float(loss) == pytest.approx(5.0, abs=1e-4)
    torch.testing.assert_close(seen["time"], given["time"])
    torch.testing.assert_close(seen["taken"], latents, atol=2e-3, rtol=0)


def test_a_reader_tells_looks_apart_and_a_blend_of_them_looks_wrong(tmp_path: Path) -> None:
    drawn = bank()
    family, hand = labels(drawn)
    rng = torch.Generator().manual_seed(0)
    marks = torch.randn(3, 32, 8, 8, generator=rng), torch.randn(2, 32, 8, 8, generator=rng)
    latents = marks[0][family] + marks[1][hand]
    looks = train_style_classifier(tmp_path, drawn, latents, steps=60, batch=24)
    rows = np.arange(24)
    true, blend = looks.loss(latents, rows), looks.loss(latents.mean(0, keepdim=True).expand(24, -1, -1, -1), rows)
    others = looks.loss(latents[(rows + 4) % 24], rows)
    assert float(true) < 0.5 * float(blend) < float(others)
