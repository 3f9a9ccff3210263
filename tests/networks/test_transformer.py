"""The seam on diffusers' transformers: plain is their own prediction, and a method's change is where it should be."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import tiny_transformers as tiny
from instantstyle.blocks import BlockPlan, Site
from instantstyle.errors import WeightsError
from instantstyle.methods.shared_attention import shared_attention, swapped_attention
from instantstyle.networks.attention import Attend, plain
from instantstyle.networks.tokens import Rope, Tokens, rotate
from instantstyle.networks.transformer import install_processors
from instantstyle.sampling.batch import route_attention

NETS: Mapping[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "flux": (tiny.flux, tiny.flux_inputs),
    "schnell": (lambda: tiny.flux(guidance_embeds=False), tiny.schnell_inputs),
    "sd3.5": (tiny.sd3, tiny.sd3_inputs),
    "sd3": (lambda: tiny.sd3(qk_norm=None, dual_attention_layers=()), tiny.sd3_inputs),
    "qwen-image": (tiny.qwen, tiny.qwen_inputs),
}
EACH = pytest.mark.parametrize("name", NETS)
REFERENCE_METHODS = {"style-aligned": shared_attention, "swapped": swapped_attention}
TIGHT = 2e-6
"""Of predictions about 1 large, where rows are stacked otherwise: rounding."""


def predict(net: Any, inputs: Mapping[str, Any], attend: Attend | None = None) -> Tensor:
    """A prediction, with `attend` by the argument that diffusers has for such things."""
    name = "attention_kwargs" if "img_shapes" in inputs else "joint_attention_kwargs"
    more = {} if attend is None else {name: {"attend": attend, "text_seq_len": tiny.TEXT}}
    return net(**inputs, **more, return_dict=False)[0]


def of_rows(inputs: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    return {k: v if k.endswith("ids") else v[rows] for k, v in inputs.items()}


def doubled(name: str, value: Any) -> Any:
    if name.endswith("ids"):
        return value
    return [*cast("list[Any]", value)] * 2 if isinstance(value, list) else value.repeat(2, *[1] * (value.ndim - 1))


def mixing(by: float, sites: Callable[[Site], bool] = lambda site: True) -> Attend:
    """Something that is not plain: of the picture's values a part goes to each token's neighbour."""

    def attend(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: Tokens | None = None
    ) -> Tensor:
        if sites(site) and tokens is not None:
            v = v.clone()
            v[:, :, tokens.image] += by * v[:, :, tokens.image].roll(1, dims=2)
        return plain(site, q, k, v, bias=bias, tokens=tokens)

    return attend


@EACH
def test_plain_is_diffusers_own_prediction_to_the_bit(name: str) -> None:
    make, inputs = NETS[name]
    net = make()
    before, keys = predict(net, inputs()), list(net.state_dict())
    sites = install_processors(net)
    assert len(set(sites)) == len(sites)
    assert list(net.state_dict()) == keys
    assert torch.equal(predict(net, inputs()), before)
    assert torch.equal(predict(net, inputs(), plain), before)


def test_also_in_bfloat16() -> None:
    net = tiny.flux().bfloat16()
    inputs = {k: v if k.endswith("ids") else v.bfloat16() for k, v in tiny.flux_inputs().items()}
    before = predict(net, inputs)
    install_processors(net)
    assert torch.equal(predict(net, inputs, plain), before)


def test_sites_are_named_as_plans_name_them() -> None:
    assert (
        " ".join(map(str, install_processors(tiny.flux())))
        == "double.0.joint double.1.joint single.0.joint single.1.joint"
    )
    sites = install_processors(tiny.sd3())
    assert " ".join(map(str, sites)) == "joint.0.joint joint.0.self joint.1.joint joint.2.joint"
    assert [site.module for site in sites] == ["joint.0", "joint.0", "joint.1", "joint.2"]
    plan = BlockPlan({"joint.1": 0.5, "joint": 0.25})
    assert [plan.scale(site) for site in sites] == [0.25, 0.25, 0.5, 0.25]


def test_a_network_without_a_place_for_methods_is_refused_unchanged() -> None:
    config = {"hidden_size": 24, "num_attention_heads": 2, "num_kv_heads": 1, "num_layers": 1, "cap_feat_dim": 8}
    net: Any = tiny.diffusers.Lumina2Transformer2DModel(**config, axes_dim_rope=(4, 4, 4))
    with pytest.raises(WeightsError, match="no method can enter"):
        install_processors(net)
    fused = tiny.flux()
    fused.fuse_qkv_projections()
    with pytest.raises(WeightsError, match="are fused"):
        install_processors(fused)


@EACH
def test_attend_arrives_at_every_site_and_leaves_nothing_behind(name: str) -> None:
    """A network that takes the argument and drops it says nothing, so that this is asked of each."""
    make, inputs = NETS[name]
    net = make()
    sites, heard = install_processors(net), list[Site]()
    weights = {k: v.clone() for k, v in net.state_dict().items()}

    def hearing(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: Tokens | None = None
    ) -> Tensor:
        heard.append(site)
        return plain(site, q, k, v, bias=bias, tokens=tokens)

    bare = predict(net, inputs(), plain)
    assert torch.equal(predict(net, inputs(), hearing), bare)
    assert [site for site in heard if site.kind != "cross"] == list(sites)
    changed = predict(net, inputs(), mixing(1.5))
    assert float((changed - bare).abs().max()) > 1e-3
    assert torch.equal(predict(net, inputs(), plain), bare)
    assert torch.equal(predict(net, inputs(), mixing(1.5)), changed)
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())


def test_a_method_must_say_how_much_is_text() -> None:
    """Single blocks are handed one sequence, and must not take words for the picture."""
    net = tiny.flux()
    install_processors(net)
    with pytest.raises(ValueError, match="text_seq_len"):
        net(**tiny.flux_inputs(), joint_attention_kwargs={"attend": mixing(1.5)})
    net(**tiny.flux_inputs(), joint_attention_kwargs={"attend": plain})


@EACH
def test_rows_of_one_batch_attend_in_their_own_ways(name: str) -> None:
    """Three requests at different times, the second plain: each is as it is alone."""
    make, given = NETS[name]
    net, inputs = make(), given(3)
    install_processors(net)
    attends, rows = [mixing(1.5), plain, mixing(0.5)], [slice(i, i + 1) for i in range(3)]
    together = predict(net, inputs, route_attention(list(zip(rows, attends, strict=True))))
    alone = torch.cat([predict(net, of_rows(inputs, r), a) for r, a in zip(rows, attends, strict=True)])
    torch.testing.assert_close(together, alone, atol=TIGHT, rtol=0)
    bare = predict(net, inputs, plain)
    torch.testing.assert_close(together[1], bare[1], atol=TIGHT, rtol=0)
    assert float((together[0] - bare[0]).abs().max()) > 1e-3
    assert float((together[2] - bare[2]).abs().max()) > 1e-3


INDEX = torch.tensor([[2], [2], [2]])
"""Two rows attend to the third, the reference, which attends to itself."""


@EACH
@pytest.mark.parametrize("method", REFERENCE_METHODS)
def test_a_reference_changes_the_others_and_not_itself(name: str, method: str) -> None:
    make, given = NETS[name]
    net, inputs = make(), given(3)
    install_processors(net)
    bare, way = predict(net, inputs, plain), REFERENCE_METHODS[method]
    assert torch.equal(predict(net, inputs, way(plain, BlockPlan({"all": 0.0}), INDEX, [1.0])), bare)
    assert torch.equal(predict(net, inputs, way(plain, BlockPlan({"up.0.1": 1.0}), INDEX, [1.0])), bare)
    for weight in (0.4, 1.0):
        out = predict(net, inputs, way(plain, BlockPlan({"all": 1.0}), INDEX, [weight]))
        assert min(float((out[i] - bare[i]).abs().max()) for i in (0, 1)) > 1e-3
        torch.testing.assert_close(out[2], bare[2], atol=TIGHT, rtol=0)


@EACH
def test_swapped_with_an_equal_row_is_bare(name: str) -> None:
    """At the picture's own positions, the same keys and values change nothing, whatever the share."""
    make, given = NETS[name]
    net, inputs = make(), of_rows(given(3), slice(1, 2))
    install_processors(net)
    twice = {name: doubled(name, value) for name, value in inputs.items()}
    bare, index = predict(net, twice, plain), torch.tensor([[1], [0]])
    for weight in (0.3, 1.0):
        out = predict(net, twice, swapped_attention(plain, BlockPlan({"all": 1.0}), index, [weight]))
        torch.testing.assert_close(out, bare, atol=TIGHT, rtol=0)


def test_the_text_keys_of_a_reference_are_not_attended_to() -> None:
    """By hand: swapped at weight 1 is one softmax over one's own text and the reference's picture, at its places."""
    site, rows, heads, dim = Site.of_block("double", 0, "joint"), 2, 2, 6
    q, k, v = (tiny.noise(rows, heads, 7, dim, seed=i) for i in (1, 2, 3))
    angles = torch.rand(7, dim // 2, generator=torch.Generator().manual_seed(4)).repeat_interleave(2, dim=-1)
    tokens = Tokens(slice(3, 7), slice(0, 3), *[Rope(angles.cos(), angles.sin())] * 2)
    index = torch.tensor([[1], [1]])
    out = swapped_attention(plain, BlockPlan({"all": 1.0}), index, [1.0])(site, q, k, v, tokens=tokens)
    turned = rotate(k, tokens.key_rope)
    keys, values = turned.clone(), v.clone()
    keys[0, :, 3:], values[0, :, 3:] = turned[1, :, 3:], v[1, :, 3:]
    scores = rotate(q, tokens.query_rope) @ keys.transpose(-1, -2) / dim**0.5
    torch.testing.assert_close(out, scores.softmax(-1) @ values)


def test_the_place_at_a_blocks_end_is_asked_and_says_nothing_by_itself() -> None:
    """Where XLabs' adapters enter: picture queries alone, without keys; an output of zeros changes nothing."""
    net, seen = tiny.flux(), list[tuple[Site, tuple[int, ...], tuple[int, ...]]]()
    install_processors(net)

    def looking(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: Tokens | None = None
    ) -> Tensor:
        if site.kind == "cross":
            seen.append((site, tuple(q.shape), tuple(k.shape)))
        return plain(site, q, k, v, bias=bias, tokens=tokens)

    bare = predict(net, tiny.flux_inputs(), plain)
    assert torch.equal(predict(net, tiny.flux_inputs(), looking), bare)
    assert seen == [
        (Site.of_block("double", i, "cross"), (3, tiny.HEADS, 16, tiny.DIM), (3, tiny.HEADS, 0, tiny.DIM))
        for i in range(2)
    ]
