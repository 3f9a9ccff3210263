"""Packages are fetched once and verified, and drawings of every source are rasterised alike."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from instantstyle.emoji import rasterize as rasterize_module
from instantstyle.emoji import sources
from instantstyle.emoji.__main__ import main
from instantstyle.emoji.rasterize import RASTER_SIZE, build_emoji_world, rasterize, rasters
from instantstyle.emoji.sets import DrawingSet, Package
from instantstyle.emoji.sources import EmojiConcept, artwork, concepts, fetch, in_set
from instantstyle.emoji.splits import splits
from instantstyle.emoji.style_transforms import HELD_OUT_FAMILIES, HELD_OUT_HUES
from instantstyle.errors import OutputError, WeightsError

BAR = EmojiConcept("bar", "1F4CA", "📊", "office", ())
BALL = EmojiConcept("magic ball", "26BD-FE0F", "⚽", "sport", ())
NIGHT = EmojiConcept("night", "1F303", "🌃", "place", ())

WIDE = '<rect x="3" y="21" width="20" height="10" fill="#dd2030"/>'
"""Twice as wide as high, away from the middle of its 36 x 36 canvas."""
INK = '<circle cx="5" cy="5" r="3" fill="currentColor"/>'

ICONS = {
    "width": 36,
    "height": 36,
    "icons": {"wide": {"body": WIDE}, "magic-ball": {"body": INK, "width": 10, "height": 10}},
    "aliases": {"bar-chart": {"parent": "chart"}, "chart": {"parent": "wide"}},
}


def _webp() -> bytes:
    picture = Image.new("RGBA", (72, 72))
    picture.paste((221, 32, 48, 255), (6, 42, 46, 62))
    data = io.BytesIO()
    picture.save(data, "webp", lossless=True)
    return data.getvalue()


CONTENTS: Mapping[str, Mapping[str, bytes]] = {
    "@tiny/icons": {
        "icons.json": json.dumps(ICONS).encode(),
        "chars.json": json.dumps({"1f4ca": "bar-chart"}).encode(),
    },
    "@tiny/webp": {"assets/1f4ca.webp": _webp()},
    "tiny-svg": {
        "black/svg/1F4CA.svg": f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">{WIDE}</svg>'.encode()
    },
    "tiny-labels": {
        "meta/groups.json": json.dumps({"subgroups": {"7": "office"}}).encode(),
        "en/data.json": json.dumps(
            [
                {"label": c.label, "hexcode": c.hexcode, "emoji": c.emoji, "group": 7, "subgroup": 7}
                for c in (BAR, BALL, NIGHT)
            ]
            + [{"label": "grinning face", "hexcode": "1F600", "emoji": "😀", "group": 0, "subgroup": 7}]
        ).encode(),
    },
}


@dataclass(frozen=True)
class World:
    """A synthetic world of three icon sets, and the folder where its npm has its archives and its log."""

    folder: Path
    packages: Mapping[str, Package]

    @property
    def cached(self) -> list[str]:
        """Everything in the cache's folder of packages, hidden files too."""
        return sorted(p.name for p in (self.folder / "cache/packages").iterdir())

    @property
    def fetched(self) -> list[str]:
        """The packages npm was called for, in order."""
        log = self.folder / "asked"
        return log.read_text().split() if log.exists() else []

    def npm(self, script: str) -> None:
        """Replaces npm: a shell script, run in npm's working folder with `$file` the archive it should write."""
        program = self.folder / "bin/npm"
        name = """file=$(printf %s "$asked" | sed 's/^@//; s|/|-|; s/@/-/').tgz"""
        program.write_text(
            f'#!/bin/sh\nfor asked; do :; done\necho "$asked" >> {self.folder}/asked\n{name}\n{script}\n'
        )
        program.chmod(0o755)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The synthetic world in place of the real one: a cache of its own, and an npm that copies from a folder."""
    if sys.platform == "win32":
        pytest.skip("the npm of these tests is a shell script")
    (tmp_path / "registry").mkdir()
    (tmp_path / "bin").mkdir()
    packages: dict[str, Package] = {}
    for name, files in CONTENTS.items():
        package = Package(name, "1.0.0", "", "MIT", "nobody")
        with tarfile.open(tmp_path / "registry" / package.archive, "w:gz") as tar:
            for path, data in files.items():
                entry = tarfile.TarInfo(f"package/{path}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        sha256 = hashlib.sha256((tmp_path / "registry" / package.archive).read_bytes()).hexdigest()
        packages[name] = replace(package, sha256=sha256)
    sets = {
        "tiny-icons": DrawingSet("tiny-icons", packages["@tiny/icons"], "iconify"),
        "tiny-webp": DrawingSet("tiny-webp", packages["@tiny/webp"], "webp"),
        "tiny-svg": DrawingSet("tiny-svg", packages["tiny-svg"], "svg"),
    }
    for module in (sources, rasterize_module):
        monkeypatch.setattr(module, "SETS", sets)
    monkeypatch.setattr(sources, "EMOJIBASE", packages["tiny-labels"])
    monkeypatch.setattr(sources, "_MIN_SETS", 1)
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    made = World(tmp_path, packages)
    made.npm(f'cp {tmp_path}/registry/"$file" .')
    _clear_caches()
    yield made
    _clear_caches()


def _clear_caches() -> None:
    """Clear what is cached per process."""
    for remembered in vars(sources).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()
    rasters.cache_clear()


def test_a_package_is_fetched_once(world: World) -> None:
    package = world.packages["@tiny/icons"]
    archive = fetch(package)
    assert archive == world.folder / "cache/packages/tiny-icons-1.0.0.tgz"
    assert archive.read_bytes() == (world.folder / "registry/tiny-icons-1.0.0.tgz").read_bytes()
    assert fetch(package) == archive
    assert world.fetched == ["@tiny/icons@1.0.0"]
    assert world.cached == ["tiny-icons-1.0.0.tgz"]


def test_another_archive_than_the_pinned_one_is_refused_and_not_kept(world: World) -> None:
    package = replace(world.packages["@tiny/icons"], sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"is not the pinned @tiny/icons@1\.0\.0: its sha256 is [0-9a-f]{64}, not 0"):
        fetch(package)
    assert world.cached == []


def test_an_archive_damaged_in_the_cache_is_refused(world: World) -> None:
    archive = fetch(world.packages["tiny-svg"])
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"not the pinned tiny-svg@1\.0\.0.*delete .* to fetch it again"):
        fetch(world.packages["tiny-svg"])


def test_without_npm_a_sentence_says_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(world.folder / "nowhere"))
    with pytest.raises(
        WeightsError, match=r"could not fetch tiny-svg@1\.0\.0 with npm .*: install npm, or put tiny-svg"
    ):
        fetch(world.packages["tiny-svg"])


@pytest.mark.parametrize(
    "script",
    ['printf half > "$file"; kill -KILL $$', 'printf half > "$file"; exit 1', "exit 0"],
    ids=["killed", "failed", "wrote nothing"],
)
def test_a_failed_npm_leaves_no_file(world: World, script: str) -> None:
    world.npm(script)
    with pytest.raises(WeightsError, match="could not fetch tiny-svg"):
        fetch(world.packages["tiny-svg"])
    assert world.cached == []
    world.npm(f'cp {world.folder}/registry/"$file" .')
    assert fetch(world.packages["tiny-svg"]).exists()


def test_an_interruption_leaves_no_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, cwd: str, **__: object) -> None:
        (Path(cwd) / "tiny-svg-1.0.0.tgz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(world.packages["tiny-svg"])
    assert world.cached == []


def test_an_alias_is_followed_to_its_drawing(world: World) -> None:
    svg = artwork("tiny-icons", BAR).decode()
    assert WIDE in svg
    assert 'viewBox="0 0 36 36"' in svg


def test_a_drawing_without_a_code_is_found_by_its_label_and_in_its_own_box(world: World) -> None:
    svg = artwork("tiny-icons", BALL).decode()
    assert INK in svg
    assert 'viewBox="0 0 10 10"' in svg


def test_a_concept_that_no_set_draws(world: World) -> None:
    assert not any(in_set(name, NIGHT) for name in sources.SETS)
    for name in sources.SETS:
        with pytest.raises(KeyError):
            artwork(name, NIGHT)


@pytest.mark.parametrize("name", ["tiny-icons", "tiny-webp", "tiny-svg"])
def test_a_drawing_fills_nine_tenths_of_its_canvas_and_keeps_its_shape(world: World, name: str) -> None:
    picture = Image.fromarray(rasterize(name, BAR))
    assert picture.size == (RASTER_SIZE, RASTER_SIZE)
    box = picture.getchannel("A").point(_solid).getbbox()
    wide, high = 0.9 * RASTER_SIZE, 0.45 * RASTER_SIZE
    expected = [(RASTER_SIZE - wide) / 2, (RASTER_SIZE - high) / 2, (RASTER_SIZE + wide) / 2, (RASTER_SIZE + high) / 2]
    assert box == pytest.approx(expected, abs=1.5)
    assert picture.getpixel((RASTER_SIZE // 2, RASTER_SIZE // 2)) == pytest.approx((221, 32, 48, 255), abs=2)
    assert picture.getpixel((2, 2)) == (0, 0, 0, 0)


def test_ink_without_a_colour_is_black(world: World) -> None:
    assert rasterize("tiny-icons", BALL)[RASTER_SIZE // 2, RASTER_SIZE // 2].tolist() == [0, 0, 0, 255]


def test_concepts_are_those_that_enough_sets_draw(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.label for c in concepts()] == ["bar", "magic ball"]
    concepts.cache_clear()
    monkeypatch.setattr(sources, "_MIN_SETS", 3)
    assert [c.label for c in concepts()] == ["bar"]


def test_drawings_are_rasterised_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = rasters("tiny-svg")
    assert drawn.shape == (2, RASTER_SIZE, RASTER_SIZE, 4)
    assert np.array_equal(drawn[0], rasterize("tiny-svg", BAR))
    assert not drawn[1].any(), "what a set does not draw is empty"
    rasters.cache_clear()
    monkeypatch.setattr(rasterize_module, "rasterize", _fail)
    assert np.array_equal(rasters("tiny-svg"), drawn)


def test_a_failed_write_leaves_no_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(file: IO[bytes], pictures: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "no space left on device")

    whole: Callable[..., None] = np.save
    monkeypatch.setattr(np, "save", half)
    with pytest.raises(OutputError, match="no room"):
        rasters("tiny-svg")
    folder = world.folder / f"cache/masters-{RASTER_SIZE}"
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(np, "save", whole)
    rasters("tiny-svg")
    assert [p.name for p in folder.iterdir()] == ["tiny-svg.npy"]


def test_building_is_resumable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    build_emoji_world(["tiny-svg"], log=lambda _: None)
    drawn: list[str] = []

    def counted(name: str, concept: EmojiConcept) -> rasterize_module.RgbaArray:
        drawn.append(name)
        return rasterize(name, concept)

    monkeypatch.setattr(rasterize_module, "rasterize", counted)
    lines: list[str] = []
    assert build_emoji_world(log=lines.append) == world.folder / "cache"
    assert lines == [
        "1/3 tiny-icons: 2 of 2 concepts",
        "2/3 tiny-webp: 1 of 2 concepts",
        "3/3 tiny-svg: 1 of 2 concepts",
    ]
    assert set(drawn) == {"tiny-icons", "tiny-webp"}


def test_the_command_prints_the_folder(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    main()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    assert said[-1] == f"the emoji world is in {world.folder / 'cache'}"
    assert len(world.fetched) == len(CONTENTS)


def test_the_command_fails_with_a_sentence(world: World) -> None:
    world.npm("exit 1")
    with pytest.raises(SystemExit, match=r"^error: could not fetch .*: install npm"):
        main()


def test_held_out_names_exist() -> None:
    held_out = splits()
    known = sources.SETS
    assert held_out.sets == {name for name, s in known.items() if s.held_out}
    assert {name for _, name in held_out.cells} == {name for name, s in known.items() if not s.held_out}
    assert held_out.families == set(HELD_OUT_FAMILIES)
    assert held_out.hues == tuple(HELD_OUT_HUES)
    assert all(s.package.licence != "CC-BY-SA-4.0" or s.held_out for s in known.values()), "share-alike is not shipped"


def _solid(alpha: int) -> int:
    return 255 if alpha > 127 else 0


def _fail(*_: object) -> rasterize_module.RgbaArray:
    raise AssertionError("rendered again")
