"""A URL given as a picture is told that nothing is fetched, with the URL as it was given."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instantstyle.errors import InputError, WeightsError
from instantstyle.request import Control, Init, Request, StyleReference
from instantstyle.request.style_card import read_card
from instantstyle.utils.images import load_image, url_of

URL = "https://example.org/a/cat.png"


@pytest.mark.parametrize(
    "give",
    [
        lambda: StyleReference(URL),
        lambda: StyleReference(Path(URL)),
        lambda: Init(URL, 0.5),
        lambda: Control("canny", URL),
        lambda: load_image(URL),
        lambda: load_image(Path(URL)),
        lambda: Request.from_fields({"prompt": "a", "references": [{"image": URL}]}),
        lambda: Request.from_fields({"prompt": "a", "init": {"image": URL, "strength": 1}}),
    ],
)
def test_a_url_is_not_fetched(give: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="nothing is fetched") as refused:
        give()
    assert URL in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://a.b/c.webp", "file:///tmp/a.png", "s3://bucket/key", "data:image/png;base64,iVB"]
)
def test_every_scheme_is_a_url(url: str) -> None:
    with pytest.raises(InputError, match="is a URL"):
        StyleReference(url)


def test_a_style_card_by_url() -> None:
    with pytest.raises(WeightsError, match="is a URL, and nothing is fetched: download the style card"):
        read_card("https://example.org/neon.style.safetensors")


@pytest.mark.parametrize("path", ["cat.png", "a:b.png", "C:\\pictures\\cat.png", "folder/http.png", "./https:/x.png"])
def test_paths_are_no_urls(path: str) -> None:
    assert url_of(path) is None
