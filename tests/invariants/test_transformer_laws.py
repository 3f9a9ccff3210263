"""The laws of the engine on Flux and Stable Diffusion 3.5, and what is refused there."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import Site, parse_block_plan
from instantstyle.errors import InputError, PlanError
from instantstyle.families import TRANSFORMER_FAMILIES
from instantstyle.loading import load
from instantstyle.methods import METHODS
from instantstyle.methods.ddim_inversion import ddim_round_trip
from instantstyle.methods.prompts import encode_prompts
from instantstyle.request import Init, Request, StyleReference
from instantstyle.sampling import Engine, resolve

NAMES = ("flux", "schnell", "sd35")
EACH = pytest.mark.parametrize("name", NAMES)
BESIDE = ("style-aligned", "swapped")
"""Methods that need no adapter."""
TOGETHER = 5e-5
"""Of latents about 1 large, between a run alone and beside others: sums are taken in another order."""


def reference(seed: int = 1, **fields: Any) -> StyleReference:
    return StyleReference(tiny_models.picture(seed), **fields)


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {"steps": 3, "seed": 7, "size": (64, 48)} | fields
    if given.get("method") == "style-aligned":
        given = {"options": {"reference-source": "noised"}} | given
    return Request(given.pop("prompt", "a cat"), **given)


def latents(name: str, asked: Request) -> Tensor:
    run = Engine(tiny_models.model(name)).submit(asked)
    for _ in run:
        pass
    return run.latents


@EACH
@pytest.mark.parametrize("method", BESIDE)
def test_1_no_style_is_plain_and_a_style_is_not(name: str, method: str) -> None:
    plain = latents(name, request())
    silent = ({"references": [reference(weight=0)]}, {"window": (0.5, 0.5)}, {"plan": "all=0"}, {"window": (0.9, 1.0)})
    for fields in silent:
        asked = request(method=method, **({"references": [reference()]} | fields))
        assert torch.equal(latents(name, asked), plain), fields
    whole = latents(name, request(method=method, references=[reference()]))
    early = latents(name, request(method=method, references=[reference()], window=(0.0, 0.4)))
    one = latents(name, request(method=method, references=[reference()], plan=f"{blocks(name)[0]}=1"))
    two = latents(name, request(method=method, references=[reference(), reference(2)]))
    seen = [plain, whole, early, one, two]
    assert all(float((a - b).abs().max()) > 2e-4 for i, a in enumerate(seen) for b in seen[:i])


def blocks(name: str) -> tuple[str, ...]:
    return tiny_models.model(name).family.layout.modules


UNLIKE: tuple[dict[str, Any], ...] = (
    {},
    {"prompt": "a dog in the house", "method": "swapped", "references": [reference()], "steps": 4, "seed": 1},
    {"prompt": "a red house", "method": "style-aligned", "references": [reference(2), reference(3)], "count": 2},
    {"prompt": "ink", "guidance": 1.5, "negative": "dog", "size": (32, 32), "steps": 2},
    {"prompt": "a house", "method": "swapped", "references": [reference(4, weight=0.4)], "window": (0.3, 1.0)},
    {"init": Init(tiny_models.picture(5), 0.6), "method": "swapped", "references": [reference(6)]},
)


@EACH
def test_5_alone_or_together(name: str) -> None:
    """Requests that differ in text, method, reference, size, steps and guidance, stepped together and each alone."""
    engine = Engine(tiny_models.model(name))
    own = {"true_guidance": 2.0} if name == "flux" else {}
    asked = [request(**fields) for fields in (*UNLIKE, {"negative": "a cat", "seed": 3, **own})]
    runs = [engine.submit(each) for each in asked]
    engine.run()
    for run, each in zip(runs, asked, strict=True):
        torch.testing.assert_close(run.latents, latents(name, each), atol=TOGETHER, rtol=0)
        assert len(run.result().images) == each.count


@EACH
def test_4_networks_are_never_changed(name: str) -> None:
    model = tiny_models.model(name)
    before, engine = model.weights_hash(), Engine(model)
    for method in BESIDE:
        engine.submit(request(method=method, references=[reference()]))
    engine.run()
    assert model.weights_hash() == before
    assert not any(parameter.requires_grad for net in model.networks.values() for parameter in net.parameters())


@EACH
def test_what_a_mask_keeps_stays(name: str) -> None:
    picture = tiny_models.picture(3).resize((64, 48))
    mask = tiny_models.picture(0).convert("L").resize((64, 48)).point([0] * 128 + [255] * 128)
    run = Engine(tiny_models.model(name)).submit(request(init=Init(picture, 0.8, mask), steps=4))
    for _ in run:
        pass
    out = run.result().images[0]
    kept = [(x, y) for x in range(64) for y in range(48) if mask.getpixel((x, y)) == 0]
    changed = [(x, y) for x in range(64) for y in range(48) if mask.getpixel((x, y)) == 255]
    assert all(out.getpixel(at) == picture.getpixel(at) for at in kept)
    assert sum(out.getpixel(at) != picture.getpixel(at) for at in changed) > len(changed) / 2


@EACH
@pytest.mark.parametrize("method", BESIDE)
@pytest.mark.parametrize("source", ["noised", "inverted", "generated"])
def test_every_source_of_reference_rows(name: str, method: str, source: str) -> None:
    references = [] if source == "generated" else [reference()]
    options = {"reference-source": source, "caption": "a dog"}
    out = latents(name, request(method=method, options=options, references=references))
    assert out.isfinite().all()
    assert float((out - latents(name, request())).abs().max()) > 1e-3


@EACH
def test_a_reference_drawn_beforehand_is_what_the_run_would_draw(name: str) -> None:
    """Its trajectory is the model's own sampling of the caption: Euler's step is DDIM's on straight paths."""
    options = {"reference-source": "generated", "caption": "a dog"}
    run = Engine(tiny_models.model(name)).submit(request(method="swapped", options=options)).prepare()
    batch = run.injection.reference_batch
    assert batch is not None
    start = batch.latents(run.step_context)[-1:]
    alone = Engine(tiny_models.model(name)).submit(request(prompt="a dog")).prepare()
    alone.latents = start
    for _ in alone:
        pass
    torch.testing.assert_close(alone.latents, batch.clean_latents, atol=TOGETHER, rtol=0)


@EACH
def test_inversion_leads_back_to_the_picture(name: str) -> None:
    """Both ways along the velocity: the more steps, the nearer; and a fixed point is the inverse of a step."""
    model = tiny_models.model(name)
    clean = model.encode_latents(tiny_models.picture(2).resize((32, 32)))

    def error(steps: int, refine: int = 0) -> float:
        return float((ddim_round_trip(model, clean, "a cat", steps, 1.0, refine=refine) - clean).abs().max())

    assert error(20) < 0.6 * error(5)
    assert error(5, refine=20) < 0.1 * error(5)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "true guidance": ("sd35", {"true_guidance": 2.0}, "give guidance, and not true_guidance"),
    "sampler": ("flux", {"sampler": "ddim"}, "give one of flow-euler"),
    "clip_skip": ("sd35", {"clip_skip": 1}, "reads T5: leave it out"),
    "reading": ("flux", {"reading": "weighted"}, "give reading='plain'"),
    "size": ("flux", {"size": (72, 64)}, "both must be multiples of 16"),
    "positions": ("sd35", {"size": (64, 256)}, "it knows positions up to 128 pixels"),
    "unknown style": ("sd35", {"references": [reference()]}, "it is not known where style lives in sd35-medium"),
    "no adapter": ("flux", {"references": [reference()], "plan": "all"}, "has no IP-Adapter"),
    "block": ("flux", {"plan": "up.0.1=1"}, "it has double.0 to double.1, single.0 to single.1"),
    "counted": ("sd35", {"plan": "6=1"}, "blocks are counted in a UNet alone"),
    "long": ("flux", {"prompt": "zz " * 600}, "it would not see"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_a_sentence(case: str) -> None:
    name, fields, sentence = REFUSED[case]
    with pytest.raises((InputError, PlanError)) as refused:
        Engine(tiny_models.model(name)).submit(request(**fields)).prepare()
    assert sentence in str(refused.value)


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.unet_only is not None])
def test_methods_of_the_unet_say_why(method: str) -> None:
    for name in NAMES:
        with pytest.raises(InputError, match=r"is for models with a UNet, and .* is a transformer: .* or swapped"):
            resolve(tiny_models.model(name), request(method=method, references=[reference()]))


@pytest.mark.parametrize("more", [{"controls": {"canny": "x"}}, {"loras": [("x", 1.0)]}])
def test_controls_and_loras_are_refused_when_loading(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="are for models with a UNet here"):
        load(tiny_models.folder("flux"), **more)


def test_a_long_prompt_is_read_by_t5_and_cut_for_clip_in_a_sentence() -> None:
    model = tiny_models.model("flux")
    long, cut = "a cat " * 60, "a cat " * 60 + "in the house"
    assert any("T5 reads all of it" in each for each in resolve(model, request(prompt=long)).warnings)
    assert not resolve(model, request()).warnings
    one, other = encode_prompts(model, [long]), encode_prompts(model, [cut])
    assert one.pooled_prompt_embeds is not None
    assert other.pooled_prompt_embeds is not None
    assert torch.equal(one.pooled_prompt_embeds, other.pooled_prompt_embeds)
    assert not torch.equal(one.prompt_embeds, other.prompt_embeds)


def test_a_negative_prompt_without_guidance_is_named() -> None:
    said = resolve(tiny_models.model("flux"), request(negative="a dog")).warnings
    assert said == ("the negative prompt changes nothing at true_guidance 1: give a true_guidance above 1",)


def test_families_are_told_from_their_layout() -> None:
    told = {name: tiny_models.model(name).family.name for name in NAMES}
    assert told == {"flux": "flux-dev", "schnell": "flux-schnell", "sd35": "sd35-medium"}


def test_sites_of_the_published_sizes() -> None:
    """InstantX' adapters count 19 double and then 38 single blocks, and the 38 of SD3.5 large."""
    flux, large = (TRANSFORMER_FAMILIES[name].layout for name in ("flux-dev", "sd35-large"))
    assert [str(flux.sites[n]) for n in (0, 18, 19, 56)] == [
        "double.0.joint",
        "double.18.joint",
        "single.0.joint",
        "single.37.joint",
    ]
    assert [str(site) for site in large.sites] == [f"joint.{n}.joint" for n in range(38)]
    medium = TRANSFORMER_FAMILIES["sd35-medium"].layout
    assert sum(site.kind == "self" for site in medium.sites) == 13
    plan = parse_block_plan("single.10-37=0.5,double=2", flux, {})
    assert [plan.scale(Site.of_block("single", n, "joint")) for n in (9, 10, 37)] == [0.0, 0.5, 0.5]
    assert plan.scale(Site.of_block("double", 3, "joint")) == 2
    for wrong in ("single.37-10=1", "single.10-38=1", "single.1-2=1,single.2=1"):
        with pytest.raises(PlanError):
            parse_block_plan(wrong, flux, {})


def test_presets_say_how_sure_they_are() -> None:
    for name, family in TRANSFORMER_FAMILIES.items():
        assert ("style" in family.presets) == name.startswith("flux")
        assert family.presets_source.startswith(("reported, not verified here", "nothing is published"))
        assert dataclasses.replace(family).is_transformer
