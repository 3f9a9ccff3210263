"""The adapter's training: what learns, what does not, and which references it is shown."""

from pathlib import Path

import numpy as np
import pytest
import torch

from instantstyle.emoji.style_transforms import sample_transform
from instantstyle.families import EMOJI
from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.adapter import Reference, train_adapter
from instantstyle.train.emoji.dataset import CaptionEmbeddings, TrainingSet
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.joint_finetune import JointModel, train_joint
from instantstyle.train.emoji.style_classifier import train_style_classifier
from instantstyle.train.emoji.unet import make_unet
from instantstyle.weights.adapter import load_adapter, save_adapter


@pytest.fixture(scope="module")
def unet() -> UNet:
    """The built-in UNet with random weights, its last layer too: from zero nothing upstream would learn."""
    net = make_unet()
    torch.nn.init.normal_(net.conv_out.weight, std=0.02)
    return net.eval()


def bank(styles: int = 3, each: int = 4) -> ImageBank:
    rng = np.random.default_rng(0)
    count = styles * each
    return ImageBank(
        np.zeros((count, 64, 64, 3), np.uint8),
        np.arange(count) % each,
        np.repeat(np.arange(styles), each),
        ("cat", "dog", "house", "star"),
        tuple(sample_transform(rng) for _ in range(styles)),
        ("noto",) * styles,
    )


def corpus() -> TrainingSet:
    generator, config = torch.Generator().manual_seed(0), EMOJI.unet
    width = config.pooled_projection_dim or 0
    words = CaptionEmbeddings(
        ("", "a cat"), torch.randn(2, 5, config.cross_attention_dim, generator=generator), torch.randn(2, width)
    )
    latents = torch.randn(12, config.in_channels, 8, 8, generator=generator)
    seen = torch.randn(12, width, generator=generator)
    return TrainingSet(bank(), latents, words, np.ones((12, 4), np.int64), seen)


@pytest.mark.parametrize(("preset", "reference"), [("all", "same"), ("style", "paired")])
def test_only_the_adapter_learns(unet: UNet, preset: str, reference: Reference, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in unet.named_parameters()}
    plan, config = EMOJI.presets[preset], unet.config
    adapter = train_adapter(tmp_path, "adapter", unet, plan, reference, corpus(), steps=2, batch=3)
    assert all(torch.equal(before[name], p) for name, p in unet.named_parameters())
    assert set(adapter.keys) == {site for site in config.sites if site.kind == "cross" and plan.scale(site)}
    moved = [float((adapter.values[s] - unet.attention(s).to_v.weight).abs().max()) for s in adapter.values]
    assert min(moved) > 0, "every value projection learned"
    save_adapter(tmp_path / "a.safetensors", adapter, config)
    again = load_adapter(tmp_path / "a.safetensors", config, plan=plan)
    tokens = torch.randn(1, config.pooled_projection_dim or 0)
    assert torch.allclose(again.image_tokens(tokens), adapter.image_tokens(tokens), atol=1e-5)


def test_together_both_learn(tmp_path: Path) -> None:
    net = JointModel(make_unet(), EMOJI.presets["style"])
    begun = {name: p.detach().clone() for name, p in net.named_parameters()}
    seen = corpus()
    looks = train_style_classifier(tmp_path, seen.bank, seen.latents, steps=1, batch=6)
    whole = train_joint(tmp_path, net, seen, looks, steps=3, batch=6)
    still = [name for name, weight in whole.items() if torch.equal(weight, begun[name])]
    assert "unet.conv_out.weight" not in still
    assert "style.values.0" not in still
    assert len(still) < len(whole) / 4, "most weights of both learn"


def test_paired_references_are_others_of_the_same_style() -> None:
    data = corpus()
    pictures = data.bank
    rows = np.arange(len(pictures.concept)).repeat(20)
    others = data.same_style_rows(rows, np.random.default_rng(1))
    assert (pictures.style[others] == pictures.style[rows]).all()
    assert (others != rows).all()
    assert {int(o) for o in others[:20]} == {1, 2, 3}


def test_captions_speak_of_the_look_as_often_as_asked() -> None:
    data, rng = corpus(), np.random.default_rng(0)
    data.caption_indices[:, 2:] = 0  # here the empty caption stands for those that speak of the look
    rows = np.arange(12).repeat(200)
    for styled, dropped, empty in ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.5, 0.0, 0.5), (0.0, 0.3, 0.3)):
        pooled = data.captions(rows, styled, dropped, rng)[1]
        share = (pooled == data.caption_embeds.pooled_prompt_embeds[0]).all(dim=1).float().mean()
        assert abs(float(share) - empty) < 0.05
