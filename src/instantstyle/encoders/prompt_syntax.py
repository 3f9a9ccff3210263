"""A1111's weights of words, `(cat:1.2)`, `((cat))`, `[cat]`, `\\(`: a parser that loses no word and no number.

The rules are those of `parse_prompt_attention` in A1111's modules/prompt_parser.py: round brackets multiply the weight
by 1.1 or by the number behind the last colon, square ones divide it by 1.1, a backslash makes a bracket a character,
`BREAK` begins another chunk.  What A1111 reads leniently (brackets without their other half, a weight of nothing) or
as something other than a weight (prompt editing, `AND`, extra networks) is refused in a sentence.  No torch here.
"""

import re
from dataclasses import dataclass, replace

from instantstyle.errors import InputError

EMPHASIS = 1.1
"""What a pair of brackets without a number multiplies or divides by."""

_TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]]|\bBREAK\b|[^\\()\[\]B]+|.", re.DOTALL)
_WEIGHT = re.compile(r"(?P<words>.*):\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*", re.DOTALL | re.ASCII)
_MALFORMED_WEIGHT = re.compile(r".*:\s*[+-]?[\d.,][\d.,e+-]*\s*", re.DOTALL | re.ASCII)
_EDITING = re.compile(r".*[|:].*", re.DOTALL)
_EXTRA_NETWORK = re.compile(r"<(lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
_COMPEL = re.compile(
    r"""\)\s*\.(?:blend|and|add|swap|attend)\s*\(      # operators
      | \b\w+\.(?:swap|attend)\(
      | (?:with|use)Lora\(
      | (?<!\\)["\w)](?:\++|-+)(?=[\s,.;)"]|$)          # word++, (words)--, "words"+
      | (?P<number>(?<!\\)\)[-+]?(?:\d|\.\d))           # (words)1.3
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class WeightedText:
    """A piece of a text with its weight; 1 is as it stands."""

    text: str
    weight: float


@dataclass
class _Group:
    opening: str
    pieces: list[WeightedText]


def uses_compel_syntax(text: str) -> bool:
    """Whether a text has an operator of compel's, so that bare brackets are groups; a number of A1111's is none."""
    return any(
        match["number"] is None or not _ends_in_weight(text[: match.start()]) for match in _COMPEL.finditer(text)
    )


def parse_a1111(text: str) -> list[list[WeightedText]]:
    """The pieces of a text in A1111's syntax, by chunk (`BREAK` separates them).  Raises InputError.

    Neighbours of one weight are one piece; escapes are resolved.
    """
    shown = _shown(text)
    if (network := _EXTRA_NETWORK.search(text)) is not None:
        raise InputError(f"the text {shown} names {network[0]}, which is no word: give LoRAs as --lora FILE:WEIGHT")
    if re.search(r"\bAND\b", text):
        raise InputError(
            f'the text {shown} joins prompts by AND, which is not supported: write and, or ("one", "other").and()'
        )
    stack = [_Group("", [])]
    chunks: list[list[WeightedText]] = []
    for token in _TOKEN.findall(text):
        if token in "([":
            stack.append(_Group(token, []))
        elif token in ")]":
            group = stack.pop()
            if group.opening != {")": "(", "]": "["}[token]:
                raise InputError(
                    f"the text {shown} has {token!r} without its other half: write \\{token} for the character"
                )
            stack[-1].pieces += _weighted(group, shown)
        elif token == "BREAK":
            if len(stack) > 1:
                raise InputError(f"the text {shown} has BREAK inside brackets: close them before it")
            chunks.append(_merged(stack[0].pieces))
            stack[0].pieces = []
        else:
            literal = token[1] if len(token) == 2 and token[0] == "\\" and token[1] in "()[]\\" else token
            stack[-1].pieces.append(WeightedText(literal, 1.0))
    if len(stack) > 1:
        opening = stack[-1].opening
        raise InputError(
            f"the text {shown} has {opening!r} without its other half: write \\{opening} for the character"
        )
    return [*chunks, _merged(stack[0].pieces)]


def to_compel(text: str) -> str:
    """A text in compel's syntax whose A1111 weights, `(words:1.3)`, are compel's, `(words)1.3`.  Raises InputError."""
    shown, out, opened = _shown(text), list[str](), list[int]()
    tokens: list[str] = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token == "(":
            opened.append(len(out))
        if token != ")" or not opened:
            out.append(token)
            continue
        first = opened.pop()
        match = _WEIGHT.fullmatch("".join(out[first + 1 :]))
        following = tokens[i + 1][:1] if i + 1 < len(tokens) else ""
        if match is None:
            out.append(token)
            continue
        if not match["words"].strip():
            raise InputError(f"the text {shown} gives the weight {match['number']} to no words")
        if following in ("+", "-"):
            raise InputError(f"the text {shown} gives {match['words'].strip()!r} two weights: give one")
        separator = " " if following and re.match(r"[\d.]", following) else ""
        out[first:] = ["(", match["words"], ")", match["number"], separator]
    return "".join(out)


def _ends_in_weight(text: str) -> bool:
    """Whether the group that ends here has A1111's number at its end."""
    return re.search(r":\s*[+-]?[\d.]+\s*$", text, re.ASCII) is not None


def _weighted(group: _Group, shown: str) -> list[WeightedText]:
    """The pieces of a closed group, times its weight; the number, if there is one, is in the last of them."""
    pieces = _merged(group.pieces)
    if not pieces:
        raise InputError(
            f"the text {shown} has brackets around nothing: leave them out, or write \\( for the character"
        )
    last = pieces[-1] if pieces[-1].weight == 1 else WeightedText("", 1.0)
    if group.opening == "[":
        if any(_EDITING.fullmatch(piece.text) for piece in pieces):
            raise InputError(
                f"the text {shown} edits or alternates words, [one:other:0.5] or [one|other], which is not supported: "
                "write \\[ for the character"
            )
        factor = 1 / EMPHASIS
    elif (match := _WEIGHT.fullmatch(last.text)) is not None:
        factor = float(match["number"])
        pieces[-1] = replace(last, text=match["words"])
        pieces = [piece for piece in pieces if piece.text]
        if not any(piece.text.strip() for piece in pieces):
            raise InputError(f"the text {shown} gives the weight {match['number']} to no words")
        if factor < 0:
            raise InputError(f"the text {shown} gives a word a weight below 0: 0 leaves it out, 1 is as it stands")
    elif _MALFORMED_WEIGHT.fullmatch(last.text):
        number = last.text.rpartition(":")[2].strip()
        raise InputError(f"the text {shown} has the weight {number!r}, which is no number: write one such as 1.2")
    else:
        factor = EMPHASIS
    return [replace(piece, weight=piece.weight * factor) for piece in pieces]


def _merged(pieces: list[WeightedText]) -> list[WeightedText]:
    merged: list[WeightedText] = []
    for piece in pieces:
        if merged and merged[-1].weight == piece.weight:
            merged[-1] = replace(piece, text=merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return merged


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
