"""Limits: how much one request, one client and all together may ask for."""

import math
from dataclasses import dataclass

from instantstyle.request import Request
from instantstyle.serve.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts.  Everything beyond is refused with a sentence before work is done."""

    body_bytes: int = 48 * 2**20
    """Of one HTTP body; held before it is read."""
    upload_pixels: int = 24_000_000
    """Of one uploaded picture; held before it is decoded."""
    uploads: int = 40
    """Files in one multipart body."""
    count: int = 16
    """Pictures of one request."""
    steps: int = 200
    pixels: int = 2048 * 2048
    """Of one picture to be drawn."""
    scale: int = 8
    """How many times wider or higher than the model's own size a picture may be."""
    queued: int = 256
    """Jobs that wait, of all clients together."""
    queued_each: int = 96
    """Jobs of one client that wait."""
    wait_seconds: float = 60.0
    """The longest that `wait` keeps a connection."""
    streams: int = 256
    """Event streams at a time."""

    def check(self, request: Request, own_size: tuple[int, int] | None) -> None:
        """Raises ApiError (400), naming the field and the limit."""

        def refuse(param: str, sentence: str) -> None:
            raise ApiError(400, sentence, code="limit", param=param)

        if request.count > self.count:
            refuse("count", f"count is {request.count}, and this server draws at most {self.count} pictures a request")
        if request.steps > self.steps:
            refuse("steps", f"steps is {request.steps}, and this server takes at most {self.steps}")
        if request.size is not None:
            width, height = request.size
            most = (width, height) if own_size is None else (self.scale * own_size[0], self.scale * own_size[1])
            if width * height > self.pixels or width > most[0] or height > most[1]:
                refuse(
                    "size",
                    f"size is {width} x {height}: this server draws at most {self.pixels:,} pixels"
                    + ("" if own_size is None else f" and, with this model, {most[0]} x {most[1]}"),
                )

    def check_queue(self, counts: dict[str, int], own: dict[str, int], pace: float | None) -> None:
        """Raises ApiError (429) with Retry-After where the queue is full; `pace` is seconds a job, as measured."""
        full = counts["queued"] >= self.queued
        if not full and own["queued"] < self.queued_each:
            return
        wait = str(max(1, min(60, math.ceil(4 * (pace or 1.0)))))
        sentence = (
            f"the queue is full ({counts['queued']} jobs wait)"
            if full
            else f"{own['queued']} jobs of yours wait, and no more are taken from one client"
        )
        raise ApiError(429, f"{sentence}: try again in {wait} s", code="queue_full", headers={"Retry-After": wait})
