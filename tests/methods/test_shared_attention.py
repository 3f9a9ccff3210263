# pyright: reportUnknownMemberType=false

"""StyleAligned and swapped self-attention, against the published handlers' arithmetic written out again here.

The published code (google/style-aligned `sa_handler.py`, naver-ai/Visual-Style-Prompting) takes a batch of
[unconditional, conditional], each with the reference first.  Here the reference rows come last, so that its rows and
ours are in another order; what each row becomes is the same.
"""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import BlockPlan, Site, late_up_blocks
from instantstyle.errors import InputError
from instantstyle.families import EMOJI, SD15, SDXL
from instantstyle.methods.reference_latents import reference_index
from instantstyle.methods.shared_attention import shared_attention, swapped_attention
from instantstyle.networks.attention import plain
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

SELF, CROSS = Site("up", 0, 1, 0, "self"), Site("up", 0, 1, 0, "cross")
ALL = BlockPlan({"all": 1.0})
COUNT = 2
OURS = [1, 2, 4, 5, 0, 3]
"""Published rows [ref, a, b] x 2 in our order: [a, b] x 2, then the reference's two."""


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def qkv(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """In published order; the reference differs from the others in its statistics."""
    q, k, v = (random(rows, 3, 7, 4, seed=i) for i in range(3))
    stretch = torch.tensor([2.0 if row % 3 == 0 else 1.0 for row in range(rows)])[:, None, None, None]
    return q * stretch + 0.3, k * stretch - 0.2, v * stretch


def ours(attend: Any, *tensors: Tensor) -> Tensor:
    """What an attend makes of tensors in published order, in published order."""
    out = attend(SELF, *(x[OURS] for x in tensors))
    return out[[OURS.index(row) for row in range(6)]]


def index() -> Tensor:
    return reference_index(2, COUNT, 1, torch.device("cpu"))


def published_style_aligned(q: Tensor, k: Tensor, v: Tensor, *, adain: bool, scale: float, shift: float) -> Tensor:
    """Section 4 of arXiv 2312.02133 as its code has it, row by row and head by head."""
    out = torch.empty_like(q)
    for row in range(len(q)):
        reference = row // 3 * 3
        for head in range(q.shape[1]):
            (a, b, c), (ra, rb, rc) = (tuple(x[at, head] for x in (q, k, v)) for at in (row, reference))
            if adain:
                a, b = (
                    (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt() * (y.var(0) + 1e-5).sqrt() + y.mean(0)
                    for x, y in ((a, ra), (b, rb))
                )
                rb = (rb - rb.mean(0)) / (rb.var(0) + 1e-5).sqrt() * (rb.var(0) + 1e-5).sqrt() + rb.mean(0)
            there = rb if row == reference else scale * rb
            logits = torch.cat([a @ b.T, a @ there.T], dim=1) / math.sqrt(q.shape[-1])
            logits[:, len(b) :] += shift
            out[row, head] = logits.softmax(-1) @ torch.cat([c, rc])
    return out


@pytest.mark.parametrize(
    ("adain", "scale", "shift"), list(itertools.product((True, False), (1.0, 0.5), (0.0, math.log(2))))
)
def test_style_aligned_is_the_published_arithmetic(adain: bool, scale: float, shift: float) -> None:
    q, k, v = qkv()
    expected = published_style_aligned(q, k, v, adain=adain, scale=scale, shift=shift)
    out = ours(shared_attention(plain, ALL, index(), [1.0], match_statistics=adain, scale=scale, shift=shift), q, k, v)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert (out - plain(SELF, q, k, v))[[1, 2, 4, 5]].abs().amax(dim=(1, 2, 3)).min() > 0.1
    torch.testing.assert_close(out[[0, 3]], plain(SELF, q, k, v)[[0, 3]], atol=1e-5, rtol=1e-4)


def test_a_weight_of_two_is_a_shift_of_ln_2() -> None:
    """Counting twice is what the published shift for real pictures says."""
    q, k, v = qkv()
    twice = ours(shared_attention(plain, ALL, index(), [2.0]), q, k, v)
    torch.testing.assert_close(twice, ours(shared_attention(plain, ALL, index(), [1.0], shift=math.log(2)), q, k, v))
    torch.testing.assert_close(twice, ours(shared_attention(plain, BlockPlan({"up.0": 2.0}), index(), [1.0]), q, k, v))


def test_style_aligned_fades_out_with_its_weight() -> None:
    q, k, v = qkv()
    bare = plain(SELF, q, k, v)
    apart = [
        float((ours(shared_attention(plain, ALL, index(), [weight]), q, k, v) - bare).abs().mean())
        for weight in (1.0, 0.1, 0.01, 1e-6)
    ]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-4 < 0.1 < apart[0]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_swapped_is_the_published_arithmetic(share: float) -> None:
    """Published: every row's keys and values are the reference's of its half; or, as an option, added to its own."""
    q, k, v = qkv()
    reference = torch.tensor([0, 0, 0, 3, 3, 3])
    keys, values = k[reference], v[reference]
    if share == 0.5:
        keys, values = torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2)
    expected = (q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ values
    out = ours(swapped_attention(plain, ALL, index(), [share]), q, k, v)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_between_plain_and_swapped_attention_is_shared_out() -> None:
    """Equal keys everywhere: what a query finds is then the share itself."""
    q, k = random(6, 3, 7, 4, seed=1), torch.zeros(6, 3, 7, 4)
    v = torch.tensor([float(row % 3 == 0) for row in range(6)])[:, None, None, None].expand(6, 3, 7, 4)
    for share in (0.1, 0.75, 1.0, 3.0):
        out = ours(swapped_attention(plain, ALL, index(), [share]), q, k, v)
        torch.testing.assert_close(out[1], torch.full_like(out[1], min(share, 1.0)))


def test_the_leaking_row_asks_with_the_references_queries() -> None:
    """StyleKeeper in the words of its abstract: queries swapped instead of keys and values."""
    request = Request(
        "a cat", references=[StyleReference(tiny_models.picture(1))], method="stylekeeper", seed=1, size=(64, 64)
    )
    run: Run = Engine(tiny_models.model("emoji")).submit(request).prepare()
    assert run.batch_size == 3 + 2
    q, k, v = (random(5, 4, 16, 8, seed=i) for i in range(3))
    site = next(site for site in EMOJI.unet.sites if site.module == "up.1.1" and site.kind == "self")
    out, there = run.attend(site, q, k, v), (q[4], k[4], v[4])
    torch.testing.assert_close(out[2], plain(site, there[0][None], k[2:3], v[2:3])[0])  # the negative row
    torch.testing.assert_close(out[1], plain(site, q[1:2], there[1][None], there[2][None])[0])
    torch.testing.assert_close(out[0], plain(site, q[:1], k[3:4], v[3:4])[0])
    torch.testing.assert_close(out[3:], plain(site, q[3:], k[3:], v[3:]))


def test_several_references_count_by_their_weights() -> None:
    """Equal keys: a row of weight 3 is found three times as often as one of weight 1."""
    rows = reference_index(1, 1, 2, torch.device("cpu"))
    assert rows.tolist() == [[1, 2], [1, 1], [2, 2]]
    q, k = random(3, 1, 5, 4, seed=1), torch.zeros(3, 1, 5, 4)
    v = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None].expand(3, 1, 5, 4)
    both = swapped_attention(plain, ALL, rows, [1.0, 1.0])(SELF, q, k, v)[0]
    torch.testing.assert_close(both, torch.full((1, 5, 4), 1.5))
    found = shared_attention(plain, ALL, rows, [1.0, 3.0], match_statistics=False)(SELF, q, k, v)[0]
    torch.testing.assert_close(found, torch.full((1, 5, 4), (0 + 1 + 3 * 2) / 5))


def test_rows_look_at_their_own_branch_and_references_at_themselves() -> None:
    rows = reference_index(2, 2, 2, torch.device("cpu"), extra_guidance=1)
    assert rows.tolist() == [[6, 8]] * 2 + [[7, 9]] * 4 + [[6, 6], [7, 7], [8, 8], [9, 9]]


@pytest.mark.parametrize("way", [shared_attention, swapped_attention])
def test_elsewhere_and_in_cross_attention_nothing_happens(way: Any) -> None:
    q, k, v = qkv()
    attend = way(plain, BlockPlan({"up.0.1": 0.7}), index(), [0.6])
    for site in (CROSS, Site("up", 0, 0, 0, "self"), Site("mid", 0, 0, 0, "self")):
        assert torch.equal(attend(site, q, k, v), plain(site, q, k, v))
    assert not torch.equal(attend(SELF, q, k, v), plain(SELF, q, k, v))


@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("way", [shared_attention, swapped_attention])
def test_2_the_inner_attend_is_called_once_and_told_the_bias(way: Any, weight: float) -> None:
    calls: Counter[Site] = Counter()

    def inner(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
    ) -> Tensor:
        calls[site] += 1
        return plain(site, q, k, v, bias=bias)

    q, k, v = qkv()
    attend = way(inner, ALL, index(), [weight])
    attend(SELF, q, k, v)
    attend(CROSS, q, k, v)
    assert calls == {SELF: 1, CROSS: 1}
    # A bias that shuts one's own keys out leaves the reference's alone, in whatever shape it is given.
    shut = [
        attend(SELF, q, k, v, bias=torch.full(shape, -1e9))
        for shape in ((7,), (1, 1, 1, 7), (6, 3, 7, 7), (1, 1, 7, 1))
    ]
    for each in shut[1:]:
        torch.testing.assert_close(each, shut[0])
    if way is swapped_attention:
        torch.testing.assert_close(shut[0], swapped_attention(plain, ALL, index(), [1.0])(SELF, q, k, v))


def test_permuting_targets_permutes_outputs() -> None:
    q, k, v = qkv()
    swap = [0, 2, 1, 3, 5, 4]
    for way in (shared_attention, swapped_attention):
        attend = way(plain, ALL, index(), [0.8])
        torch.testing.assert_close(ours(attend, q[swap], k[swap], v[swap]), ours(attend, q, k, v)[swap])


def test_the_late_blocks_are_those_published_for_sdxl() -> None:
    assert [late_up_blocks(family.unet) for family in (SDXL, SD15, EMOJI)] == ["up.1=1", "up.2=1,up.3=1", "up.1=1"]
    sites = [site for site in SDXL.unet.sites if site.kind == "self" and site.module.startswith("up.1")]
    assert len(sites) == 6


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"plan": "precise"}, "which method 'swapped' does not do"),
        ({"options": {"ofset": 0.2}}, "did you mean 'offset'?"),
        ({"options": {"rows": "inverse"}}, "is one of noised, inverted, generated, not 'inverse'"),
        ({"options": {"offset": 2}}, "the option offset is a number from 0 to 0.9, not 2"),
        ({"options": {"offset": "much"}}, "the option offset is a number"),
        ({"options": {"rows": "alongside", "caption": "a dog"}}, "so a picture does not go with it"),
        ({"options": {"rows": "alongside"}, "references": ()}, "give the option caption"),
        ({"method": "style-aligned", "options": {"adain": 3}}, "the option adain is true or false, not 3"),
    ],
)
def test_what_is_wrong_is_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    asked: dict[str, Any] = {
        "references": [StyleReference(tiny_models.picture(1))],
        "method": "swapped",
        "steps": 2,
    } | fields
    with pytest.raises(InputError) as refused:
        Engine(tiny_models.model("emoji")).submit(Request("a cat", **asked))
    assert sentence in str(refused.value)
