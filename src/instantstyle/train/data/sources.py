"""Pictures with captions from wherever people keep them, as shards of records: what is bad is told, never fatal."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

from instantstyle.errors import InputError
from instantstyle.train.data.records import (
    IMAGE_KEYS,
    MAX_CAPTION,
    PICTURES,
    TEXTS,
    BadSample,
    Sample,
    Shard,
    Styles,
    first_line,
    first_text,
    make_sample,
)
from instantstyle.train.data.webdataset import TarShard, urls_of
from instantstyle.utils.extras import import_extra
from instantstyle.utils.files import parse_json, read_text


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
        return [TarShard(str(tar), styles) for tar in tars] if tars else _folder(path, styles, size)
    if path.suffix in (".json", ".jsonl") and path.is_file():
        return _cut(_listed(path, path.parent, styles), path, size)
    if ".tar" in spec or spec.startswith("pipe:"):
        return [TarShard(url, styles) for url in urls_of(spec)]
    raise InputError(
        f"there is no data at {spec!r}: give a folder of pictures, a JSON list, tars such as data-{{000..099}}.tar, or "
        "hf:NAME for a Hugging Face dataset"
    )


MAX_LIST_BYTES = 2**28
"""Of a JSON list or JSON lines: a million pictures and more."""


@dataclass(frozen=True)
class FileShard:
    """Files of a folder, with what is known of them already."""

    name: str
    listed: tuple[Sample | BadSample, ...]
    remote: bool = False

    def source_fingerprint(self) -> str:
        """Over names, captions, sizes and times of change."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self.listed:
            digest.update(repr(item).encode("utf-8", "surrogateescape"))
            if isinstance(item, Sample) and isinstance(item.picture, Path):
                try:
                    state = item.picture.stat()
                    digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
                except OSError:
                    digest.update(b"gone")
        return digest.hexdigest()

    def items(self) -> Iterator[Sample | BadSample]:
        """As listed."""
        yield from self.listed


@dataclass(frozen=True)
class HFDatasetShard:
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

    def source_fingerprint(self) -> str:
        """The dataset's own fingerprint."""
        return self.fingerprint

    def items(self) -> Iterator[Sample | BadSample]:
        """Row by row, pictures undecoded."""
        rows, column = _load_dataset(self.spec)
        for number in range(self.first, self.first + self.count):
            where = f"{self.spec}[{number}]"
            try:
                row: dict[str, Any] = rows[number]
                picture = cast("Mapping[str, Any]", row.pop(column) or {})
                content = picture.get("bytes") or (Path(picture["path"]) if picture.get("path") else None)
            except Exception as e:  # whatever a dataset's reader may raise
                yield BadSample(where, f"the row cannot be read: {first_line(e)}")
                continue
            if content is None:
                yield BadSample(where, "it has no picture")
                continue
            yield make_sample(where, f"{number:09}", content, row, None, "", self.styles)


def _folder(root: Path, styles: Styles, size: int) -> list[Shard]:
    table = next((root / name for name in ("metadata.jsonl", "metadata.json") if (root / name).is_file()), None)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not files and table is None:
        raise InputError(f"there are no pictures in {str(root)!r}: they end with {', '.join(PICTURES)}")
    items: list[Sample | BadSample] = []
    if table is not None:
        items = _listed(table, root, styles)
        known = {item.picture for item in items if isinstance(item, Sample)}
        spoilt = {item.where for item in items if isinstance(item, BadSample)}
        left = [path for path in files if path not in known and str(path) not in spoilt]
        return _cut([*items, *(BadSample(str(path), f"{table.name} does not list it") for path in left)], root, size)
    for path in files:
        key = path.relative_to(root).as_posix()
        text = next((beside for end in TEXTS if (beside := path.with_suffix(end)).is_file()), None)
        try:
            said = None if text is None else read_text(text, 4 * MAX_CAPTION)
        except ValueError as e:
            items.append(BadSample(str(path), f"its caption {text} cannot be read: {first_line(e)}"))
            continue
        items.append(make_sample(str(path), key, path, {}, said, str(PurePosixPath(key).parent), styles))
    return _cut(items, root, size)


def _listed(table: Path, root: Path, styles: Styles) -> list[Sample | BadSample]:
    """What a JSON list or JSON lines say of the pictures under a root."""
    try:
        text = read_text(table, MAX_LIST_BYTES)
        whole: Any = parse_json(text) if table.suffix == ".json" else None
    except ValueError as e:
        raise InputError(f"cannot read {str(table)!r}: {first_line(e)}") from e
    if whole is not None and not isinstance(whole, list):
        raise InputError(f"{str(table)!r} is to be a list such as [{{'image_file': '1.png', 'text': 'a dog'}}]")
    lines = cast("list[object]", whole) if whole is not None else [x for x in text.splitlines() if x.strip()]
    items: list[Sample | BadSample] = []
    for number, line in enumerate(lines, start=1):
        where = f"{table}:{number}"
        try:
            said: Any = parse_json(line) if isinstance(line, str) else line
        except ValueError as e:
            items.append(BadSample(where, f"the line is no JSON: {first_line(e)}"))
            continue
        name = first_text(said, IMAGE_KEYS)
        if name is None:
            items.append(BadSample(where, f"it names no picture: give {' or '.join(IMAGE_KEYS)}"))
            continue
        path = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            items.append(BadSample(where, f"{name} leads out of the list's folder: give a name below it"))
            continue
        try:
            missing = None if path.is_file() else "there is no such file"
        except OSError as e:
            missing = first_line(e)
        if missing is not None:
            items.append(BadSample(str(path), missing))
            continue
        items.append(make_sample(str(path), name, path, said, None, str(PurePosixPath(name).parent), styles))
    return items


def _cut(items: Sequence[Sample | BadSample], root: Path, size: int) -> list[Shard]:
    return [FileShard(f"{root}[{i}:{i + size}]", tuple(items[i : i + size])) for i in range(0, len(items), size)]


def _dataset(spec: str, styles: Styles, size: int) -> list[Shard]:
    rows, _ = _load_dataset(spec)
    mark = str(getattr(rows, "_fingerprint", ""))
    return [HFDatasetShard(spec, i, min(size, len(rows) - i), styles, mark) for i in range(0, len(rows), size)]


@lru_cache(1)
def _load_dataset(spec: str) -> tuple[Any, str]:
    """A dataset whose pictures stay encoded, and the name of their column.  Raises InputError."""
    datasets = import_extra("datasets", "datasets")
    try:
        if spec.startswith("hf:"):
            name, _, split = spec.removeprefix("hf:").partition(":")
            loaded = datasets.load_dataset(name, split=split or "train")
        else:
            loaded = datasets.load_from_disk(spec)
    except Exception as e:  # of the network, of files, of its own
        raise InputError(f"cannot load the dataset {spec!r}: {first_line(e)}") from e
    if isinstance(loaded, dict):
        loaded = cast("Any", loaded)["train"] if "train" in loaded else next(iter(cast("Any", loaded).values()))
    column = next((name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise InputError(f"the dataset {spec!r} has no column of pictures: it has {', '.join(loaded.features)}")
    return loaded.cast_column(column, datasets.Image(decode=False)), column
