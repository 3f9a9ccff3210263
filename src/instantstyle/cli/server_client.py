"""A running studio as the one that draws: `generate --server URL` sends it the request and takes the pictures.

HTTP by the standard library, so that a warm picture does not wait for imports.  The API: docs/api.md.
"""

import json
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

from instantstyle.cli.output import print_done, print_note, to_json
from instantstyle.cli.progress import bar
from instantstyle.errors import InputError, InstantStyleError
from instantstyle.request import Request, output_paths
from instantstyle.utils.atomic_files import write_atomic

MODEL_FLAGS = (
    *("model", "adapter", "image_encoder", "content_encoder", "control_model", "depth_model", "lora"),
    *("device", "dtype", "memory", "tile", "re_embed", "save_control"),
)
"""Flags that say which model is loaded and how, or that need it here: a server has loaded its own."""
TIMEOUT = 60.0
"""Seconds without a word from the server, which says something at least every 15."""
RECONNECTS = 5

_LOST = (urllib.error.URLError, HTTPException, OSError)


@dataclass(frozen=True)
class RemoteResult:
    """What a server drew."""

    images: tuple[bytes, ...]
    """PNG files, as the server wrote them."""
    request: Mapping[str, Any]
    """With the defaults filled in; pictures are addresses on the server."""
    seconds: float
    warnings: tuple[str, ...]


class StudioClient:
    """The HTTP API of one studio."""

    def __init__(self, address: str, token: str | None = None) -> None:
        """Raises InputError when the address is no http URL."""
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(f"--server is the address of a studio such as http://127.0.0.1:7860, not {address!r}")
        self.address = parts.geturl().rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        # A proxy of the environment is for other machines.
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def family(self) -> str:
        """The family of the model that it has loaded.  Raises InstantStyleError when it cannot be reached."""
        return str(self._json("GET", "/v1/studio")["model"]["family"])

    def draw(
        self, request: Request, *, metadata: bool = True, progress: Callable[[int, int], None] | None = None
    ) -> RemoteResult:
        """Send a request, follow its progress, take its pictures.

        An interrupt cancels the job there.  Raises InputError for what the server refuses, InstantStyleError when it
        cannot be reached or the job fails.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        job = self._json("POST", "/v1/jobs?preview=false", request.to_json().encode(), headers)
        try:
            self._follow(str(job["id"]), progress)
            job = self._json("GET", str(job["url"]))
        except KeyboardInterrupt:
            self._json("DELETE", str(job["url"]))
            raise
        if job["state"] != "done":
            raise InstantStyleError(f"{self.address} did not draw it, the job is {job['state']}: {job['error'] or '-'}")
        kept = str(metadata).lower()
        images = tuple(self._read("GET", f"{image['url']}?metadata={kept}") for image in job["images"])
        return RemoteResult(images, job["request"], float(job["seconds"] or 0), tuple(job["warnings"]))

    def _follow(self, job: str, progress: Callable[[int, int], None] | None) -> None:
        """Return once the job is over, whatever became of it."""
        last, lost, steps = "", 0, 0
        while True:
            try:
                for kind, data, number in self._events(job, last):
                    last, lost = number or last, 0
                    if kind == "progress" and progress is not None:
                        steps = int(data["steps"])
                        progress(int(data["step"]), steps)
                    if kind in ("done", "failed", "cancelled"):
                        if kind == "done" and progress is not None:
                            progress(steps, steps)  # of a server's progress only the newest is told
                        return
                return  # 204: nothing is left to tell
            except _LOST as error:
                lost += 1
                if isinstance(error, urllib.error.HTTPError) or lost > RECONNECTS:
                    self._refused(error, f"; the job {job} stays with it")

    def _events(self, job: str, last: str) -> Generator[tuple[str, dict[str, Any], str]]:
        """Kind, data and number of each server-sent event (https://html.spec.whatwg.org/#server-sent-events)."""
        headers = {"Last-Event-ID": last} if last else {}
        fields = dict[str, str]()
        with self._open("GET", f"/v1/jobs/{job}/events", None, headers) as stream:
            for line in stream:
                text = line.decode().rstrip("\r\n")
                if text:
                    name, _, value = text.partition(":")
                    fields[name] = value.removeprefix(" ")
                elif "data" in fields:
                    yield fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", "")
                    fields = {}

    def _json(self, verb: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        content = self._read(verb, path, body, headers)
        try:
            return json.loads(content)
        except ValueError:
            raise InstantStyleError(f"what answers at {self.address} is no studio: its answer is no JSON") from None

    def _read(self, verb: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        try:
            with self._open(verb, path, body, headers or {}) as answer:
                return answer.read()
        except _LOST as error:
            self._refused(error)

    def _open(self, verb: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(
            f"{self.address}{path}", data=body, headers={**self._headers, **headers}, method=verb
        )
        return self._opener.open(request, timeout=TIMEOUT)

    def _refused(self, error: Exception, more: str = "") -> NoReturn:
        """Raise what the server, or the way to it, said."""
        if not isinstance(error, urllib.error.HTTPError):
            reason = getattr(error, "reason", None) or error
            reason = os.strerror(reason.errno) if isinstance(reason, OSError) and reason.errno else reason
            raise InstantStyleError(
                f"the studio at {self.address} cannot be reached: {str(reason).lower()}{more}; start it by "
                "`instantstyle serve`, or leave --server out to draw here"
            ) from None
        try:
            message = cast("dict[str, Any]", json.loads(error.read()))["error"]["message"]
        except (ValueError, KeyError, TypeError, OSError):
            message = f"it answers {error.code} {error.reason}"
        if error.code == 401:
            message = f"{message}: give --token, or set INSTANTSTYLE_TOKEN"
        kind = InputError if error.code in (400, 401, 404, 413, 415, 422) else InstantStyleError
        raise kind(f"{self.address} refuses: {message}{more}") from None


def refuse_model_flags(flags: Mapping[str, object], server: str) -> None:
    """Raise InputError for a flag that says which model is loaded: the server has loaded its own."""
    for name in MODEL_FLAGS:
        if flags[name] not in (None, False, []):
            raise InputError(
                f"--{name.replace('_', '-')} is about the model, and {server} draws by the one that it has loaded: "
                "leave it out, or leave --server (INSTANTSTYLE_SERVER) out to draw here"
            )


def draw_on_server(
    client: StudioClient, request: Request, out: Path, *, metadata: bool, as_json: bool, notes: Sequence[str]
) -> None:
    """Draw on a server; the same files and the same words as from here."""
    with bar(out.name) as on_step:
        drawn = client.draw(request, metadata=metadata, progress=on_step)
    for warning in (*notes, *drawn.warnings):
        print_note(f"warning: {warning}")
    paths = output_paths(out, len(drawn.images))
    for path, image in zip(paths, drawn.images, strict=True):
        write_atomic(path, image)
    if as_json:
        about = {"request": drawn.request, "seconds": drawn.seconds, "warnings": drawn.warnings}
        print_done(to_json({"paths": [str(path) for path in paths], **about, "server": client.address}))
    else:
        print_done("\n".join(map(str, paths)))
