"""What a batch leaves beside its pictures: a manifest with a row a picture, and shards in webdataset's form."""

import csv
import importlib
import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from instantstyle.batch.journal import Journal
from instantstyle.utils.atomic_files import atomic_write

COLUMNS: dict[str, str] = {
    "row": "int64",
    "state": "string",
    "file": "string",
    "sha256": "string",
    "prompt": "string",
    "method": "string",
    "seed": "int64",
    "seconds": "double",
    "warnings": "string",
    "reason": "string",
    "request": "string",
    "meter_score": "double",
    "meter_prompt": "double",
    "meter_look": "double",
    "meter_content": "double",
}
"""Names and pyarrow's types.  `warnings` and `request` are JSON; pictures in it are the hashes of their files."""


def write_batch_manifest(journal: Journal) -> Path:
    """manifest.parquet, or manifest.csv where pyarrow is not installed: a row a picture, and one for each bad row."""
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        return _write_csv(journal)
    file = journal.folder / "manifest.parquet"
    schema = arrow.schema(
        [(name, getattr(arrow, kind if kind != "double" else "float64")()) for name, kind in COLUMNS.items()]
    )
    with atomic_write(file) as partial, parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        pictures = _pictures(journal)
        while chunk := list(islice(pictures, 4096)):
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))
    return file


def _write_csv(journal: Journal) -> Path:
    file = journal.folder / "manifest.csv"
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(_pictures(journal))
    return file


def _pictures(journal: Journal) -> Iterator[dict[str, Any]]:
    for n, state, reason, seconds, outcome in journal.outcomes():
        request = outcome.get("request", {})
        about = {
            **dict.fromkeys(COLUMNS),
            "row": n,
            "state": state,
            "reason": reason,
            "seconds": seconds,
            **{name: request.get(name) for name in ("prompt", "method", "seed")},
            "request": json.dumps(request) if request else None,
            "warnings": json.dumps(outcome.get("warnings", [])),
        }
        files, meters = outcome.get("files", []), outcome.get("meter", [])
        if not files:
            yield about
        for i, (file, digest) in enumerate(zip(files, outcome.get("sha256", []), strict=True)):
            reading: dict[str, Any] = meters[i] if i < len(meters) else {}
            measured = {f"meter_{name}": reading.get(name) for name in ("score", "prompt", "look", "content")}
            yield {**about, "file": file, "sha256": digest, **measured}


def write_shards(journal: Journal, size: int) -> list[Path]:
    """Tars of `size` pictures in webdataset's form: KEY.png, KEY.txt (the prompt) and KEY.json (the request).

    The same journal gives the same bytes; shards that are there already are not written again.
    """
    folder, shards = journal.folder / "shards", list[Path]()
    drawn = (picture for picture in _pictures(journal) if picture["state"] == "done")
    for number, pictures in enumerate(iter(lambda: list(islice(drawn, size)), [])):
        shards.append(shard := folder / f"{number:06d}.tar")
        digest = journal.fact(f"shard {number}")
        wanted = json.dumps([picture["sha256"] for picture in pictures])
        if shard.exists() and digest == wanted:
            continue
        with atomic_write(shard) as partial, tarfile.open(partial, "w") as tar:
            for i, picture in enumerate(pictures):
                key = f"{picture['row']:09d}-{i:06d}"
                _add(tar, f"{key}.png", (journal.folder / picture["file"]).read_bytes())
                _add(tar, f"{key}.txt", str(picture["prompt"]).encode())
                _add(tar, f"{key}.json", str(picture["request"]).encode())
        journal.remember(f"shard {number}", wanted)
    return shards


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
