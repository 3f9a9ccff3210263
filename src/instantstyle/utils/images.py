"""Pictures in and out: read safely as sRGB, resized, written atomically with their metadata, laid out as grids.

Files may be hostile: limits hold before a pixel is decoded, and whatever Pillow raises becomes a PictureError.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from instantstyle.errors import PictureError
from instantstyle.utils import image_texts
from instantstyle.utils.atomic_files import write_atomic

ResizeMode = Literal["crop", "pad", "squash"]
"""How a picture that is not square becomes square: cut its ends off, add white bars, or change its proportions."""

Transparency = Literal["white", "black", "contrast", "mask"]
"""What transparent pixels become.  `white`: the ground of a picture.  `black`: that of a map in which black is
nothing.  `contrast`: white, but black under a drawing that would vanish in white.  `mask`: black, and a drawing of one
colour, whichever it is, counts as white: its alpha is the mask."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read.  Pillow knows more, some of which starts other programs (EPS) or carries little but trouble."""
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
MAX_LENGTH = 2**16
"""Of a side, as JPEG has it: to make a picture of one row smaller takes memory for each of its pixels many times."""
METADATA_KEY = "instantstyle"
"""The keyword of the PNG text chunk that holds a picture's request."""


def load_image(
    source: str | Path | bytes | Image.Image, name: str | None = None, *, transparency: Transparency = "white"
) -> Image.Image:
    """Any picture as RGB in sRGB: upright, its first frame, its colour profile applied, sixteen bits made eight.

    `name` is what messages call it, its path where it has one.
    Raises PictureError when the source is missing, too large, no picture, or damaged.
    """
    if isinstance(source, Image.Image):
        name, opened = name or "the given picture", source
    else:
        name, opened = _open(source, name)
    _check_size(opened, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd palettes and EXIF, which are put right below
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            return _flatten(_to_srgb(_eight_bits(upright), upright.info.get("icc_profile")), transparency)
    except Exception as broken:  # Pillow raises OSError, SyntaxError, ValueError, struct.error... for a damaged file
        raise PictureError(f"{name} is damaged or cut short: {_reason(broken)}") from broken


def encode_png(picture: Image.Image, *, longest: int | None = None) -> bytes:
    """The picture as PNG bytes, made smaller when its longer side is above `longest` pixels.  Deterministic."""
    if longest is not None and max(picture.size) > longest:
        scale = longest / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def encode_webp(picture: Image.Image, longest: int) -> bytes:
    """A lossy copy as WebP bytes, its longer side at most `longest` pixels: for previews and thumbnails."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def strip_metadata(content: bytes) -> bytes:
    """The pixels of a picture file as a PNG that carries no text."""
    with Image.open(io.BytesIO(content)) as opened:
        return encode_png(opened.convert("RGB"))


def compare_images(before: Image.Image, after: Image.Image) -> dict[str, int]:
    """How many pixels differ, of how many, and the largest difference of a channel, 0 to 255.

    Pictures of unlike sizes differ everywhere.
    """
    if before.size != after.size:
        pixels = before.width * before.height
        return {"differing": pixels, "pixels": pixels, "largest": 255}
    one, other = (np.asarray(each.convert("RGB"), np.int16) for each in (before, after))
    difference = np.abs(one - other).max(axis=-1)
    return {
        "differing": int((difference > 0).sum()),
        "pixels": int(difference.size),
        "largest": int(difference.max()),
    }


def resize_square(picture: Image.Image, how: ResizeMode, size: int) -> Image.Image:
    """A picture of `size` x `size` pixels, bicubic as CLIP's own preprocessing is."""
    return resize_to(picture, how, (size, size))


def resize_to(picture: Image.Image, how: ResizeMode, size: tuple[int, int]) -> Image.Image:
    """A picture of (width, height) pixels, cut, with white bars or changed in its proportions."""
    if how == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
    if how == "pad":
        return ImageOps.pad(picture, size, Image.Resampling.BICUBIC, color="white")
    return picture.resize(size, Image.Resampling.BICUBIC)


def write_png(picture: Image.Image, path: str | Path, request_json: str | None = None, line: str | None = None) -> Path:
    """Write a PNG atomically: `request_json` as an iTXt chunk, `line` as A1111's `parameters`.

    Raises OutputError when it cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    if request_json is not None:
        # Not compressed: embedded references are compressed already, and readers refuse large compressed text.
        info.add_itxt(METADATA_KEY, request_json)
    if line is not None:
        info.add_text("parameters", line.replace("\0", " "))  # becomes iTXt where Latin-1 does not suffice
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue())


def read_texts(path: str | Path | bytes) -> dict[str, str]:
    """Every text a picture file carries, by where it stands.

    PNG text chunks by their keyword; EXIF tags as `exif:UserComment`; XMP properties as `xmp:description`; JPEG and
    GIF comments as `comment`.  The pixels are decoded on the way, since PNG text may stand behind them.
    Raises PictureError.
    """
    name, opened = _open(path)
    with opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF
        _check_size(opened, name)
        try:
            opened.load()
            texts = {str(keyword): str(text) for keyword, text in dict(getattr(opened, "text", {})).items()}
        except Exception as broken:  # as many kinds as in `load_image`
            raise PictureError(f"{name} is damaged or cut short: {_reason(broken)}") from broken
        return texts | image_texts.embedded_texts(opened)


def image_grid(
    pictures: Sequence[Sequence[Image.Image | None]],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    cell: int = 128,
    gap: int = 6,
) -> Image.Image:
    """Rows of pictures as one, each `cell` pixels square, with a label before each row and above each column.

    None leaves a cell white.  Small pictures are enlarged without smoothing, so that what is seen was made.  A column's
    label that is wider than its cell goes on in another line; a row's has the lines that it is given.
    """
    font_size = max(10, cell // 9)
    font = ImageFont.load_default(font_size)
    num_columns = max((len(row) for row in pictures), default=0)
    left = max((int(font.getlength(line)) + 2 * gap for label in rows for line in label.splitlines()), default=0)
    columns = [_wrap(label, font, cell + gap) for label in columns]
    num_lines = max((label.count("\n") + 1 for label in columns), default=0)
    top = max(cell // 5, round(num_lines * 1.4 * font_size)) + gap if columns else 0
    width, height = left + num_columns * (cell + gap) + gap, top + len(pictures) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(columns):
        center = (left + gap + i * (cell + gap) + cell // 2, top // 2 + gap // 2)
        draw.text(center, label, "black", font, anchor="mm", align="center")
    for j, label in enumerate(rows):
        draw.text((gap, top + gap + j * (cell + gap) + cell // 2), label, "black", font, anchor="lm")
    for j, row in enumerate(pictures):
        for i, picture in enumerate(row):
            if picture is not None:
                small = max(picture.size) <= cell
                filtering = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
                fitted = ImageOps.contain(picture.convert("RGB"), (cell, cell), filtering)
                x, y = left + gap + i * (cell + gap), top + gap + j * (cell + gap)
                sheet.paste(fitted, (x + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2))
    return sheet


def _wrap(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The label wrapped between words at a width in pixels; a word that is too wide alone stays whole."""
    lines: list[str] = []
    for word in label.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _open(source: str | Path | bytes, name: str | None = None) -> tuple[str, Image.Image]:
    """A name for messages, and the opened picture of which only the header has been read.  Raises PictureError."""
    name = name or ("the given picture" if isinstance(source, bytes) else repr(str(source)))
    content = source if isinstance(source, bytes) else read_bytes(source)
    if not content:
        raise PictureError(f"{name} is empty: 0 bytes are no picture")
    if len(content) > MAX_BYTES:
        raise PictureError(f"{name} is too large: {len(content):,} bytes, and at most {MAX_BYTES:,} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of many pixels and odd EXIF; our limits refuse
            return name, Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as huge:
        raise PictureError(f"{name} has too many pixels: at most {MAX_PIXELS:,} are read") from huge
    except Exception as unknown:
        known = ", ".join(FORMATS)
        raise PictureError(f"{name} is no picture that can be read: give one of {known}, not cut short") from unknown


def read_bytes(path: str | Path) -> bytes:
    """The file's content, at most MAX_BYTES + 1 bytes.  Raises PictureError."""
    if url := url_of(path):
        raise PictureError(url_refusal(url))
    try:
        path = Path(path)
        if path.is_dir():
            raise PictureError(f"{str(path)!r} is a folder: give one picture file")
        if path.exists() and not path.is_file():
            raise PictureError(f"{str(path)!r} is no regular file: give one picture file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as missing:
        raise PictureError(f"there is no picture at {str(path)!r}") from missing
    except (OSError, ValueError) as refused:
        raise PictureError(f"cannot read {str(path)!r}: {_reason(refused)}") from refused


def url_of(path: str | Path) -> str | None:
    """The URL that was given in place of a path, also where `Path` made one slash of two; None for a path."""
    text = str(path)
    match = re.match(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>//?.*)", text, re.DOTALL)
    if text[:5].lower() == "data:":
        return text if len(text) <= 60 else f"{text[:57]}..."
    if match is None or Path(text).exists():
        return None
    return f"{match['scheme']}://{match['rest'].lstrip('/')}"


def url_refusal(url: str, what: str = "picture") -> str:
    """The error sentence for a URL given as a file."""
    return f"{url!r} is a URL, and nothing is fetched: download the {what} and give its file"


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{name} has too many pixels: {width} x {height} is {width * height:,}, and at most {MAX_PIXELS:,} are read"
        )
    if max(width, height) > MAX_LENGTH:
        raise PictureError(f"{name} is too long: {width} x {height} pixels, and at most {MAX_LENGTH:,} a side are read")
    if not width or not height:
        raise PictureError(f"{name} has no pixels: its size is {width} x {height}")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Sixteen-bit, integer and float grey as eight-bit grey; Pillow's own conversion would clip them at 255.

    The one grey that a PNG may call transparent is found before it is rounded to its neighbours.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    # Integers count to 65535 whatever their width (Pillow's "I" is a 16-bit PNG); floats to 1, or else to 255.
    white = (
        65535 if picture.mode.startswith("I") else 1 if values.max(initial=0, where=np.isfinite(values)) <= 1 else 255
    )
    pixels = np.empty(values.shape, np.uint8)
    for row, line in zip(pixels, values, strict=True):  # one at a time: as float64 all of them may take a gigabyte
        finite = np.nan_to_num(line.astype(np.float64), posinf=0, neginf=0)
        row[:] = np.clip(np.rint(finite / white * 255), 0, 255)
    grey, transparent = Image.fromarray(pixels), cast("object", picture.info.get("transparency"))
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, np.uint8(0), np.uint8(255)))))


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture converted by its embedded ICC profile; alpha stays.

    A profile that cannot be read or is for another kind of picture is taken for sRGB, as browsers take it.  So is one
    that differs from sRGB by rounding alone, so that such pixels stay as they are.
    """
    if not profile:
        return picture
    alpha = picture.convert("RGBA").getchannel("A") if _has_alpha(picture) else None
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[str(source.profile.xcolor_space).strip()]
        grey, cmyk = picture.mode in ("1", "L", "LA", "La"), picture.mode == "CMYK"
        if (mode == "L" and not grey) or cmyk != (mode == "CMYK"):
            return picture
        srgb = cast("Any", ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType]
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError, TypeError):
        return picture
    if mode == "RGB" and _changes_nothing(transform):
        return picture
    opaque = picture.convert("RGBA").convert("RGB") if alpha and mode == "RGB" else picture.convert(mode)
    converted = ImageCms.applyTransform(opaque, transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour moves by more than one step of 255."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return int(np.abs(np.asarray(converted, np.int16) - colours).max()) <= 1


def _has_alpha(picture: Image.Image) -> bool:
    return "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa")


def _flatten(picture: Image.Image, transparency: Transparency) -> Image.Image:
    """The picture in RGB without alpha and without what the file said about itself (profiles, EXIF, text)."""
    if not _has_alpha(picture):
        return Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    rgba = picture.convert("RGBA")
    ground = "black" if transparency in ("black", "mask") else "white"
    if transparency != "white":
        pixels = np.asarray(rgba)
        alpha = pixels[..., 3]
        drawn = pixels[alpha >= min(128, max(1, int(alpha.max())))][:, :3]  # edges' colours are rounded
        if drawn.size and int(alpha.min()) < 255:
            lowest, highest = int(drawn.min()), int(drawn.max())
            if transparency == "contrast" and lowest >= 255 - _SAME_COLOUR:
                ground = "black"
            one_colour = int(np.ptp(drawn, axis=0).max()) <= _ONE_COLOUR
            if (transparency == "mask" and one_colour) or (transparency == "black" and highest <= _SAME_COLOUR):
                return Image.merge("RGB", [rgba.getchannel("A")] * 3)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba).convert("RGB")


_SAME_COLOUR = 32
"""Steps of 255 within which a colour counts as black or as white."""
_ONE_COLOUR = 96
"""Steps of 255 by which pixels drawn in one colour may differ: WebP of quality 30 spreads them over 91."""


def _reason(error: BaseException) -> str:
    """What went wrong in a few words, without Pillow's or the system's decoration."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".").lower()[:200]
