"""The store's tables, and their rows as values: jobs, events, images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED: frozenset[State] = frozenset(("done", "failed", "cancelled"))
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE jobs (
    n        INTEGER PRIMARY KEY,
    id       TEXT NOT NULL UNIQUE,
    key      TEXT UNIQUE,
    digest   TEXT NOT NULL,
    client   TEXT NOT NULL,
    request  TEXT NOT NULL CHECK (json_valid(request)),
    options  TEXT NOT NULL CHECK (json_valid(options)),
    state    TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    draft    INTEGER NOT NULL DEFAULT 0,
    attempt  INTEGER NOT NULL DEFAULT 0,
    wanted   INTEGER NOT NULL DEFAULT 1,
    created  REAL NOT NULL,
    started  REAL,
    finished REAL,
    outcome  TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX jobs_queued ON jobs (draft DESC, n) WHERE state = 'queued';
CREATE INDEX jobs_running ON jobs (n) WHERE state = 'running';
CREATE TABLE events (
    seq  INTEGER PRIMARY KEY AUTOINCREMENT,
    job  TEXT NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX events_of ON events (job, seq);
CREATE TABLE images (
    n       INTEGER PRIMARY KEY,
    id      TEXT NOT NULL UNIQUE,
    job     TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    place   INTEGER NOT NULL,
    width   INTEGER NOT NULL,
    height  INTEGER NOT NULL,
    words   TEXT NOT NULL,
    about   TEXT NOT NULL CHECK (json_valid(about))
) STRICT;
CREATE INDEX images_of ON images (job, place)
"""


@dataclass(frozen=True)
class Event:
    """One change of a job's state."""

    seq: int
    job: str
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class JobRow:
    """A job without its request, whose pictures may be large."""

    n: int
    id: str
    client: str
    state: State
    draft: bool
    attempt: int
    wanted: bool
    created: float
    started: float | None
    finished: float | None
    options: Mapping[str, Any]
    outcome: Mapping[str, Any]


@dataclass(frozen=True)
class ImageRow:
    """A finished picture; its file is `images/<id>.png`."""

    n: int
    id: str
    job: str
    place: int
    width: int
    height: int
    about: Mapping[str, Any]


JOB_COLUMNS = "n, id, client, state, draft, attempt, wanted, created, started, finished, options, outcome"
IMAGE_COLUMNS = "n, id, job, place, width, height, about"


def job_row(row: Sequence[Any]) -> JobRow:
    """A row of JOB_COLUMNS."""
    n, job, client, state, draft, attempt, wanted, created, started, finished, options, outcome = row
    times = cast("tuple[float, float | None, float | None]", (created, started, finished))
    return JobRow(
        n, job, client, state, bool(draft), attempt, bool(wanted), *times, json.loads(options), json.loads(outcome)
    )


def image_row(row: Sequence[Any]) -> ImageRow:
    """A row of IMAGE_COLUMNS."""
    n, image, job, place, width, height, about = row
    return ImageRow(n, image, job, place, width, height, json.loads(about))
