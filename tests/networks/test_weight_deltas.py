"""A varied UNet is what a deep copy with the same changes is, and shares all the rest."""

import copy

import pytest
import torch

import tiny_models
from instantstyle.errors import WeightsError
from instantstyle.networks.unet import UNet
from instantstyle.networks.weight_deltas import with_weight_deltas

NAMES = (
    "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.bias",
    "conv_in.weight",
)


def deltas(unet: UNet) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(3)
    return {name: 0.3 * torch.randn(unet.get_parameter(name).shape, generator=make) for name in NAMES}


def predict(unet: UNet) -> torch.Tensor:
    make = torch.Generator().manual_seed(1)
    c = unet.config
    latents, context = torch.randn(1, c.in_channels, 4, 4, generator=make), torch.randn(1, 3, 32, generator=make)
    pooled = torch.randn(1, c.pooled_projection_dim or 0, generator=make)
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    first, rest = unet.split_at("up.0.1")
    text = unet.precompute_kv(context)
    return rest(first(latents, torch.tensor([500.0]), text, pooled, sizes), text)


def test_it_is_a_copy_with_the_changes_and_the_original_stays() -> None:
    unet = tiny_models.model("emoji").unet
    before, plain = {name: p.clone() for name, p in unet.named_parameters()}, predict(unet)
    expected = copy.deepcopy(unet)
    for name, delta in deltas(unet).items():
        expected.get_parameter(name).add_(delta)
    ours = with_weight_deltas(unet, deltas(unet))
    torch.testing.assert_close(predict(ours), predict(expected), atol=1e-5, rtol=0)
    assert not torch.equal(predict(ours), plain)
    assert torch.equal(predict(unet), plain)
    assert all(torch.equal(parameter, before[name]) for name, parameter in unet.named_parameters())
    again = with_weight_deltas(ours, {NAMES[0]: -deltas(unet)[NAMES[0]]})  # of a varied one too
    assert not torch.equal(predict(again), predict(ours))


def test_all_else_is_shared() -> None:
    unet = tiny_models.model("emoji").unet
    ours = dict(with_weight_deltas(unet, deltas(unet)).named_parameters())
    assert list(ours) == [name for name, _ in unet.named_parameters()]
    own = [name for name, parameter in unet.named_parameters() if ours[name].data_ptr() != parameter.data_ptr()]
    assert sorted(own) == sorted(NAMES)
    assert not any(parameter.requires_grad for parameter in ours.values())


def test_a_change_that_fits_nothing_is_a_sentence() -> None:
    unet = tiny_models.model("emoji").unet
    with pytest.raises(WeightsError, match=r"no parameter 'conv_in\.wight'.*did you mean"):
        with_weight_deltas(unet, {"conv_in.wight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"'conv_in\.bias' has the shape \(3,\).*another family"):
        with_weight_deltas(unet, {"conv_in.bias": torch.zeros(3)})
