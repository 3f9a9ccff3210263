"""A real browser for the page's tests: the system's Chromium, driven by Playwright; skipped where there is none."""

import importlib.resources
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from studio_server import live_server

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def _browser() -> str | None:
    given = os.environ.get("STUDIO_BROWSER")
    if given:
        return given if os.access(given, os.X_OK) else None
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def _missing(config: pytest.Config) -> str | None:
    if not config.pluginmanager.has_plugin("playwright"):
        return "pytest-playwright is not installed: pip install 'instantstyle[dev]'"
    if _browser() is None:
        return "no browser here: `make browser` (Debian's chromium), or STUDIO_BROWSER=/path/to/chrome"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Browser tests are skipped where there is no browser; with STUDIO_BROWSER set they must run.

    By a mark, because their fixtures would fail and not skip.
    """
    here = Path(__file__).parent
    ours = [item for item in items if item.path.is_relative_to(here)]
    if ours and (why := _missing(config)):
        if os.environ.get("STUDIO_BROWSER"):
            raise pytest.UsageError(why)
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """The system's browser; no name but this machine's is resolved."""
    args = ["--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    args += ["--no-sandbox"] if os.geteuid() == 0 else []
    return {**browser_type_launch_args, "executable_path": _browser(), "args": args}


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A studio that these tests share."""
    with live_server(tmp_path_factory.mktemp("browser")) as (address, _):
        yield address


@pytest.fixture
def context(context: Any) -> Generator[Any]:
    """A context that lets nothing leave this machine, and fails a test whose page told of an error."""
    told: list[str] = []
    left: list[str] = []
    context.set_default_timeout(120_000)

    def refuse(route: Any) -> None:
        left.append(route.request.url)
        route.abort()

    def leaves(url: str) -> bool:
        return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            told.append(f"{message.type}: {message.text}")

    def failed(error: Any) -> None:
        told.append(f"uncaught: {error.error}")

    context.route(leaves, refuse)
    context.on("console", heard)
    context.on("weberror", failed)
    context.told = told
    yield context
    assert left == [], f"requests left the origin: {left}"
    assert told == [], f"the page complained: {told}"


@pytest.fixture
def accessible() -> Callable[[Any], None]:
    """Fails where axe finds fault with the page as it stands."""
    axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

    def check(page: Any) -> None:
        page.evaluate(axe + "; 0")  # not add_script_tag: the content security policy would refuse it
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        assert found == [], "\n".join(
            f"{v['id']} ({v['impact']}): {v['help']}: {[n['target'] for n in v['nodes']][:5]}" for v in found
        )

    return check
