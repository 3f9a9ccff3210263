"""The UNet's own laws: the cut, no memory, rows apart, gradients; tests/oracle holds its outputs to diffusers'."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instantstyle.blocks import Site, UNetConfig
from instantstyle.errors import InputError, PlanError
from instantstyle.networks.attention import plain
from instantstyle.networks.layers import sinusoidal_embedding
from instantstyle.networks.unet import Residuals, UNet
from oracle.paired_unets import TINY, TINY_SD15, TINY_SDXL, Inputs, random_weights

SHALLOW = replace(TINY_SDXL, transformer_layers_per_block=(0, 1, 2))
"""SDXL's modules, fewer layers in each."""


def _unet(config: UNetConfig) -> UNet:
    unet = UNet(config)
    unet.load_state_dict(random_weights(unet))
    return unet.requires_grad_(False)


def _residuals(unet: UNet, inputs: Inputs) -> Residuals:
    """One for every skip, of its shape."""
    latents, time, pooled, sizes = inputs.ours
    first, _ = unet.split_at("mid")
    skips = first(latents, time, unet.precompute_kv(inputs.context), pooled, sizes).skips
    make = torch.Generator().manual_seed(9)
    down = [torch.randn(skip.shape, generator=make) for skip in skips]
    return down, torch.randn(down[-1].shape, generator=make)


class Recorder:
    """Plain attention that turns every head's output around, and remembers where it was called."""

    def __init__(self) -> None:
        self.sites: list[Site] = []

    def __call__(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
    ) -> Tensor:
        self.sites.append(site)
        return plain(site, q, k, v, bias=bias).flip(-1)


@pytest.mark.parametrize("config", [SHALLOW, TINY_SD15, TINY["wide"]], ids=["sdxl", "sd15", "wide"])
def test_both_halves_are_the_whole_at_every_cut(config: UNetConfig) -> None:
    """Bitwise, with attention changed, at an odd size, under a ControlNet; each half calls its own sites only."""
    unet, inputs = _unet(config), Inputs.random(config, size=(9, 7))
    latents, time, pooled, sizes = inputs.ours
    text, residuals = unet.precompute_kv(inputs.context), _residuals(unet, inputs)
    every = Recorder()
    whole = unet(latents, time, text, pooled, sizes, attend=every, residuals=residuals)
    assert sorted(every.sites) == sorted(config.sites)
    assert (whole - unet(latents, time, text, pooled, sizes)).abs().max() > 0.01
    for module in config.modules:
        first, rest = unet.split_at(module)
        before, after = Recorder(), Recorder()
        state = first(latents, time, text, pooled, sizes, attend=before, residuals=residuals)
        assert torch.equal(rest(state, text, attend=after), whole)
        assert before.sites + after.sites == every.sites
        assert after.sites[0].module == module
        assert module not in {site.module for site in before.sites}


def test_modules_run_in_the_order_that_plans_count_them() -> None:
    unet, inputs, recorder = _unet(SHALLOW), Inputs.random(SHALLOW), Recorder()
    latents, time, pooled, sizes = inputs.ours
    unet(latents, time, unet.precompute_kv(inputs.context), pooled, sizes, attend=recorder)
    assert tuple(dict.fromkeys(site.module for site in recorder.sites)) == SHALLOW.modules


def test_a_cut_at_a_site_is_before_its_module() -> None:
    unet, inputs = _unet(SHALLOW), Inputs.random(SHALLOW)
    latents, time, pooled, sizes = inputs.ours
    text = unet.precompute_kv(inputs.context)
    by_site, _ = unet.split_at(Site("up", 0, 1, 1, "cross"))
    by_name, _ = unet.split_at("up.0.1")
    assert torch.equal(by_site(latents, time, text, pooled, sizes).x, by_name(latents, time, text, pooled, sizes).x)


def test_several_references_share_the_first_half() -> None:
    """One row's first half, repeated, is the first half of the row repeated."""
    unet, one = _unet(SHALLOW), Inputs.random(SHALLOW, rows=1)
    latents, time, pooled, sizes = one.ours
    text, repeated = unet.precompute_kv(one.context), unet.precompute_kv(one.context.repeat(3, 1, 1))
    first, rest = unet.split_at("up.0.1")
    state = first(latents, time, text, pooled, sizes, residuals=_residuals(unet, one))
    three = rest(state.map(lambda t: t.repeat(3, *[1] * (t.ndim - 1))), repeated)
    torch.testing.assert_close(three, rest(state, text).expand(3, -1, -1, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", TINY)
def test_the_same_call_twice_gives_the_same_bits(layout: str) -> None:
    unet, inputs = _unet(TINY[layout]), Inputs.random(TINY[layout])
    latents, time, pooled, sizes = inputs.ours
    text, before = unet.precompute_kv(inputs.context), {name: t.clone() for name, t in unet.state_dict().items()}
    once = unet(latents, time, text, pooled, sizes)
    other = Inputs.random(TINY[layout], size=(12, 9), rows=3, seed=2)
    unet(other.latents, other.time, unet.precompute_kv(other.context), other.pooled, other.sizes, attend=Recorder())
    assert torch.equal(unet(latents, time, text, pooled, sizes), once)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_rows_do_not_depend_on_one_another() -> None:
    """Text read for two runs and joined along rows, at different times: each row is what it is alone."""
    unet, a, b = _unet(SHALLOW), Inputs.random(SHALLOW, rows=1), Inputs.random(SHALLOW, rows=2, seed=2)
    alone = [unet(i.latents, i.time, unet.precompute_kv(i.context), i.pooled, i.sizes) for i in (a, b)]
    texts = [unet.precompute_kv(i.context) for i in (a, b)]
    text = {site: (torch.cat([t[site][0] for t in texts]), torch.cat([t[site][1] for t in texts])) for site in texts[0]}
    assert a.pooled is not None
    assert b.pooled is not None
    assert a.sizes is not None
    assert b.sizes is not None
    together = unet(
        torch.cat([a.latents, b.latents]),
        torch.cat([a.time, b.time]),
        text,
        torch.cat([a.pooled, b.pooled]),
        torch.cat([a.sizes, b.sizes]),
    )
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", TINY)
def test_every_weight_and_the_text_learn(layout: str) -> None:
    config = TINY[layout]
    unet, inputs = _unet(config).requires_grad_(True), Inputs.random(config)
    context = inputs.context.requires_grad_()
    latents, time, pooled, sizes = inputs.ours
    unet(latents, time, unet.precompute_kv(context), pooled, sizes).square().mean().backward()  # pyright: ignore[reportUnknownMemberType]
    assert context.grad is not None
    assert context.grad.abs().min() > 0
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_text_is_read_at_cross_attentions_only() -> None:
    unet, inputs = _unet(TINY_SD15), Inputs.random(TINY_SD15)
    text = unet.precompute_kv(inputs.context)
    assert list(text) == [site for site in TINY_SD15.sites if site.kind == "cross"]
    for site, (keys, values) in text.items():
        width = TINY_SD15.block_out_channels[site.resolution_level(4)]
        assert keys.shape == values.shape == (2, 4, 6, width // 4)
        assert torch.equal(keys.transpose(1, 2).flatten(2), unet.attention(site).to_k(inputs.context))


def test_errors_are_sentences() -> None:
    unet, inputs = _unet(SHALLOW), Inputs.random(SHALLOW)
    text = unet.precompute_kv(inputs.context)
    with pytest.raises(InputError, match="give `pooled` and `sizes`"):
        unet(inputs.latents, inputs.time, text)
    down, mid = _residuals(unet, inputs)
    with pytest.raises(InputError, match=r"8 ControlNet residuals were given, but this UNet has 9 places"):
        unet(inputs.latents, inputs.time, text, inputs.pooled, inputs.sizes, residuals=(down[:-1], mid))
    with pytest.raises(PlanError, match=r"no block 'up\.0\.4' to split at: it has .*did you mean 'up\.0\.\d'"):
        unet.split_at("up.0.4")


def test_waves_are_the_published_sinusoids() -> None:
    out = sinusoidal_embedding(torch.tensor([0.0, 1.0, 999.0]), 6)
    for row, t in zip(out, (0.0, 1.0, 999.0), strict=True):
        angles = torch.tensor([t * 10000 ** (-i / 3) for i in range(3)])
        torch.testing.assert_close(row, torch.cat([angles.cos(), angles.sin()]), atol=1e-4, rtol=0)
