"""CleanStyle and StyleStudio, against the published code's arithmetic written out again."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import Site
from instantstyle.errors import InputError
from instantstyle.methods.cleanstyle import damp_tail, damping_schedule, svd_factors
from instantstyle.methods.image_prompts import ImagePrompt
from instantstyle.methods.stylestudio import cross_adain
from instantstyle.networks.attention import join_heads, plain
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

SITE = Site("up", 1, 1, 0, "cross")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def submitted(method: str, **fields: Any) -> Run:
    given: dict[str, Any] = {"references": [StyleReference(tiny_models.picture(1))], "seed": 5, "steps": 4} | fields
    return Engine(tiny_models.model("emoji")).submit(Request("a cat", method=method, **given)).prepare()


def test_the_tail_is_damped_as_published() -> None:
    """`embedding_svd_topk_exponential`: S[k:] becomes exp(-alpha S) S, over [tokens, width] with all heads together."""
    x = random(1, 3, 4, 5)
    flat = join_heads(x)[0]
    factors: Any = torch.linalg.svd(flat, full_matrices=False)  # pyright: ignore
    u, s, v = cast("tuple[Tensor, Tensor, Tensor]", factors)
    for keep, alpha in ((1, 0.01), (0, 0.2), (2, 3.0), (9, 1.0)):
        tail = s.clone()
        tail[keep:] = torch.exp(-alpha * s[keep:]) * s[keep:]
        expected = u @ torch.diag(tail) @ v
        torch.testing.assert_close(
            join_heads(damp_tail(svd_factors(x), keep, alpha))[0], expected, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(damp_tail(svd_factors(x), 0, 0.0), x, atol=1e-5, rtol=1e-4)


def test_the_damping_ends_in_the_course_of_the_run() -> None:
    assert damping_schedule(0.3, 20.0, 0.3) == pytest.approx(0.5)  # pyright: ignore[reportUnknownMemberType]
    assert damping_schedule(0.02, 20.0, 0.3) == pytest.approx(1 - 1 / (1 + math.exp(5.6)))  # pyright: ignore
    assert damping_schedule(1.0, 20.0, 0.3) < 1e-6 < 0.99 < damping_schedule(0.02, 20.0, 0.3)


def test_cleaned_rows_are_heard_and_change_with_the_step() -> None:
    """Without damping in either row it is InstantStyle; with it, the first steps differ more than the last."""
    site, (q, k, v) = SITE, (random(2, 2, 6, 16, seed=i) for i in range(3))
    bare = submitted("instantstyle").attend(site, q, k, v)
    none = submitted("cleanstyle", options={"damping": 0.0, "against": 0.0})
    torch.testing.assert_close(none.attend(site, q, k, v), bare, atol=1e-4, rtol=1e-4)
    run = submitted("cleanstyle", options={"damping": 1.0, "against": 0.0})
    apart: list[float] = []
    for step in range(4):
        run.step = step
        out = run.attend(site, q, k, v)
        assert torch.equal(out, run.attend(site, q, k, v))
        torch.testing.assert_close(out[0], bare[0], atol=1e-4, rtol=1e-4)
        apart.append(float((out[1] - bare[1]).abs().mean()))
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 10 * apart[-1]
    against = submitted("cleanstyle", options={"damping": 0.0}).attend(site, q, k, v)
    assert not torch.allclose(against[0], bare[0])
    torch.testing.assert_close(against[1], bare[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_cross_adain_is_published_at_weight_1(weight: float) -> None:
    q, k, v, ik, iv = (random(2, 3, tokens, 4, seed=i) for i, tokens in enumerate((9, 5, 5, 4, 4)))
    attend = cross_adain(plain, ImagePrompt({SITE: (ik, weight * iv)}, {SITE: 1.0}), weight)
    text, image = (join_heads(plain(SITE, q, *pair)) for pair in ((k, v), (ik, iv)))
    expected = (text - text.mean(1, keepdim=True)) / text.std(1, keepdim=True) * image.std(1, keepdim=True)
    expected = text + weight * (expected + image.mean(1, keepdim=True) - text)
    torch.testing.assert_close(join_heads(attend(SITE, q, k, v)), expected, atol=1e-5, rtol=1e-4)
    elsewhere = Site("mid", 0, 0, 0, "cross")
    assert torch.equal(attend(elsewhere, q, k, v), plain(elsewhere, q, k, v))


@pytest.mark.parametrize("method", ["cleanstyle", "stylestudio"])
def test_any_number_of_steps_and_pictures_and_no_guidance(method: str) -> None:
    bare = submitted("instantstyle", steps=2)
    for fields in ({"steps": 2}, {"steps": 3, "count": 2, "guidance": 1.0}):
        run = submitted(method, **fields)
        for _ in run:
            pass
        assert run.latents.isfinite().all()
        if "count" not in fields:
            for _ in bare:
                pass
            assert not torch.equal(run.latents, bare.latents)
    with pytest.raises(InputError, match="does not do"):
        submitted(method, plan="precise")
