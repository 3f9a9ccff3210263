"""A studio for tests: on a real socket in a thread of this process, its model shared by all tests."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from instantstyle.model import Model
from instantstyle.serve.app import create_app
from instantstyle.serve.limits import Limits
from instantstyle.serve.server import listen, make_server
from instantstyle.serve.studio import Studio


@cache
def shared_model() -> Model:
    """The built-in model, loaded once."""
    from instantstyle.loading import load

    return load()


def make_studio(data: Path, **settings: Any) -> Studio:
    """A studio over the shared model."""
    return Studio(data, shared_model, **settings)


def wait_ready(studio: Studio) -> None:
    """Wait until the engine thread has its model."""
    until = time.monotonic() + 300
    while not studio.worker.ready:
        assert studio.worker.failure is None, studio.worker.failure
        assert time.monotonic() < until, "the model was not loaded"
        time.sleep(0.01)


@contextmanager
def live_server(
    data: Path, *, port: int = 0, limits: Limits | None = None, batch: int = 8, **guard: Any
) -> Generator[tuple[str, Studio]]:
    """Its address and the studio behind it."""
    studio = make_studio(data, limits=limits, batch=batch)
    held = listen("127.0.0.1", port)
    server = make_server(create_app(studio, **guard), studio.board)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]}, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    wait_ready(studio)
    try:
        yield f"http://127.0.0.1:{held.getsockname()[1]}", studio
    finally:
        studio.board.close_soon()
        server.should_exit = True
        thread.join(20)
        held.close()
        assert not thread.is_alive(), "the server did not end"
