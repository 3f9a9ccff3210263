"""Where white has a meaning, transparent is black: masks, and control pictures that are used as they are."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from instantstyle.controlnet import CONTROL_KINDS, PASSTHROUGH
from instantstyle.request import Control, Init, StoredImage, StyleReference
from instantstyle.request.request import PREPROCESSED_CONTROLS

SIDE = 16
DRAWN = np.zeros((SIDE, SIDE), bool)
DRAWN[:8, :8] = True


def drawn(colour: tuple[int, ...], mode: str = "RGBA") -> Image.Image:
    """A square of a colour on a transparent ground."""
    picture = Image.new(mode, (SIDE, SIDE), 0)
    picture.paste(colour, (0, 0, 8, 8))
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def colour_key() -> bytes:
    picture = Image.new("RGB", (SIDE, SIDE), (0, 255, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    return encoded(picture, transparency=(0, 255, 0))


MASKS: dict[str, Image.Image | bytes] = {
    "white": drawn((255, 255, 255, 255)),
    "black": drawn((0, 0, 0, 255)),
    "red": drawn((255, 0, 0, 255)),
    "dark blue, as PNG": encoded(drawn((0, 0, 90, 255))),
    "grey and alpha": drawn((255, 255), "LA"),
    "black, grey and alpha": drawn((0, 255), "LA"),
    "palette": encoded(drawn((255, 255, 255, 255)).convert("P"), transparency=0),
    "one transparent colour": colour_key(),
    "lossy WebP": encoded(drawn((200, 40, 40, 255)), "WEBP", quality=60),
    "white and black on transparency": Image.merge(
        "RGBA", [Image.fromarray(DRAWN.astype(np.uint8) * 255)] * 3 + [Image.new("L", (SIDE, SIDE), 255)]
    ),
}


def values(stored: StoredImage | None) -> np.ndarray[Any, Any]:
    assert stored is not None
    return np.asarray(stored.open().convert("L"))


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_what_is_drawn(name: str) -> None:
    mask, picture = MASKS[name], Image.new("RGB", (SIDE, SIDE), "navy")
    for stored in (Init(picture, 1.0, mask).mask, StyleReference(picture, mask=mask).mask):
        assert np.array_equal(values(stored) >= 128, DRAWN)


def test_soft_edges_stay_soft() -> None:
    soft = drawn((255, 0, 0, 255))
    soft.paste((255, 0, 0, 100), (0, 8, 8, 9))
    mask = values(Init(Image.new("RGB", (SIDE, SIDE)), 1.0, soft).mask)
    assert mask[8, 0] == 100
    assert mask[12, 12] == 0


def test_an_opaque_mask_is_its_brightness() -> None:
    grey = Image.fromarray(np.where(DRAWN, 255, 60).astype(np.uint8))
    for mask in (grey, grey.convert("RGBA"), Image.new("RGBA", (SIDE, SIDE), (90, 90, 90, 255))):
        stored = Init(Image.new("RGB", (SIDE, SIDE)), 1.0, mask).mask
        assert np.array_equal(values(stored), np.asarray(mask.convert("L")))


def test_nothing_drawn_is_nothing_and_not_everything() -> None:
    mask = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    assert not values(Init(Image.new("RGB", (SIDE, SIDE)), 1.0, mask).mask).any()


@pytest.mark.parametrize("name", ["white", "black"])
def test_a_mask_in_json_is_read_alike(name: str) -> None:
    mask = MASKS[name]
    assert isinstance(mask, Image.Image)
    content = base64.b64encode(encoded(mask)).decode()
    init = Init(Image.new("RGB", (SIDE, SIDE)), 1.0)
    fields = {**json.loads(init.to_json()), "mask": {"sha256": "0" * 64, "png": content}}
    read = Init.from_fields(fields)
    assert np.array_equal(values(read.mask) >= 128, DRAWN)
    assert Init.from_json(read.to_json()) == read


@pytest.mark.parametrize("kind", ["image", "none", "image:canny", "pose"])
@pytest.mark.parametrize("colour", [(255, 255, 255, 255), (0, 0, 0, 255)])
def test_a_control_picture_used_as_it_is_has_a_black_ground(kind: str, colour: tuple[int, ...]) -> None:
    control = Control(kind, drawn(colour))
    assert np.array_equal(values(control.image) >= 128, DRAWN)
    assert Control.from_json(control.to_json()) == control


def test_colours_of_a_control_picture_stay() -> None:
    picture = drawn((255, 0, 0, 255))
    picture.paste((0, 0, 255, 255), (4, 0, 8, 8))
    shown = Control("pose", picture).image.open()
    assert [shown.getpixel(at) for at in ((0, 0), (6, 0), (12, 12))] == [(255, 0, 0), (0, 0, 255), (0, 0, 0)]


@pytest.mark.parametrize("kind", PREPROCESSED_CONTROLS)
def test_a_picture_that_edges_are_made_of_does_not_vanish_in_its_ground(kind: str) -> None:
    for colour in ((255, 255, 255, 255), (0, 0, 0, 255), (200, 30, 30, 255)):
        grey = values(Control(kind, drawn(colour)).image).astype(int)
        assert abs(grey[2, 2] - grey[12, 12]) > 100


def test_all_kinds_of_control_are_known_here() -> None:
    assert set(PREPROCESSED_CONTROLS) | set(PASSTHROUGH) == set(CONTROL_KINDS)


def test_pictures_keep_their_white_ground() -> None:
    assert StyleReference(drawn((255, 0, 0, 255))).image.open().getpixel((12, 12)) == (255, 255, 255)
    assert Init(drawn((255, 0, 0, 255)), 0.5).image.open().getpixel((12, 12)) == (255, 255, 255)
