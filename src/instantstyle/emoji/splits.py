"""The held-out splits, a committed file with a hash: concept groups, (concept, set) cells, sets, families, hues.

The file is authoritative; `propose_splits` is the rule that made it, so that nobody can have picked it by results.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from instantstyle.emoji.sources import SETS, EmojiConcept, concepts
from instantstyle.emoji.style_transforms import HELD_OUT_FAMILIES, HELD_OUT_HUES
from instantstyle.errors import WeightsError

_FIRST_CONCEPTS = (
    *("cat", "dog", "rabbit", "bear", "panda", "penguin", "owl", "duck", "turtle", "fish", "octopus", "whale"),
    *("crab", "butterfly", "snail", "elephant", "lion", "unicorn", "rose", "sunflower", "cactus", "evergreen tree"),
    *("palm tree", "mushroom", "maple leaf", "red apple", "banana", "strawberry", "pineapple", "watermelon", "carrot"),
    *("pizza", "hamburger", "ice cream", "doughnut", "birthday cake", "hot beverage", "house", "castle"),
    *("automobile", "bicycle", "bus", "airplane", "sailboat", "rocket", "locomotive", "sun", "crescent moon", "star"),
    *("rainbow", "umbrella", "snowman", "fire", "key", "light bulb", "guitar", "crown", "wrapped gift", "balloon"),
    *("alarm clock", "camera", "bell", "anchor", "soccer ball"),
)
"""The 64 concepts that existed when the splits were drawn: never held out."""

TRAINED_CONCEPTS = (
    *_FIRST_CONCEPTS,
    *("fox", "frog", "koala", "horse", "pig face", "monkey face", "cow face", "tiger face", "chicken", "baby chick"),
    *("eagle", "shark", "dolphin", "snake", "honeybee", "spider", "tulip", "cherry blossom", "shamrock", "cloud"),
    *("snowflake", "droplet", "high voltage", "lemon", "cherries", "peach", "tomato", "eggplant", "avocado"),
    *("croissant", "taco", "french fries", "hot dog", "lollipop", "beer mug", "cooking", "helicopter", "tractor"),
    *("motorcycle", "fire engine", "ship", "volcano", "tent", "globe showing europe-africa", "candle"),
    *("jack-o-lantern", "trophy", "basketball", "glasses", "t-shirt", "gem stone", "violin", "television", "scissors"),
    *("envelope", "hourglass done"),
)
"""What the built-in model is trained to draw: 120 common concepts that look unlike each other."""


@dataclass(frozen=True)
class Splits:
    """Everything that is never trained or tuned on."""

    concepts: frozenset[str]
    """Labels of unseen concepts (whole groups of look-alikes)."""
    cells: frozenset[tuple[str, str]]
    """(label, set) pairs whose drawing is unseen although the concept and the set are known."""
    sets: frozenset[str]
    families: frozenset[str]
    hues: tuple[float, float]
    sha256: str
    """Hash of the file, for reports."""

    def trains(self, concept: str, set_name: str) -> bool:
        """Whether the drawing of a concept in a set may be trained on."""
        return concept not in self.concepts and set_name not in self.sets and (concept, set_name) not in self.cells


def lookalike_group(concept: EmojiConcept) -> str:
    """Look-alikes share a group: the head noun of the label within emojibase's subgroup; all clock faces are one."""
    words = [w for w in concept.label.replace("’", "'").split() if w not in ("face", "front-facing")]
    if concept.subgroup == "time":
        return "time/clock"
    return f"{concept.subgroup}/{words[-1] if words else concept.label}"


def propose_splits() -> dict[str, Any]:
    """The splits by rule: by hash of the names, independent of any result."""

    def hash_number(text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"instantstyle:{text}".encode()).digest()[:4], "big")

    groups: dict[str, list[EmojiConcept]] = {}
    for concept in concepts():
        groups.setdefault(lookalike_group(concept), []).append(concept)
    free = [g for g in groups if not any(c.label in _FIRST_CONCEPTS for c in groups[g])]
    limit, unseen = len(concepts()) // 8, list[str]()
    for name in sorted(free, key=hash_number):
        if len(unseen) + len(groups[name]) <= limit:
            unseen += [c.label for c in groups[name]]
    trained_sets = [s for s in SETS if not SETS[s].held_out]
    cells = [
        [c.label, s]
        for c in concepts()
        if c.label not in unseen
        for s in trained_sets
        if hash_number(f"{c.label}/{s}") % 12 == 0
    ]
    return {
        "concepts": sorted(unseen),
        "cells": sorted(cells),
        "sets": sorted(s for s in SETS if SETS[s].held_out),
        "families": sorted(HELD_OUT_FAMILIES),
        "hues": list(HELD_OUT_HUES),
    }


@cache
def splits() -> Splits:
    """The committed splits.

    Raises WeightsError when the file was changed without its hash.
    """
    data = json.loads(files("instantstyle.emoji").joinpath("splits.json").read_text("utf-8"))
    body = data["held_out"]
    digest = splits_hash(body)
    if digest != data["sha256"]:
        raise WeightsError(f"splits.json was changed: its content hashes to {digest}, the file says {data['sha256']}")
    return Splits(
        frozenset(body["concepts"]),
        frozenset((concept, set_name) for concept, set_name in body["cells"]),
        frozenset(body["sets"]),
        frozenset(body["families"]),
        (float(body["hues"][0]), float(body["hues"][1])),
        data["sha256"],
    )


def splits_hash(body: dict[str, Any]) -> str:
    """The hash of the splits' content, independent of how the file is laid out."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
