"""A table of requests: JSON lines, CSV, Parquet, or prompts x styles x seeds.  No torch.

A row's columns are the fields of `Request`.  Beside them a single reference may be given flat:

    style            the reference: a picture's path, relative to the table's folder, or a style card's name or file
    content          what it shows, to be subtracted
    content_weight, weight

and in CSV an empty cell is not given, JSON in a cell is read, and a size is written as 64x64.
"""

import csv
import importlib
import itertools
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from instantstyle.errors import InputError, abbreviate, did_you_mean
from instantstyle.request import Request, StyleReference
from instantstyle.request.style_card import SUFFIX
from instantstyle.utils.files import parse_json

FORMATS = (".jsonl", ".ndjson", ".csv", ".parquet")
FLAT = ("style", "content", "content_weight", "weight")
"""Columns of a single reference."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

Fields = Mapping[str, Any]
"""The columns of a row that were given."""


@dataclass(frozen=True)
class UnreadableRow:
    """A row that is no row: why."""

    reason: str


def read_table(path: Path) -> Iterator[Fields | UnreadableRow]:
    """The rows of a table, one by one.  Raises InputError when it is no file of a known format."""
    if not path.is_file():
        raise InputError(f"there is no table {str(path)!r}: give a {', '.join(FORMATS)} file of requests")
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(path)
        case ".csv":
            return _csv(path)
        case ".parquet":
            return _parquet(path)
        case other:
            raise InputError(f"a table of requests is {', '.join(FORMATS)}, not {other or 'a file without suffix'!r}")


def _json_lines(path: Path) -> Generator[Fields | UnreadableRow]:
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                fields = parse_json(line, unique=True)
            except ValueError as broken:
                yield UnreadableRow(f"this is not JSON: {broken}")
                continue
            yield fields if isinstance(fields, dict) else UnreadableRow(f"a row is an object, not {abbreviate(fields)}")


def _csv(path: Path) -> Generator[Fields | UnreadableRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                if None in row:
                    yield UnreadableRow("it has more cells than the table has columns")
                    continue
                yield {name: _cell(text) for name, text in row.items() if text not in (None, "")}
    except (csv.Error, UnicodeDecodeError) as broken:
        raise InputError(f"{str(path)!r} cannot be read as CSV in UTF-8: {broken}") from None


def _cell(text: str) -> Any:
    """JSON lists, objects, numbers and booleans as what they are; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parquet(path: Path) -> Generator[Fields | UnreadableRow]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("a Parquet table needs pyarrow: pip install pyarrow, or give a .jsonl or .csv table") from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for row in cast("list[dict[str, Any]]", batch.to_pylist()):
                yield {name: value for name, value in row.items() if value is not None}
    except (OSError, ValueError) as broken:  # pyarrow's own errors are among them
        raise InputError(f"{str(path)!r} cannot be read as Parquet: {broken}") from None


def product(prompts: Iterable[str], styles: Sequence[str], seeds: Sequence[int]) -> Iterator[Fields]:
    """Every prompt in every style with every seed."""
    for prompt, style, seed in itertools.product(prompts, styles or (None,), seeds or (None,)):
        row = {"prompt": prompt, "style": style, "seed": seed}
        yield {name: value for name, value in row.items() if value is not None}


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.  Raises InputError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputError(f"the prompts in {str(path)!r} cannot be read: {unreadable}") from None
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"there is no prompt in {str(path)!r}: one a line")
    return prompts


def list_style_files(folder: Path) -> list[str]:
    """The pictures and style cards of a folder, by name.  Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"--styles is a folder of pictures and style cards, and {str(folder)!r} is none")
    suffixes = (*IMAGE_SUFFIXES, SUFFIX)
    if not (found := sorted(str(file) for file in folder.iterdir() if file.name.lower().endswith(suffixes))):
        raise InputError(f"there is no picture and no style card in {str(folder)!r}")
    return found


def parse_seeds(text: str) -> list[int]:
    """`0-9`, `3,5,7` or both joined by commas.  Raises InputError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part, re.ASCII)
        first, last = (0, -1) if found is None else (int(found[1]), int(found[2] or found[1]))
        if not 0 <= last - first < 1_000_000:
            raise InputError(f"--seeds are numbers and ranges such as 0-9,20, not {abbreviate(text)}")
        seeds.extend(range(first, last + 1))
    return seeds


class RequestBuilder:
    """Rows as requests; pictures that many rows name are read once."""

    def __init__(self, folder: Path, defaults: Fields | None = None, kept: int = 256) -> None:
        """`folder` is what relative paths of pictures start from; `defaults` are for rows that do not say."""
        self._folder, self._defaults, self._kept = folder, dict(defaults or {}), kept
        self._references: dict[str, StyleReference] = {}

    def build(self, row: Fields) -> Request:
        """The request of a row.  Raises InputError."""
        fields = {**self._defaults, **row}
        known = (*Request.model_fields, *FLAT)
        for name in fields:
            if name not in known:
                raise InputError(
                    f"there is no column {abbreviate(name)}: see the fields of Request{_hint(name, known)}"
                )
        flat = {name: fields.pop(name) for name in FLAT if name in fields}
        if flat and "references" in fields:
            raise InputError(f"{next(iter(flat))} and references both speak of the references: give one of them")
        if flat:
            fields["references"] = [self._flat_reference(flat)]
        elif isinstance(given := fields.get("references"), list | tuple):
            fields["references"] = [self._with_paths(each) for each in cast("Sequence[object]", given)]
        if isinstance(given := fields.get("controls"), list | tuple):
            fields["controls"] = [self._with_paths(each) for each in cast("Sequence[object]", given)]
        if "init" in fields:
            fields["init"] = self._with_paths(fields["init"])
        if isinstance(size := fields.get("size"), str):
            if (sides := re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", size, re.ASCII)) is None:
                raise InputError(f"a size is width x height in pixels such as 64x64, not {abbreviate(size)}")
            fields["size"] = (int(sides[1]), int(sides[2]))
        for name in ("prompt", "negative"):
            if isinstance(fields.get(name), int | float):  # a cell such as 1984
                fields[name] = str(fields[name])
        if "prompt" not in fields:
            raise InputError("it has no prompt")
        return Request(**fields)

    def _flat_reference(self, flat: Fields) -> StyleReference:
        if "style" not in flat:
            raise InputError(f"{next(iter(flat))} says something of a reference, and there is none: give style as well")
        key = json.dumps(flat, sort_keys=True, default=str)
        if (known := self._references.get(key)) is None:
            about = {name: value for name, value in flat.items() if name != "style"}
            known = StyleReference(self._place(flat["style"]), **about)
            if len(self._references) >= self._kept:
                self._references.pop(next(iter(self._references)))
            self._references[key] = known
        return known

    def _with_paths(self, given: object) -> object:
        if not isinstance(given, dict):
            return given
        fields = cast("dict[str, Any]", given)
        return {name: self._place(value) if name in ("image", "mask") else value for name, value in fields.items()}

    def _place(self, value: object) -> Any:
        """A path relative to the table's folder where there is such a file, else as it is."""
        if (
            isinstance(value, str)
            and value
            and len(value) < 1024
            and "\0" not in value
            and (self._folder / value).exists()
        ):
            return self._folder / value
        return value


def _hint(name: object, known: Sequence[str]) -> str:
    return did_you_mean(name, known) if isinstance(name, str) else ""


def grouping(request: Request) -> str:
    """Rows that sort together can share calls of the denoiser: they have a size, a method and a number of steps."""
    width, height = request.size or (0, 0)
    return f"{width:05d}x{height:05d} {request.method} {request.steps:04d}"


def without_pictures(value: Any) -> Any:
    """JSON of a request, in which pictures are only the hashes of their files."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        hidden = ("png", "sights", "thumbnails")
        return {name: without_pictures(each) for name, each in fields.items() if name not in hidden}
    if isinstance(value, list):
        return [without_pictures(each) for each in cast("list[Any]", value)]
    return value
