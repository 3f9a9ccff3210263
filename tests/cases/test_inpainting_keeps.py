"""What lies outside of an init picture's mask stays, pixel by pixel, although all of it went through the VAE."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

import instantstyle as ist
import tiny_models
from instantstyle.request import Init, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

PICTURE = tiny_models.picture(3, 64)


def mask(left: int, top: int, right: int, bottom: int) -> Image.Image:
    made = Image.new("L", (64, 64), 0)
    made.paste(255, (left, top, right, bottom))
    return made


def pixels(name: str, init: Init, **fields: Any) -> Any:
    images = ist.generate(tiny_models.model(name), Request("a cat", init=init, seed=3, steps=4, **fields)).images
    return [np.asarray(image, int) for image in images]


@pytest.mark.parametrize("name", ["emoji", "sdxl", "sd15"])
@pytest.mark.parametrize("box", [(0, 0, 16, 16), (21, 13, 50, 47), (30, 0, 33, 64)])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_pixels_outside_of_the_mask_are_the_originals(
    name: str, box: tuple[int, int, int, int], strength: float
) -> None:
    inside, original = np.asarray(mask(*box)) > 0, np.asarray(PICTURE, int)
    for drawn in pixels(name, Init(PICTURE, strength, mask(*box)), count=2):
        difference = np.abs(drawn - original).max(axis=2)
        assert difference[~inside].max() == 0
        assert (difference[inside] > 0).mean() > 0.5


def test_deep_inside_of_the_mask_it_is_the_decoded_picture() -> None:
    """Blended only near the edge: 12 pixels inside of it the picture is the decoded one."""
    engine = ist.Engine(tiny_models.model("emoji"))
    run = engine.submit(Request("a cat", init=Init(PICTURE, 1.0, mask(8, 8, 56, 56)), seed=3, steps=4))
    kept = np.asarray(engine.run()[0].images[0], int)
    decoded = np.asarray(engine.model.decode_latents(run.latents)[0], int)
    assert np.array_equal(kept[20:44, 20:44], decoded[20:44, 20:44])
    assert not np.array_equal(kept[8:56, 8:56], decoded[8:56, 8:56])


def test_an_init_picture_without_a_mask_is_changed_everywhere() -> None:
    (drawn,) = pixels("emoji", Init(PICTURE, 0.8))
    assert (np.abs(drawn - np.asarray(PICTURE, int)).max(axis=2) > 0).mean() > 0.5


def test_a_mask_that_is_white_everywhere_keeps_nothing() -> None:
    (drawn,) = pixels("emoji", Init(PICTURE, 0.8, mask(0, 0, 64, 64)))
    assert (np.abs(drawn - np.asarray(PICTURE, int)).max(axis=2) > 0).mean() > 0.5


def test_a_soft_mask_blends_by_its_grey() -> None:
    """Outside of where the mask is half white the closed form is the blend; where it is black nothing changes."""
    ramp = np.tile(np.clip(np.linspace(-64, 320, 64), 0, 255).astype(np.uint8), (64, 1))
    engine = ist.Engine(tiny_models.model("emoji"))
    run = engine.submit(Request("a cat", init=Init(PICTURE, 1.0, Image.fromarray(ramp)), seed=3, steps=4))
    drawn = np.asarray(engine.run()[0].images[0], int)
    decoded, original = np.asarray(engine.model.decode_latents(run.latents)[0], int), np.asarray(PICTURE, int)
    share = ramp[..., None] / 255
    blend = share * decoded + (1 - share) * original
    outside = ramp[0] < 127
    assert np.abs(drawn - blend)[:, outside].max() <= 1
    assert np.array_equal(drawn[:, ramp[0] == 0], original[:, ramp[0] == 0])
    assert np.array_equal(drawn[:, -8:], decoded[:, -8:])
