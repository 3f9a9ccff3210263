"""One random adapter file through ours and through diffusers' `load_ip_adapter` and `set_ip_adapter_scale`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.ip_adapter import IPAdapterMixin
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site, UNetConfig, parse_block_plan
from instantstyle.families import SD15, SDXL, Family
from instantstyle.networks.attention import Attend, HeadsTensor, plain
from instantstyle.weights.adapter import Adapter, load_adapter, save_adapter
from oracle.adapters import EMBED_DIM, random_adapter, random_plus
from oracle.paired_unets import TINY_SD15, TINY_SDXL, Inputs, PairedUNets

STYLE, LAYOUT = {"up": {"block_0": [0.0, 1.0, 0.0]}}, {"down": {"block_2": [0.0, 1.0]}}
CASES: list[tuple[str, Family, UNetConfig, str, Any]] = [
    ("sdxl-all", SDXL, TINY_SDXL, "all", 1.0),
    ("sdxl-style", SDXL, TINY_SDXL, "style", STYLE),
    ("sdxl-style+layout", SDXL, TINY_SDXL, "style+layout", STYLE | LAYOUT),
    ("sd15-all", SD15, TINY_SD15, "all", 1.0),
    ("sd15-style", SD15, TINY_SD15, "style", {"up": {"block_1": 1.0}}),
    ("sd15-layout", SD15, TINY_SD15, "layout", {"down": {"block_2": 1.0}, "mid": 1.0}),
]
"""Our plan, and what diffusers is told for the same."""


class Pipeline(IPAdapterMixin):
    """The least that diffusers loads an adapter into."""

    unet_name = "unet"

    def __init__(self, unet: Any, file: Path, scale: Any) -> None:
        self.unet = unet
        loading: Any = self
        loading.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
        loading.set_ip_adapter_scale(scale)


def with_image(twins: PairedUNets, adapter: Adapter, plan: BlockPlan, images: Tensor) -> Attend:
    """IP-Adapter in the words of its paper; `images` [rows, pictures, *, embed_dim]."""
    tokens = adapter.image_tokens(images.flatten(0, 1))
    read = adapter.project_kv(tokens.reshape(len(images), -1, tokens.shape[-1]), plan, twins.config)

    def attend(
        site: Site,
        q: HeadsTensor,
        k: HeadsTensor,
        v: HeadsTensor,
        *,
        bias: Tensor | None = None,
        tokens: object = None,
    ) -> HeadsTensor:
        out = plain(site, q, k, v, bias=bias)
        return out + plan.scale(site) * plain(site, q, *read[site]) if site in read else out

    return attend


@pytest.mark.parametrize(("name", "family", "config", "plan", "scale"), CASES, ids=[case[0] for case in CASES])
def test_plans_are_diffusers_scales(
    name: str, family: Family, config: UNetConfig, plan: str, scale: Any, tmp_path: Path
) -> None:
    twins, inputs, file = PairedUNets.random(config), Inputs.random(config), tmp_path / "adapter.safetensors"
    save_adapter(file, random_adapter(config), config)
    images = torch.randn(2, 1, EMBED_DIM, generator=torch.Generator().manual_seed(5))
    bare = twins.expect(inputs)
    Pipeline(twins.theirs, file, scale)
    expected = twins.expect(inputs, image_embeds=images)
    assert (expected - bare).abs().max() > 0.01

    spoken = family.presets[plan]
    if isinstance(scale, dict):  # which we read too
        read = parse_block_plan(scale, config, {})  # pyright: ignore[reportUnknownArgumentType]
        assert all(read.scale(site) == spoken.scale(site) for site in config.sites)
    attend = with_image(twins, load_adapter(file, config, plan=spoken), spoken, images)
    torch.testing.assert_close(twins.predict(inputs, attend=attend), expected, atol=1e-5, rtol=1e-4)


def test_strengths_and_several_pictures(tmp_path: Path) -> None:
    twins, inputs, file = PairedUNets.random(TINY_SDXL), Inputs.random(TINY_SDXL), tmp_path / "adapter.safetensors"
    save_adapter(file, random_adapter(TINY_SDXL), TINY_SDXL)
    images = torch.randn(2, 3, EMBED_DIM, generator=torch.Generator().manual_seed(5))
    scale = {"down": {"block_1": [0.3, 0.0]}, "mid": 0.5, "up": {"block_0": [0.0, 1.7, 0.2]}}
    Pipeline(twins.theirs, file, scale)
    plan = BlockPlan({"down.1.0": 0.3, "mid": 0.5, "up.0.1": 1.7, "up.0.2": 0.2})
    assert parse_block_plan(scale, TINY_SDXL, {}) == plan
    attend = with_image(twins, load_adapter(file, TINY_SDXL), plan, images)
    expected = twins.expect(inputs, image_embeds=images)
    torch.testing.assert_close(twins.predict(inputs, attend=attend), expected, atol=1e-5, rtol=1e-4)


def test_a_plus_adapter_from_a_pickle(tmp_path: Path) -> None:
    """Published as nested dictionaries; diffusers has no other reader for our resampler's names."""
    twins, inputs, file = PairedUNets.random(TINY_SD15), Inputs.random(TINY_SD15), tmp_path / "adapter.bin"
    adapter = random_plus(TINY_SD15)
    layers = {
        f"{n}.to_{kind}_ip.weight": weights[site]
        for kind, weights in (("k", adapter.keys), ("v", adapter.values))
        for n, site in enumerate(TINY_SD15.sites)
        if site in weights
    }
    torch.save({"image_proj": adapter.projection.state_dict(), "ip_adapter": layers}, file)
    hidden = torch.randn(2, 1, 9, EMBED_DIM, generator=torch.Generator().manual_seed(5))
    Pipeline(twins.theirs, file, 1.0)
    attend = with_image(twins, load_adapter(file, TINY_SD15), SD15.presets["all"], hidden)
    expected = twins.expect(inputs, image_embeds=hidden)
    torch.testing.assert_close(twins.predict(inputs, attend=attend), expected, atol=1e-5, rtol=1e-4)
