# pyright: reportUnknownMemberType=false

"""More of the page in a real browser: grids, styles, forms for every field, pictures of other programs, the login."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import instantstyle as ist
from studio_server import live_server

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Page, expect

from studio_page import PICTURE, draw_and_wait, drawn, last_request, open_page

pytestmark = pytest.mark.slow  # `make test-slow`; test_page.py has what every change is tested with
expect.set_options(timeout=120_000)


def test_a_grid_of_strengths(page: Page, accessible: Callable[[Any], None]) -> None:
    open_page(page)
    page.locator(".swatch", has_text="brush").click()
    page.get_by_role("tab", name="Grids").click()
    page.get_by_role("button", name="Draw the grid").click()
    expect(page.locator(".sheet button.cell")).to_have_count(12)
    accessible(page)


def test_an_error_is_said_where_it_belongs(page: Page) -> None:
    open_page(page)
    page.locator("summary", has_text="Where and how").click()
    page.get_by_label("Width").fill("40")
    page.get_by_label("Height").fill("64")
    page.get_by_label("Height").blur()
    page.click("#draw")
    expect(page.locator(".error")).to_contain_text("40")
    page.get_by_label("Of what").fill("")
    page.click("#draw")
    expect(page.locator("[data-field=prompt] .error")).to_contain_text("Say what to draw")
    page.get_by_label("Of what").fill("a flurbish")
    expect(page.locator("#words-note")).to_contain_text("flurbish")
    told = cast("Any", page.context).told  # the browser's own line about the refusal that was asked for
    assert [line for line in told if "400 (Bad Request)" in line] == told
    told.clear()


def test_a_style_is_made_shared_and_taken_away(page: Page, tmp_path: Path) -> None:
    open_page(page)
    page.get_by_role("tab", name="Styles").click()
    expect(page.get_by_role("article", name="neon", exact=True)).to_contain_text("CC0-1.0")
    page.get_by_role("button", name="New style from pictures").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose pictures").click()
    chooser.value.set_files([{"name": "a.png", "mimeType": "image/png", "buffer": drawn()}])
    page.get_by_label("Name").fill("my dots")
    page.get_by_label("Licence").fill("CC-BY-4.0")
    page.get_by_role("button", name="Save the style").click()
    card = page.get_by_role("article", name="my dots")
    expect(card).to_contain_text("CC-BY-4.0")
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert ist.read_card(Path(download.value.path()).read_bytes()).name == "my dots"
    card.get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)


def test_the_page_logs_in_with_the_token(page: Page, context: Any, tmp_path: Path) -> None:
    with live_server(tmp_path, token="a long secret") as (address, _):
        page.goto(address)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Token").fill("wrong one")
        dialog.get_by_role("button", name="Log in").click()
        expect(dialog).to_contain_text("not the token")
        dialog.get_by_label("Token").fill("a long secret")
        dialog.get_by_role("button", name="Log in").click()
        page.wait_for_selector("html[data-ready]")
        expect(page.locator(PICTURE)).to_be_visible()
        assert page.evaluate("document.cookie") == ""
        context.told[:] = [each for each in context.told if "401" not in each]  # the wrong one, as it should
        page.goto("about:blank")


def test_every_style_field_has_a_form(page: Page, accessible: Callable[[Any], None]) -> None:
    open_page(page, prompt="a bird")
    page.locator(".swatch", has_text="neon").click()
    page.locator(".drop-tile").first.drop({"files": [{"name": "mine.png", "mimeType": "image/png", "buffer": drawn()}]})
    expect(page.get_by_role("article", name="Reference mine")).to_be_visible()
    page.locator("summary", has_text="About mine").click()
    mine = page.get_by_role("article", name="Reference mine")
    mine.get_by_label("What it shows").fill("a ball")
    mine.get_by_label("How much of that").fill("0.8")
    mine.get_by_label("Its share").fill("0.6")
    page.locator("summary", has_text="Where and how").click()
    page.get_by_label("When the style holds: from").fill("20")
    page.get_by_label("When the style holds: until").fill("90")
    page.get_by_label("When the style holds: until").blur()
    page.get_by_label("Several references").select_option("average")
    page.get_by_label("How content is taken out").select_option("projected")
    page.get_by_label("References that are not square").select_option("crop")
    accessible(page)
    draw_and_wait(page)
    request = last_request(page)
    assert request["window"] == [0.2, 0.9]
    assert (request["combine"], request["subtraction"], request["fit"]) == ("average", "projected", "crop")
    assert request["references"][1]["content"] == "a ball"
    assert (request["references"][1]["content_weight"], request["references"][1]["weight"]) == (0.8, 0.6)
    # what a method has no use for cannot be set, and is not sent
    page.get_by_label("Method", exact=True).select_option("style-aligned")
    expect(page.get_by_label("Several references")).to_be_disabled()


def test_a_window_is_kept_in_order(page: Page) -> None:
    open_page(page)
    page.locator("summary", has_text="Where and how").click()
    begin, end = page.get_by_label("When the style holds: from"), page.get_by_label("When the style holds: until")
    begin.fill("100")
    begin.blur()
    expect(begin).to_have_value("99")
    expect(end).to_have_value("100")
    end.fill("0")
    end.blur()
    expect(begin).to_have_value("0")
    expect(end).to_have_value("1")
    assert page.evaluate("JSON.parse(localStorage.getItem('settings-2')).window") == [0, 0.01]


def test_several_pictures_are_followed(page: Page, accessible: Callable[[Any], None]) -> None:
    open_page(page, prompt="a house")
    page.locator("summary", has_text="Follow a picture, or begin from one").click()
    for name in ("A picture whose lines to follow", "Another picture whose lines to follow"):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name=name).click()
        chooser.value.set_files({"name": "lines.png", "mimeType": "image/png", "buffer": drawn("black")})
    first, second = (page.get_by_role("article", name=f"Followed picture {i}") for i in (1, 2))
    expect(second).to_be_visible()
    first.get_by_label("How closely").fill("0.3")
    second.get_by_label("When it holds: until").fill("50")
    second.get_by_label("When it holds: until").blur()
    accessible(page)
    draw_and_wait(page)
    controls = last_request(page)["controls"]
    assert [(each["kind"], each["weight"], each["window"]) for each in controls] == [
        ("canny", 0.3, [0, 1]),
        ("canny", 0.6, [0, 0.5]),
    ]
    first.get_by_role("button", name="Remove").click()
    expect(page.locator(".picked")).to_have_count(1)


def test_the_best_of_several_comes_first(page: Page) -> None:
    open_page(page, prompt="a boat")
    page.locator(".swatch", has_text="chalk").click()
    page.get_by_label("Best of how many").select_option("2")
    many = page.locator("#recent .thumb").count()
    page.click("#best")
    expect(page.locator(".stage-label")).to_have_text("best of 2 by the meter")
    expect(page.locator("#recent .thumb")).to_have_count(min(12, many + 2))
    job = page.request.get("/v1/jobs?limit=1").json()["jobs"][0]
    assert job["request"]["count"] == 2
    best = max(job["images"], key=lambda image: image["meter"]["score"])
    assert page.get_attribute(PICTURE, "src") == best["url"]


A1111 = (
    "a red house\nNegative prompt: people\nSteps: 25, Sampler: Euler a, CFG scale: 6.5, Seed: 12345, "
    "Size: 512x768, Model: sd_xl_base_1.0"
)
COMFYUI: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 42, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}
        | {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamshaper_8.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red house", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "people", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}
INVOKEAI: dict[str, Any] = {
    "app_version": "4.2.8",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a red house",
    "negative_prompt": "people",
    "width": 1024,
    "height": 832,
    "seed": 7,
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "euler",
}


@pytest.mark.parametrize(
    ("program", "keyword", "text", "seed", "steps"),
    [
        ("A1111", "parameters", A1111, 12345, 25),
        ("ComfyUI", "prompt", json.dumps(COMFYUI), 42, 20),
        ("InvokeAI", "invokeai_metadata", json.dumps(INVOKEAI), 7, 30),
    ],
)
def test_a_picture_of_another_program_gives_its_settings(
    page: Page, program: str, keyword: str, text: str, seed: int, steps: int
) -> None:
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(keyword, text)
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG", pnginfo=info)
    open_page(page)
    theirs = buffer.getvalue()
    page.locator("main").drop({"files": [{"name": "theirs.png", "mimeType": "image/png", "buffer": theirs}]})
    expect(page.locator("#toasts")).to_contain_text(program)
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Of what")).to_have_value("a red house")
    kept = page.evaluate("JSON.parse(localStorage.getItem('settings-2'))")
    assert (kept["negative"], kept["seed"], kept["steps"]) == ("people", seed, steps)
    if program == "A1111":
        expect(page.locator("#toasts")).to_contain_text("These are its settings")
