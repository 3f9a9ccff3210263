"""A picture's embedded ICC profile says what its numbers mean: it is read as sRGB."""

import io
import struct
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageCms

from instantstyle.request import StyleReference
from instantstyle.utils.images import load_image

COLOURS = [(234, 51, 35), (0, 255, 0), (18, 30, 200), (128, 128, 128), (250, 240, 230)]


def srgb() -> Any:
    return cast("Any", ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType]


def profile_of(primaries: dict[bytes, tuple[float, float, float]]) -> bytes:
    """sRGB's profile with other primaries, XYZ at D50."""
    data = bytearray(ImageCms.ImageCmsProfile(srgb()).tobytes())
    for i in range(struct.unpack(">I", data[128:132])[0]):
        tag, at, _ = struct.unpack(">4sII", data[132 + 12 * i : 144 + 12 * i])
        if tag in primaries:
            data[at + 8 : at + 20] = b"".join(struct.pack(">i", round(v * 65536)) for v in primaries[tag])
    return bytes(data)


DISPLAY_P3 = profile_of(
    {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.1571, 0.06657, 0.78407)}
)
ADOBE_RGB = profile_of(
    {b"rXYZ": (0.60974, 0.31111, 0.01947), b"gXYZ": (0.20528, 0.62567, 0.06087), b"bXYZ": (0.14919, 0.06322, 0.74457)}
)


def swatch(colour: tuple[int, int, int], profile: bytes, mode: str = "RGB") -> Image.Image:
    """A colour of sRGB in the numbers of a profile."""
    picture = Image.new("RGB", (16, 16), colour)
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.applyTransform(picture, ImageCms.buildTransform(srgb(), target, "RGB", mode))
    assert converted is not None
    return converted


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ],
)
@pytest.mark.parametrize("profile", [DISPLAY_P3, ADOBE_RGB], ids=["P3", "Adobe RGB"])
def test_colours_are_converted_by_the_profile(kind: str, how: dict[str, Any], profile: bytes) -> None:
    for colour in [(234, 51, 35), (60, 140, 90), (128, 128, 128)]:  # inside of both
        data = saved(swatch(colour, profile), kind, icc_profile=profile, **how)
        read = np.asarray(load_image(data), int)[8, 8]
        assert np.abs(read - colour).max() <= (8 if kind == "AVIF" else 4), (colour, read)


def test_references_hold_the_converted_picture() -> None:
    data = saved(swatch((234, 51, 35), DISPLAY_P3), "PNG", icc_profile=DISPLAY_P3)
    stored = StyleReference(data).image
    assert np.abs(np.asarray(stored.open(), int)[0, 0] - (234, 51, 35)).max() <= 2
    assert StyleReference.from_json(StyleReference(data).to_json()).image == stored


@pytest.mark.parametrize("colour", COLOURS)
def test_srgbs_own_profile_changes_nothing(colour: tuple[int, int, int]) -> None:
    own = ImageCms.ImageCmsProfile(srgb()).tobytes()
    assert load_image(saved(Image.new("RGB", (8, 8), colour), "PNG", icc_profile=own)).getpixel((0, 0)) == colour


def test_alpha_and_palettes_go_with_it() -> None:
    clear = swatch((234, 51, 35), DISPLAY_P3).convert("RGBA")
    clear.putalpha(Image.new("L", (16, 16), 255))
    clear.putpixel((0, 0), (0, 0, 0, 0))
    read = load_image(saved(clear, "PNG", icc_profile=DISPLAY_P3))
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.asarray(read, int)[8, 8] - (234, 51, 35)).max() <= 2
    palette = swatch((234, 51, 35), DISPLAY_P3).quantize(4)
    shown = np.asarray(load_image(saved(palette, "PNG", icc_profile=DISPLAY_P3)), int)[8, 8]
    assert np.abs(shown - (234, 51, 35)).max() <= 4


def test_an_open_picture_is_converted_too() -> None:
    with Image.open(io.BytesIO(saved(swatch((234, 51, 35), DISPLAY_P3), "PNG", icc_profile=DISPLAY_P3))) as opened:
        assert np.abs(np.asarray(load_image(opened), int)[0, 0] - (234, 51, 35)).max() <= 2


def curve(gamma: float) -> bytes:
    """A grey profile: white at D50, one curve."""
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249))),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256)),
    }
    return _profile(b"GRAY", b"XYZ ", tags)


def cmyk() -> bytes:
    """A CMYK profile by one table of two points an axis: plain inks on white, in Lab."""
    grid = b""
    for i in range(16):
        c, m, y, k = (i >> 3 & 1, i >> 2 & 1, i >> 1 & 1, i & 1)
        red, green, blue = ((1 - ink) * (1 - k) for ink in (c, m, y))
        lightness = 100 * (0.3 * red + 0.59 * green + 0.11 * blue)
        a, b = 60 * (red - green), 60 * ((red + green) / 2 - blue)
        grid += struct.pack(">HHH", round(lightness / 100 * 65280), round((a + 128) * 256), round((b + 128) * 256))
    head = b"mft2\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = struct.pack(">HH", 0, 65535)
    table = head + struct.pack(">HH", 2, 2) + ramp * 4 + grid + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return _profile(b"CMYK", b"Lab ", {b"wtpt": white, b"A2B0": table})


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    at, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        entries += name + struct.pack(">II", at, len(data))
        at, body = at + len(data), body + data
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s", at, b"lcms", 0x02400000, kind, space, connection) + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def test_cmyk_is_converted_by_its_profile() -> None:
    profile = cmyk()
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = saved(inks, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    expected = ImageCms.profileToProfile(inks, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb(), outputMode="RGB")
    assert expected is not None
    read, plain = np.asarray(load_image(data), int)[8, 8], np.asarray(load_image(saved(inks, "JPEG")), int)[8, 8]
    assert np.abs(read - np.asarray(expected, int)[8, 8]).max() <= 4
    assert np.abs(read - plain).max() > 10, "the profile's inks are others"


def test_grey_is_converted_by_its_curve() -> None:
    """A grey of 128 under a curve of 1.0 is linear: sRGB calls it 188."""
    read = load_image(saved(Image.new("L", (8, 8), 128), "PNG", icc_profile=curve(1.0))).getpixel((0, 0))
    assert isinstance(read, tuple)
    assert abs(read[0] - 188) <= 1
    assert read[0] == read[1] == read[2]


@pytest.mark.parametrize("profile", [b"nonsense", DISPLAY_P3[:200], curve(1.0), cmyk(), b"\0" * 500])
def test_a_profile_that_cannot_be_of_the_picture_is_taken_for_srgb(profile: bytes) -> None:
    data = saved(Image.new("RGB", (8, 8), (234, 51, 35)), "PNG", icc_profile=profile)
    assert load_image(data).getpixel((0, 0)) == (234, 51, 35)
