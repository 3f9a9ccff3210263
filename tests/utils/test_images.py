"""Pictures are read safely and rightly, and written whole or not at all."""

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from image_bytes import encoded, header
from instantstyle.errors import OutputError, PictureError
from instantstyle.utils import images
from instantstyle.utils.images import ResizeMode

RED, WHITE = (255, 0, 0), (255, 255, 255)


def test_a_plain_picture_is_read_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    read = images.load_image(encoded(Image.fromarray(pixels)))
    assert np.array_equal(np.asarray(read), pixels)
    assert not read.info


@pytest.mark.parametrize(
    ("picture", "how", "expected"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), {}, WHITE),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), {}, (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), {}, WHITE),
        (Image.new("RGB", (4, 4), RED), {"transparency": RED}, WHITE),
        (Image.new("P", (4, 4), 0), {"transparency": 0}, WHITE),
        (Image.new("1", (4, 4), 1), {}, WHITE),
        (Image.new("L", (4, 4), 77), {}, (77, 77, 77)),
        (Image.new("I;16", (4, 4), 0x8080), {}, (128, 128, 128)),
        (Image.new("I;16", (4, 4), 0x8080), {"transparency": 0x8080}, WHITE),
        (Image.new("I;16", (4, 4), 0x8080), {"transparency": 0x8081}, (128, 128, 128)),  # of 8 bits the same grey
    ],
)
def test_every_png_mode_becomes_rgb_over_white(picture: Image.Image, how: dict[str, Any], expected: Any) -> None:
    read = images.load_image(encoded(picture, **how))
    assert read.mode == "RGB"
    assert read.getpixel((1, 1)) == expected


def test_a_picture_of_floats_keeps_its_greys() -> None:
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None]
    assert [pixel[0] for pixel in np.asarray(images.load_image(Image.fromarray(ramp)))[0]] == [0, 64, 128, 191, 255]


def test_cmyk_becomes_rgb() -> None:
    red, green, blue = np.asarray(images.load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))[4, 4]
    assert red > 240
    assert max(green, blue) < 15


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (8, 4), WHITE)
    picture.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show it upright
    read = images.load_image(encoded(picture, exif=exif))
    assert read.size == (4, 8)
    assert read.getpixel((3, 0)) == RED


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert images.load_image(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"hello, I am text", "no picture"),
        (header(10_000, 10_000), "too many pixels: 10000 x 10000 is 100,000,000"),
        (header(60_000, 60_000), "too many pixels"),
        (header(8, 8), "damaged or cut short"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "damaged or cut short"),
        (encoded(Image.effect_noise((64, 64), 50))[:20], "no picture"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:600], "damaged or cut short"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (b"\0" * (images.MAX_BYTES + 1), "too large"),
    ],
)
def test_a_bad_picture_is_a_sentence(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(PictureError, match=sentence) as refused:
            images.load_image(source)
        assert "\n" not in str(refused.value)
    assert "bad.png" in str(refused.value)


@pytest.mark.parametrize("name", ["missing.png", "", "a\0b.png", "x" * 5000])
def test_a_path_that_leads_nowhere_is_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError):
        images.load_image(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="no regular file"):
        images.load_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_is_a_picture_or_a_sentence(seed: int) -> None:
    """Bytes changed at random: whatever Pillow makes of them, nothing but a picture or a PictureError comes out."""
    chance = np.random.default_rng(seed)
    whole = Image.effect_noise((24, 24), 80).convert("RGB")
    data = bytearray(encoded(whole, ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")[seed % 6]))
    for at in chance.integers(0, len(data), 12):
        data[at] = chance.integers(0, 256)
    with suppress(PictureError):
        assert images.load_image(bytes(data)).mode == "RGB"


@pytest.mark.parametrize(
    ("how", "corner", "edge"), [("crop", RED, RED), ("pad", WHITE, RED), ("squash", (0, 0, 255), RED)]
)
def test_fits(how: ResizeMode, corner: tuple[int, int, int], edge: tuple[int, int, int]) -> None:
    """A wide picture, red with blue ends: cropped the ends are gone, padded white is above, squashed all is there."""
    wide = Image.new("RGB", (120, 40), RED)
    wide.paste((0, 0, 255), (0, 0, 20, 40))
    wide.paste((0, 0, 255), (100, 0, 120, 40))
    square = images.resize_square(wide, how, 24)
    assert square.size == (24, 24)
    assert square.getpixel((0, 0)) == corner
    assert square.getpixel((12, 12)) == edge


def test_a_bounded_png_keeps_its_shape() -> None:
    assert Image.open(io.BytesIO(images.encode_png(Image.new("RGB", (900, 300)), longest=512))).size == (512, 171)
    assert Image.open(io.BytesIO(images.encode_png(Image.new("RGB", (5000, 1)), longest=512))).size == (512, 1)


def test_metadata_is_where_others_look_for_it(tmp_path: Path) -> None:
    """The chunks as the PNG specification lays them out, found without Pillow."""
    path = images.write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", '{"prompt": "猫"}', "a cat\nSteps: 3")
    data = path.read_bytes()
    assert b"iTXtinstantstyle\0\0\0\0\0" + '{"prompt": "猫"}'.encode() in data
    assert b"tEXtparameters\0a cat\nSteps: 3" in data
    assert images.read_texts(path)[images.METADATA_KEY] == '{"prompt": "猫"}'


def test_a_picture_without_texts_has_none(tmp_path: Path) -> None:
    assert images.read_texts(encoded(Image.new("RGB", (4, 4)), "JPEG")) == {}
    assert images.read_texts(images.write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png")) == {}


def test_metadata_of_a_damaged_file_is_a_sentence(tmp_path: Path) -> None:
    whole = images.write_png(Image.effect_noise((64, 64), 50), tmp_path / "a.png", "{}").read_bytes()
    for length in (40, 200, len(whole) // 2, len(whole) - 30):
        with pytest.raises(PictureError):
            images.read_texts(whole[:length])


def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left on device"):
        images.write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/a.png", "file/a.png", "folder", "x" * 300 + ".png", "a\0.png"])
def test_a_name_that_cannot_be_written_is_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        images.write_png(Image.new("RGB", (4, 4)), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_written_files_have_the_permissions_others_have(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    images.write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_grid_shows_every_picture_in_its_place() -> None:
    colours = [[RED, (0, 255, 0)], [(0, 0, 255), None]]
    cells = [[Image.new("RGB", (16, 16), colour) if colour else None for colour in row] for row in colours]
    sheet = images.image_grid(cells, rows=["one", "two"], columns=["a", "b"], cell=32, gap=4)
    found = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height) or []}
    assert {RED, (0, 255, 0), (0, 0, 255)} <= found
    counts = {colour: count for count, colour in sheet.getcolors(sheet.width * sheet.height) or []}
    assert counts[RED] == counts[0, 255, 0] == counts[0, 0, 255] == 32 * 32
    assert sheet.getpixel((sheet.width - 20, sheet.height - 20)) == WHITE


def test_pictures_are_compared_copied_small_and_without_their_words() -> None:
    one = Image.new("RGB", (40, 20), (10, 20, 30))
    other = one.copy()
    other.putpixel((3, 4), (10, 27, 29))
    assert images.compare_images(one, one) == {"differing": 0, "pixels": 800, "largest": 0}
    assert images.compare_images(one, other) == {"differing": 1, "pixels": 800, "largest": 7}
    assert images.compare_images(one, one.resize((20, 20)))["differing"] == 800
    with Image.open(io.BytesIO(images.encode_webp(one, 16))) as small:
        assert (small.format, small.size) == ("WEBP", (16, 8))
    buffer = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a secret")
    other.save(buffer, "PNG", pnginfo=info)
    bare = images.strip_metadata(buffer.getvalue())
    assert b"secret" not in bare
    assert images.compare_images(images.load_image(bare), other)["differing"] == 0
