"""The engine and the methods on small random models: what is asked for is done, remembered, or refused."""

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import instantstyle as ist
import tiny_models
from instantstyle.errors import Cancelled, InputError, InstantStyleError, PlanError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.networks.attention import plain
from instantstyle.networks.image_projection import Resampler
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import SAMPLERS, Engine, route_attention
from instantstyle.weights.adapter import Adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy


BLACK = Image.new("RGB", (48, 48))


def reference(seed: int = 1, **fields: Any) -> StyleReference:
    return StyleReference(tiny_models.picture(seed), **fields)


def latents(request: Request, name: str = "emoji") -> torch.Tensor:
    run = Engine(tiny_models.model(name)).submit(request)
    for _ in run:
        pass
    return run.latents


def test_the_noise_is_diffusers() -> None:
    randn: Any = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
    for count in (1, 3):
        run = Engine(tiny_models.model("sdxl")).submit(Request("a cat", seed=123, count=count)).prepare()
        noise = randn((count, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(123), dtype=torch.float32)
        assert torch.equal(run.latents, noise * run.scheduler.init_noise_sigma)


def test_a_result_remembers_what_was_not_said() -> None:
    result = ist.generate(tiny_models.model("emoji"), Request("a cat", steps=2))
    assert result.request.seed is not None
    assert result.request.size == (64, 64)
    assert result.request.sampler == "ddim"
    assert result.images[0].size == (64, 64)
    assert result.model == str(tiny_models.folder("emoji"))
    again = ist.generate(tiny_models.model("emoji"), Request.from_json(result.request.to_json()))
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(result.images[0]))


@pytest.mark.parametrize(("name", "guidance"), [("emoji", 3.0), ("sdxl", 5.0), ("sd15", 5.0)])
def test_a_guidance_that_is_not_named_is_the_familys(name: str, guidance: float) -> None:
    """Taken, remembered, and no other picture than where it is named; one that is named, 0 too, stays."""
    unnamed, named = Request("a cat", seed=1, steps=1), Request("a cat", seed=1, steps=1, guidance=guidance)
    engine = Engine(tiny_models.model(name))
    runs = [engine.submit(each) for each in (unnamed, named, unnamed.model_copy(update={"guidance": 0.0}))]
    assert [run.request.guidance for run in runs] == [guidance, guidance, 0.0]
    result, same, other = (np.asarray(each.images[0]) for each in engine.run())
    assert np.array_equal(result, same)
    assert not np.array_equal(result, other)
    assert f"CFG scale: {guidance:g}," in runs[0].result().metadata().parameters()


@pytest.mark.parametrize(("name", "share"), [("emoji", 0.7), ("sdxl", 0.0)])
def test_a_rescaling_that_is_not_named_is_the_familys(name: str, share: float) -> None:
    unnamed = Request("a cat", seed=1, steps=2, guidance=5.0)
    engine = Engine(tiny_models.model(name))
    asked = [unnamed, *(unnamed.model_copy(update={"guidance_rescale": each}) for each in (share, 1.0))]
    runs = [engine.submit(each) for each in asked]
    assert [run.request.guidance_rescale for run in runs] == [share, share, 1.0]
    result, same, other = (np.asarray(each.images[0]) for each in engine.run())
    assert np.array_equal(result, same)
    assert not np.array_equal(result, other)


def test_without_a_seed_two_pictures_differ() -> None:
    seeds = {Engine(tiny_models.model("emoji")).submit(Request("a cat", steps=1)).request.seed for _ in range(3)}
    assert len(seeds) == 3


def test_iterating_tells_where_it_stands_and_shows_what_is_coming() -> None:
    run = Engine(tiny_models.model("emoji")).submit(Request("a cat", seed=1, steps=4))
    told = [(p.step, p.steps, p.preview()[0]) for p in run]
    assert [(step, steps) for step, steps, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    final = np.asarray(run.result().images[0], int)
    assert np.abs(np.asarray(told[-1][2], int) - final).max() <= 1  # at the end the expected picture is the picture
    assert np.abs(np.asarray(told[0][2], int) - final).max() > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["emoji", "sdxl"])
def test_previews_end_in_the_picture_with_every_sampler(sampler: str, name: str) -> None:
    """Also with those schedulers that keep their expected picture to themselves."""
    run = Engine(tiny_models.model(name)).submit(Request("a cat", seed=1, steps=6, sampler=sampler))
    last = [p.preview()[0] for p in run][-1]
    difference = np.abs(np.asarray(last, int) - np.asarray(run.result().images[0], int))
    assert difference.mean() < 4


def test_progress_is_told_after_each_step() -> None:
    steps: list[int] = []
    ist.generate(tiny_models.model("emoji"), Request("a cat", steps=3), progress=lambda p: steps.append(p.step))
    assert steps == [1, 2, 3]


def test_cancelling_takes_effect_before_the_next_step() -> None:
    engine = Engine(tiny_models.model("emoji"))
    run, other = engine.submit(Request("a cat", steps=5)), engine.submit(Request("a dog", steps=3))
    engine.step()
    run.cancel()
    assert len(engine.run()) == 1
    assert (run.step, run.state) == (1, "cancelled")
    assert other.result().images
    with pytest.raises(Cancelled, match="after 1 of 5 steps"):
        run.result()
    with pytest.raises(Cancelled):
        list(run)


def test_a_run_that_is_not_done_has_no_result() -> None:
    with pytest.raises(InputError, match="step 0 of 5"):
        Engine(tiny_models.model("emoji")).submit(Request("a cat", steps=5)).result()


def test_a_failure_of_one_run_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_models.model("emoji"))
    bad, good = engine.submit(Request("a cat", steps=2)), engine.submit(Request("a dog", steps=2))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken scheduler")

    monkeypatch.setattr(bad.scheduler, "step", broken)
    with pytest.raises(RuntimeError, match="broken scheduler"):
        engine.run()
    assert bad.state == "failed"
    assert good.result().images


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_run_away_are_a_sentence_and_no_black_picture(number: float) -> None:
    run = Engine(tiny_models.model("emoji")).submit(Request("a cat", steps=2))
    told: list[int] = []

    def disturbed() -> None:
        for progress in run:
            told.append(progress.step)
            run.latents[0, 0, 0, 0] = number

    with pytest.raises(InstantStyleError, match=r"NaN or infinity.*guidance"):
        disturbed()
    assert told == [1]  # the step that failed is no progress
    with pytest.raises(InstantStyleError, match="decoder made NaN or infinity"):
        tiny_models.model("emoji").decode_latents(run.latents)


def test_together_gives_each_its_own_rows() -> None:
    site = tiny_models.model("emoji").unet.config.sites[1]
    q, k, v = (torch.randn(6, 2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    seen: list[int] = []

    def loud(by: float) -> Any:
        def attend(site: Any, q: Any, k: Any, v: Any, *, bias: Any = None, tokens: Any = None) -> torch.Tensor:
            seen.append(len(q))
            return by * plain(site, q, k, v, bias=bias)

        return attend

    parts = [(slice(0, 1), plain), (slice(1, 3), plain), (slice(3, 4), loud(2.0)), (slice(4, 6), loud(3.0))]
    out = route_attention(parts)(site, q, k, v)
    factors = torch.tensor([1.0, 1, 1, 2, 3, 3])[:, None, None, None]
    torch.testing.assert_close(out, factors * plain(site, q, k, v))
    assert seen == [1, 2]
    assert route_attention(parts[:2]) is plain


class TestReferences:
    def test_a_reference_of_weight_0_is_as_if_not_there(self) -> None:
        alone = Request("a cat", references=[reference()], seed=1, steps=2)
        beside = Request("a cat", references=[reference(), reference(2, weight=0.0)], seed=1, steps=2)
        assert torch.equal(latents(alone), latents(beside))

    @pytest.mark.parametrize("combine", ["concat", "average"])
    def test_and_one_of_little_weight_almost(self, combine: Any) -> None:
        alone = Request("a cat", references=[reference()], seed=1, steps=2)
        faint = (reference(), reference(2, weight=1e-4))
        beside = Request("a cat", references=faint, seed=1, steps=2, combine=combine)
        torch.testing.assert_close(latents(alone), latents(beside), atol=2e-3, rtol=0)

    @pytest.mark.parametrize("combine", ["concat", "average"])
    def test_the_same_reference_twice_is_that_reference(self, combine: Any) -> None:
        once = Request("a cat", references=[reference(weight=0.7)], seed=1, steps=2)
        twice = Request("a cat", references=[reference(weight=0.7)] * 2, seed=1, steps=2, combine=combine)
        torch.testing.assert_close(latents(once), latents(twice), atol=1e-4, rtol=0)

    def test_a_weight_is_a_strength(self) -> None:
        by_weight = Request("a cat", references=[reference(weight=0.6)], plan="up.0.1=1", seed=1, steps=2)
        by_plan = Request("a cat", references=[reference()], plan="up.0.1=0.6", seed=1, steps=2)
        torch.testing.assert_close(latents(by_weight), latents(by_plan), atol=1e-4, rtol=0)

    def test_their_order_does_not_matter(self) -> None:
        two = [reference(1, weight=0.5), reference(2, content="dog")]
        there, back = (Request("a cat", references=r, seed=1, steps=2) for r in (two, two[::-1]))
        torch.testing.assert_close(latents(there), latents(back), atol=1e-4, rtol=0)

    def test_auto_picks_the_nearest_word_and_remembers_it(self) -> None:
        model = tiny_models.model("emoji")
        run = Engine(model).submit(Request("a cat", references=[reference(content="auto")], seed=1, steps=2)).prepare()
        image = np.asarray(model.encode_image([tiny_models.picture(1)]))[0]
        words = [np.asarray(model.encode_prompt([word]).text_embeds)[0] for word in ("cat", "dog", "house")]
        cosines = [float(image @ word / np.linalg.norm(word)) for word in words]
        word = ("cat", "dog", "house")[int(np.argmax(cosines))]
        assert run.request.references[0].content == word
        both = Request("a cat", references=[reference(content=("house", " Auto"))], seed=1)
        assert Engine(model).submit(both).prepare().request.references[0].content == ("house", word)

    def test_several_contents(self) -> None:
        one = Request("a cat", references=[reference(content="dog")], seed=1, steps=2)
        two = Request("a cat", references=[reference(content=("dog", "house"))], seed=1, steps=2)
        assert not torch.equal(latents(one), latents(two))

    @pytest.mark.parametrize("how", ["normalised", "projected"])
    def test_variants_of_subtraction_differ(self, how: Any) -> None:
        paper = Request("a cat", references=[reference(content="dog")], seed=1, steps=2)
        assert not torch.equal(latents(paper), latents(paper.model_copy(update={"subtraction": how})))


class TestPrecise:
    REQUEST = Request("a cat", references=[reference()], plan="precise", seed=1, steps=2)

    def test_the_layout_block_pushes_the_unconditional_row_alone(self) -> None:
        model = tiny_models.model("emoji")
        run = Engine(model).submit(self.REQUEST).prepare()
        site = next(s for s in model.unet.config.sites if s.module == "down.2.1" and s.kind == "cross")
        k, v = run.kv[site]
        q = torch.randn(2, k.shape[1], 5, k.shape[3], generator=torch.Generator().manual_seed(0))
        out, bare = run.attend(site, q, k, v), plain(site, q, k, v)
        assert torch.equal(out[1], bare[1])
        assert float((out[0] - bare[0]).abs().max()) > 0.1

    def test_and_there_it_is_the_reference_not_the_empty_picture(self) -> None:
        """What the unconditional row sees at the layout block is what the conditional one sees under plan layout."""
        model = tiny_models.model("emoji")
        precise = Engine(model).submit(self.REQUEST).prepare()
        layout = Engine(model).submit(self.REQUEST.model_copy(update={"plan": "layout"})).prepare()
        site = next(s for s in model.unet.config.sites if s.module == "down.2.1" and s.kind == "cross")
        k, v = precise.kv[site]
        q = torch.randn(1, k.shape[1], 5, k.shape[3], generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
        added = [run.attend(site, q, k, v) - plain(site, q, k, v) for run in (precise, layout)]
        torch.testing.assert_close(added[0][0], added[1][1], atol=1e-5, rtol=1e-4)

    def test_needs_guidance(self) -> None:
        with pytest.raises(InputError, match="guidance above 1"):
            Engine(tiny_models.model("emoji")).submit(self.REQUEST.model_copy(update={"guidance": 1.0}))


def plus(name: str) -> Model:
    """A model with a random Plus adapter, which reads the image encoder's hidden states."""
    model = tiny_models.model(name)
    base = model.get_adapter()
    width = model.image_encoder.net.config.hidden_size if model.image_encoder else 0
    resampler = Resampler(width, model.family.unet.cross_attention_dim, 4, dim=64, depth=1, heads=1).requires_grad_(
        False
    )
    return dataclasses.replace(model, adapter=Adapter(resampler, base.keys, base.values, width, 4))


class TestPlus:
    def test_a_plus_adapter_styles_too(self) -> None:
        engine = Engine(plus("emoji"))
        runs = [engine.submit(Request("a cat", references=r, seed=1, steps=2)) for r in ((), (reference(),))]
        engine.run()
        assert not torch.allclose(runs[0].latents, runs[1].latents, atol=1e-3)

    def test_nothing_seen_is_the_sight_of_zeros(self) -> None:
        model = plus("emoji")
        assert model.image_encoder is not None
        with torch.no_grad():
            out = model.image_encoder.net(torch.zeros(1, 3, 64, 64), output_hidden_states=True)
        assert torch.equal(model.uncond_image_embeds(model.get_adapter()), out.hidden_states[-2])

    def test_content_cannot_be_subtracted_from_patches(self) -> None:
        with pytest.raises(InputError, match="Plus adapter"):
            Engine(plus("emoji")).submit(Request("a cat", references=[reference(content="dog")])).prepare()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_same_picture_but_for_rounding(dtype: str) -> None:
    request = Request("a cat", references=[reference(content="dog")], seed=1, steps=3)
    model = load(tiny_models.folder("emoji"), dtype=dtype)
    half, full = (ist.generate(each, request).images[0] for each in (model, tiny_models.model("emoji")))
    assert np.abs(np.asarray(half, float) - np.asarray(full, float)).mean() < 8


def test_a_window_holds_for_its_part_of_the_run() -> None:
    run = Engine(tiny_models.model("emoji")).submit(
        Request("a cat", references=[reference()], window=(0.25, 0.75), steps=8, seed=1)
    )
    run.prepare()
    styled: list[bool] = []
    while not run.done:
        styled.append(run.attend is not plain)
        run.engine.step()
    assert styled == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("emoji", {"method": "instantstile"}, "no method 'instantstile'.*did you mean 'instantstyle'"),
        ("emoji", {"plan": "up.0.9=1"}, "no block 'up.0.9'"),
        ("emoji", {"plan": "stile"}, "did you mean 'style'"),
        ("emoji", {"method": "ip-adapter", "references": [reference(content="dog")]}, "use method 'instantstyle'"),
        ("emoji", {"references": [], "plan": "stile"}, "did you mean 'style'"),
        ("emoji", {"method": "none", "plan": "up.0.9=1"}, "no block 'up.0.9'"),
        ("emoji", {"sampler": "eulr"}, "did you mean 'euler'"),
        ("emoji", {"size": (60, 64)}, "60x64.*multiples of 32.*64x64"),
        ("emoji", {"prompt": "house " * 40}, "40 tokens.*reads 22"),
        ("emoji", {"negative": "house " * 40}, "fewer words"),
        (
            "emoji",
            {"controls": [ist.Control("edges", tiny_models.picture())]},
            "has no ControlNet, so no picture can be followed",
        ),
        ("emoji", {"init": ist.Init(tiny_models.picture(), 0.4)}, "strength 0.4 of 2 steps.*at least 0.5"),
        ("emoji", {"init": ist.Init(tiny_models.picture(), 1, BLACK)}, "black everywhere"),
        (
            "emoji",
            {"init": ist.Init(tiny_models.picture(), 1, tiny_models.picture().resize((9, 30)))},
            "in its proportions",
        ),
        ("emoji", {"references": [reference(mask=BLACK)]}, "black everywhere"),
        ("sd15", {"references": [reference(content="auto")]}, "no vocabulary"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(name: str, fields: dict[str, Any], sentence: str) -> None:
    defaults: dict[str, Any] = {"prompt": "a cat", "references": [reference()], "steps": 2}
    request = Request(**(defaults | fields))
    engine = Engine(tiny_models.model(name))
    with pytest.raises(InputError, match=sentence):
        engine.submit(request)
    assert engine.runs == []


def test_what_is_found_on_the_way_is_the_runs_failure_and_a_sentence() -> None:
    run = Engine(tiny_models.model("sd15")).submit(Request("a cat", references=[reference(content="dog")], steps=2))
    with pytest.raises(InputError, match="not one shared space"):
        run.prepare()
    assert run.state == "failed"


def test_a_typo_in_a_plan_is_a_plan_error() -> None:
    with pytest.raises(PlanError):
        Engine(tiny_models.model("emoji")).submit(Request("a cat", references=[reference()], plan="up.7=1"))
