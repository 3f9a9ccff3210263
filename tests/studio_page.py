# pyright: reportUnknownMemberType=false

"""What the tests of the page have in common: the page with settings, a drawn picture, waiting for a new one."""

import io
import json
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import Page

PICTURE = "#stage .canvas .picture:not(.under)"
QUICK = {"prompt": "a cat", "steps": 2, "guidance": 1, "live": False, "seed": 5}


def open_page(page: Page, *, first: bool = False, **settings: Any) -> None:
    """The page with settings as a visitor left them, or as on the first visit."""
    if not first:
        text = json.dumps({**QUICK, **settings})
        page.add_init_script(f"if (!localStorage.getItem('settings-2')) localStorage.setItem('settings-2', {text!r});")
    page.goto("/")
    page.wait_for_selector("html[data-ready]")


def drawn(colour: str = "red") -> bytes:
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 80, 80), colour)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def shown(page: Page) -> str:
    return page.get_attribute(PICTURE, "src") or ""


def wait_new(page: Page, before: str) -> str:
    page.wait_for_function(
        "([s, b]) => ((p) => !p.hidden && p.getAttribute('src') !== b && p.complete)(document.querySelector(s))",
        arg=[PICTURE, before],
    )
    return shown(page)


def draw_and_wait(page: Page) -> str:
    newest = "document.querySelector('#recent .thumb')?.dataset.image ?? null"
    before = page.evaluate(newest)
    page.click("#draw")
    page.wait_for_function(f"(before) => ({newest}) !== before", arg=before)
    return shown(page)


def last_request(page: Page) -> dict[str, Any]:
    return page.request.get("/v1/jobs?limit=1").json()["jobs"][0]["request"]
