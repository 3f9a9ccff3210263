"""Projections of image features; as parts of a UNet they are held to diffusers' in tests/oracle."""

import torch

from instantstyle.networks.image_projection import ImageProjection, Resampler
from oracle.paired_unets import random_weights

ENDS = {"latents", *(f"{name}.{kind}" for name in ("proj_in", "proj_out", "norm_out") for kind in ("weight", "bias"))}
GATHER = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "to_q.weight", "to_kv.weight", "to_out.weight"}
FEED_FORWARD = {"0.weight", "0.bias", "1.weight", "3.weight"}


def test_an_embedding_becomes_normed_slices_of_its_projection() -> None:
    projection = ImageProjection(5, 8, 3)
    projection.load_state_dict(random_weights(projection))
    assert set(projection.state_dict()) == {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}
    embedding = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    flat = embedding @ projection.proj.weight.T + projection.proj.bias
    for i in range(3):
        token = flat[:, 8 * i : 8 * (i + 1)]
        normed = (token - token.mean(1, keepdim=True)) / (token.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        expected = normed * projection.norm.weight + projection.norm.bias
        torch.testing.assert_close(projection(embedding)[:, i], expected)


def test_the_tokens_of_nothing_are_not_zero() -> None:
    projection = ImageProjection(5, 8, 3)
    projection.load_state_dict(random_weights(projection))
    assert projection(torch.zeros(1, 5)).abs().max() > 0.1


def test_resampler_names_and_shapes_are_published() -> None:
    """Of ip-adapter-plus_sdxl_vit-h: width 1280, depth 4, 20 heads, 16 tokens; 82,961,664 parameters."""
    with torch.device("meta"):
        plus = Resampler(1280, 2048, 16, dim=1280, depth=4, heads=20)
    layers = {f"layers.{i}.0.{name}" for i in range(4) for name in GATHER}
    layers |= {f"layers.{i}.1.{name}" for i in range(4) for name in FEED_FORWARD}
    assert set(plus.state_dict()) == ENDS | layers
    assert sum(p.numel() for p in plus.parameters()) == 82_961_664
    assert plus.state_dict()["layers.0.0.to_kv.weight"].shape == (2560, 1280)
