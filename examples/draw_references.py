"""Draws the demo's reference pictures anew: drawings and looks that the built-in model was not trained on together.

Every (concept, set) cell here is held out in `emoji/splits.json`; whose drawings they are is in NOTICE.
"""

from pathlib import Path

from PIL import Image

from instantstyle.emoji.rasterize import rasterize
from instantstyle.emoji.sources import concepts
from instantstyle.emoji.splits import splits
from instantstyle.emoji.style_transforms import StyleTransform, apply_transform

FOLDER = Path(__file__).parent / "references"

BLACK, WHITE, NIGHT, MOSS, SAND = (10, 4, 16), (255, 255, 255), (16, 22, 70), (18, 52, 34), (246, 226, 190)
PINK, RUST, SKY, PLUM, MINT = (255, 70, 190), (150, 60, 30), (150, 205, 255), (80, 20, 70), (190, 245, 210)

REFERENCES = {
    "dog-neon": ("dog", "emojione-line", StyleTransform("neon", BLACK, PINK, PINK, 0.5, 1)),
    "whale-plain": ("whale", "twemoji", StyleTransform("plain", WHITE, BLACK, BLACK, 0.5, 1)),
    "mushroom-glossy": ("mushroom", "fluent-3d", StyleTransform("plain", SKY, BLACK, WHITE, 0.5, 1)),
    "castle-hatching": ("castle", "fluent", StyleTransform("hatching", SAND, RUST, RUST, 0.3, 1)),
    "leaf-duotone": ("maple leaf", "emojione", StyleTransform("duotone", MINT, PLUM, PLUM, 0.5, 1)),
    "fire-pixel": ("fire", "fluent-flat", StyleTransform("pixel", NIGHT, WHITE, WHITE, 0.5, 1)),
    "turtle-chalk": ("turtle", "noto-v1", StyleTransform("chalk", MOSS, WHITE, WHITE, 0.5, 1)),
}
"""File name (the part before the dash is what it shows): concept, drawing set, look."""

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    known = {concept.label: concept for concept in concepts()}
    for name, (label, drawing_set, look) in REFERENCES.items():
        assert not splits().trains(label, drawing_set), f"{label} of {drawing_set} was trained on"
        path = FOLDER / f"{name}.png"
        Image.fromarray(apply_transform(look, rasterize(drawing_set, known[label]))).save(path, optimize=True)
        print(path)
