"""JobStore: jobs, their events and the index of pictures in one SQLite file, owned by one process.

State and event are written in one transaction, so an event stream never tells of a state that a restart forgets.
Event numbers come from AUTOINCREMENT: none is used twice, across restarts too, which makes them SSE ids.
"""

import fcntl
import hashlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instantstyle.errors import InputError, InstantStyleError
from instantstyle.serve.rows import (
    FINISHED,
    IMAGE_COLUMNS,
    JOB_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    Event,
    ImageRow,
    JobRow,
    State,
    image_row,
    job_row,
)

MAX_ATTEMPTS = 5
"""Times a job is begun before it is given up, so that a request that kills the process does not do so for ever."""


class StoreTakenError(InstantStyleError):
    """Another process owns the data folder."""


class KeyReusedError(InputError):
    """An Idempotency-Key came again with another request."""


class JobStore:
    """The queue on disk.  Safe from any thread: one connection behind a lock, each call under a millisecond or two."""

    def __init__(self, path: Path) -> None:
        """Raises StoreTakenError when another process holds the folder, InstantStyleError for a newer schema."""
        self._lock = threading.RLock()
        self._owner = path.with_suffix(".lock").open("a")
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the process, however it ends
        except BlockingIOError:
            self._owner.close()
            raise StoreTakenError(
                f"another studio runs on the folder {str(path.parent)!r}: stop it, or give --data another folder"
            ) from None
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            self.close()
            raise InstantStyleError(
                f"{str(path)!r} was written by a newer version (schema {version}, this reads {SCHEMA_VERSION}): give "
                "--data another folder, or update instantstyle"
            )
        if version == 0:
            with self._writing() as db:
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._db.close()
            self._owner.close()

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection, None, None]:
        # IMMEDIATE: a deferred transaction that reads and then writes may fail at once, whatever the timeout.
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @staticmethod
    def _event(db: sqlite3.Connection, job: str, kind: str, data: Mapping[str, Any], draft: bool = False) -> Event:
        data = {**data, "draft": True} if draft else data
        row = db.execute("INSERT INTO events (job, kind, data) VALUES (?, ?, ?)", (job, kind, json.dumps(data)))
        return Event(row.lastrowid or 0, job, kind, data)

    # -- the life of a job ---------------------------------------------------------------------------------------

    def recover(self) -> list[Event]:
        """Queue again what ran when the last owner ended; give up what was begun too often, end drafts.

        To be called once, before anything is claimed.
        """
        told: list[Event] = []
        with self._writing() as db:
            rows = db.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE state = 'running' OR draft").fetchall()
            for job in map(job_row, rows):
                if job.state in FINISHED:
                    continue
                kind, outcome = "queued", {}
                if job.draft or not job.wanted:
                    kind = "cancelled"
                elif job.attempt >= MAX_ATTEMPTS:
                    kind = "failed"
                    outcome = {"error": f"the server ended {job.attempt} times while it drew this: not tried again"}
                done = None if kind == "queued" else time.time()
                db.execute(
                    "UPDATE jobs SET state = ?, finished = ?, outcome = ? WHERE id = ?",
                    (kind, done, json.dumps(outcome), job.id),
                )
                told.append(self._event(db, job.id, kind, outcome | {"interrupted": job.attempt}, job.draft))
        return told

    def put(
        self,
        request: str,
        *,
        client: str,
        options: Mapping[str, Any],
        key: str | None = None,
        draft: bool = False,
        digest: str | None = None,
    ) -> tuple[str, Event | None]:
        """Accept a request (JSON text): the job's id, and its event, None where the key named it before.

        `digest` stands for what was sent, where `request` holds what the server added.  Raises KeyReusedError.
        """
        said = digest or hashlib.sha256(request.encode()).hexdigest()
        job = uuid.uuid4().hex
        with self._writing() as db:
            new = db.execute(
                "INSERT INTO jobs (id, key, digest, client, request, options, draft, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING RETURNING id",
                (job, key, said, client, request, json.dumps(options), draft, time.time()),
            ).fetchall()
            if new:
                return job, self._event(db, job, "queued", {}, draft)
            there, its = db.execute("SELECT id, digest FROM jobs WHERE key = ?", (key,)).fetchone()
        if its != said:
            raise KeyReusedError(
                f"the Idempotency-Key {key!r} came before with another request (job {there}): give each request a key "
                "of its own"
            )
        return there, None

    def waiting(self) -> list[tuple[str, str, bool]]:
        """Queued jobs in the order of arrival, drafts first: id, client, draft."""
        rows = self._rows("SELECT id, client, draft FROM jobs WHERE state = 'queued' ORDER BY draft DESC, n")
        return [(job, client, bool(draft)) for job, client, draft in rows]

    def claim(self, job: str) -> tuple[JobRow, str, Event] | None:
        """Begin a queued job: its row and request; None where it was cancelled meanwhile."""
        with self._writing() as db:
            rows = db.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1, started = ?"
                f" WHERE id = ? AND state = 'queued' RETURNING {JOB_COLUMNS}, request",
                (time.time(), job),
            ).fetchall()
            if not rows:
                return None
            row = job_row(rows[0][:-1])
            return row, rows[0][-1], self._event(db, job, "running", {"attempt": row.attempt}, row.draft)

    def finish(
        self,
        job: str,
        attempt: int,
        state: State,
        outcome: Mapping[str, Any],
        images: Sequence[tuple[str, int, int, str, Mapping[str, Any]]] = (),
    ) -> Event | None:
        """End a running job; None where it is not this attempt's any more.

        `images` are (id, width, height, words to search in, what is known of it) of files that are written already.
        """
        with self._writing() as db:
            rows = db.execute(
                "UPDATE jobs SET state = ?, outcome = ?, finished = ?"
                " WHERE id = ? AND attempt = ? AND state = 'running' RETURNING draft",
                (state, json.dumps(outcome), time.time(), job, attempt),
            ).fetchall()
            if not rows:
                return None
            for place, (image, width, height, words, about) in enumerate(images):
                db.execute(
                    "INSERT INTO images (id, job, place, width, height, words, about) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (image, job, place, width, height, words, json.dumps(about)),
                )
            return self._event(db, job, state, outcome, bool(rows[0][0]))

    def release(self, job: str, attempt: int) -> Event | None:
        """Queue a running job again that a stopping server gives up; the attempt does not count."""
        with self._writing() as db:
            rows = db.execute(
                "UPDATE jobs SET state = 'queued', attempt = attempt - 1 WHERE id = ? AND attempt = ?"
                " AND state = 'running' AND NOT draft RETURNING 1",
                (job, attempt),
            ).fetchall()
            return self._event(db, job, "queued", {"interrupted": attempt}) if rows else None

    def cancel(self, job: str) -> tuple[State | None, Event | None]:
        """Cancel a job: a waiting one at once, a running one when its engine looks.

        The state it is in now, None for an unknown id; and the event, where it is over.
        """
        with self._writing() as db:
            rows = db.execute(
                "UPDATE jobs SET wanted = 0, finished = CASE state WHEN 'queued' THEN ? ELSE finished END,"
                " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END"
                " WHERE id = ? AND state IN ('queued', 'running') RETURNING state, draft",
                (time.time(), job),
            ).fetchall()
            if rows:
                event = self._event(db, job, "cancelled", {}, bool(rows[0][1])) if rows[0][0] == "cancelled" else None
                return rows[0][0], event
            there = db.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchall()
        return (there[0][0] if there else None), None

    # -- reading -------------------------------------------------------------------------------------------------

    def job(self, job: str) -> JobRow | None:
        """A job by its id."""
        rows = self._rows(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", job)
        return job_row(rows[0]) if rows else None

    def request(self, job: str) -> str | None:
        """The request of a job, as JSON text."""
        rows = self._rows("SELECT request FROM jobs WHERE id = ?", job)
        return rows[0][0] if rows else None

    def jobs(self, *, limit: int, before: int | None = None, state: State | None = None) -> list[JobRow]:
        """Jobs that are no drafts, newest first; `before` is the `n` of the last one that was seen."""
        return [
            job_row(row)
            for row in self._rows(
                f"SELECT {JOB_COLUMNS} FROM jobs WHERE NOT draft AND n < ? AND (? IS NULL OR state = ?)"
                " ORDER BY n DESC LIMIT ?",
                2**62 if before is None else before,
                state,
                state,
                limit,
            )
        ]

    def counts(self, client: str | None = None) -> dict[str, int]:
        """How many jobs are in each state, all or a client's."""
        rows = self._rows(
            "SELECT state, count(*) FROM jobs WHERE ? IS NULL OR client = ? GROUP BY state", client, client
        )
        return {"queued": 0, "running": 0, **dict(rows)}

    def position(self, job: str) -> int | None:
        """How many queued jobs came before this one; None when it is not waiting."""
        rows = self._rows(
            "SELECT (SELECT count(*) FROM jobs o WHERE o.state = 'queued' AND o.n < j.n) FROM jobs j"
            " WHERE id = ? AND state = 'queued'",
            job,
        )
        return rows[0][0] if rows else None

    def events(self, after: int, job: str | None = None, limit: int = 500) -> list[Event]:
        """Events later than a number, of one job or of all that are no drafts."""
        rows = self._rows(
            "SELECT seq, job, kind, data FROM events WHERE seq > ? AND (? IS NULL OR job = ?) ORDER BY seq LIMIT ?",
            after,
            job,
            job,
            limit,
        )
        return [Event(seq, of, kind, json.loads(data)) for seq, of, kind, data in rows]

    def last_event(self) -> int:
        """The number of the newest event."""
        return self._rows("SELECT coalesce(max(seq), 0) FROM events")[0][0]

    # -- pictures ------------------------------------------------------------------------------------------------

    def image(self, image: str) -> ImageRow | None:
        """A picture by its id."""
        rows = self._rows(f"SELECT {IMAGE_COLUMNS} FROM images WHERE id = ?", image)
        return image_row(rows[0]) if rows else None

    def images_of(self, job: str) -> list[ImageRow]:
        """The pictures of a job, in their order."""
        return [
            image_row(row)
            for row in self._rows(f"SELECT {IMAGE_COLUMNS} FROM images WHERE job = ? ORDER BY place", job)
        ]

    def search(self, words: str, *, limit: int, before: int | None = None) -> list[ImageRow]:
        """Pictures whose prompt, style, method or seed have all the words, newest first."""
        found = [word.lower() for word in words.split()[:8]]
        where = "".join(" AND instr(words, ?) > 0" for _ in found)
        edge = 2**62 if before is None else before
        rows = self._rows(
            f"SELECT {IMAGE_COLUMNS} FROM images WHERE n < ?{where} ORDER BY n DESC LIMIT ?", edge, *found, limit
        )
        return [image_row(row) for row in rows]

    def image_ids(self) -> set[str]:
        """Every picture's id."""
        return {row[0] for row in self._rows("SELECT id FROM images")}

    def delete_image(self, image: str) -> bool:
        """Take a picture out of the gallery; whether it was there."""
        with self._writing() as db:
            return bool(db.execute("DELETE FROM images WHERE id = ? RETURNING 1", (image,)).fetchall())

    def prune_drafts(self, keep: int) -> None:
        """Forget finished drafts but the newest."""
        with self._writing() as db:
            rows = db.execute(
                "SELECT id FROM jobs WHERE draft AND state IN ('done', 'failed', 'cancelled')"
                " ORDER BY n DESC LIMIT -1 OFFSET ?",
                (keep,),
            ).fetchall()
            for (job,) in rows:
                db.execute("DELETE FROM events WHERE job = ?", (job,))
                db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def check(self) -> bool:
        """Whether the file can be read and written: what /readyz asks."""
        try:
            with self._writing():
                return True
        except sqlite3.Error:
            return False
