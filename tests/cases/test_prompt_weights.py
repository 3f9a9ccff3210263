"""Weights of words as people write them: every word and every number is used, or the text is refused."""

import pytest
import torch

import tiny_models
from instantstyle.encoders.prompt_syntax import parse_a1111, to_compel, uses_compel_syntax
from instantstyle.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")


def pieces(text: str) -> list[tuple[str, float]]:
    assert not uses_compel_syntax(text)
    return [(piece.text, round(piece.weight, 4)) for chunk in parse_a1111(text) for piece in chunk]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        (r"(fox \(animal\):1.2)", [("fox (animal)", 1.2)]),
        (r"\(cat\)", [("(cat)", 1)]),
        (r"\[cat\] \\ dog", [(r"[cat] \ dog", 1)]),
        (r"a\b (c\d:1.5)", [(r"a\b ", 1), (r"c\d", 1.5)]),
        ("((cat:1.2) dog:1.1)", [("cat", 1.32), (" dog", 1.1)]),
        ("(a (b:1.5) c)", [("a ", 1.1), ("b", 1.65), (" c", 1.1)]),
        ("((a):1.5)", [("a", 1.65)]),
        ("(cat:1.2)5 dogs", [("cat", 1.2), ("5 dogs", 1)]),
        ("(cat:1.2).5 dogs", [("cat", 1.2), (".5 dogs", 1)]),
        ("(4:3 picture:1.2)", [("4:3 picture", 1.2)]),
        ("at 12:30, (cat : 1.2 )", [("at 12:30, ", 1), ("cat ", 1.2)]),
        ("[cat]", [("cat", 0.9091)]),
        ("[[cat]] ([dog])", [("cat", 0.8264), (" dog", 1)]),
        ("(cat)", [("cat", 1.1)]),
        ("(((cat)))", [("cat", 1.331)]),
        ("(cat:0)", [("cat", 0)]),
        ("(cat:.5)(dog:2.)", [("cat", 0.5), ("dog", 2)]),
        ("a (t-shirt: 1.2), R&B", [("a ", 1), ("t-shirt", 1.2), (", R&B", 1)]),
        ("(名前:1.3)", [("名前", 1.3)]),
        ("a\n(cat\non mat:1.2)", [("a\n", 1), ("cat\non mat", 1.2)]),
    ],
)
def test_a1111_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == expected


def test_break_begins_another_chunk() -> None:
    assert [[piece.text for piece in chunk] for chunk in parse_a1111("a cat BREAK a BREAKFAST")] == [
        ["a cat "],
        [" a BREAKFAST"],
    ]
    model = tiny_models.model("sd15")
    both = model.encode_prompt(["a cat BREAK a dog"], "weighted").prompt_embeds
    parts = [model.encode_prompt([text], "weighted").prompt_embeds for text in ("a cat", "a dog")]
    torch.testing.assert_close(both, torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("()", "around nothing"),
        ("a [] cat", "around nothing"),
        ("(:1.2)", "to no words"),
        ("( :1.2) cat", "to no words"),
        ("(cat", "other half"),
        ("cat)", "other half"),
        ("(cat]", "other half"),
        ("[cat:1.2", "other half"),
        ("(cat:-1)", "below 0"),
        ("(cat:1.2.3)", "no number"),
        ("(cat:1,2)", "no number"),
        ("[cat:dog:0.5]", "edits or alternates"),
        ("[cat|dog]", "edits or alternates"),
        ("[cat:10]", "edits or alternates"),
        ("a cat AND a dog", "joins prompts"),
        ("a cat <lora:ink:0.8>", "--lora"),
        ("(a cat BREAK a dog)", "close them"),
        ("(cat:1.2)++", "two weights"),
        ("(:1.2) cat++", "to no words"),
        ("a cat.swap(dog) house", "swap"),
    ],
)
def test_what_is_no_weight_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_models.model("sd15").encode_prompt([text], "weighted")


@pytest.mark.parametrize(
    ("text", "compel"),
    [
        ("(red:1.3) cat++", "(red)1.3 cat++"),
        ("((red:1.3) cat:0.5) dog--", "((red)1.3 cat)0.5 dog--"),
        ("(cat:1.2)5 dogs++", "(cat)1.2 5 dogs++"),
        (r"(fox \(animal\):1.2) dog++", r"(fox \(animal\))1.2 dog++"),
        ('("a (red:1.2) cat", "a dog").blend(1, 0.5)', '("a (red)1.2 cat", "a dog").blend(1, 0.5)'),
    ],
)
def test_both_syntaxes_in_one_text(text: str, compel: str) -> None:
    assert uses_compel_syntax(text)
    assert to_compel(text) == compel


@pytest.mark.parametrize("text", ["(cat)1.3", "a cat++", "(a cat)--", '("a", "b").and()', "a (cat).attend(1.2) dog"])
def test_operators_of_compel_are_known(text: str) -> None:
    assert uses_compel_syntax(text)


@pytest.mark.parametrize("text", ["a t-shirt", "a cat - a dog", "1+1", "(cat:1.2)", "C++20", r"\(cat\)5", "(a:1.2)7"])
def test_what_only_looks_like_an_operator_of_compel(text: str) -> None:
    assert not uses_compel_syntax(text)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_weights_reach_the_encoder(family: str) -> None:
    """The same embeddings as in compel's own syntax, which compel's tests cover."""
    model = tiny_models.model(family)
    a1111, compel = (
        model.encode_prompt([text], "weighted").prompt_embeds
        for text in (r"((cat:1.2) dog:1.1) in [house] \(red\)", r"((cat)1.2 dog)1.1 in (house)0.9090909 \(red\)")
    )
    torch.testing.assert_close(a1111, compel)
    plain = model.encode_prompt(["cat dog in house (red)"]).prompt_embeds
    assert not torch.allclose(a1111, plain, atol=1e-3)
