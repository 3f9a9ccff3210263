"""Texts of a grammar are read as what they were made of; any other text of its characters ends in a sentence."""

import json
import re
import struct
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from hostile.campaign import sentence_fault
from instantstyle.blocks import BlockPlan, parse_block_plan
from instantstyle.encoders.prompt_syntax import parse_a1111, to_compel
from instantstyle.errors import InstantStyleError
from instantstyle.families import SDXL
from instantstyle.request import Request
from instantstyle.request.third_party_metadata import ThirdPartyMetadata, read_third_party_request
from instantstyle.train.data.records import BadSample
from instantstyle.train.data.sources import find_shards
from instantstyle.weights.lora import parse_lora
from instantstyle.weights.tensor_files import open_tensors

usual = settings(max_examples=100, deadline=None, derandomize=True)
numbers = st.decimals(0, 10, places=2).map(str)
words = st.text("abcdefgxyz éж猫", min_size=1, max_size=8).filter(lambda text: text.strip() == text)


Found = TypeVar("Found")


def read(reader: Callable[[], Found]) -> Found | None:
    """What is read, or None where it is refused in a sentence."""
    try:
        return reader()
    except InstantStyleError as refused:
        fault = sentence_fault(str(refused))
    assert fault is None
    return None


# Weights of words, as A1111 writes them.

Weighted = tuple[str, list[tuple[str, float]]]
"""A text, and the pieces that it must be read as."""


def _escaped(text: str) -> str:
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def _group(inside: list[Weighted], brackets: str) -> Weighted:
    opening, closing, factor = brackets.partition("…")[0], brackets.partition("…")[2], 1.1
    if opening == "[":
        factor = 1 / 1.1
    elif ":" in closing:
        factor = float(closing[1:-1])
    texts, pieces = [text for text, _ in inside], [piece for _, each in inside for piece in each]
    return f"{opening}{' '.join(texts)}{closing}", [(text, weight * factor) for text, weight in pieces]


plain_words = st.text("abxyz()[]\\éж", min_size=1, max_size=6).map(lambda text: (_escaped(text), [(text, 1.0)]))
brackets = st.sampled_from(["(…)", "[…]"]) | numbers.map(lambda number: f"(…:{number})")
weighted_texts = st.lists(
    st.recursive(plain_words, lambda inner: st.builds(_group, st.lists(inner, min_size=1, max_size=3), brackets)),
    min_size=1,
    max_size=4,
)


@usual
@given(weighted_texts)
def test_weights_of_words_are_read_as_they_were_written(parts: list[Weighted]) -> None:
    found = [piece for chunk in parse_a1111(" ".join(text for text, _ in parts)) for piece in chunk]
    assert _letters((piece.text, piece.weight) for piece in found) == _letters(
        piece for _, pieces in parts for piece in pieces
    )


def _letters(pieces: Iterator[tuple[str, float]]) -> list[tuple[str, Any]]:
    """Each character that is no space with its weight: spaces between groups are of either."""
    return [(letter, pytest.approx(weight)) for text, weight in pieces for letter in text if not letter.isspace()]


@usual
@given(st.text("ab ()[]:.,|\\\"'+-019\nBREAKND<>", max_size=40))
@example("((((((((a:1.2):1.2):1.2):1.2):1.2):1.2):1.2):1.2)")
@example("(:1.2)")
@example("(" * 2000)
def test_no_word_of_a_text_with_weights_vanishes(text: str) -> None:
    found = read(lambda: parse_a1111(text))
    read(lambda: to_compel(text))
    if found is not None:
        kept = "".join(piece.text for chunk in found for piece in chunk)
        assert [*filter(str.islower, kept)] == [*filter(str.islower, text)]


# Plans.


@usual
@given(
    st.dictionaries(st.sampled_from(["all", "up", "mid", "down", *SDXL.unet.modules]), numbers, min_size=1, max_size=5),
    st.sampled_from(["=", ":", " = "]),
    st.sampled_from([",", " , ", ",,"]),
)
def test_a_plan_has_the_scales_of_its_terms(terms: Mapping[str, str], sign: str, comma: str) -> None:
    plan = parse_block_plan(comma.join(f"{name}{sign}{number}" for name, number in terms.items()), SDXL.unet, {})
    for site in SDXL.unet.sites:
        stage = site.module.partition(".")[0]
        nearest = next((terms[name] for name in (site.module, stage, "all") if name in terms), "0")
        assert plan.scale(site) == float(nearest)


@usual
@given(
    st.text('updownmid.=:,+-0123e{}[]" style', max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["up", "down", "mid", "block_0", "block_1", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps({"up": value}))
)
@example('{"up":' * 5000)
@example("1" * 5000 + "=1")
def test_a_plan_of_any_characters_is_a_plan_or_a_sentence(text: str) -> None:
    plan = read(lambda: parse_block_plan(text, SDXL.unet, SDXL.presets))
    if plan is not None:
        assert isinstance(plan, BlockPlan)
        assert all(0 <= plan.scale(site) <= 10 for site in SDXL.unet.sites)


# LoRAs: FILE, FILE:WEIGHT, FILE:WEIGHT:BLOCKS.

paths = st.tuples(
    st.sampled_from(["", "loras/", "/a b/", "C:\\loras\\", "./x:y/"]),
    words,
    st.sampled_from([".safetensors", ".bin", ""]),
).map("".join)


@usual
@given(paths, st.none() | st.floats(-10, 10), st.sampled_from([None, "style", "content"]))
def test_a_lora_is_its_file_its_weight_and_its_part(path: str, weight: float | None, part: str | None) -> None:
    spec = ":".join([path, *([] if weight is None else [repr(weight)]), *([part] if part else [])])
    assert parse_lora(spec) == (f"{path}:{part}" if part else path, 1.0 if weight is None else weight)


@usual
@given(st.text("ab:/\\.-+0159e~ stylecontent\0", max_size=30))
def test_a_lora_of_any_characters_is_a_file_or_a_sentence(text: str) -> None:
    found = read(lambda: parse_lora(text))
    assert found is None or (str(found[0]) in (text, *_without_weight(text)) and isinstance(found[1], float))


def _without_weight(text: str) -> set[str]:
    head, _, tail = text.rpartition(":")
    first, _, _ = head.rpartition(":")
    return {head, f"{first}:{tail}"}


# A1111's text of a picture.


def read_picture(path: Path, place: str, text: str) -> ThirdPartyMetadata | None:
    """The request in a picture whose metadata holds a text."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(place, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return read(lambda: read_third_party_request(path))


@contextmanager
def folder() -> Generator[Path]:
    """One for each example: pytest's is one for each test."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


extra_names = st.text("abcdef XYZ", min_size=1, max_size=10).map(lambda text: f"q{text}".strip())
extra_values = st.text('abc 019:,"{}[]\\', max_size=12)


@usual
@given(
    st.lists(words, min_size=1, max_size=3),
    st.lists(words, max_size=2),
    st.fixed_dictionaries({"Steps": st.integers(1, 1000), "Seed": st.integers(0, 2**63 - 1)}),
    st.fixed_dictionaries(
        {},
        optional={
            "CFG scale": st.floats(0, 50),
            "Size": st.tuples(st.integers(8, 512), st.integers(8, 512)),
            "Clip skip": st.integers(1, 2),
            "Model": words,
        },
    ),
    st.dictionaries(extra_names, extra_values.filter(str.strip), max_size=3),
)
def test_a1111s_text_is_read_and_what_is_not_read_is_named(
    prompt: list[str], negative: list[str], always: dict[str, Any], sometimes: dict[str, Any], extra: dict[str, str]
) -> None:
    values = {"Steps": always["Steps"], **always, **sometimes}  # the line begins so
    if "Size" in values:
        values["Size"] = "{}x{}".format(*values["Size"])
    shown = [f"{name}: {value}" for name, value in values.items()]
    shown += [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in extra.items()]
    lines = ["\n".join(prompt), *([f"Negative prompt: {chr(10).join(negative)}"] if negative else []), ", ".join(shown)]
    with folder() as here:
        found = read_picture(here / "a.png", "parameters", "\n".join(lines))
    assert found is not None
    request = found.request
    assert (request.prompt, request.negative) == ("\n".join(prompt), "\n".join(negative))
    assert (request.steps, request.seed) == (always["Steps"], always["Seed"])
    assert request.guidance == sometimes.get("CFG scale")
    assert (request.size, request.clip_skip) == (sometimes.get("Size"), sometimes.get("Clip skip"))
    assert found.model == sometimes.get("Model")
    assert all(any(each.startswith(name) for each in found.unsupported) for name in extra)


@usual
@given(st.sampled_from(["parameters", "prompt", "Comment"]), st.text('aZ:,"{}[]\\\n 019éSteps', max_size=60))
@example("parameters", "a\nSteps: " + "9" * 5000)
@example("parameters", "a\nSteps: 20, Seed: ٣, Size: 1x1")
@example("parameters", "a\nSteps: 20, " + '"' * 50_000)
def test_any_text_of_a_picture_is_a_request_or_a_sentence(place: str, text: str) -> None:
    with folder() as here:
        read_picture(here / "a.png", place, text)


# Requests and captions as JSON.

anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
GOOD = Request("a cat", "blurry", plan="style", seed=7, size=(64, 64)).to_json()


@usual
@given(st.sampled_from([*Request.model_fields, "new"]), anything)
def test_a_request_with_anything_in_a_field_is_one_or_a_sentence(field: str, value: Any) -> None:
    found = read(lambda: Request.from_json(json.dumps({**json.loads(GOOD), field: value})))
    if found is not None:
        assert field in Request.model_fields
        assert Request.from_json(found.to_json()) == found


names = st.sampled_from(
    ["a.png", "./a.png", "b.png", "../outside.png", "/etc/passwd", "a.png/..", "", "\x1b[2J", "é\ud800"]
)
rows = anything | st.fixed_dictionaries(
    {},
    optional={
        "image_file": names | anything,
        "file_name": names,
        "text": st.text(max_size=8) | anything,
        "style": anything,
    },
)


@usual
@given(st.lists(rows, max_size=5), st.booleans())
def test_every_row_of_a_list_is_a_caption_or_says_why_not(table: list[Any], lines: bool) -> None:
    with folder() as outer:
        here = outer / "inside"
        here.mkdir()
        for path in (here / "a.png", outer / "outside.png"):
            Image.new("RGB", (8, 8)).save(path)
        path = here / ("list.jsonl" if lines else "list.json")
        path.write_text("\n".join(map(json.dumps, table)) if lines else json.dumps(table), "utf-8")
        shards = read(lambda: find_shards(path)) or []
        items = [item for shard in shards for item in shard.items()]
        assert len(items) in (0, len(table))
        for item in items:
            if isinstance(item, BadSample):
                assert item.why.isprintable()
                assert len(item.why) < 1000
            else:
                assert isinstance(item.picture, Path)
                assert item.picture.resolve() == (here / "a.png").resolve()
                assert item.caption.strip()


# Headers of .safetensors files.

entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X9"]) | anything,
        "shape": st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**63]), max_size=3) | anything,
        "data_offsets": st.tuples(st.integers(-1, 40), st.integers(-1, 40)).map(list) | anything,
    }
)


@usual
@given(
    st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), entries | anything, max_size=3), st.integers(0, 40)
)
@example({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8)
def test_any_header_is_tensors_of_its_shapes_or_a_sentence(header: dict[str, Any], size: int) -> None:
    text = json.dumps(header).encode()
    with folder() as here:
        path = here / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))

        def shapes() -> dict[str, tuple[int, ...]]:
            with open_tensors(path) as file:
                return {name: tuple(file.read(name).shape) for name in file.shapes}

        found = read(shapes)
    if found is not None:
        assert found == {name: tuple(each["shape"]) for name, each in header.items() if name != "__metadata__"}
