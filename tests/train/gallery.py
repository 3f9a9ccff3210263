"""Small pictures with captions and styles, kept in each of the ways that people keep them."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from instantstyle.utils.images import encode_png
from tiny_models import picture

THINGS = ("cat", "dog", "house")
STYLES = ("ink", "red")
SIZES = ((64, 64), (96, 48), (70, 66))
PICTURES: Sequence[tuple[str, Image.Image, str, str]] = [
    (f"{style}/{thing}.png", picture(i * 7 + j).resize(SIZES[j]), f"a {thing} in {style}", style)
    for i, style in enumerate(STYLES)
    for j, thing in enumerate(THINGS)
]
"""Name, picture, caption, style."""


def folder(root: Path) -> Path:
    """Pictures in a folder for each style, each with a text beside it."""
    for name, shown, caption, _ in PICTURES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(shown))
        path.with_suffix(".txt").write_text(f"{caption}\n")
    return root


def imagefolder(root: Path) -> Path:
    """The same with metadata.jsonl instead, as Hugging Face's imagefolder."""
    folder(root)
    for text in root.rglob("*.txt"):
        text.unlink()
    lines = [json.dumps({"file_name": n, "text": c, "style": s, "license": "CC0-1.0"}) for n, _, c, s in PICTURES]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def members(name: str, shown: Image.Image, caption: str, style: str) -> dict[str, bytes]:
    """The files of one sample of a webdataset."""
    stem = name.removesuffix(".png")
    said = json.dumps({"caption": caption, "style": style, "license": "CC0-1.0"})
    return {f"{stem}.png": encode_png(shown), f"{stem}.json": said.encode()}


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar of these files in their order."""
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def tars(root: Path) -> Path:
    """Two shards of a webdataset."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        mine: dict[str, Any] = {}
        for each in PICTURES[3 * number : 3 * number + 3]:
            mine |= members(*each)
        tar(root / f"data-{number:03}.tar", mine)
    return root
