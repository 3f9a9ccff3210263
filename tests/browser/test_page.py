# pyright: reportUnknownMemberType=false

"""The page in a real browser: what an illustrator does with it, in the order in which it is done."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image, PngImagePlugin

import instantstyle as ist
from studio_server import live_server, shared_model

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import BrowserContext, Page, expect

from studio_page import PICTURE, QUICK, draw_and_wait, drawn, last_request, open_page, shown, wait_new

expect.set_options(timeout=120_000)  # a shared core is slow, and a wait that ends early costs nothing


def test_first_visit_to_first_picture(page: Page, accessible: Callable[[Any], None]) -> None:
    open_page(page, first=True)
    expect(page.locator(PICTURE)).to_be_visible()  # drawn without a click
    expect(page.locator(".swatch")).not_to_have_count(0)
    page.get_by_label("Of what").fill("a rocket")
    wait_new(page, shown(page))
    page.locator("summary", has_text="Where and how").click()
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("Steps", exact=True).blur()
    assert draw_and_wait(page).startswith("/v1/images/")
    expect(page.locator("#meter")).to_contain_text("Did it work?")
    accessible(page)


def test_a_dropped_picture_becomes_a_reference_and_the_page_stays(page: Page) -> None:
    open_page(page, prompt="a cat")
    address = page.url
    page.locator(".drop-tile").first.drop({"files": [{"name": "mine.png", "mimeType": "image/png", "buffer": drawn()}]})
    expect(page.get_by_role("article", name="Reference mine")).to_be_visible()
    # anywhere else too: it is taken and the browser does not go to it
    page.locator("main").drop({"files": [{"name": "other.png", "mimeType": "image/png", "buffer": drawn("blue")}]})
    expect(page.get_by_role("article", name="Reference other")).to_be_visible()
    page.locator("main").drop({"files": [{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}]})
    expect(page.locator("#toasts")).to_contain_text("is no picture")
    assert page.url == address
    page.locator("summary", has_text="About mine").click()
    expect(page.locator(".chips .chip").first).to_be_visible()  # the model's guess, offered
    draw_and_wait(page)
    assert len(last_request(page)["references"]) == 2


def test_a_pasted_picture_becomes_a_reference(page: Page, context: BrowserContext, base_url: str) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base_url)
    open_page(page, prompt="a cat")
    page.evaluate(
        """async (data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
        }""",
        base64.b64encode(drawn()).decode(),
    )
    page.locator("main").focus()
    page.keyboard.press("Control+V")
    expect(page.locator(".reference")).to_have_count(1)


def test_the_picture_follows_the_slider(page: Page) -> None:
    open_page(page, live=True)
    page.locator(".swatch", has_text="neon").click()
    before = wait_new(page, "")
    slider = page.get_by_label("Style strength")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
        before = wait_new(page, before)
    expect(slider).to_have_value("0.85")
    # while it is dragged, drafts that are overtaken are not all drawn: the last one counts
    slider.fill("0")
    slider.fill("1.5")
    wait_new(page, before)
    page.get_by_role("button", name="Before and after").click()
    expect(page.get_by_label("Before and after", exact=True).last).to_be_visible()
    page.get_by_role("button", name="Beside the reference").click()
    expect(page.locator(".beside")).to_be_visible()


def test_cancel(page: Page) -> None:
    open_page(page, steps=200)
    page.click("#draw")
    expect(page.locator("#cancel")).to_be_visible()
    page.click("#cancel")
    expect(page.locator("#toasts")).to_contain_text("Cancelled")
    expect(page.locator("#cancel")).to_be_hidden()
    assert page.request.get("/v1/jobs?limit=1").json()["jobs"][0]["state"] == "cancelled"


def test_a_reload_in_mid_run_loses_nothing(page: Page) -> None:
    open_page(page, steps=40, prompt="a whale")
    page.click("#draw")
    expect(page.locator("#cancel")).to_be_visible()
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.get_by_label("Of what")).to_have_value("a whale")
    expect(page.locator("#recent .thumb").first).to_have_attribute("aria-label", "Show a whale")
    assert "a whale" in (page.get_attribute(PICTURE, "alt") or "")


def test_a_restart_of_the_server_in_mid_run_loses_nothing(page: Page, context: Any, tmp_path: Path) -> None:
    with live_server(tmp_path) as (address, _):
        page.add_init_script(
            f"localStorage.setItem('settings-2', {json.dumps({**QUICK, 'steps': 40, 'prompt': 'an owl'})!r});"
        )
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        page.click("#draw")
        expect(page.locator("#cancel")).to_be_visible()
    expect(page.locator("#banner")).to_contain_text("does not answer")
    with live_server(tmp_path, port=int(address.rpartition(":")[2])):
        expect(page.locator("#banner")).to_be_hidden(timeout=30_000)
        expect(page.locator("#recent .thumb").first).to_have_attribute("aria-label", "Show an owl")
        context.told.clear()  # a browser tells of the connections that were refused meanwhile
        page.close()


def test_the_gallery_gives_settings_back(page: Page, accessible: Callable[[Any], None]) -> None:
    open_page(page, prompt="a penguin", seed=31)
    page.locator(".swatch", has_text="chalk").click()
    draw_and_wait(page)
    page.get_by_label("Of what").fill("something else")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_label("Search").fill("penguin chalk")
    expect(page.locator(".tile")).to_have_count(1)
    accessible(page)
    page.locator(".tile").click()
    accessible(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    assert cast("PngImagePlugin.PngImageFile", Image.open(download.value.path())).text["instantstyle"]
    page.get_by_role("button", name="Draw again").click()
    expect(page.locator("dialog")).to_contain_text(re.compile("Identical|The same but for rounding"))
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Of what")).to_have_value("a penguin")
    expect(page.get_by_role("article", name="Reference chalk")).to_be_visible()
    assert page.evaluate("JSON.parse(localStorage.getItem('settings-2')).seed") == 31


def test_a_dropped_picture_gives_its_settings_back(page: Page, tmp_path: Path) -> None:
    result = ist.generate(shared_model(), ist.Request("an octopus", seed=77, steps=2, guidance=1.0))
    content = result.save(tmp_path / "o.png")[0].read_bytes()
    open_page(page)
    page.locator("main").drop({"files": [{"name": "o.png", "mimeType": "image/png", "buffer": content}]})
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Of what")).to_have_value("an octopus")
    assert page.evaluate("JSON.parse(localStorage.getItem('settings-2')).seed") == 77


def test_a_painted_mask_bounds_what_is_drawn_anew(page: Page) -> None:
    open_page(page, prompt="a rose")
    page.locator("summary", has_text="Follow a picture, or begin from one").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="A picture to begin from").click()
    chooser.value.set_files({"name": "base.png", "mimeType": "image/png", "buffer": drawn("green")})
    page.locator("#paint-init").click()
    canvas = page.locator("canvas.paint")
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 120, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#paint-init")).to_have_text("Change the painted part")
    draw_and_wait(page)
    request = last_request(page)
    mask = Image.open(io.BytesIO(page.request.get(request["init"]["mask"]["url"]).body())).convert("L")
    assert mask.getextrema() == (0, 255)
    share = mask.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(share, int)
    assert 3 < share < 120


def test_on_a_phone_in_the_dark(
    browser: Any, playwright: Any, base_url: str, accessible: Callable[[Any], None]
) -> None:
    context = browser.new_context(**playwright.devices["Pixel 7"], color_scheme="dark", base_url=base_url)
    try:
        page = context.new_page()
        open_page(page, live=True)
        expect(page.locator(PICTURE)).to_be_visible(timeout=60_000)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        for tab in ("Draw", "Grids", "Gallery", "Styles"):
            page.get_by_role("tab", name=tab).tap()
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{tab} is wider than the phone by {wide}"
            accessible(page)
        small = page.evaluate(
            "[...document.querySelectorAll('#actions button, .tabs button')].filter(b => b.offsetHeight && b.offsetHeight < 40).length"  # noqa: E501
        )
        assert small == 0
    finally:
        context.close()


def test_by_keyboard_alone(page: Page) -> None:
    open_page(page)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    wanted = {"tab-draw", "queue-button", "draw", "drop-tile", "swatch", "prompt"}
    for _ in range(60):
        page.keyboard.press("Tab")
        told: str = page.evaluate("`${document.activeElement.id} ${document.activeElement.className}`")
        wanted -= set(told.split())
    assert wanted == set(), f"never reached by Tab: {wanted}"
    page.locator("#tab-draw").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-grid")).to_be_focused()
    expect(page.locator("#view-grid")).to_be_visible()
    page.keyboard.press("Home")
    page.get_by_label("Of what").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("a star")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#recent .thumb").first).to_have_attribute("aria-label", "Show a star")
    page.locator("#queue-button").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Queue")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Queue")).to_be_hidden()
    expect(page.locator("#queue-button")).to_be_focused()
