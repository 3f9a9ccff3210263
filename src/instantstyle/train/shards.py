"""Pictures with captions from wherever people keep them, as shards of records: what is bad is told, never fatal.

A shard is the unit of work and of resuming: a run of files of a folder, one tar, a run of rows of a dataset.  Every
item of a shard is a record or says why it is none, so what was read always adds up.  Nothing is decoded here.
"""

import hashlib
import importlib
import json
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, cast, runtime_checkable

from instantstyle.errors import InputError, InstantStyleError
from instantstyle.pictures import MAX_BYTES

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Names that pictures end with."""
TEXTS = (".txt", ".caption")
"""Names that the captions beside them end with."""
SAYS, SHOWS, LOOKS, LICENCE = (
    ("caption", "text", "prompt"),
    ("file_name", "image_file", "image"),
    ("style",),
    ("license", "licence"),
)
"""Under which names metadata holds the caption, the picture's file, the style it belongs to and its licence."""

Styles = Literal["field", "folder", "none"]
"""How it is known which pictures share a style: a field `style` of their metadata, their folder, or not at all."""


@dataclass(frozen=True)
class Record:
    """A picture and what is said of it."""

    key: str
    """Its name, unique within its shard."""
    picture: bytes | Path
    caption: str
    style: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Bad:
    """What cannot be used."""

    where: str
    why: str
    broken: bool = False
    """Whether the shard could not be read on from here."""


@runtime_checkable
class Shard(Protocol):
    """Some records that are read together; small, and sent to other processes."""

    @property
    def name(self) -> str:
        """Where it comes from, for people."""
        ...

    @property
    def remote(self) -> bool:
        """Whether what was broken may be whole the next time."""
        ...

    def stamp(self) -> str:
        """Changes when the source does, as far as that is seen without reading it."""
        ...

    def items(self) -> Iterator[Record | Bad]:
        """Its records, and what is wrong with the others, in an order that never changes."""
        ...


def find_shards(data: str | Path, *, styles: Styles = "field", size: int = 256) -> list[Shard]:
    """The shards of a folder, a JSON list, tars, or a Hugging Face dataset (`hf:NAME` or `hf:NAME:SPLIT`).

    Tars may be a folder of them, `data-{000..099}.tar`, `*.tar`, http(s) addresses or `pipe:COMMAND`; a picture's
    caption is a .txt or the `caption` or `text` of a .json beside it.  A folder's captions are in metadata.jsonl, or in
    a .txt beside each picture; a JSON list holds `image_file` and `text`.  `size` is how many files make a shard.

    Raises InputError when there is nothing of the kind.
    """
    spec = str(data)
    if spec.startswith("hf:"):
        return _dataset(spec, styles, size)
    path = Path(spec)
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _dataset(spec, styles, size)
        tars = sorted(path.glob("*.tar"))
        return [Tar(str(tar), styles) for tar in tars] if tars else _folder(path, styles, size)
    if path.suffix in (".json", ".jsonl") and path.is_file():
        return _cut(_listed(path, path.parent, styles), path, size)
    if ".tar" in spec or spec.startswith("pipe:"):
        return [Tar(url, styles) for url in _urls(spec)]
    raise InputError(
        f"there is no data at {spec!r}: give a folder of pictures, a JSON list, tars such as data-{{000..099}}.tar, or "
        "hf:NAME for a Hugging Face dataset"
    )


@dataclass(frozen=True)
class Files:
    """Files of a folder, with what is known of them already."""

    name: str
    listed: tuple[Record | Bad, ...]
    remote: bool = False

    def stamp(self) -> str:
        """Over names, captions, sizes and times of change."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self.listed:
            digest.update(repr(item).encode("utf-8", "surrogateescape"))
            if isinstance(item, Record) and isinstance(item.picture, Path):
                try:
                    state = item.picture.stat()
                    digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
                except OSError:
                    digest.update(b"gone")
        return digest.hexdigest()

    def items(self) -> Iterator[Record | Bad]:
        """As listed."""
        yield from self.listed


@dataclass(frozen=True)
class Tar:
    """A tar in webdataset's way: files of one name, but for what follows its first dot, are one sample."""

    name: str
    styles: Styles = "field"

    @property
    def remote(self) -> bool:
        """Whether it is no file of this machine."""
        return self.name.startswith(("http://", "https://", "pipe:"))

    def stamp(self) -> str:
        """Of a file its size and time of change; of anything else its address."""
        if self.remote:
            return self.name
        try:
            state = Path(self.name).stat()
        except OSError:
            return "gone"
        return f"{state.st_size} {state.st_mtime_ns}"

    def items(self) -> Iterator[Record | Bad]:
        """Samples as they come; where the tar is damaged, what came before it stands."""
        seen, broken = 0, None
        key, members = "", list[tuple[str, bytes | str]]()
        try:
            for name, ending, content in _members(self.name):
                if members and name != key:
                    seen += 1
                    yield self._sample(key, members)
                    members = []
                key = name
                members.append((ending, content))
        except (OSError, tarfile.TarError, EOFError, InstantStyleError, subprocess.SubprocessError) as e:
            broken = e
        if members:
            yield self._sample(key, members)
        if broken is not None:
            why = f"the tar is damaged or cut short after {seen + bool(members)} samples: {_line(broken)}"
            yield Bad(self.name, why, broken=True)

    def _sample(self, key: str, members: list[tuple[str, bytes | str]]) -> Record | Bad:
        where = f"{self.name}!{key}"
        parts: dict[str, bytes] = {}
        for ending, content in members:
            if isinstance(content, str):
                return Bad(where, content)
            if ending in parts:
                return Bad(where, f"it has two files .{ending}")
            parts[ending] = content
        pictures = [part for part in parts if f".{part}" in PICTURES]
        if len(pictures) != 1:
            return Bad(where, f"it has {len(pictures) or 'no'} pictures among its files ({', '.join(parts)})")
        try:
            said: Any = json.loads(parts["json"]) if "json" in parts else {}
            text = next((parts[end[1:]].decode("utf-8") for end in TEXTS if end[1:] in parts), None)
        except ValueError as e:
            return Bad(where, f"its text cannot be read: {_line(e)}")
        folder = str(PurePosixPath(key).parent)
        return _record(where, key, parts[pictures[0]], said, text, folder, self.styles)


@dataclass(frozen=True)
class Rows:
    """A run of rows of a Hugging Face dataset."""

    spec: str
    first: int
    count: int
    styles: Styles
    fingerprint: str
    remote: bool = False

    @property
    def name(self) -> str:
        """The dataset and the rows."""
        return f"{self.spec}[{self.first}:{self.first + self.count}]"

    def stamp(self) -> str:
        """The dataset's own fingerprint."""
        return self.fingerprint

    def items(self) -> Iterator[Record | Bad]:
        """Row by row, pictures undecoded."""
        rows, column = _load_dataset(self.spec)
        for number in range(self.first, self.first + self.count):
            where = f"{self.spec}[{number}]"
            try:
                row: dict[str, Any] = rows[number]
                picture = cast("Mapping[str, Any]", row.pop(column) or {})
                content = picture.get("bytes") or (Path(picture["path"]) if picture.get("path") else None)
            except Exception as e:  # whatever a dataset's reader may raise
                yield Bad(where, f"the row cannot be read: {_line(e)}")
                continue
            if content is None:
                yield Bad(where, "it has no picture")
                continue
            yield _record(where, f"{number:09}", content, row, None, "", self.styles)


def _folder(root: Path, styles: Styles, size: int) -> list[Shard]:
    table = next((root / name for name in ("metadata.jsonl", "metadata.json") if (root / name).is_file()), None)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not files and table is None:
        raise InputError(f"there are no pictures in {str(root)!r}: they end with {', '.join(PICTURES)}")
    items: list[Record | Bad] = []
    if table is not None:
        items = _listed(table, root, styles)
        known = {item.picture for item in items if isinstance(item, Record)}
        spoilt = {item.where for item in items if isinstance(item, Bad)}
        left = [path for path in files if path not in known and str(path) not in spoilt]
        return _cut([*items, *(Bad(str(path), f"{table.name} does not list it") for path in left)], root, size)
    for path in files:
        key = path.relative_to(root).as_posix()
        text = next((beside for end in TEXTS if (beside := path.with_suffix(end)).is_file()), None)
        try:
            said = None if text is None else text.read_text("utf-8")
        except (OSError, ValueError) as e:
            items.append(Bad(str(path), f"its caption {text} cannot be read: {_line(e)}"))
            continue
        items.append(_record(str(path), key, path, {}, said, str(PurePosixPath(key).parent), styles))
    return _cut(items, root, size)


def _listed(table: Path, root: Path, styles: Styles) -> list[Record | Bad]:
    """What a JSON list or JSON lines say of the pictures under a root."""
    try:
        text = table.read_text("utf-8")
        whole: Any = json.loads(text) if table.suffix == ".json" else None
    except (OSError, ValueError) as e:
        raise InputError(f"cannot read {str(table)!r}: {_line(e)}") from e
    if whole is not None and not isinstance(whole, list):
        raise InputError(f"{str(table)!r} is to be a list such as [{{'image_file': '1.png', 'text': 'a dog'}}]")
    lines = cast("list[object]", whole) if whole is not None else [x for x in text.splitlines() if x.strip()]
    items: list[Record | Bad] = []
    for number, line in enumerate(lines, start=1):
        where = f"{table}:{number}"
        try:
            said: Any = json.loads(line) if isinstance(line, str) else line
        except ValueError as e:
            items.append(Bad(where, f"the line is no JSON: {_line(e)}"))
            continue
        name = _text(said, SHOWS)
        if name is None:
            items.append(Bad(where, f"it names no picture: give {' or '.join(SHOWS)}"))
            continue
        path = root / name
        if not path.is_file():
            items.append(Bad(str(path), "there is no such file"))
            continue
        items.append(_record(str(path), name, path, said, None, str(PurePosixPath(name).parent), styles))
    return items


def _record(
    where: str, key: str, picture: bytes | Path, said: Any, text: str | None, folder: str, styles: Styles
) -> Record | Bad:
    caption = (text if text is not None else _text(said, SAYS) or "").strip()
    if not caption:
        return Bad(where, "it has no caption")
    group = {"field": _text(said, LOOKS), "folder": folder if folder not in ("", ".") else None, "none": None}[styles]
    return Record(key, picture, " ".join(caption.split()), group, _text(said, LICENCE))


def _text(said: Any, names: Sequence[str]) -> str | None:
    if not isinstance(said, Mapping):
        return None
    fields = cast("Mapping[str, object]", said)
    given = next((fields[name] for name in names if fields.get(name) not in (None, "")), None)
    return str(given) if isinstance(given, str | int) else None


def _cut(items: Sequence[Record | Bad], root: Path, size: int) -> list[Shard]:
    return [Files(f"{root}[{i}:{i + size}]", tuple(items[i : i + size])) for i in range(0, len(items), size)]


def _urls(spec: str) -> list[str]:
    """A pattern's tars: braces and `::` as webdataset writes them, and `*` for files."""
    if spec.startswith("pipe:"):
        return [spec]
    expanded = cast("list[str]", _needed("webdataset.shardlists", "train").expand_urls(spec))
    found: list[str] = []
    for url in expanded:
        found += _globbed(url) if "://" not in url and any(c in url for c in "*?[") else [url]
    missing = [url for url in found if "://" not in url and not Path(url).is_file()]
    if missing or not found:
        raise InputError(f"there is no tar {missing[0] if missing else spec!r}")
    return found


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


class _Header(tarfile.TarInfo):
    """Headers of a tar that is to end as tars end: the library takes a damaged one for the end, unsaid."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _DAMAGED as e:
            raise OSError(f"{e} (at byte {tarfile.offset:,})") from e


_END = cast("Any", tarfile).EOFHeaderError
_DAMAGED = cast("type[Exception]", cast("Any", tarfile).HeaderError)


def _open(url: str) -> Any:
    if url.startswith("pipe:"):
        return _needed("webdataset.gopen", "train").gopen(url)
    if url.startswith(("http://", "https://")):
        return urllib.request.urlopen(url, timeout=60)
    return Path(url).open("rb")


def _dataset(spec: str, styles: Styles, size: int) -> list[Shard]:
    rows, _ = _load_dataset(spec)
    mark = str(getattr(rows, "_fingerprint", ""))
    return [Rows(spec, i, min(size, len(rows) - i), styles, mark) for i in range(0, len(rows), size)]


@lru_cache(1)
def _load_dataset(spec: str) -> tuple[Any, str]:
    """A dataset whose pictures stay encoded, and the name of their column.  Raises InputError."""
    datasets = _needed("datasets", "datasets")
    try:
        if spec.startswith("hf:"):
            name, _, split = spec.removeprefix("hf:").partition(":")
            loaded = datasets.load_dataset(name, split=split or "train")
        else:
            loaded = datasets.load_from_disk(spec)
    except Exception as e:  # of the network, of files, of its own
        raise InputError(f"cannot load the dataset {spec!r}: {_line(e)}") from e
    if isinstance(loaded, dict):
        loaded = cast("Any", loaded)["train"] if "train" in loaded else next(iter(cast("Any", loaded).values()))
    column = next((name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise InputError(f"the dataset {spec!r} has no column of pictures: it has {', '.join(loaded.features)}")
    return loaded.cast_column(column, datasets.Image(decode=False)), column


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InputError(
            f"this kind of data needs {module.split('.')[0]}, which is not installed: "
            f"pip install 'instantstyle[{extra}]'"
        ) from e


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
