"""Screenshots of the studio's page, into docs/studio/: desktop, a grid, a phone in the dark.

python docs/screenshots.py        needs chromium (make browser)
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

PICTURE = "#stage .canvas .picture:not(.under)"


def main() -> None:
    """Draw the pictures of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("studio"))
    out: Path = parser.parse_args().out
    from playwright.sync_api import sync_playwright

    from studio_server import live_server

    out.mkdir(exist_ok=True)
    chromium = next(found for name in ("chromium", "google-chrome") if (found := shutil.which(name)))
    with (
        tempfile.TemporaryDirectory() as folder,
        live_server(Path(folder)) as (address, _),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        page.locator(".swatch", has_text="neon").click()
        page.click("#draw")
        page.wait_for_selector("#recent .thumb")
        page.wait_for_selector("#meter .meter-row")
        page.wait_for_timeout(500)
        page.screenshot(path=out / "desktop.png")
        device: Any = cast("Any", playwright).devices["Pixel 7"]
        phone = browser.new_context(**device, color_scheme="dark").new_page()
        phone.set_default_timeout(120_000)
        phone.goto(address)
        phone.wait_for_selector(PICTURE)
        phone.wait_for_timeout(1500)
        phone.screenshot(path=out / "phone-dark.png")
        browser.close()


if __name__ == "__main__":
    main()
