"""Shards that are tars in webdataset's way: files, of the web or from a command; a damaged one keeps its start."""

import bz2
import gzip
import http.client
import lzma
import subprocess
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from instantstyle.errors import InputError, InstantStyleError
from instantstyle.train.data.records import (
    PICTURES,
    TEXTS,
    BadSample,
    Sample,
    Styles,
    first_line,
    make_sample,
)
from instantstyle.utils.extras import import_extra
from instantstyle.utils.files import parse_json
from instantstyle.utils.images import MAX_BYTES

MAX_SAMPLE_BYTES = 2 * MAX_BYTES
"""Of all files of a sample together, which are held until the next sample begins."""
MAX_HEADER_BYTES = 2**20
"""Of what a tar says of a file besides its header, such as a long name."""
MAX_MEMBER_BYTES = 2**34
"""Of a file in a tar, be it skipped."""


@dataclass(frozen=True)
class TarShard:
    """A tar in webdataset's way: files of one name, but for what follows its first dot, are one sample."""

    name: str
    styles: Styles = "field"

    @property
    def remote(self) -> bool:
        """Whether it is no file of this machine."""
        return self.name.startswith(("http://", "https://", "pipe:"))

    def source_fingerprint(self) -> str:
        """Of a file its size and time of change; of anything else its address."""
        if self.remote:
            return self.name
        try:
            state = Path(self.name).stat()
        except OSError:
            return "gone"
        return f"{state.st_size} {state.st_mtime_ns}"

    def items(self) -> Iterator[Sample | BadSample]:
        """Samples as they come; where the tar is damaged, what came before it stands."""
        count, size, broken = 0, 0, None
        key, members = "", list[tuple[str, bytes | str]]()
        try:
            for name, ending, content in _members(self.name):
                if members and name != key:
                    count += 1
                    yield self._sample(key, members)
                    members, size = [], 0
                key, size = name, size + len(content)
                if size > MAX_SAMPLE_BYTES:
                    content = f"its files are too large together: more than {MAX_SAMPLE_BYTES:,} bytes"
                members.append((ending, content))
        except _ENDS as e:
            broken = e
        if members:
            yield self._sample(key, members)
        if broken is not None:
            why = f"the tar is damaged or cut short after {count + bool(members)} samples: {first_line(broken)}"
            yield BadSample(self.name, why, broken=True)

    def _sample(self, key: str, members: list[tuple[str, bytes | str]]) -> Sample | BadSample:
        where = f"{self.name}!{key}"
        parts: dict[str, bytes] = {}
        for ending, content in members:
            if isinstance(content, str):
                return BadSample(where, content)
            if ending in parts:
                return BadSample(where, f"it has two files .{ending}")
            parts[ending] = content
        pictures = [part for part in parts if f".{part}" in PICTURES]
        if len(pictures) != 1:
            return BadSample(where, f"it has {len(pictures) or 'no'} pictures among its files ({', '.join(parts)})")
        try:
            metadata: Any = parse_json(parts["json"]) if "json" in parts else {}
            text = next((parts[end[1:]].decode("utf-8") for end in TEXTS if end[1:] in parts), None)
        except ValueError as e:
            return BadSample(where, f"its text cannot be read: {first_line(e)}")
        folder = str(PurePosixPath(key).parent)
        return make_sample(where, key, parts[pictures[0]], metadata, text, folder, self.styles)


def urls_of(spec: str) -> list[str]:
    """A pattern's tars: braces and `::` as webdataset writes them, and `*` for files.

    Raises InputError when a file among them is not there, or the pattern cannot be read.
    """
    try:
        expanded = cast("list[str]", import_extra("webdataset.shardlists", "train").expand_urls(spec))
    except ValueError as e:
        raise InputError(f"cannot read {spec!r} as a pattern of tars: {first_line(e)}") from e
    urls: list[str] = []
    for url in expanded:
        urls += _globbed(url) if not _elsewhere(url) and any(c in url for c in "*?[") else [url]
    missing = [url for url in urls if not _elsewhere(url) and not Path(url).is_file()]
    if missing or not urls:
        raise InputError(f"there is no tar {missing[0] if missing else spec!r}")
    return urls


def _elsewhere(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def _globbed(pattern: str) -> list[str]:
    path = Path(pattern)
    return sorted(map(str, Path(path.anchor).glob(str(path.relative_to(path.anchor)))))


def _members(url: str) -> Iterator[tuple[str, str, bytes | str]]:
    """Of each file in a tar its sample's name, its ending, and its content or why it has none."""
    with _open(url) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
        for member in tar:
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            if not member.isfile() or base.startswith("."):
                continue
            stem, _, ending = base.partition(".")
            content: bytes | str = f"{base} is too large: {member.size:,} bytes"
            if member.size <= MAX_BYTES:
                file = tar.extractfile(member)
                content = file.read() if file is not None else b""
            yield f"{folder}/{stem}".lstrip("/"), ending.lower(), content


_ENDS = (
    OSError,
    EOFError,
    tarfile.TarError,
    http.client.HTTPException,
    subprocess.SubprocessError,
    InstantStyleError,
    zlib.error,
    lzma.LZMAError,
)
"""What reading a tar may end with before its end."""


class _Header(tarfile.TarInfo):
    """Headers of a tar that is to end as tars end: the library takes a damaged one for the end, unsaid."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile)
        except (_END, OSError):
            raise
        except (
            Exception
        ) as e:  # also of headers that announce each other without end, and of fields that are no numbers
            raise OSError(f"{e or type(e).__name__} (at byte {tarfile.offset:,})") from e

    def _proc_member(self, tarfile: tarfile.TarFile) -> "_Header":
        limit = MAX_HEADER_BYTES if self.type in _HEADERS else MAX_MEMBER_BYTES
        if not 0 <= self.size <= limit:  # the library would hold the one, and read for ages behind the other
            raise OSError(f"a header says that {self.size:,} bytes follow (at byte {tarfile.offset:,})")
        member = cast("Any", super())._proc_member(tarfile)
        if not 0 <= member.size <= MAX_MEMBER_BYTES:  # said by another header
            raise OSError(f"a header says that {member.size:,} bytes follow (at byte {tarfile.offset:,})")
        return member


_END = cast("type[Exception]", cast("Any", tarfile).EOFHeaderError)
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    cast("Any", tarfile).SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _open(url: str) -> Any:
    if url.startswith("pipe:"):
        return import_extra("webdataset.gopen", "train").gopen(url)
    if url.startswith(("http://", "https://")):
        return urllib.request.urlopen(url, timeout=60)
    # What tarfile decompresses itself, it copies again and again where little becomes much.
    with Path(url).open("rb") as file:
        head = file.read(6)
    kinds = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opened for magic, opened in kinds.items() if head.startswith(magic)), open)(url, "rb")
