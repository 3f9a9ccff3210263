"""Reference rows: what they are at each moment, and runs that look at them, against laws and diffusers' inversion."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.methods import METHODS
from instantstyle.methods.ddim_inversion import (
    NoiseLevel,
    cfg_denoiser,
    ddim_invert,
    ddim_sample,
    noise_levels,
)
from instantstyle.methods.injection import StepContext
from instantstyle.methods.prompts import encode_prompts
from instantstyle.methods.reference_latents import follow_trajectory, renoise
from instantstyle.networks.prediction import predict_x0_eps, prediction_target
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

TOGETHER = 1e-4
"""How far latents whose largest values are near 4 may drift when other rows are in the batch: rounding alone."""
BESIDE = ("style-aligned", "swapped", "stylekeeper")
SIZE = (tiny_models.PICTURE, tiny_models.PICTURE)


def reference(seed: int = 1, **fields: Any) -> StyleReference:
    return StyleReference(tiny_models.picture(seed), **fields)


def styled(method: str, **fields: Any) -> Request:
    given: dict[str, Any] = {"references": [reference()], "seed": 5, "steps": 3} | fields
    return Request("a cat", method=method, **given)


def done(name: str, request: Request) -> Run:
    """The request alone in an engine."""
    run = Engine(tiny_models.model(name)).submit(request)
    for _ in run:
        pass
    return run


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["emoji", "sdxl", "sd15"])
@pytest.mark.parametrize("method", BESIDE)
def test_1_a_style_is_not_plain_and_steps_are_any_number(name: str, method: str) -> None:
    """Three steps, seven with another sampler, without guidance, two pictures: in every family."""
    bare = Engine(tiny_models.model(name)).submit(Request("a cat", seed=5, steps=3))
    for fields in ({}, {"steps": 7, "sampler": "euler"}, {"guidance": 1.0, "count": 2, "steps": 2}):
        run = done(name, styled(method, **fields))
        assert run.latents.isfinite().all()
        if not fields:
            for _ in bare:
                pass
            assert (run.latents - bare.latents).abs().max() > 0.01
    branches, negative = 1, int(method == "stylekeeper")
    assert run.request.options.keys() == METHODS[method].options.keys()
    assert len(run.injection.reference_batch or ()) == branches
    assert len(run.injection.extra_guidance) == negative


@pytest.mark.parametrize("how", ["renoised", "inverted"])
def test_5_alone_or_together(how: str) -> None:
    """Runs with reference rows beside runs without, of other lengths: each as if it were alone."""
    requests = [
        styled("style-aligned", options={"rows": how}, count=2, window=(0.0, 0.6), steps=4),
        Request("a dog", seed=3, steps=2),
        styled("swapped", options={"rows": how}, references=[reference(2, content="dog"), reference(3, weight=0.5)]),
        styled("stylekeeper", options={"rows": how}, guidance=1.0),
        Request("a house", seed=4, steps=3, references=[reference(4)]),
    ]
    engine = Engine(tiny_models.model("emoji"))
    runs = [engine.submit(request) for request in requests]
    engine.run()
    for run, request in zip(runs, requests, strict=True):
        torch.testing.assert_close(run.latents, done("emoji", request).latents, atol=TOGETHER, rtol=0)


@pytest.mark.parametrize("method", BESIDE)
def test_11_a_result_remembers_every_knob(method: str) -> None:
    """Made again from what it remembers, as JSON, it is the same to the bit."""
    run = done("emoji", styled(method, count=2))
    again = Request.from_json(run.request.to_json())
    assert torch.equal(done("emoji", again).latents, run.latents)


@pytest.mark.parametrize("method", BESIDE)
def test_targets_do_not_see_each_other(method: str) -> None:
    """Two pictures of one run: the first is what it is alone, from the same noise."""
    model = tiny_models.model("emoji")
    both, one = (Engine(model).submit(styled(method, count=count)).prepare() for count in (2, 1))
    one.latents = both.latents[:1].clone()
    for run in (both, one):
        for _ in run:
            pass
    torch.testing.assert_close(both.latents[:1], one.latents, atol=TOGETHER, rtol=0)


def test_strengths_are_known_of_every_method_that_has_one() -> None:
    sweeps = {name: spec.strength for name, spec in METHODS.items() if spec.strength is not None}
    assert {*sweeps, "none"} == set(METHODS)
    request = styled("swapped", references=[reference(weight=0.5), reference(2)])
    assert [each.weight for each in sweeps["swapped"].apply(request, 0.5).references] == [0.25, 0.5]
    for strength in sweeps.values():
        assert strength.default in strength.values
        assert list(strength.values) == sorted(strength.values)


def test_a_reference_drawn_alongside_is_the_picture_it_would_be_alone() -> None:
    """StyleAligned's first mode: no picture, a caption; its row ends in the picture that a bare run makes of it."""
    request = styled(
        "style-aligned", references=(), options={"rows": "alongside", "caption": "a dog"}, negative="blue", steps=4
    )
    run = Engine(tiny_models.model("emoji")).submit(request).prepare()
    rows = run.injection.reference_batch
    assert rows is not None
    assert len(rows) == 2
    alone = Engine(tiny_models.model("emoji")).submit(Request("a dog", "blue", seed=5, steps=4)).prepare()
    alone.latents = rows.latents(run.step_context)[1:]
    for _ in alone:
        torch.testing.assert_close(rows.latents(run.step_context), run.denoiser_inputs().latents[-2:])
        Engine.step(run.engine)  # pyright: ignore[reportArgumentType]
        if not run.done:
            torch.testing.assert_close(alone.latents, rows.latents(run.step_context)[1:], atol=TOGETHER, rtol=0)
    bare = done("emoji", Request("a cat", "blue", seed=5, steps=4))
    assert (run.latents - bare.latents).abs().max() > 0.01


def test_renoised_rows_are_noised_as_in_training() -> None:
    z = random(1, 32, 8, 8)
    pinned = renoise(z, seed=3)
    moments = [StepContext(step, 3, 0.0, 0.6, 0.8) for step in (0, 1)]
    first, second = map(pinned, moments)
    assert torch.equal(first, pinned(moments[0]))
    assert not torch.equal(first, second)
    noise = (first - 0.6 * z) / 0.8
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    assert abs(float((noise * z).mean())) < 0.1
    assert not torch.equal(first, renoise(z, seed=4)(moments[0]))


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_inversion_is_diffusers_inverse_scheduler(name: str) -> None:
    """`DDIMInverseScheduler`, its config the model's, asked about the level that is being moved to."""
    model, diffusers = tiny_models.model(name), importlib.import_module("diffusers")
    z = random(1, 4, 8, 8)
    predict = cfg_denoiser(model, encode_prompts(model, ["", "a cat"]), SIZE, 2.0)
    ours = ddim_invert(predict, z, noise_levels(model, 5), "epsilon")
    # Leading timesteps without an offset, as StyleAligned's inversion has them; the inverse scheduler has no other.
    forward = diffusers.DDIMScheduler.from_config(dict(model.scheduler_config), steps_offset=0, set_alpha_to_one=False)
    inverse = diffusers.DDIMInverseScheduler.from_config(forward.config, clip_sample=False)
    inverse.set_timesteps(5)
    x, kept = z, forward.alphas_cumprod
    marks = [NoiseLevel(-1, *_parts(float(forward.final_alpha_cumprod)))]
    for time in sorted(int(t) for t in _set(forward, 5)):
        marks.append(NoiseLevel(time, *_parts(float(kept[time]))))
    for time in inverse.timesteps:
        there = NoiseLevel(float(time), *_parts(float(kept[int(time)])))
        x = inverse.step(predict(x, there), time, x).prev_sample
    mine = ddim_invert(predict, z, marks, "epsilon")
    torch.testing.assert_close(mine.terminal, x, atol=1e-4, rtol=1e-4)
    assert [level.timestep for level in marks[1:]] == [0, 200, 400, 600, 800]
    assert len(ours.noise_levels) == 6


def _parts(kept: float) -> tuple[float, float]:
    return kept**0.5, (1 - kept) ** 0.5


def _set(scheduler: Any, steps: int) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler.timesteps


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_prediction_splits_into_picture_and_noise(kind: str) -> None:
    picture, noise, level = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), NoiseLevel(500, 0.6, 0.8)
    x = level.alpha * picture + level.sigma * noise
    said = {"epsilon": noise, "v_prediction": 0.6 * noise - 0.8 * picture, "sample": picture}[kind]
    torch.testing.assert_close(prediction_target(picture, noise, 0.6, 0.8, kind), said)
    for ours, expected in zip(predict_x0_eps(said, x, 0.6, 0.8, kind), (picture, noise), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_inversion_of_a_world_of_one_gaussian() -> None:
    """Pictures N(0, s^2): noise is linear in what is seen, and the way is known in closed form.

    x = z sqrt(signal^2 + noise^2 / s^2): inversion comes near it as steps grow, and back down near the picture.
    """
    model, s = tiny_models.model("sd15"), 0.5

    def predict(x: Tensor, level: NoiseLevel) -> Tensor:
        return x * level.sigma / (level.alpha**2 * s**2 + level.sigma**2)

    z = s * random(1, 4, 4, 4)
    apart: list[tuple[float, float]] = []
    for steps in (10, 40, 160):
        marks = noise_levels(model, steps)
        way = ddim_invert(predict, z, marks, "epsilon")
        top = marks[-1]
        true = z * (top.alpha**2 + top.sigma**2 / s**2) ** 0.5
        back = ddim_sample(predict, way.terminal, marks, "epsilon").at(marks[0])
        apart.append((float((way.terminal - true).abs().max()), float((back - z).abs().max())))
    there, back = zip(*apart, strict=True)
    assert max(there) < 0.05  # of latents that reach 4
    assert list(back) == sorted(back, reverse=True)
    assert back[-1] < 0.25 * back[0]


def test_refined_inversion_is_the_inverse_of_the_step_down() -> None:
    """Fixed-point iteration: with each more, down again is nearer to where it came from."""
    marks = noise_levels(tiny_models.model("sd15"), 5)
    z = random(1, 4, 8, 8)

    def predict(x: Tensor, level: NoiseLevel) -> Tensor:
        return 0.3 * torch.sin(x) + 0.5 * level.sigma * x

    def apart(refine: int) -> float:
        up = ddim_invert(predict, z, marks, "epsilon", refine=refine)
        return float((ddim_sample(predict, up.terminal, marks, "epsilon").at(marks[0]) - z).std())

    once, thrice, often = map(apart, (0, 2, 8))
    assert once > thrice > often
    assert often < 0.05 * once


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_generation_is_diffusers_ddim(rescale: float) -> None:
    model = tiny_models.model("emoji")
    run = Engine(model).submit(Request("a cat", seed=5, steps=4, guidance=3.0, guidance_rescale=rescale)).prepare()
    marks, noise = noise_levels(model, 4), run.latents.clone()
    way = ddim_sample(
        cfg_denoiser(model, encode_prompts(model, ["", "a cat"]), SIZE, 3.0, rescale), noise, marks, "v_prediction"
    )
    for step, _ in enumerate(run):
        level = marks[3 - step]
        torch.testing.assert_close(way.at(level), run.latents, atol=TOGETHER, rtol=0)


def test_a_way_waits_at_its_offset() -> None:
    """Between its own levels a way is a mix of one picture and one noise; noisier than its offset it does not get."""
    model = tiny_models.model("sd15")
    marks = noise_levels(model, 10)
    way = ddim_invert(lambda x, level: 0.5 * x, random(1, 4, 4, 4), marks, "epsilon")
    pinned = follow_trajectory(way, offset=0.2)

    def at(level: NoiseLevel) -> Tensor:
        return pinned(StepContext(0, 10, *level))

    assert torch.equal(at(marks[10]), way.at(marks[8]))
    assert torch.equal(at(marks[9]), way.at(marks[8]))
    assert torch.equal(at(marks[7]), way.at(marks[7]))
    below, above = way.at(marks[4]), way.at(marks[5])
    middle = way.at(
        NoiseLevel((marks[4].timestep + marks[5].timestep) / 2, 0.5 * (marks[4].alpha + marks[5].alpha), 0.5)
    )
    assert not torch.equal(below, above)
    assert middle.isfinite().all()
