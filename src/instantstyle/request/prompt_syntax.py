"""What other programs write inside prompts: weights are kept and read, the rest is taken out or named."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without the parts that are commands."""

    text: str
    weighted: bool
    """Whether it holds weights or escapes, which the reading `weighted` understands."""
    unsupported: tuple[str, ...]


_NETWORK = re.compile(r"<(?P<kind>lora|lyco|lycoris|hypernet|hypernetwork|ti|embed|embedding):(?P<rest>[^<>]+)>", re.I)
_NETWORK_NAMES = {"lora": "LoRA", "lyco": "LyCORIS", "lycoris": "LyCORIS", "hypernet": "hypernetwork"}
_WEIGHTS = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)|\\[()\[\]]|\(\(|\([^()]+\)[\d.+-]|\w[+-]{2,}(?=\W|$)")
_COMMANDS = (
    ("prompt editing", re.compile(r"\[[^\[\]]*(?::[^\[\]]*:|\|)[^\[\]]*\]|\[[^\[\]]+:\d*\.?\d+\]")),
    ("keyword", re.compile(r"\b(?:BREAK|AND)\b(?=\s|$)")),
    ("wildcard", re.compile(r"__[\w/*.-]+__")),
    ("command", re.compile(r"<[a-z]+(?:\[[^\]]*\])?:[^<>]*>")),
    ("alternatives", re.compile(r"\{[^{}]*\|[^{}]*\}")),
)
_NOVELAI_WEIGHTS = re.compile(r"\{+[^{}]*\}+|-?\d+(?:\.\d+)?::.*?::|\[+[^\[\]]*\]+", re.DOTALL)


def parse_prompt(text: str, program: str) -> ParsedPrompt:
    """Take networks (`<lora:ink:0.8>`) out of a prompt, and name what of it has no counterpart here.

    `(fox:1.3)`, `((fox))` and escaped brackets stay: the reading `weighted` reads them.
    """
    unsupported: list[str] = []

    def named(match: re.Match[str]) -> str:
        kind = match["kind"].lower()
        unsupported.append(" ".join([_NETWORK_NAMES.get(kind, kind), *match["rest"].split(":")]))
        return ""

    plain = _NETWORK.sub(named, text)
    if plain != text:
        plain = re.sub(r"[ \t]{2,}", " ", plain).strip().rstrip(",").rstrip()
    for what, pattern in _COMMANDS:
        unsupported += [f"{what} {match[0]}" for match in pattern.finditer(plain)]
    if program == "NovelAI":
        unsupported += [f"emphasis {match[0]}" for match in _NOVELAI_WEIGHTS.finditer(plain)]
    weighted = program != "NovelAI" and _WEIGHTS.search(plain) is not None
    return ParsedPrompt(plain, weighted, tuple(dict.fromkeys(unsupported)))
