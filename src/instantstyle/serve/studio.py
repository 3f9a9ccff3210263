"""Studio: the service under both APIs.  It accepts requests, shows jobs, and knows nothing of HTTP routes."""

import asyncio
import base64
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from instantstyle.errors import InstantStyleError
from instantstyle.request import Request, StoredImage
from instantstyle.request.style_card import StyleCard
from instantstyle.serve.errors import ApiError
from instantstyle.serve.events import EventBoard
from instantstyle.serve.images import ImageFiles
from instantstyle.serve.library import StyleLibrary
from instantstyle.serve.limits import Limits
from instantstyle.serve.metrics import Metrics
from instantstyle.serve.rows import FINISHED, ImageRow, JobRow
from instantstyle.serve.store import JobStore
from instantstyle.serve.worker import Worker

if TYPE_CHECKING:
    from instantstyle.model import Model

T = TypeVar("T")


@dataclass(frozen=True)
class JobOptions:
    """What a client says of a job beside its request."""

    draft: bool = False
    """Drawn before all others, not kept: a live picture while a slider moves."""
    preview: bool = True
    """Whether previews are worth their decoding."""
    meter: bool = False
    """Whether to measure what the reference did; draws the same seed without it as well."""
    partials: int = 0
    """Partial pictures at even distances."""
    compare_with: str | None = None
    """An image's id: the job says whether its picture is the same to the pixel."""
    compare_index: int = 0
    replaces: str | None = None
    """A job of the same client that this one overtakes: it is cancelled."""

    def kept(self) -> dict[str, Any]:
        """What the worker needs to know."""
        given = {"preview": self.preview, "meter": self.meter, "partials": self.partials}
        if self.compare_with is not None:
            given |= {"compare_with": self.compare_with, "compare_index": self.compare_index}
        return given


class Studio:
    """Queue, engine, gallery and style library of one data folder."""

    def __init__(
        self,
        data: Path,
        load: "Callable[[], Model]",
        *,
        limits: Limits | None = None,
        batch: int = 8,
        spec: str = "emoji",
    ) -> None:
        """Raises StoreTakenError when another studio runs on the folder."""
        data.mkdir(parents=True, exist_ok=True)
        self.limits, self.metrics, self.spec = limits or Limits(), Metrics(), spec
        self.store = JobStore(data / "studio.sqlite3")
        self.board = EventBoard(self.store)
        self.files = ImageFiles(data / "images")
        self.library = StyleLibrary(data / "styles")
        self.worker = Worker(self.store, self.board, self.files, load, batch=batch, metrics=self.metrics)
        try:
            told = self.store.recover()
        except sqlite3.OperationalError as refused:
            self.store.close()
            raise InstantStyleError(
                f"the queue in {str(data)!r} cannot be written ({refused}): make room, or give --data another folder"
            ) from refused
        for event in told:
            self.board.tell(event)
        self.files.clean(self.store.image_ids())

    def start(self) -> None:
        """Start the engine thread, which loads the model first."""
        self.worker.start()

    def close(self) -> None:
        """Stop at the next step; what ran is queued again for the next start."""
        self.worker.stop()
        self.store.close()

    @property
    def model(self) -> "Model":
        """The loaded model, for reading facts of it.  Raises ApiError (503)."""
        if self.worker.failure is not None:
            raise ApiError(503, f"there is no model: {self.worker.failure}", code="no_model")
        if self.worker.model is None:
            raise ApiError(
                503,
                "the model is still being loaded: try again in a moment",
                code="loading",
                headers={"Retry-After": "1"},
            )
        return self.worker.model

    # -- jobs ----------------------------------------------------------------------------------------------------

    def submit(
        self, request: Request, *, client: str, options: JobOptions, key: str | None = None
    ) -> tuple[JobRow, bool]:
        """Accept a request: its job, and whether it is new.  Raises ApiError, InputError."""
        model = (
            self.worker.model
        )  # while it is being loaded requests are taken, and refused later where they do not fit
        if self.worker.failure is not None:
            _ = self.model
        self.limits.check(request, None if model is None else model.family.size)
        if model is not None:
            from instantstyle.sampling.resolve import resolve  # imports torch, as the loaded model has

            resolve(model, request)  # refuses at once what the model would refuse later
        kept = options.kept()
        digest = hashlib.sha256(f"{request.to_json()}{json.dumps(kept, sort_keys=True)}".encode()).hexdigest()
        if request.seed is None:  # settled now, so that a job which is begun again draws the same
            request = request.model_copy(update={"seed": secrets.randbelow(2**32)})
        kept["summary"] = request_summary(request)
        if options.replaces is not None:
            self._overtake(options.replaces, client)
        try:
            if not options.draft:
                self.limits.check_queue(self.store.counts(), self.store.counts(client), self.pace())
            job, event = self.store.put(
                request.to_json(),
                client=client,
                options=kept,
                key=None if key is None else f"{client} {key}",
                draft=options.draft,
                digest=digest,
            )
        except sqlite3.OperationalError as refused:
            raise ApiError(
                507, f"the job could not be written to disk ({refused}): make room and send it again", code="disk_full"
            ) from refused
        self.board.tell(event)
        self.worker.wake()
        row = self.store.job(job)
        assert row is not None
        return row, event is not None

    def _overtake(self, job: str, client: str) -> None:
        row = self.store.job(job)
        if row is not None and row.client == client and row.state not in FINISHED:
            self.cancel(job)

    def pace(self) -> float | None:
        """Seconds a job took lately, for telling when to come back."""
        done = [row for row in self.store.jobs(limit=8, state="done") if row.finished and row.started]
        times = [cast("float", row.finished) - cast("float", row.started) for row in done]
        return sum(times) / len(times) if times else None

    def cancel(self, job: str) -> JobRow:
        """Stop a job; a finished one stays as it is.  Raises ApiError (404)."""
        state, event = self.store.cancel(job)
        if state is None:
            raise no_job(job)
        self.board.tell(event)
        if state == "running":
            self.worker.cancel(job)
        return self.row(job)

    def row(self, job: str) -> JobRow:
        """A job by its id.  Raises ApiError (404): an unknown job is never "done"."""
        row = self.store.job(job)
        if row is None:
            raise no_job(job)
        return row

    async def finished(self, row: JobRow, seconds: float) -> JobRow:
        """The job once it is over, or as it stands after so many seconds."""
        try:
            async with asyncio.timeout(min(seconds, self.limits.wait_seconds)):
                async for _ in self.board.follow(0, row.id):
                    pass
        except TimeoutError:
            pass
        return self.store.job(row.id) or row

    def view(self, row: JobRow) -> dict[str, Any]:
        """A job as clients see it."""
        base = f"/v1/jobs/{row.id}"
        outcome, options = row.outcome, row.options
        drafts = cast("list[dict[str, Any]]", outcome.get("drafts", []))
        images = (
            [{"id": each["id"], "url": f"/v1/images/{each['id']}", "place": each["place"]} for each in drafts]
            if row.draft
            else [image_view(image) for image in self.store.images_of(row.id)]
            if row.state == "done"
            else []
        )
        request = cast("dict[str, Any]", with_addresses(cast("object", options.get("summary", {})), f"{base}/inputs/"))
        return {
            "id": row.id,
            "object": "job",
            "state": row.state,
            "created": row.created,
            "started": row.started,
            "finished": row.finished,
            "position": self.store.position(row.id) if row.state == "queued" else None,
            "draft": row.draft,
            "attempt": row.attempt,
            "request": request,
            "seed": request.get("seed"),
            "size": outcome.get("size"),
            "steps": outcome.get("steps"),
            "seconds": outcome.get("seconds"),
            "images": images,
            "warnings": outcome.get("warnings", []),
            "error": outcome.get("error"),
            "verdict": outcome.get("verdict"),
            "url": base,
            "events": f"{base}/events",
        }

    # -- what was sent and what is held ----------------------------------------------------------------------------

    def input(self, job: str, place: str) -> StoredImage | StyleCard | None:
        """The picture or card at a place such as `references.0.image` in a job's request."""
        text = self.store.request(job)
        value: Any = None if text is None else json.loads(text)
        for part in place.split("."):
            if isinstance(value, list) and part.isascii() and part.isdigit():
                items = cast("list[Any]", value)
                value = items[int(part)] if int(part) < len(items) else None
            elif isinstance(value, dict):
                value = cast("dict[str, Any]", value).get(part)
            else:
                return None
        if not isinstance(value, dict):
            return None
        fields = cast("dict[str, Any]", value)
        if "sights" in fields:
            return StyleCard.from_fields(fields)
        return StoredImage.from_fields(fields) if fields.keys() == {"sha256", "png"} else None

    def fetch(self, address: str) -> object:
        """What is held under an address of this server, or a style's name; None for nothing."""
        match address.split("/"):
            case ["", "v1", "images", image]:
                return self.files.read(image, metadata=False)
            case ["", "v1", "inputs", sha256]:
                return self.files.read_input(sha256)
            case ["", "v1", "jobs", job, "inputs", place]:
                return self.input(job, place)
            case ["", "v1", "styles", name] | [name]:
                entry = self.library.get(name)
                return None if entry is None else entry.card
            case _:
                return None

    async def with_model(self, what: "Callable[[Model], T]") -> T:
        """Have something done with the model between two steps.  Raises ApiError (503), and what it raises."""
        _ = self.model
        return await asyncio.wrap_future(self.worker.call(what))

    def metrics_text(self) -> bytes:
        """For Prometheus."""
        counts = self.store.counts()
        self.metrics.queued.set(counts["queued"])
        self.metrics.running.set(counts["running"])
        self.metrics.readers.set(self.board.readers)
        return self.metrics.text()


def no_job(job: str) -> ApiError:
    """The refusal of an unknown id."""
    return ApiError(404, f"there is no job {job[:64]!r} here", code="not_found")


def image_view(image: ImageRow) -> dict[str, Any]:
    """A picture as clients see it."""
    return {
        "id": image.id,
        "url": f"/v1/images/{image.id}",
        "job": image.job,
        "place": image.place,
        "width": image.width,
        "height": image.height,
        "number": image.n,
        **image.about,
    }


def request_summary(request: Request) -> dict[str, Any]:
    """A request as JSON, its pictures replaced by `{"input": place}` and its cards by `{"style": name, ...}`."""

    def shown(value: object, place: str) -> object:
        if isinstance(value, StyleCard):
            about = {"style": value.name, "licence": value.licence, "credit": value.credit}
            return {**about, "picture": bool(value.thumbnails), "input": place}
        if isinstance(value, StoredImage):
            return {"sha256": value.sha256, "input": place}
        return value

    plain = request.model_dump(
        mode="json",
        exclude={
            "references": {"__all__": {"image", "mask"}},
            "controls": {"__all__": {"image"}},
            "init": {"image", "mask"},
        },
    )
    for i, reference in enumerate(request.references):
        plain["references"][i]["image"] = shown(reference.image, f"references.{i}.image")
        plain["references"][i]["mask"] = shown(reference.mask, f"references.{i}.mask")
    for i, control in enumerate(request.controls):
        plain["controls"][i]["image"] = shown(control.image, f"controls.{i}.image")
    if request.init is not None:
        plain["init"]["image"] = shown(request.init.image, "init.image")
        plain["init"]["mask"] = shown(request.init.mask, "init.mask")
    return plain


def with_addresses(value: object, base: str) -> object:
    """A summary whose inputs have addresses."""
    if isinstance(value, Mapping):
        given = cast("Mapping[str, object]", value)
        if "input" in given:
            rest = {name: each for name, each in given.items() if name != "input"}
            return {**rest, "url": f"{base}{given['input']}"}
        return {name: with_addresses(each, base) for name, each in given.items()}
    if isinstance(value, list | tuple):
        return [with_addresses(each, base) for each in cast("list[object]", value)]
    return value


def data_url_of(content: bytes, kind: str = "image/png") -> str:
    """Bytes as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def now() -> int:
    """Seconds since 1970, whole, as OpenAI counts."""
    return int(time.time())
