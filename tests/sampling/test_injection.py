"""What an injection may bring besides attention: another UNet value, reference rows, negatives.  Laws 1, 2, 4 and 5."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import Site
from instantstyle.errors import InputError
from instantstyle.methods import METHODS, MethodSpec, injection, specs
from instantstyle.methods.injection import GuidanceTerm, Injection, ReferenceBatch, StepContext
from instantstyle.networks.attention import plain
from instantstyle.networks.weight_deltas import with_weight_deltas
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import SAMPLERS, Engine, Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

TOGETHER = 1e-4
"""As in the engine's laws: rounding alone."""
MODEL = tiny_models.model("emoji")
OTHER = with_weight_deltas(MODEL.unet, {"conv_in.bias": torch.full((16,), 0.5)})
Z = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(7))
"""The latents of two references."""


def pinned(at: StepContext) -> Tensor:
    fresh = torch.randn(Z.shape, generator=torch.Generator().manual_seed(at.step))
    return at.alpha * Z + at.sigma * fresh


def rows() -> ReferenceBatch:
    return ReferenceBatch(MODEL.encode_prompt(["a dog", "a red house"]), pinned)


def looking(calls: Counter[Site] | None = None, wanted: int = 4) -> Any:
    """Own rows look at their reference's keys and values beside their own; [unconditional, conditional, dog, house]."""

    def attend(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
    ) -> Tensor:
        assert len(q) == wanted
        if calls is not None:
            calls[site] += 1
        if site.kind == "cross":
            return plain(site, q, k, v, bias=bias)
        beside = torch.arange(wanted)
        beside[:-2] = wanted - 1
        return plain(site, q, torch.cat([k, k[beside]], dim=2), torch.cat([v, v[beside]], dim=2), bias=bias)

    return attend


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Injection]:
    """Injections by the name of the method that asks for them."""
    known: dict[str, Injection] = {}

    def ask(name: str) -> Any:
        def method(model: Any, request: Any) -> Injection:
            return known[name]

        return method

    def spec(name: str) -> MethodSpec:
        return MethodSpec(name=name, help="", function=f"injection:{name}", request_fields=frozenset({"plan"}))

    names = ("one", "two", "three")
    monkeypatch.setattr(specs, "METHODS", {**METHODS, **{name: spec(name) for name in names}})
    for name in names:
        monkeypatch.setattr(injection, name, ask(name), raising=False)
    return known


def request(method: str, **fields: Any) -> Request:
    style = () if method == "none" else (StyleReference(tiny_models.picture(1)),)
    defaults: dict[str, Any] = {"prompt": "a cat", "references": style, "method": method, "seed": 5, "steps": 2}
    return Request(**(defaults | fields))


def latents(method: str, **fields: Any) -> Tensor:
    run = Engine(MODEL).submit(request(method, **fields))
    for _ in run:
        pass
    return run.latents


def everything(**fields: Any) -> Injection:
    """A UNet, rows and negatives at once."""
    arguments: dict[str, Any] = {
        "attend": looking(wanted=5),
        "unet": OTHER,
        "reference_batch": rows(),
        "extra_guidance": (GuidanceTerm(0.5),),
        "uncond_text": "prompt",
    }
    return Injection(**(arguments | fields))


def test_1_nothing_holds_outside_of_the_window(asked: dict[str, Injection]) -> None:
    asked["one"] = everything(window=(0.0, 0.0))
    assert torch.equal(latents("one"), latents("none"))
    asked["two"] = everything(window=(0.5, 1.0))
    run, bare = (Engine(MODEL).submit(request(method)).prepare() for method in ("two", "none"))
    assert (run.batch_size, bare.batch_size) == (2, 2)
    for each in (run, bare):
        each.engine.step()
    assert torch.equal(run.latents, bare.latents)
    assert (run.batch_size, run.own_batch_size) == (5, 3)
    for each in (run, bare):
        each.engine.step()
    assert not torch.equal(run.latents, bare.latents)


def test_1_no_change_and_rows_that_nobody_looks_at_are_plain(asked: dict[str, Injection]) -> None:
    asked["one"] = Injection(unet=with_weight_deltas(MODEL.unet, {"conv_in.bias": torch.zeros(16)}))
    assert torch.equal(latents("one"), latents("none"))
    asked["two"] = Injection(reference_batch=rows())
    torch.testing.assert_close(latents("two"), latents("none"), atol=TOGETHER, rtol=0)


def test_2_each_layer_attends_once_a_step_and_sees_all_rows(asked: dict[str, Injection]) -> None:
    calls: Counter[Site] = Counter()
    asked["one"] = Injection(looking(calls), reference_batch=rows())
    latents("one")
    assert calls == dict.fromkeys(MODEL.unet.config.sites, 2)


def test_4_networks_are_never_changed(asked: dict[str, Injection]) -> None:
    before = MODEL.weights_hash()
    asked["one"] = everything()
    assert not torch.allclose(latents("one"), latents("none"), atol=1e-2)
    assert MODEL.weights_hash() == before


def test_5_alone_or_together(asked: dict[str, Injection]) -> None:
    """Runs with rows, with another UNet, with both, late ones and bare ones."""
    asked["one"] = Injection(looking(), reference_batch=rows())
    asked["two"] = Injection(unet=OTHER)
    asked["three"] = everything(window=(0.0, 0.5))
    engine = Engine(MODEL)
    wanted = [("none", 1), ("one", 2), ("two", 3), ("three", 4), ("none", 5), ("one", 6)]
    runs: list[Run] = []
    for method, seed in wanted:
        runs.append(engine.submit(request(method, seed=seed)))
        if seed == 3:
            engine.step()
    engine.run()
    for run, (method, seed) in zip(runs, wanted, strict=True):
        torch.testing.assert_close(run.latents, latents(method, seed=seed), atol=TOGETHER, rtol=0)


def test_runs_of_one_unet_go_together(asked: dict[str, Injection]) -> None:
    asked["one"], asked["two"] = Injection(looking(), reference_batch=rows()), Injection(unet=OTHER)
    seen: list[tuple[bool, int]] = []
    hooks = [
        unet.register_forward_pre_hook(lambda net, args: seen.append((net is OTHER, len(args[0]))))  # pyright: ignore
        for unet in (MODEL.unet, OTHER)
    ]
    engine = Engine(MODEL)
    for method in ("one", "two", "none", "two"):
        engine.submit(request(method, steps=1))
    engine.run()
    for hook in hooks:
        hook.remove()
    assert sorted(seen) == [(False, 6), (True, 4)]


def test_a_step_is_the_unet_of_all_rows_and_the_scheduler(asked: dict[str, Injection]) -> None:
    """By hand: own rows twice, references behind; their predictions dropped; guidance; one step of DDIM."""
    asked["one"] = Injection(looking(), reference_batch=rows(), unet=OTHER)
    run = Engine(MODEL).submit(request("one", guidance=3.5, guidance_rescale=0.0)).prepare()
    noise, time = run.latents, run.timesteps[0]
    said = MODEL.encode_prompt(["", "a cat", "a dog", "a red house"])
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(4, 1)
    all_rows = torch.cat([noise, noise, pinned(run.step_context)])
    with torch.no_grad():
        out = OTHER(
            all_rows,
            time.float().expand(4),
            OTHER.precompute_kv(said.prompt_embeds),
            said.pooled_prompt_embeds,
            sizes,
            attend=looking(),
        )
    without, given = out[:1], out[1:2]
    fresh = run.scheduler.from_config(run.scheduler.config)
    fresh.set_timesteps(2)
    expected = fresh.step(without + 3.5 * (given - without), time, noise).prev_sample
    run.engine.step()
    torch.testing.assert_close(run.latents, expected, atol=1e-5, rtol=0)


def test_a_negative_pushes_away_by_its_weight(asked: dict[str, Injection]) -> None:
    """One that reads the negative prompt is more guidance; one that is the conditional prediction itself is nothing."""
    asked["one"] = Injection(extra_guidance=(GuidanceTerm(1.5, "negative"),))
    torch.testing.assert_close(latents("one", guidance=3.0), latents("none", guidance=4.5), atol=1e-3, rtol=0)
    asked["two"] = Injection(extra_guidance=(GuidanceTerm(9.0),))
    torch.testing.assert_close(latents("two", count=2), latents("none", count=2), atol=1e-3, rtol=0)
    asked["three"] = Injection(
        extra_guidance=(GuidanceTerm(4.0, "negative"),)
    )  # without an unconditional row it is one
    torch.testing.assert_close(latents("three", guidance=1.0), latents("none", guidance=5.0), atol=1e-3, rtol=0)


def test_the_unconditional_row_may_read_the_prompt(asked: dict[str, Injection]) -> None:
    asked["one"] = Injection(uncond_text="prompt")
    torch.testing.assert_close(latents("one"), latents("none", guidance=1.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["emoji", "sdxl", "sd15"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_moment_is_how_the_scheduler_noises(name: str, sampler: str) -> None:
    """Whatever the sampler's own coordinates: its add_noise, scaled as the UNet sees it."""
    z, fresh = (torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2))
    run = Engine(tiny_models.model(name)).submit(Request("a cat", steps=5, sampler=sampler)).prepare()
    for step, time in enumerate(run.timesteps):
        run.step = step
        theirs = run.scheduler.from_config(run.scheduler.config)
        theirs.set_timesteps(5)
        noised = theirs.scale_model_input(theirs.add_noise(z, fresh, time[None]), time)
        torch.testing.assert_close(
            run.step_context.alpha * z + run.step_context.sigma * fresh, noised, atol=2e-4, rtol=1e-4
        )


def test_rows_of_another_shape_fail_their_own_run(asked: dict[str, Injection]) -> None:
    asked["one"] = Injection(reference_batch=ReferenceBatch(MODEL.encode_prompt(["a dog"]), pinned))
    engine = Engine(MODEL)
    bad, good = engine.submit(request("one")), engine.submit(request("none"))
    with pytest.raises(InputError, match=r"\(2, 32, 8, 8\) where the run has \(1, 32, 8, 8\)"):
        engine.run()
    assert (bad.state, good.state) == ("failed", "done")
