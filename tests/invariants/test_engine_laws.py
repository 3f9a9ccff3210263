"""The laws as they bear on the engine: what no style may do, and what no neighbour may.

1  No style is plain: no reference, weight 0 or a plan that is silent give bitwise the bare model, for every method.
2  A middleware calls its inner attend once.
3  Layers have no clock and no memory: the same call twice gives the same bits.
4  Networks are never changed after loading.
5  Alone or together: a picture does not depend on what else is in the batch, bitwise where its shape is the same.
"""

import importlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import Site
from instantstyle.loading import load
from instantstyle.methods import METHODS
from instantstyle.networks.attention import plain
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

TOGETHER = 1e-4
"""How far latents whose largest values are near 4 may drift when other rows are in the batch: rounding alone."""


QUICK: dict[str, dict[str, Any]] = {
    method: {"rows": "noised"} for method in ("style-aligned", "swapped", "stylekeeper")
}
"""Options with which no inversion comes first."""


def reference(seed: int = 1, **fields: Any) -> StyleReference:
    return StyleReference(tiny_models.picture(seed), **fields)


def latents(name: str, request: Request) -> Tensor:
    """The request alone in an engine."""
    run = Engine(tiny_models.model(name)).submit(request)
    for _ in run:
        pass
    return run.latents


def bare(**fields: Any) -> Request:
    return Request("a cat", seed=5, steps=3, **fields)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "silent",
    [
        {"references": ()},
        {"references": (reference(weight=0.0),)},
        {"references": (reference(), reference(2)), "window": (0.0, 0.0)},
    ],
    ids=["no reference", "weight 0", "empty window"],
)
def test_1_no_style_is_plain(method: str, silent: dict[str, Any]) -> None:
    """Bitwise the bare model, whatever the method; "none" takes no references at all."""
    silent = {} if method == "none" else silent
    assert torch.equal(latents("emoji", bare(method=method, **silent)), latents("emoji", bare(method="none")))


def test_1_nor_is_a_plan_that_is_silent_everywhere() -> None:
    silent = bare(references=[reference()], plan="up.0.1=0,mid=0")
    assert torch.equal(latents("emoji", silent), latents("emoji", bare()))


@pytest.mark.parametrize(
    "method", [name for name, spec in METHODS.items() if spec.takes_references and name != "b-lora"]
)
def test_1_nor_is_any_methods_empty_plan(method: str) -> None:
    """B-LoRA takes no plan: its style is in the two blocks it was fitted to."""
    silent = bare(method=method, references=[reference()], plan="all=0", options=QUICK.get(method, {}))
    assert torch.equal(latents("emoji", silent), latents("emoji", bare()))


@pytest.mark.parametrize("name", ["emoji", "sdxl", "sd15"])
def test_1_and_a_style_is_not(name: str) -> None:
    plain_picture = latents(name, bare())
    for plan in ("style", "layout", "style+layout", "all", "precise"):
        assert not torch.equal(latents(name, bare(references=[reference()], plan=plan)), plain_picture)


@pytest.mark.parametrize("plan", ["style", "all", "precise"])
def test_2_a_middleware_calls_its_inner_attend_once(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of the text happens once at each site, whatever the plan and however many middlewares it needs."""
    method = importlib.import_module("instantstyle.methods.instantstyle")
    calls: Counter[Site] = Counter()

    def counting(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
    ) -> Tensor:
        calls[site] += 1
        return plain(site, q, k, v, bias=bias)

    original = method.add_image_prompt

    def counted(attend: Any, *rest: Any) -> Any:
        return original(counting if attend is plain else attend, *rest)

    monkeypatch.setattr(method, "add_image_prompt", counted)
    model = tiny_models.model("emoji")
    run = Engine(model).submit(bare(references=[reference()], plan=plan)).prepare()
    sites = model.unet.config.sites
    for site in sites:
        k, v = run.kv[site] if site.kind == "cross" else (torch.randn(2, 2, 5, 4) for _ in range(2))
        q = torch.randn(k.shape[0], k.shape[1], 5, k.shape[3])
        ours, once = run.attend(site, q, k, v), calls[site]
        # What it answered is what is heard, and once: without the text's values its answer is missing.
        silent = run.attend(site, q, k, torch.zeros_like(v))
        torch.testing.assert_close(ours - silent, plain(site, q, k, v), atol=2e-5, rtol=1e-4)
        assert (once, calls[site]) == (1, 2)
    assert len(calls) == len(sites) == 22


WRAPPERS = {
    "instantstyle": ("instantstyle", "add_image_prompt"),
    "ip-adapter": ("instantstyle", "add_image_prompt"),
    "cleanstyle": ("cleanstyle", "add_image_prompt"),
    "stylestudio": ("stylestudio", "cross_adain"),
    "style-aligned": ("shared_attention", "shared_attention"),
    "swapped": ("shared_attention", "swapped_attention"),
    "stylekeeper": ("shared_attention", "swapped_attention"),
}
"""The function of each method that wraps an attention in another, by its module."""


@pytest.mark.parametrize("method", WRAPPERS)
def test_2_every_method_calls_what_it_wraps_once_a_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = importlib.import_module(f"instantstyle.methods.{WRAPPERS[method][0]}"), WRAPPERS[method][1]
    calls: Counter[Site] = Counter()

    def counting(site: Site, *qkv: Tensor, bias: Tensor | None = None, tokens: object = None) -> Tensor:
        calls[site] += 1
        return plain(site, *qkv, bias=bias)

    original = getattr(module, name)

    def counted(attend: Any, *rest: Any, **more: Any) -> Any:
        return original(counting if attend is plain else attend, *rest, **more)

    monkeypatch.setattr(module, name, counted)
    sites, plan = tiny_models.model("emoji").unet.config.sites, {} if method == "ip-adapter" else {"plan": "all"}
    latents("emoji", bare(method=method, references=[reference()], options=QUICK.get(method, {}), **plan))
    assert calls == dict.fromkeys(sites, 3)


def test_2_every_method_with_a_wrapper_is_tried() -> None:
    assert {*WRAPPERS, "none", "b-lora"} == set(METHODS)


def test_3_the_same_call_twice_gives_the_same_bits() -> None:
    request = bare(references=[reference(content="dog")], plan="all", count=2)
    assert torch.equal(latents("emoji", request), latents("emoji", request))


@pytest.mark.parametrize("name", ["emoji", "sdxl"])
def test_4_networks_are_never_changed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path))
    model = tiny_models.model(name)
    before = model.weights_hash()
    engine = Engine(model)
    for method, plan in itertools.product(METHODS, ("style", "all")):
        if method not in ("none", "b-lora"):
            engine.submit(bare(references=[reference()], method=method, plan=plan))
    engine.submit(bare(references=[reference()], plan="precise"))
    engine.submit(bare(references=[reference()], method="ip-adapter"))
    engine.submit(bare(references=[reference()], method="b-lora", options={"fit-steps": 1}))
    engine.run()
    assert model.weights_hash() == before
    assert not any(parameter.requires_grad for net in model.networks.values() for parameter in net.parameters())


def test_4_and_the_hash_sees_a_single_weight() -> None:
    model = load(tiny_models.folder("sd15"))  # one of its own: adding 1 and taking it away again is not exact
    before, weight = model.weights_hash(), model.unet.conv_in.bias
    assert weight is not None
    weight.data[0] += 1
    assert model.weights_hash() != before


PROMPTS = ("a cat", "a dog in the house", "a red house", "a picture of ink")
UNLIKE: tuple[Request, ...] = tuple(
    Request(
        PROMPTS[i % 4],
        negative=("", "a dog", "", "blue")[(i // 2) % 4],
        references=[
            (),
            (reference(i),),
            (reference(i, content="dog" if i % 4 != 2 else None), reference(i + 50, weight=0.4)),  # 2: ip-adapter
        ][i % 3 if i % 4 < 3 else 0],  # 3: none
        method=("instantstyle", "instantstyle", "ip-adapter", "none")[i % 4],
        plan=("style", "style+layout", "style", "all")[i % 4],
        window=((0.0, 1.0), (0.3, 1.0), (0.0, 0.6))[(i // 3) % 3],
        size=((64, 64), (64, 96), (64, 64), (32, 64))[(i // 4) % 4],
        steps=2 + i % 5,
        guidance=(5.0, 1.0, 2.5, 7.5)[(i // 2) % 4],
        sampler=(None, "euler", "dpm++", "unipc", "ddim")[i % 5],
        seed=100 + i,
        count=1 + (i % 5 == 3),
        combine=("concat", "average")[i % 2],
        subtraction=("paper", "normalised", "projected")[i % 3] if i % 4 < 2 else "paper",
    )
    for i in range(16)
)


def test_5_alone_or_together() -> None:
    """Sixteen requests that share nothing but the model, stepped together and each alone."""
    engine = Engine(tiny_models.model("emoji"))
    runs = [engine.submit(request) for request in UNLIKE]
    engine.run()
    for run, request in zip(runs, UNLIKE, strict=True):
        alone = latents("emoji", request)
        torch.testing.assert_close(run.latents, alone, atol=TOGETHER, rtol=0)
        assert len(run.result().images) == request.count


def test_5_bitwise_where_the_batch_has_the_same_shape() -> None:
    """What the neighbour is does not matter: its place taken by another request, the bits are the same."""

    def beside(neighbour: Request) -> Tensor:
        engine = Engine(tiny_models.model("emoji"))
        run, _ = engine.submit(bare(references=[reference()])), engine.submit(neighbour)
        engine.run()
        return run.latents

    one = beside(Request("a dog", seed=1, steps=3, references=[reference(3)], plan="all"))
    assert torch.equal(one, beside(Request("a red house", seed=2, steps=3, guidance=9.0)))


def test_5_joining_late_and_leaving_early_changes_nothing() -> None:
    engine = Engine(tiny_models.model("emoji"))
    first = engine.submit(Request("a cat", seed=1, steps=5, references=[reference()]))
    engine.step()
    late = engine.submit(Request("a dog", seed=2, steps=2, references=[reference(2)], plan="all"))
    engine.step()
    gone = engine.submit(Request("a house", seed=3, steps=9))
    engine.step()
    gone.cancel()
    engine.run()
    for run in (first, late):
        torch.testing.assert_close(run.latents, latents("emoji", run.request), atol=TOGETHER, rtol=0)
    assert gone.state == "cancelled"


def test_5_rows_beyond_the_limit_wait_for_the_next_call() -> None:
    model = tiny_models.model("emoji")
    engine = Engine(model, max_rows=5)
    runs = [engine.submit(bare(references=[reference(i)])) for i in range(4)]
    seen = rows_of(model, engine)
    assert seen == [4, 4] * 3
    for run in runs:
        torch.testing.assert_close(run.latents, latents("emoji", run.request), atol=TOGETHER, rtol=0)


def rows_of(model: Any, engine: Engine) -> list[int]:
    """Run the engine to its end, counting the rows of each UNet call."""
    seen: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda net, args: seen.append(len(args[0])))  # pyright: ignore
    try:
        engine.run()
    finally:
        hook.remove()
    return seen


def test_guidance_1_runs_no_unconditional_row() -> None:
    model = tiny_models.model("emoji")
    for guidance, rows in ((5.0, 4), (1.0, 2), (0.0, 2)):
        engine = Engine(model)
        engine.submit(bare(guidance=guidance, count=2, references=[reference()]))
        assert rows_of(model, engine) == [rows] * 3


def test_one_call_a_step_for_all_runs_of_a_size() -> None:
    model = tiny_models.model("emoji")
    engine = Engine(model)
    for i in range(3):
        engine.submit(Request("a cat", seed=i, steps=2 + i, references=[reference(i)]))
    engine.submit(Request("a cat", seed=9, steps=2, size=(64, 96)))
    assert rows_of(model, engine) == [6, 2, 6, 2, 4, 2]


def test_image_keys_are_read_only_where_the_plan_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A style at one module costs nothing at the others: their attention is called with the text's keys alone."""
    method = importlib.import_module("instantstyle.methods.instantstyle")
    spoken: set[Site] = set()

    def listening(
        site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
    ) -> Tensor:
        spoken.add(site)
        return plain(site, q, k, v, bias=bias)

    inner = method.add_image_prompt

    def without_text(attend: Any, *rest: Any) -> Any:
        def text(
            site: Site, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, tokens: object = None
        ) -> Tensor:
            return plain(site, q, k, v, bias=bias)

        return inner(text, *rest)

    monkeypatch.setattr(method, "add_image_prompt", without_text)
    monkeypatch.setattr(method, "plain", listening)
    run: Run = Engine(tiny_models.model("emoji")).submit(bare(references=[reference()], plan="up.0.1=1"))
    for _ in run:
        pass
    assert {site.module for site in spoken} == {"up.0.1"}
    assert {site.kind for site in spoken} == {"cross"}
