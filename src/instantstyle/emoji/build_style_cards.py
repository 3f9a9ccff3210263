"""`python -m instantstyle.emoji.build_style_cards [FOLDER]`: builds the shipped style cards.

To be run when the built-in model's image encoder was trained again: a card of another encoder is refused.  Eight cards
are style transforms of procedural drawings, four are procedural patterns; all are CC0-1.0.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from instantstyle.emoji.procedural import PATTERNS, thing
from instantstyle.emoji.style_transforms import StyleTransform, apply_transform
from instantstyle.errors import InstantStyleError
from instantstyle.loading import load
from instantstyle.methods.reference_embedding import make_card
from instantstyle.model import Model
from instantstyle.request.style_card import SHIPPED_STYLES, SUFFIX, StyleCard

LICENCE = "CC0-1.0"
CREDIT = "the InstantStyle contributors; drawn by code ({what})"
PICTURED_CONCEPTS = ("house", "fish", "mushroom", "flower")
"""The drawings each transform is applied to: averaging four of them leaves little content."""

BLACK, WHITE, CREAM = (10, 6, 16), (255, 255, 255), (252, 244, 226)

TRANSFORMS = {
    "neon": StyleTransform("neon", BLACK, WHITE, (255, 60, 180), 0.5, 1),
    "pixel": StyleTransform("pixel", (150, 205, 255), WHITE, WHITE, 0.3, 1),
    "hatching": StyleTransform("hatching", CREAM, (70, 36, 20), (70, 36, 20), 0.3, 1),
    "watercolour": StyleTransform("watercolour", (250, 246, 238), WHITE, WHITE, 0.5, 1),
    "duotone": StyleTransform("duotone", (190, 245, 210), (86, 18, 66), (86, 18, 66), 0.5, 1),
    "papercut": StyleTransform("papercut", (248, 206, 120), (24, 84, 92), (236, 92, 62), 0.5, 1),
    "chalk": StyleTransform("chalk", (18, 52, 40), WHITE, WHITE, 0.5, 1),
    "halftone": StyleTransform("halftone", (255, 238, 120), (26, 40, 120), (255, 96, 96), 0.4, 1),
}
"""Transforms of trained families, in colours outside the held-out hues, by the card's name."""


def pictures_of(name: str) -> list[Image.Image]:
    """The images a card is made of, 128 x 128 each.  Raises KeyError for an unknown name."""
    if name in PATTERNS:
        return [Image.fromarray(PATTERNS[name](seed)) for seed in (1, 2)]
    return [Image.fromarray(apply_transform(TRANSFORMS[name], thing(label))) for label in PICTURED_CONCEPTS]


def cards(model: Model) -> Iterator[StyleCard]:
    """Every card for a model's encoder.  Patterns have no content that could be subtracted."""
    for name in (*TRANSFORMS, *PATTERNS):
        what = "a pattern" if name in PATTERNS else f"{', '.join(PICTURED_CONCEPTS)} in the look {name!r}"
        content = None if name in PATTERNS else PICTURED_CONCEPTS
        yield make_card(
            model, name, pictures_of(name), content=content, licence=LICENCE, credit=CREDIT.format(what=what)
        )


def write_style_cards(folder: Path = SHIPPED_STYLES) -> list[Path]:
    """Write all cards for the built-in model."""
    folder.mkdir(parents=True, exist_ok=True)
    return [card.save(folder / f"{card.name}{SUFFIX}") for card in cards(load())]


def main() -> None:
    """Write the shipped cards, or the same cards into the given folder."""
    try:
        print(*write_style_cards(*map(Path, sys.argv[1:2])), sep="\n")
    except (InstantStyleError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
