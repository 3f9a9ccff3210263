"""Journal: the rows of a batch and what became of each, in an SQLite file beside the pictures.

It outlives any death: a row is done once its pictures are whole on disk and its line here is committed, in this order,
so that what a kill comes between is found again by the picture's own metadata.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from instantstyle.batch.table import Fields, RequestBuilder, UnreadableRow, grouping
from instantstyle.errors import InputError
from instantstyle.methods.specs import check_fields, find_method
from instantstyle.request import Request

FOLDER = ".batch"
"""Inside the pictures' folder."""
DEFAULT_TEMPLATE = "{row:06d}.png"
State = Literal["pending", "done", "failed", "bad"]
_SCHEMA = """
create table if not exists rows (
    n integer primary key, fingerprint text not null, name text unique, fields text not null, grouping text not null,
    state text not null, reason text, seconds real, outcome text
);
create index if not exists by_state on rows (state, grouping, n);
create table if not exists facts (name text primary key, value text not null);
"""


@dataclass(frozen=True)
class PendingRow:
    """A row that is to be drawn."""

    number: int
    name: str
    """The picture's file, relative to the folder; several pictures are numbered."""
    fields: Fields


@dataclass(frozen=True)
class Counts:
    """How many rows are in each state."""

    pending: int = 0
    done: int = 0
    failed: int = 0
    bad: int = 0

    @property
    def total(self) -> int:
        """All rows."""
        return self.pending + self.done + self.failed + self.bad


def ensure_folder(folder: Path) -> None:
    """Make the pictures' folder.  Raises InputError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as refused:
        raise InputError(f"cannot write into {str(folder)!r}: {(refused.strerror or str(refused)).lower()}") from None


@contextmanager
def open_journal(folder: Path) -> "Generator[Journal]":
    """The journal of a folder, for this process alone.  Raises InputError when another run has it."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another run is drawing into {str(folder)!r}: wait for it, end it, or give another --out"
        ) from None
    try:
        database = sqlite3.connect(place / "journal.sqlite", isolation_level=None)
        try:
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = normal")
            database.executescript(_SCHEMA)
            yield Journal(folder, database)
        except sqlite3.DatabaseError as broken:
            raise InputError(f"the journal of {str(folder)!r} cannot be read: {broken}; give another --out") from broken
        finally:
            database.close()
    finally:
        lock.release()


class Journal:
    """The rows of one batch."""

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self.folder, self._database = folder, database

    def record(
        self, rows: Iterable[Fields | UnreadableRow], builder: RequestBuilder, template: str = DEFAULT_TEMPLATE
    ) -> Iterator[int]:
        """Check and keep all rows of a table, whole or not at all; yields how many are checked, now and then.

        A row that says what it said in the run before keeps its state; failed ones are pending again.
        """
        check_template(template)
        database, last = self._database, 0
        database.execute("begin immediate")
        try:
            database.execute("create temporary table before as select * from rows")
            database.execute("create unique index temp.before_n on before (n)")
            database.execute("delete from rows")
            for last, row in enumerate(rows, 1):
                self._record_row(last, row, builder, template)
                if last % 1000 == 0:
                    yield last
            database.execute("drop table before")
            database.execute("commit")
        except BaseException:
            database.execute("rollback")
            raise
        yield last

    def _record_row(self, n: int, row: Fields | UnreadableRow, builder: RequestBuilder, template: str) -> None:
        if isinstance(row, UnreadableRow):
            return self._insert(n, "", None, {}, "", "bad", row.reason)
        try:
            request = builder.build(row)
            check_fields(find_method(request.method), request)
            name = file_name(template, n, request, row)
        except InputError as wrong:
            return self._insert(n, "", None, row, "", "bad", str(wrong))
        fingerprint = hashlib.sha256(f"{name}\n{request.to_json()}".encode()).hexdigest()
        old = self._database.execute(
            "select state, seconds, outcome from before where n = ? and fingerprint = ? and state = 'done'",
            (n, fingerprint),
        ).fetchone()
        try:
            self._insert(n, fingerprint, name, row, grouping(request), *(("done", None) if old else ("pending", None)))
        except sqlite3.IntegrityError:
            (other,) = self._database.execute("select n from rows where name = ?", (name,)).fetchone()
            reason = f"its file {name!r} is row {other}'s: put {{row}} into --name"
            return self._insert(n, "", None, row, "", "bad", reason)
        if old:
            self._database.execute("update rows set seconds = ?, outcome = ? where n = ?", (old[1], old[2], n))
        return None

    def _insert(
        self, n: int, fingerprint: str, name: str | None, fields: Fields, group: str, state: State, reason: str | None
    ) -> None:
        said = json.dumps(dict(fields), default=str)
        self._database.execute(
            "insert into rows (n, fingerprint, name, fields, grouping, state, reason) values (?, ?, ?, ?, ?, ?, ?)",
            (n, fingerprint, name, said, group, state, reason),
        )

    def fact(self, name: str) -> str | None:
        """Something remembered of the batch."""
        found = self._database.execute("select value from facts where name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def remember(self, name: str, value: str) -> None:
        """Remember something of the batch."""
        self._database.execute("insert or replace into facts values (?, ?)", (name, value))

    def retry_failed(self) -> None:
        """Rows that failed are to be drawn again."""
        self._database.execute("update rows set state = 'pending', reason = null where state = 'failed'")

    def counts(self) -> Counts:
        """How many rows are in each state."""
        return Counts(**dict(self._database.execute("select state, count(*) from rows group by state").fetchall()))

    def pending(self, chunk: int = 512) -> Iterator[PendingRow]:
        """Rows that are to be drawn, those that can share calls of the denoiser together; read in chunks."""
        last = ("", 0)
        while True:
            found = self._database.execute(
                "select n, name, fields, grouping from rows where state = 'pending' and (grouping, n) > (?, ?) "
                "order by grouping, n limit ?",
                (*last, chunk),
            ).fetchall()
            if not found:
                return
            for n, name, fields, group in found:
                last = (group, n)
                yield PendingRow(n, name, json.loads(fields))

    def mistakes(self, limit: int) -> list[tuple[int, str]]:
        """The first rows that are bad or failed, with the reason."""
        return self._database.execute(
            "select n, reason from rows where state in ('bad', 'failed') order by n limit ?", (limit,)
        ).fetchall()

    def done(self, row: int, seconds: float, outcome: Mapping[str, Any]) -> None:
        """A row's pictures are whole on disk."""
        self._database.execute(
            "update rows set state = 'done', reason = null, seconds = ?, outcome = ? where n = ?",
            (seconds, json.dumps(dict(outcome)), row),
        )

    def failed(self, row: int, reason: str) -> None:
        """A row could not be drawn."""
        self._database.execute("update rows set state = 'failed', reason = ? where n = ?", (reason, row))

    def outcomes(self) -> Iterator[tuple[int, State, str | None, float | None, dict[str, Any]]]:
        """Every row in order: number, state, reason, seconds and what is remembered of its pictures."""
        rows = self._database.execute("select n, state, reason, seconds, outcome from rows order by n")
        for n, state, reason, seconds, outcome in rows:
            yield n, state, reason, seconds, json.loads(outcome or "{}")


def check_template(template: str) -> None:
    """Raise InputError for a template of file names that leads out of the folder, or that names no field."""
    if not template.lower().endswith(".png"):
        raise InputError(f"pictures are PNG files, so --name {template!r} must end in .png")
    try:
        file_name(template, 1, Request("a"), {})
    except (KeyError, IndexError, ValueError, AttributeError) as wrong:
        raise InputError(
            f"--name {template!r} is not understood ({wrong}): it may have {{row}}, {{prompt}}, {{style}}, {{seed}}, "
            f"{{method}}, as in {DEFAULT_TEMPLATE}"
        ) from None


def file_name(template: str, row: int, request: Request, fields: Fields) -> str:
    """The file of a row's picture, relative to the folder.  Raises InputError when it leads out of it."""
    style = Path(str(fields.get("style", ""))).name.split(".")[0]
    seed = "random" if request.seed is None else request.seed
    name = template.format(row=row, prompt=_slug(request.prompt), style=_slug(style), seed=seed, method=request.method)
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or any(part.startswith(".") for part in parts) or len(name) > 240:
        raise InputError(f"the file name {name[:100]!r} leads out of the folder, is hidden or too long: change --name")
    return name


def _slug(text: str) -> str:
    """Letters and digits of a text, joined by hyphens, at most sixty."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60] or "none"
