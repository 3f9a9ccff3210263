"""ImageFiles: the pictures of finished jobs, as files that appear whole or not at all, and of drafts in memory."""

import re
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from instantstyle.request import Result, StoredImage, store_image
from instantstyle.request.image import MAX_IMAGE_SIZE
from instantstyle.utils.atomic_files import remove_stale_temp_files, write_atomic
from instantstyle.utils.images import encode_png, strip_metadata, write_png

DRAFTS = 64
"""Draft pictures that are kept; they live in memory alone."""
INPUTS = 1000
"""Pictures that clients sent which are kept, the newest; jobs hold their own copies."""
_HASH = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")


class ImageFiles:
    """Pictures by an id of 32 hexadecimal digits that this class gives; no name from outside reaches the disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._lock = folder, threading.Lock()
        self.inputs = folder.with_name("inputs")
        self.inputs.mkdir(exist_ok=True)
        self._drafts: OrderedDict[str, bytes] = OrderedDict()

    def clean(self, known: set[str]) -> int:
        """Take away what a killed process left: half-written files, and pictures of jobs that were not finished."""
        for each in (self.folder, self.inputs):
            remove_stale_temp_files(each)
        orphans = [path for path in self.folder.glob("*.png") if _ID.fullmatch(path.stem) and path.stem not in known]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def write(self, result: Result, index: int) -> str:
        """Write a result's picture with its request inside; its id.  Raises OutputError."""
        image, memory = secrets.token_hex(16), result.metadata(index)
        write_png(result.images[index], self.folder / f"{image}.png", memory.to_json(), memory.parameters())
        return image

    def keep_draft(self, picture: Image.Image) -> str:
        """Hold a draft in memory, the oldest giving way; its id."""
        image, content = secrets.token_hex(16), encode_png(picture)
        with self._lock:
            self._drafts[image] = content
            while len(self._drafts) > DRAFTS:
                self._drafts.popitem(last=False)
        return image

    def read(self, image: str, *, metadata: bool = True) -> bytes | None:
        """The PNG of a picture, None where there is none; without metadata it does not say how it was made."""
        if not _ID.fullmatch(image):
            return None
        with self._lock:
            content = self._drafts.get(image)
        if content is None:
            try:
                content = (self.folder / f"{image}.png").read_bytes()
            except FileNotFoundError:
                return None
        return content if metadata else strip_metadata(content)

    def keep_input(self, content: bytes) -> StoredImage:
        """Hold a picture that a client sent, bounded and re-encoded, under the hash of what was sent.

        Raises PictureError, OutputError.
        """
        picture = store_image(content, MAX_IMAGE_SIZE)
        path = self.inputs / f"{picture.sha256}.png"
        if not path.exists():
            write_atomic(path, picture.png)
            old = sorted(self.inputs.glob("*.png"), key=lambda each: each.stat().st_mtime_ns, reverse=True)[INPUTS:]
            for each in old:
                each.unlink(missing_ok=True)
        return picture

    def read_input(self, sha256: str) -> StoredImage | None:
        """A picture that was sent before."""
        if not _HASH.fullmatch(sha256):
            return None
        try:
            return StoredImage(sha256, (self.inputs / f"{sha256}.png").read_bytes())  # pyright: ignore[reportArgumentType]
        except FileNotFoundError:
            return None

    def delete(self, image: str) -> None:
        """Take a picture's file away."""
        if _ID.fullmatch(image):
            (self.folder / f"{image}.png").unlink(missing_ok=True)
