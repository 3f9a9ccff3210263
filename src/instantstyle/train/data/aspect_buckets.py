"""The shape a picture is trained in, and how it is cut to it: SDXL's aspect buckets, and what it is told of the cut."""

from dataclasses import dataclass
from math import log

from PIL import Image

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class Crop:
    """A picture scaled to cover a bucket and cut to it, the middle kept."""

    original: Size
    scaled: Size
    left: int
    top: int
    target: Size

    @property
    def conditioning(self) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told (arXiv 2307.01952, section 2.2): original, corner and target, height before width."""
        (width, height), (wide, high) = self.original, self.target
        return height, width, self.top, self.left, high, wide

    @property
    def kept(self) -> float:
        """The share of the picture that is left."""
        return self.target[0] * self.target[1] / (self.scaled[0] * self.scaled[1])

    def apply(self, picture: Image.Image) -> Image.Image:
        """The picture scaled and cut."""
        if picture.size != self.scaled:
            picture = picture.resize(self.scaled, Image.Resampling.LANCZOS)
        return picture.crop((self.left, self.top, self.left + self.target[0], self.top + self.target[1]))


def buckets(side: int, step: int) -> tuple[Size, ...]:
    """Shapes of about `side` x `side` pixels: sides in multiples of `step`, from half to twice, at most as many pixels
    and more than nine tenths of them.  For 1024 and 64 it is the list of SDXL's paper (appendix I)."""
    sides = range(max(step, -(-side // (2 * step)) * step), 2 * side + 1, step)
    return tuple((w, h) for w in sides for h in sides if 0.9 * side * side < w * h <= side * side)


def crop(original: Size, shapes: tuple[Size, ...]) -> Crop:
    """How a picture of this size is cut to the shape that is most like its own."""
    width, height = original
    target = min(shapes, key=lambda s: (abs(log(s[0] / s[1]) - log(width / height)), s))
    scale = max(target[0] / width, target[1] / height)
    scaled = max(target[0], round(width * scale)), max(target[1], round(height * scale))
    return Crop(original, scaled, (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2, target)
