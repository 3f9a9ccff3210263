"""Texts that picture files carry outside of PNG text chunks: EXIF tags, XMP properties and comments."""

from collections.abc import Iterator
from typing import cast
from xml.etree import ElementTree

from PIL import ExifTags, Image

EXIF_TAGS = ("ImageDescription", "Make", "Model", "Software", "XPComment", "XPTitle", "XPSubject", "UserComment")
"""EXIF tags in which programs keep how a picture was made, by their standard names."""
MAX_XMP_BYTES = 2**22


def embedded_texts(opened: Image.Image) -> dict[str, str]:
    """EXIF tags as `exif:NAME`, XMP properties as `xmp:NAME` and comments as `comment`; what is damaged is left out."""
    texts = {f"exif:{name}": text for name, text in _exif(opened)}
    packet: object = opened.info.get("xmp", opened.info.get("XML:com.adobe.xmp"))
    if isinstance(packet, bytes | str):
        texts |= {f"xmp:{name}": text for name, text in _xmp(packet)}
    comment: object = opened.info.get("comment")
    if isinstance(comment, bytes | str):
        texts["comment"] = _decode(comment)
    return {place: text for place, text in texts.items() if text.strip()}


def _exif(opened: Image.Image) -> Iterator[tuple[str, str]]:
    try:
        exif = opened.getexif()
        values = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}  # some programs write UserComment into the first folder
    except Exception:  # whatever Pillow raises for damaged EXIF: the picture itself can be read
        return
    for name in EXIF_TAGS:
        value: object = values.get(ExifTags.Base[name])
        if isinstance(value, tuple):  # XP tags may come as numbers
            value = bytes(part & 255 for part in cast("tuple[int, ...]", value))
        if isinstance(value, bytes) and name.startswith("XP"):
            yield name, value.decode("utf-16-le", "replace").rstrip("\0")
        elif isinstance(value, bytes | str):
            yield name, _decode(value)


def _decode(value: bytes | str) -> str:
    """A text as EXIF's UserComment holds it: eight bytes that name the character code, then the text."""
    data = value.encode("latin-1", "replace") if isinstance(value, str) and value.isascii() is False else value
    if isinstance(data, str):
        data = data.encode()
    code, body = data[:8], data[8:]
    if code == b"UNICODE\0":
        # The byte order is the file's by the standard, and either in practice: the one with more ASCII is right.
        little = body[1::2].count(0) > body[::2].count(0)
        text = body.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")
    elif code == b"JIS\0\0\0\0\0":
        text = body.decode("iso2022_jp", "replace")
    else:
        text_bytes = body if code in (b"ASCII\0\0\0", bytes(8)) else data
        try:
            text = text_bytes.decode()
        except UnicodeDecodeError:
            text = text_bytes.decode("latin-1")
    return text.rstrip("\0")


def _xmp(packet: bytes | str) -> Iterator[tuple[str, str]]:
    """Attributes and elements with text, each by the local name of its property."""
    data = packet.encode() if isinstance(packet, str) else packet
    if (
        len(data) > MAX_XMP_BYTES or b"<!DOCTYPE" in data or b"<!ENTITY" in data
    ):  # XMP has no document type, whose entities may swell
        return
    try:
        root = ElementTree.fromstring(data.strip(b"\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError, LookupError):
        return
    pending = [(root, "")]
    while pending:
        element, parent = pending.pop()
        local = element.tag.rpartition("}")[2]
        name = parent if local in ("li", "Alt", "Seq", "Bag", "Description", "RDF") else local
        for attribute, value in element.attrib.items():
            yield attribute.rpartition("}")[2], value
        if element.text and element.text.strip() and name:
            yield name, element.text
        pending += [(child, name) for child in reversed(element)]
