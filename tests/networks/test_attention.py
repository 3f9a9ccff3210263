"""The seam."""

import torch
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.networks.attention import Attention, join_heads, plain, split_heads

SITE = Site("up", 0, 1, 3, "cross")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_plain_is_softmax_of_scaled_scores_plus_bias() -> None:
    q, k, v = _random(2, 3, 5, 4), _random(2, 3, 7, 4, seed=1), _random(2, 3, 7, 4, seed=2)
    for bias in (None, _random(2, 1, 5, 7, seed=3), _random(7, seed=4).to(torch.float32)):
        scores = torch.einsum("rhqd,rhkd->rhqk", q, k) / 2
        by_hand = (scores if bias is None else scores + bias).softmax(dim=-1) @ v
        torch.testing.assert_close(plain(SITE, q, k, v, bias=bias), by_hand)


def test_a_bias_of_minus_infinity_hides_keys() -> None:
    q, k, v = _random(1, 2, 5, 4), _random(1, 2, 7, 4, seed=1), _random(1, 2, 7, 4, seed=2)
    bias = torch.zeros(7, dtype=torch.float64)
    bias[4:] = -torch.inf
    torch.testing.assert_close(plain(SITE, q, k, v, bias=bias), plain(SITE, q, k[:, :, :4], v[:, :, :4]))


def test_heads_are_slices_of_the_width() -> None:
    x = _random(2, 5, 12)
    heads = split_heads(x, 3)
    assert torch.equal(heads[:, 1], x[:, :, 4:8])
    assert torch.equal(join_heads(heads), x)


def test_a_layer_hands_its_site_and_what_was_read_to_attend() -> None:
    layer, seen = Attention(12, 8, 3).double(), list[Site]()
    x, read = _random(2, 5, 12), layer.project_kv(_random(2, 7, 8, seed=1))

    def attend(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
    ) -> Tensor:
        seen.append(site)
        assert k is read[0]
        assert v is read[1]
        assert bias is None
        assert torch.equal(join_heads(q), layer.to_q(x))
        return torch.zeros_like(q)

    with torch.no_grad():
        assert torch.equal(layer(x, read, SITE, attend), layer.to_out[0].bias.expand(2, 5, 12))  # pyright: ignore
    assert seen == [SITE]
