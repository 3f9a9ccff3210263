"""run_server: the studio on an address, until a signal ends it."""

import logging
import os
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from instantstyle.serve.events import EventBoard


class Server(uvicorn.Server):
    """Ends the event streams first: uvicorn waits for open responses before it ends the application."""

    def __init__(self, config: uvicorn.Config, board: EventBoard) -> None:
        super().__init__(config)
        self._board = board

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by SIGINT and SIGTERM."""
        self._board.close_soon()
        super().handle_exit(sig, frame)


def default_data_folder() -> Path:
    """Where jobs and pictures are kept unless --data says: in the XDG data folder."""
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "instantstyle" / "studio"


def make_server(app: ASGIApp, board: EventBoard, *, host: str = "127.0.0.1", port: int = 7860) -> Server:
    """A server that is not started yet."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, board)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; with port 0 any that is free.  Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=256)


def run_server(
    app: ASGIApp, board: EventBoard, held: socket.socket, *, open_page: Callable[[], str] | None = None
) -> None:
    """Run until a signal; `open_page` gives the address to open in a browser once the server answers."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    server = make_server(app, board)
    if open_page is not None:
        import threading

        def opened() -> None:
            import time

            while not server.started and not server.should_exit:
                time.sleep(0.05)
            webbrowser.open(open_page())

        threading.Thread(target=opened, daemon=True).start()
    server.run(sockets=[held])
