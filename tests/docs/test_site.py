"""The documentation builds without the network, refers to nothing outside itself, and misses no method."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from instantstyle.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
EXTERNAL = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^"'\s>]+[^>]*>""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode while every connection is refused."""
    mkdocs: Any = pytest.importorskip("mkdocs.config", reason="needs the docs extra")
    from mkdocs.commands import build

    def refused(*_: object) -> None:
        raise OSError("the documentation must build without the network")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        config = mkdocs.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.run_event("startup", command="build", dirty=False)
        build.build(config)
        config.plugins.run_event("shutdown")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_every_page_is_self_contained(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = [tag for tag in EXTERNAL.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag]
        assert not found, f"{page.relative_to(site)} loads {found[:3]}"


def test_what_is_generated_is_there(site: Path) -> None:
    assert "--content-weight" in (site / "reference/cli/index.html").read_text(encoding="utf-8")
    assert "style-aligned" in (site / "evaluation/index.html").read_text(encoding="utf-8")
    assert "FaceID" in (site / "own-models/index.html").read_text(encoding="utf-8")
    python = (site / "reference/python/index.html").read_text(encoding="utf-8")
    for name in ("generate", "Request", "StyleReference", "Engine"):
        assert f'id="instantstyle.{name}"' in python or f"instantstyle.{name}" in python
    for page in site.rglob("*.html"):
        assert "generated: " not in page.read_text(encoding="utf-8"), page


def test_every_method_has_a_page_with_its_options(site: Path) -> None:
    for name in METHODS:
        if name != "none":
            text = (site / f"methods/{name}/index.html").read_text(encoding="utf-8")
            assert all(f"<code>{option}</code>" in text for option in METHODS[name].options), name


def test_search_finds_pages(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    locations = {entry["location"] for entry in index["docs"]}
    assert {"concepts/", "methods/instantstyle/", "tutorials/first-picture/"} <= locations
