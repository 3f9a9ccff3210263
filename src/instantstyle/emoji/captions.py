"""Training captions: a concept's label or a synonym and, in some, a description of the style."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from instantstyle.emoji.style_transforms import Colour, StyleTransform

OTHER_WORDS: Mapping[str, Sequence[str]] = {
    "cat": ("kitty",),
    "dog": ("puppy",),
    "rabbit": ("bunny",),
    "evergreen tree": ("tree", "fir"),
    "red apple": ("apple",),
    "hamburger": ("burger",),
    "doughnut": ("donut",),
    "birthday cake": ("cake",),
    "hot beverage": ("cup of coffee", "cup of tea"),
    "automobile": ("car",),
    "bicycle": ("bike",),
    "airplane": ("plane",),
    "sailboat": ("boat",),
    "locomotive": ("train", "steam train"),
    "crescent moon": ("moon",),
    "wrapped gift": ("gift", "present"),
    "alarm clock": ("clock",),
    "soccer ball": ("football", "ball"),
    "light bulb": ("lamp",),
    "maple leaf": ("leaf",),
    "ice cream": ("sundae",),
    "unicorn": ("unicorn head",),
    "bear": ("bear face",),
    "pig face": ("pig", "piglet"),
    "monkey face": ("monkey",),
    "cow face": ("cow",),
    "tiger face": ("tiger",),
    "chicken": ("hen",),
    "baby chick": ("chick",),
    "honeybee": ("bee",),
    "cherry blossom": ("blossom", "flower"),
    "shamrock": ("clover",),
    "droplet": ("drop", "water drop"),
    "high voltage": ("lightning", "bolt", "lightning bolt"),
    "cherries": ("cherry",),
    "eggplant": ("aubergine",),
    "french fries": ("fries", "chips"),
    "lollipop": ("candy",),
    "beer mug": ("beer",),
    "cooking": ("fried egg", "egg"),
    "motorcycle": ("motorbike",),
    "fire engine": ("fire truck",),
    "globe showing europe-africa": ("globe", "earth", "planet"),
    "jack-o-lantern": ("pumpkin", "halloween pumpkin"),
    "trophy": ("cup",),
    "glasses": ("eyeglasses",),
    "t-shirt": ("shirt",),
    "gem stone": ("gem", "diamond"),
    "television": ("tv",),
    "envelope": ("letter", "mail"),
    "hourglass done": ("hourglass",),
}
"""Synonyms of `splits.TRAINED_CONCEPTS`, used in captions beside the label."""

SET_WORDS: Mapping[str, str] = {
    "noto": "soft flat",
    "noto-v1": "old blob",
    "twemoji": "simple flat",
    "fluent": "gradient",
    "fluent-flat": "bold flat",
    "fluent-stencil": "stencil",
    "fluent-3d": "glossy 3d",
    "emojione": "cartoon",
    "emojione-line": "thick line",
}
"""How captions name the icon set."""

_COLOURS: Mapping[str, Colour] = {
    "white": (255, 255, 255),
    "light grey": (200, 200, 200),
    "grey": (128, 128, 128),
    "black": (15, 15, 15),
    "red": (220, 30, 40),
    "dark red": (95, 12, 20),
    "pink": (255, 150, 190),
    "orange": (255, 150, 40),
    "brown": (100, 60, 25),
    "peach": (255, 215, 180),
    "yellow": (250, 235, 70),
    "cream": (255, 250, 215),
    "olive": (85, 85, 20),
    "lime": (170, 245, 80),
    "green": (50, 190, 70),
    "dark green": (10, 65, 25),
    "mint": (190, 250, 215),
    "teal": (30, 160, 155),
    "dark teal": (8, 62, 62),
    "cyan": (90, 235, 245),
    "light blue": (180, 215, 255),
    "blue": (50, 110, 235),
    "navy": (14, 25, 85),
    "violet": (140, 80, 225),
    "lavender": (220, 205, 255),
    "indigo": (40, 15, 85),
    "magenta": (235, 60, 200),
    "plum": (80, 12, 70),
}


def _lab(colours: Sequence[Colour]) -> np.ndarray:
    return cv2.cvtColor(np.array([colours], np.float32) / 255, cv2.COLOR_RGB2Lab)[0]


COLOUR_NAMES = tuple(_COLOURS)
"""Names of background colours in captions."""
_LAB = _lab(list(_COLOURS.values()))


def colour_name(colour: Colour) -> str:
    """The nearest of 28 colour names, by distance in CIELAB."""
    return COLOUR_NAMES[int(((_LAB - _lab([colour])) ** 2).sum(axis=1).argmin())]


def with_article(noun: str) -> str:
    """`a cat`, `an apple`; by the letter alone, so `an unicorn`: as the built-in model was taught, and is asked."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def content_phrase(label: str, rng: np.random.Generator) -> str:
    """The concept in words: its label or a synonym, with or without an article."""
    noun = str(rng.choice([label, label, *OTHER_WORDS.get(label, ())]))
    return with_article(noun) if rng.random() < 0.6 else noun


def describe_style(transform: StyleTransform, icon_set: str, rng: np.random.Generator) -> str:
    """The style in words, each part included or left out at random; never empty."""
    parts = [
        transform.kind if transform.kind != "plain" or rng.random() < 0.3 else "",
        SET_WORDS[icon_set] if rng.random() < 0.5 else "",
    ]
    words = " ".join(filter(None, parts)) + " style"
    background = f"on {colour_name(transform.background)}" if rng.random() < 0.75 or words == " style" else ""
    return ", ".join(filter(None, ["" if words == " style" else words.strip(), background]))


def make_caption(
    label: str, transform: StyleTransform, icon_set: str, rng: np.random.Generator, styled: float = 0.3
) -> str:
    """One caption: the concept, and with probability `styled` the style."""
    content = content_phrase(label, rng)
    return f"{content}, {describe_style(transform, icon_set, rng)}" if rng.random() < styled else content
