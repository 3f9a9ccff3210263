"""Our UNet against diffusers': names, shapes, outputs, ControlNet residuals."""

from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from instantstyle.blocks import Site, UNetConfig
from instantstyle.families import FAMILIES
from instantstyle.networks.unet import UNet
from oracle.paired_unets import TINY, TINY_SD15, TINY_SDXL, Inputs, PairedUNets, diffusers_config, random_weights

PARAMETERS = {"sdxl": 2_567_463_684, "sd15": 859_520_964}
"""Of stable-diffusion-xl-base-1.0 and stable-diffusion-v1-5."""


def _meta(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    with torch.device("meta"):
        return UNet(config), UNet2DConditionModel(**diffusers_config(config))


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_diffusers_at_full_size(family: str) -> None:
    ours, theirs = _meta(FAMILIES[family].unet)
    assert _shapes(ours) == _shapes(theirs)
    if family in PARAMETERS:
        assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_numbered_as_published(family: str) -> None:
    """N of `ip_adapter.N` is the position among diffusers' attention processors; so each site must find its own."""
    config = FAMILIES[family].unet
    _, theirs = _meta(config)

    def published(site: Site) -> str:
        block = "mid_block" if site.stage == "mid" else f"{site.stage}_blocks.{site.block}"
        number = 1 if site.kind == "self" else 2
        return f"{block}.attentions.{site.attention}.transformer_blocks.{site.layer}.attn{number}.processor"

    assert [published(site) for site in config.sites] == list(theirs.attn_processors)


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (9, 7), (10, 13)], ids=str)
@pytest.mark.parametrize("layout", TINY)
def test_outputs_are_diffusers(layout: str, size: tuple[int, int]) -> None:
    twins, inputs = PairedUNets.random(TINY[layout]), Inputs.random(TINY[layout], size=size)
    expected = twins.expect(inputs)
    assert expected.std() > 0.1
    torch.testing.assert_close(twins.predict(inputs), expected, atol=1e-5, rtol=1e-4)


def test_the_built_in_layout_predicts_as_diffusers() -> None:
    config = FAMILIES["emoji"].unet
    twins, inputs = PairedUNets.random(config), Inputs.random(config)
    torch.testing.assert_close(twins.predict(inputs), twins.expect(inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_outputs_are_diffusers_in_other_precisions(dtype: torch.dtype) -> None:
    twins, inputs = PairedUNets.random(TINY_SDXL), Inputs.random(TINY_SDXL)
    twins.ours.to(dtype)
    twins.theirs.to(dtype)
    cast = Inputs(*(None if t is None else t.to(dtype) for t in vars(inputs).values()))  # pyright: ignore[reportArgumentType]
    tolerance = 1e-10 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(twins.predict(cast), twins.expect(cast), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("config", [TINY_SDXL, TINY_SD15], ids=["sdxl", "sd15"])
def test_controlnet_residuals_enter_as_in_diffusers(config: UNetConfig) -> None:
    """Residuals of a ControlNet, at an odd latent size; its zero convolutions too are random, to have a say."""
    twins, inputs = PairedUNets.random(config), Inputs.random(config, size=(9, 7))
    control: Any = ControlNetModel.from_unet(twins.theirs)
    control.load_state_dict(random_weights(control, seed=2))
    control.eval().requires_grad_(False)
    picture = torch.rand(2, 3, 72, 56, generator=torch.Generator().manual_seed(3))
    added: dict[str, Any] = {}
    if inputs.pooled is not None:
        added = {"text_embeds": inputs.pooled, "time_ids": inputs.sizes}
    down: list[Tensor]
    down, mid = control(
        inputs.latents, inputs.time, inputs.context, picture, added_cond_kwargs=added, return_dict=False
    )
    expected = twins.expect(inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid)
    assert (expected - twins.expect(inputs)).abs().max() > 0.01
    torch.testing.assert_close(twins.predict(inputs, residuals=(down, mid)), expected, atol=1e-5, rtol=1e-4)
