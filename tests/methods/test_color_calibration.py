"""Colour calibration of swapped self-attention, against its closed form and the published step written out again."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.methods.injection import StepContext
from instantstyle.methods.shared_attention import adain_x0
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run
from instantstyle.sampling.schedulers import alpha_sigma

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

INSIDE = StepContext(9, 10, 120.0, 0.9, math.sqrt(0.19), 90.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3)), x.std((2, 3))


def submitted(**fields: Any) -> Run:
    options = {"calibrate": True, **fields.pop("options", {})}
    given: dict[str, Any] = {"references": [StyleReference(tiny_models.picture(1))], "seed": 5, "steps": 8} | fields
    run = Engine(tiny_models.model("emoji")).submit(Request("a cat", method="swapped", options=options, **given))
    return run.prepare()


def test_channels_take_on_the_references_mean_and_spread() -> None:
    """At weight 1, whatever the sizes; the order of pixels within a channel stays."""
    picture, shown = 0.5 * random(2, 4, 8, 8) + 0.3, 2 * random(1, 4, 6, 10, seed=1) - 1
    out = adain_x0(shown, [1.0])(INSIDE, picture)
    for ours, wanted in zip(statistics(out), statistics(shown), strict=True):
        torch.testing.assert_close(ours, wanted.expand(2, -1), atol=1e-5, rtol=1e-5)
    for a, b in zip(out.flatten(2).flatten(0, 1), picture.flatten(2).flatten(0, 1), strict=True):
        assert torch.equal(a.argsort(), b.argsort())


def test_strength_is_a_share_and_references_share_by_their_weights() -> None:
    picture, shown = random(1, 3, 4, 4), random(2, 3, 4, 4, seed=1) * torch.tensor([1.0, 3.0])[:, None, None, None]
    first, second, both = (adain_x0(*each)(INSIDE, picture) for each in (
        (shown[:1], [1.0]), (shown[1:], [1.0]), (shown, [1.0, 1.0]),
    ))  # fmt: skip
    torch.testing.assert_close(both, (first + second) / 2)
    torch.testing.assert_close(adain_x0(shown[:1], [0.25])(INSIDE, picture), picture + 0.25 * (first - picture))
    torch.testing.assert_close(adain_x0(shown, [1.0, 1e-9])(INSIDE, picture), first, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 8, 25, 50, 100])
def test_it_acts_late_and_whatever_the_steps_at_least_once(steps: int) -> None:
    """Published for 50 steps: strictly between the times 100 and 150; where a run leaps over them, at that step."""
    times = [999 - 1000 * i // steps for i in range(steps)]
    picture, expects = random(1, 2, 4, 4), adain_x0(random(1, 2, 4, 4, seed=1), [1.0])
    moments = [StepContext(i, steps, float(t), 0.9, 0.4, float((*times, 0)[i + 1])) for i, t in enumerate(times)]
    acted = [moment.timestep for moment in moments if not torch.equal(expects(moment, picture), picture)]
    inside = [time for time in times if 100 < time < 150]
    assert acted == (inside or [next(time for time in reversed(times) if time >= 150)])


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
def test_a_calibrated_step_is_the_published_one(sampler: str) -> None:
    """Next = signal' x0' + noise' eps, with eps of the step as it was: compared with the same step uncalibrated.

    What a sampler adds besides is in both, so that they differ by signal' (x0' - x0); Euler's latents are not scaled.
    """
    own, bare = submitted(sampler=sampler), submitted(sampler=sampler, options={"calibrate": False})
    shown = own.injection.reference_batch.clean_latents if own.injection.reference_batch is not None else None
    assert shown is not None
    assert bare.injection.x0_hook is None
    parted = 0
    for _ in range(own.num_denoiser_calls):
        moment, before = own.step_context, own.latents
        assert torch.equal(before, bare.latents)
        for run in (own, bare):
            run.engine.step()
        if torch.equal(own.latents, bare.latents):
            continue
        parted += 1
        assert 100 < moment.timestep < 150
        expected = own._pred_x0, bare._pred_x0  # pyright: ignore[reportPrivateUsage]
        assert expected[0] is not None
        assert expected[1] is not None
        for ours, wanted in zip(statistics(expected[0]), statistics(shown), strict=True):
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
        signal = 1.0 if sampler == "euler" or own.done else alpha_sigma(own.scheduler, own.step)[0]
        torch.testing.assert_close(
            own.latents - bare.latents, signal * (expected[0] - expected[1]), atol=1e-4, rtol=1e-4
        )
        break
    assert parted == 1


def test_a_drawing_alongside_is_what_it_is_calibrated_to() -> None:
    run = submitted(references=(), options={"rows": "alongside", "caption": "a dog"}, steps=4)
    alone = Engine(tiny_models.model("emoji")).submit(Request("a dog", seed=5, steps=4)).prepare()
    rows = run.injection.reference_batch
    assert rows is not None
    assert rows.clean_latents is not None
    alone.latents = rows.latents(run.step_context)[1:]
    for _ in alone:
        pass
    torch.testing.assert_close(rows.clean_latents, alone.latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "fields", [{"references": [StyleReference(tiny_models.picture(1), weight=0.0)]}, {"plan": "up.1=0"}]
)
def test_1_without_a_style_there_is_nothing_to_calibrate_to(fields: dict[str, Any]) -> None:
    assert submitted(**fields).injection.x0_hook is None
