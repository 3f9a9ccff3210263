"""Pictures in and out: read safely, made square, written whole with their request inside, laid out as grids.

Everything a stranger's file can do is met here: limits hold before a pixel is decoded, and whatever Pillow raises
becomes a sentence.  Nothing here knows what a request is; a request's pictures are values of this module's making.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from instantstyle.errors import PictureError
from instantstyle.utils.atomic_files import write_atomic

ResizeMode = Literal["crop", "pad", "squash"]
"""How a picture that is not square becomes square: cut its ends off, add white bars, or change its proportions."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read.  Pillow knows more, some of which starts other programs (EPS) or carries little but trouble."""
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
METADATA_KEY = "instantstyle"
"""The keyword of the PNG text chunk that holds a picture's request."""


def load_image(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Any picture as plain RGB: upright, its first frame, transparency over white, sixteen bits made eight.

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
            return _over_white(_eight_bits(ImageOps.exif_transpose(opened)))
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
    """Write a PNG whole or not at all: `request_json` as an iTXt chunk, `line` as A1111's `parameters`.

    The file appears under its name only once it is complete, so an interruption leaves nothing.
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


def read_metadata(path: str | Path | bytes) -> str | None:
    """The request JSON that `write_png` put into a picture, None when there is none.  Raises PictureError as `read`."""
    return read_text_chunks(path).get(METADATA_KEY)


def read_text_chunks(path: str | Path | bytes) -> dict[str, str]:
    """Every text chunk of a PNG by its name; nothing of another format.

    The pixels are decoded on the way, since text may stand behind them too.  Raises PictureError as `read` does.
    """
    name, opened = _open(path)
    with opened:
        _check_size(opened, name)
        try:
            texts = dict(getattr(opened, "text", {}))
        except Exception as broken:  # as many kinds as in `read`
            raise PictureError(f"{name} is damaged or cut short: {_reason(broken)}") from broken
    return {str(name): str(text) for name, text in texts.items()}


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
    high = max(10, cell // 9)
    font = ImageFont.load_default(high)
    across = max((len(row) for row in pictures), default=0)
    left = max((int(font.getlength(line)) + 2 * gap for label in rows for line in label.splitlines()), default=0)
    columns = [_folded(label, font, cell + gap) for label in columns]
    deepest = max((label.count("\n") + 1 for label in columns), default=0)
    top = max(cell // 5, round(deepest * 1.4 * high)) + gap if columns else 0
    width, height = left + across * (cell + gap) + gap, top + len(pictures) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(columns):
        middle = (left + gap + i * (cell + gap) + cell // 2, top // 2 + gap // 2)
        draw.text(middle, label, "black", font, anchor="mm", align="center")
    for j, label in enumerate(rows):
        draw.text((gap, top + gap + j * (cell + gap) + cell // 2), label, "black", font, anchor="lm")
    for j, row in enumerate(pictures):
        for i, picture in enumerate(row):
            if picture is not None:
                small = max(picture.size) <= cell
                way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
                shown = ImageOps.contain(picture.convert("RGB"), (cell, cell), way)
                x, y = left + gap + i * (cell + gap), top + gap + j * (cell + gap)
                sheet.paste(shown, (x + (cell - shown.width) // 2, y + (cell - shown.height) // 2))
    return sheet


def _folded(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The label's words in as many lines as it takes; a word that is too wide alone stays whole."""
    lines: list[str] = []
    for word in label.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _open(source: str | Path | bytes, name: str | None = None) -> tuple[str, Image.Image]:
    """A name for messages, and the opened picture of which only the header has been read."""
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
    """The file's content; at most one byte more than the limit, whatever a device or a pipe would give."""
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


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{name} has too many pixels: {width} x {height} is {width * height:,}, and at most {MAX_PIXELS:,} are read"
        )
    if not width or not height:
        raise PictureError(f"{name} has no pixels: its size is {width} x {height}")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Sixteen-bit, integer and float grey as eight-bit grey; Pillow's own conversion would clip them at 255.

    The one grey that a PNG may call transparent is told apart before it is rounded to its neighbours.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0)
    top = values.max(initial=0)
    # Integers count to 65535 whatever their width (Pillow's "I" is a 16-bit PNG); floats to 1, or else to 255.
    full = 65535 if picture.mode.startswith("I") else 1 if top <= 1 else 255
    grey = Image.fromarray(np.clip(np.rint(values / full * 255), 0, 255).astype(np.uint8))
    clear: object = picture.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _over_white(picture: Image.Image) -> Image.Image:
    transparent = "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if not transparent:
        # A copy through bytes drops what the file said about itself (profiles, EXIF, text).
        return Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _reason(error: BaseException) -> str:
    """What went wrong in a few words, without Pillow's or the system's decoration."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".").lower()[:200]
