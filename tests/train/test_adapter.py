"""The adapter's training: what learns, what does not, and which references it is shown."""

from pathlib import Path

import numpy as np
import pytest
import torch

from instantstyle.families import EMOJI
from instantstyle.nets.unet import UNet
from instantstyle.train.world.adapter import Reference, train_adapter
from instantstyle.train.world.bank import Bank
from instantstyle.train.world.unet import Words, new_unet
from instantstyle.weights.adapter import load_adapter, save_adapter
from instantstyle.world.treatments import sample


@pytest.fixture(scope="module")
def unet() -> UNet:
    """The built-in UNet with random weights, its last layer too: from zero nothing upstream would learn."""
    net = new_unet()
    torch.nn.init.normal_(net.conv_out.weight, std=0.02)
    return net.eval()


def bank(styles: int = 3, each: int = 4) -> Bank:
    rng = np.random.default_rng(0)
    count = styles * each
    return Bank(
        np.zeros((count, 64, 64, 3), np.uint8),
        np.arange(count) % each,
        np.repeat(np.arange(styles), each),
        ("cat", "dog", "house", "star"),
        tuple(sample(rng) for _ in range(styles)),
        ("noto",) * styles,
    )


@pytest.mark.parametrize(("preset", "reference"), [("all", "same"), ("style", "paired")])
def test_only_the_adapter_learns(unet: UNet, preset: str, reference: Reference, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {name: p.clone() for name, p in unet.named_parameters()}
    plan, config = EMOJI.presets[preset], unet.config
    width = config.pooled_dim or 0
    words = Words(("", "a cat"), torch.randn(2, 5, config.context_dim, generator=generator), torch.randn(2, width))
    adapter = train_adapter(
        tmp_path,
        "adapter",
        unet,
        plan,
        reference,
        bank(),
        torch.randn(12, config.in_channels, 8, 8, generator=generator),
        torch.randn(12, width, generator=generator),
        words,
        np.ones((12, 2), np.int64),
        steps=2,
        batch=3,
    )
    assert all(torch.equal(before[name], p) for name, p in unet.named_parameters())
    assert set(adapter.keys) == {site for site in config.sites if site.kind == "cross" and plan.at(site)}
    moved = [float((adapter.values[s] - unet.attention(s).to_v.weight).abs().max()) for s in adapter.values]
    assert min(moved) > 0, "every value projection learned"
    save_adapter(tmp_path / "a.safetensors", adapter, config)
    again = load_adapter(tmp_path / "a.safetensors", config, plan=plan)
    tokens = torch.randn(1, width)
    assert torch.allclose(again.tokens(tokens), adapter.tokens(tokens), atol=1e-5)


def test_paired_references_are_others_of_the_same_style() -> None:
    from instantstyle.train.world.adapter import _others  # pyright: ignore[reportPrivateUsage]

    pictures = bank()
    rows = np.arange(len(pictures.concept)).repeat(20)
    others = _others(pictures, rows, np.random.default_rng(1))
    assert (pictures.style[others] == pictures.style[rows]).all()
    assert (others != rows).all()
    assert {int(o) for o in others[:20]} == {1, 2, 3}
