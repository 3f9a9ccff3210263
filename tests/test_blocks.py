"""Plans are read as people write them: our words, ComfyUI's numbers, diffusers' nested dictionaries; typos are met."""

import json
import time
from collections import Counter
from typing import Any

import pytest

from instantstyle.blocks import BlockPlan, Site, UNetConfig, parse_block_plan
from instantstyle.errors import InputError, PlanError
from instantstyle.families import EMOJI, FAMILIES, SD15, SDXL, Family
from instantstyle.request import Request


def cross(family: Family) -> list[Site]:
    return [site for site in family.unet.sites if site.kind == "cross"]


def read(plan: Any, family: Family = SDXL) -> BlockPlan:
    return parse_block_plan(plan, family.unet, family.presets)


def loud(plan: BlockPlan, family: Family = SDXL) -> dict[str, float]:
    """Where a plan speaks, module by module, and how loudly."""
    return {site.module: plan.scale(site) for site in cross(family) if plan.scale(site)}


SDXL_ALL = [
    "down.1.0",
    "down.1.1",
    "down.2.0",
    "down.2.1",
    "mid",
    "up.0.0",
    "up.0.1",
    "up.0.2",
    "up.1.0",
    "up.1.1",
    "up.1.2",
]

GRAMMAR: list[tuple[str, dict[str, float]]] = [
    ("style", {"up.0.1": 1}),
    ("layout", {"down.2.1": 1}),
    ("style+layout", {"up.0.1": 1, "down.2.1": 1}),
    ("layout+style", {"up.0.1": 1, "down.2.1": 1}),
    (" style + layout ", {"up.0.1": 1, "down.2.1": 1}),
    ("all", dict.fromkeys(SDXL_ALL, 1.0)),
    ("up.0.1=1.2,down.2.1=0.5", {"up.0.1": 1.2, "down.2.1": 0.5}),
    (" up.0.1 = 1.2 ,, mid : .5, ", {"up.0.1": 1.2, "mid": 0.5}),
    ("6:1,3:0.5", {"up.0.1": 1, "down.2.1": 0.5}),
    ("0:1,4:2.,10:+3,06:1e-1", {"down.1.0": 1, "mid": 2, "up.1.2": 3, "up.0.1": 0.1}),
    ("mid=10", {"mid": 10}),
    ("up=0.3", dict.fromkeys((name for name in SDXL_ALL if name.startswith("up")), 0.3)),
    ("all=0.1,up=0.2,up.0=0.3,up.0.1=0.4", {
        **dict.fromkeys(SDXL_ALL[:5], 0.1),
        **dict.fromkeys(SDXL_ALL[8:], 0.2),
        **dict.fromkeys(SDXL_ALL[5:8], 0.3),
        "up.0.1": 0.4,
    }),
    ("up.0.1=0,up=1", dict.fromkeys((n for n in SDXL_ALL if n.startswith("up") and n != "up.0.1"), 1.0)),
    ("up.0.1=0", {}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "speaks"), GRAMMAR)
def test_the_grammar(text: str, speaks: dict[str, float]) -> None:
    assert loud(read(text)) == speaks


def test_the_longest_prefix_wins_in_whatever_order() -> None:
    terms = ["all=0.1", "up=0.2", "up.0=0.3", "up.0.1=0.4"]
    assert loud(read(",".join(terms))) == loud(read(",".join(terms[::-1])))


def test_a_prefix_ends_at_a_dot() -> None:
    """`up.1` is not the beginning of `up.10`."""
    wide = UNetConfig(
        block_out_channels=(32,) * 12, transformer_layers_per_block=(1,) * 12, num_attention_heads=(1,) * 12
    )
    plan = parse_block_plan("up.1=1", wide, {})
    assert {site.block for site in wide.sites if plan.scale(site)} == {1}


def test_precise_is_kept_when_presets_are_joined() -> None:
    plan = read("precise+all")
    assert loud(plan) == dict.fromkeys(SDXL_ALL, 1.0)
    assert {site.module for site in cross(SDXL) if plan.negative_scale(site)} == {"down.2.1"}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_cross_site_counts(family: Family) -> None:
    """Modules share the sites out among them: a plan that names one speaks at its own, and all at every one."""
    heard = Counter(
        site for module in family.unet.modules for site in cross(family) if read(f"{module}=1", family).scale(site)
    )
    assert heard == Counter(cross(family))
    assert all(read("all", family).scale(site) == 1 for site in cross(family))
    by_number = {number: loud(read(f"{number}:1", family), family) for number in range(len(family.unet.modules))}
    assert [set(speaks) for speaks in by_number.values()] == [{module} for module in family.unet.modules]


def test_there_are_as_many_as_are_published() -> None:
    """70 pairs of weights in ip-adapter_sdxl, 16 in ip-adapter_sd15; ten layers at SDXL's style block."""
    assert (len(cross(SDXL)), len(cross(SD15))) == (70, 16)
    assert Counter(site.module for site in cross(SDXL))["up.0.1"] == 10
    assert (len(SDXL.unet.modules), len(SD15.unet.modules)) == (11, 16)


NESTED: list[tuple[Family, Any, str]] = [
    # what diffusers' set_ip_adapter_scale is told, and our words for it
    (SDXL, {"up": {"block_0": [0.0, 1.0, 0.0]}}, "style"),
    (SDXL, {"down": {"block_2": [0.0, 1.0]}}, "layout"),
    (SDXL, {"up": {"block_0": [0.0, 1.0, 0.0]}, "down": {"block_2": [0.0, 1.0]}}, "style+layout"),
    (SDXL, {"down": {"block_1": [0.3, 0.0]}, "mid": 0.5, "up": {"block_0": [0.0, 1.7, 0.2]}},
     "down.1.0=0.3,mid=0.5,up.0.1=1.7,up.0.2=0.2"),
    (SDXL, {"down": 1, "mid": [1], "up": 1.0}, "all"),
    (SDXL, {"up": {"block_1": [0.5]}}, "up.1=0.5"),
    (SD15, {"up": {"block_1": 1.0}}, "style"),
    (SD15, {"down": {"block_2": 1.0}, "mid": 1.0}, "layout"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "nested", "words"), NESTED)
def test_diffusers_dictionary_is_the_same_plan(family: Family, nested: Any, words: str) -> None:
    expected = loud(read(words, family), family)
    assert loud(read(nested, family), family) == expected
    assert loud(read(json.dumps(nested, indent=2), family), family) == expected
    asked = Request("a cat", plan=nested)
    assert loud(read(asked.plan, family), family) == expected
    assert Request.from_json(asked.to_json()) == asked == Request.from_fields({"prompt": "a cat", "plan": nested})


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("stlye", "did you mean 'style'"),
        ("style+layuot", "did you mean 'layout'"),
        ("up.0.l=1", "no block 'up.0.l'.*did you mean 'up.0."),
        ("up.0.9=1", "no block 'up.0.9'.*down.1.0"),
        ("middle=1", "did you mean 'mid'"),
        ("UP.0.1=1", "no block 'UP.0.1'"),
        ("11:1", "no block '11': this model has 11"),
        ("9" * 5000 + ":1", "no block"),
        ("", "is empty"),
        (" , ", "is empty"),
        ("up.0.1", "cannot read 'up.0.1'"),
        ("up.0.1=loud", "cannot read 'up.0.1=loud'"),
        ("up.0.1=1.2.3", "cannot read"),
        ("up.0.1=inf", "cannot read"),
        ("style,up.0.1=1", "cannot read 'style'"),
        ("up.0.1=1,up.0.1=0.5", "gives the block up.0.1 twice"),
        ("6:1,up.0.1=0.5", "gives the block up.0.1 twice"),
        ("up.0.1=-1", "a number from 0 to 10, not '-1'"),
        ("up.0.1=10.5", "a number from 0 to 10, not '10.5'"),
        ("up.0.1=1e999", "a number from 0 to 10"),
        ("up.0.1=" + "9" * 400, "a number from 0 to 10"),
        ({}, None),
        ({"up": {"block_0": [0, 1]}}, "up.0 takes one strength, or 3 .* gives 2"),
        ({"mid": [1, 1]}, "mid takes one strength, or 1 .* gives 2"),
        ({"up": {"block_7": 1}}, "up of this model has block_0, block_1, not 'block_7'.*did you mean"),
        ({"down": {"block_0": 1}}, "down of this model has block_1, block_2, not 'block_0'"),
        ({"side": 1}, "has down, mid and up, not 'side'"),
        ({"mid": "loud"}, "a number from 0 to 10"),
        ({"mid": True}, "a number from 0 to 10"),
        ({"mid": {"block_0": 1}}, "a number from 0 to 10"),
        ({"mid": float("nan")}, "a number from 0 to 10"),
        ({"mid": -1}, "a number from 0 to 10"),
        ({"mid": {1, 2}}, "a plan's dictionary holds numbers"),
        ('{"mid": 1', "begins as JSON and is none"),
        ('{"mid": 1, "mid": 2}', "twice"),
        ('{"mid": ' + "9" * 400 + "}", "a number from 0 to 10"),
        ('{"mid": ' + "[" * 100_000, "begins as JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence(plan: Any, sentence: str | None) -> None:
    if sentence is None:  # an empty dictionary is silent, as it is in diffusers
        assert loud(read(plan)) == {}
        return
    with pytest.raises(PlanError, match=sentence) as refused:
        read(plan)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_what_no_dictionary_of_a_plan_holds_is_refused_by_the_request() -> None:
    with pytest.raises(InputError, match="a plan's dictionary"):
        Request("a cat", plan={"mid": {1, 2}})


@pytest.mark.parametrize("text", ["a" * 2000, "a." * 1000, "a_" * 1000 + "=", "1" * 2000, "up.0.1=" + "1" * 1990 + "x"])
def test_reading_takes_no_time(text: str) -> None:
    """A plan comes from strangers too: its length must not be what someone waits for."""
    began = time.process_time()
    with pytest.raises(PlanError):
        read(text, EMOJI)
    assert time.process_time() - began < 0.2
