"""The repository: what README quotes, links, light imports, pinned versions, licences."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from instantstyle.emoji.sources import EMOJIBASE, SETS
from instantstyle.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_is_short_and_quotes_the_reports(script: Callable[[str], ModuleType]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    report = json.loads((ROOT / "benchmarks/results/referee/report.json").read_text(encoding="utf-8"))
    table = script("docs/evaluation_tables.py").summary(report)
    assert table in readme, f"README's results are not those of the committed report:\n\n{table}"
    floors = json.loads((ROOT / "benchmarks/results/floors.json").read_text(encoding="utf-8"))
    met = f"meets {sum(bool(row['met']) for row in floors)} of its {len(floors)} [acceptance floors]"
    assert met in readme, f"README does not say that the built-in model {met}"
    for name, spec in METHODS.items():
        assert not spec.takes_references or f"[`{name}`](docs/methods/{name}.md)" in readme, f"README misses {name}"


def test_every_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), ROOT / "gpu/QUEUE.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "module",
    ["instantstyle", "instantstyle.cli", "instantstyle.request", "instantstyle.families", "instantstyle.methods"],
)
def test_no_torch_is_imported(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_the_pins_lie_in_the_ranges_and_torch_comes_first() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert next(iter(pins)) == "torch"
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "instantstyle":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_the_version_is_the_changelogs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == project["version"]


def test_every_emoji_set_is_attributed_as_fetched() -> None:
    notice = " ".join((ROOT / "NOTICE").read_text(encoding="utf-8").split())
    for package in (EMOJIBASE, *(drawing_set.package for drawing_set in SETS.values())):
        assert f"{package.name} {package.version}" in notice
        assert package.licence.replace("-2.0", " License 2.0").replace("MIT", "MIT License") in notice
