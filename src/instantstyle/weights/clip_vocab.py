"""CLIP's own vocabulary, for checkpoints in a single file: they bring no tokenizer and were all trained with this one.

From OpenAI's CLIP (`bpe_simple_vocab_16e6.txt`, MIT), cut to the merges that are used.
"""

import gzip
from pathlib import Path

MERGES = Path(__file__).resolve().parent.parent / "assets" / "clip" / "merges.txt.gz"
SIZE = 49408
"""Tokens of CLIP's vocabulary, which is the height of a text encoder's embedding table."""


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every token's number, and the pairs that are merged, first come first (CLIP's simple_tokenizer.py)."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def _letters() -> list[str]:
    """A printable letter for each of the 256 bytes, those that print as themselves first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
