"""The icon sets: their pinned npm packages with author and licence, and which are held out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Package:
    """One pinned npm package."""

    name: str
    version: str
    sha256: str
    licence: str
    credit: str

    @property
    def archive(self) -> str:
        """The file name `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class DrawingSet:
    """One icon set: many concepts, drawn by the same people in one style."""

    name: str
    package: Package
    kind: Literal["iconify", "webp", "svg"]
    held_out: bool = False
    """Never trained on, never shipped: an unseen style for the evaluation."""


_NOTO = "Noto Emoji, Google Inc. and the Noto Emoji authors"
_FLUENT = "Fluent Emoji, Microsoft Corporation"
_ONE = "EmojiOne 2, Ranks.com Inc. (EmojiOne)"
_OPEN = "OpenMoji, the open-source emoji and icon project of HfG Schwaebisch Gmuend and contributors"

EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "emojibase, Miles Johnson",
)

SETS: Mapping[str, DrawingSet] = {
    s.name: s
    for s in (
        DrawingSet(
            "noto",
            Package(
                "@iconify-json/noto",
                "1.2.9",
                "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
                "Apache-2.0",
                _NOTO,
            ),
            "iconify",
        ),
        DrawingSet(
            "noto-v1",
            Package(
                "@iconify-json/noto-v1",
                "1.2.5",
                "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
                "Apache-2.0",
                _NOTO,
            ),
            "iconify",
        ),
        DrawingSet(
            "twemoji",
            Package(
                "@iconify-json/twemoji",
                "1.2.5",
                "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
                "CC-BY-4.0",
                "Twemoji, Twitter Inc. and other contributors",
            ),
            "iconify",
        ),
        DrawingSet(
            "fluent",
            Package(
                "@iconify-json/fluent-emoji",
                "1.2.7",
                "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
                "MIT",
                _FLUENT,
            ),
            "iconify",
        ),
        DrawingSet(
            "fluent-flat",
            Package(
                "@iconify-json/fluent-emoji-flat",
                "1.2.6",
                "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
                "MIT",
                _FLUENT,
            ),
            "iconify",
        ),
        DrawingSet(
            "fluent-stencil",
            Package(
                "@iconify-json/fluent-emoji-high-contrast",
                "1.2.6",
                "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
                "MIT",
                _FLUENT,
            ),
            "iconify",
        ),
        DrawingSet(
            "fluent-3d",
            Package(
                "@lobehub/fluent-emoji-3d",
                "1.1.0",
                "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
                "MIT",
                _FLUENT,
            ),
            "webp",
        ),
        DrawingSet(
            "emojione",
            Package(
                "@iconify-json/emojione",
                "1.2.3",
                "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
                "CC-BY-4.0",
                _ONE,
            ),
            "iconify",
        ),
        DrawingSet(
            "emojione-line",
            Package(
                "@iconify-json/emojione-monotone",
                "1.2.1",
                "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
                "CC-BY-4.0",
                _ONE,
            ),
            "iconify",
        ),
        DrawingSet(
            "openmoji",
            Package(
                "@iconify-json/openmoji",
                "1.2.29",
                "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
                "CC-BY-SA-4.0",
                _OPEN,
            ),
            "iconify",
            held_out=True,
        ),
        DrawingSet(
            "openmoji-black",
            Package(
                "openmoji",
                "17.0.0",
                "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
                "CC-BY-SA-4.0",
                _OPEN,
            ),
            "svg",
            held_out=True,
        ),
    )
}
