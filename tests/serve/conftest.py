"""Clients of a studio: in the test's own process, and over a socket."""

from collections.abc import Generator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from instantstyle.serve.app import create_app
from instantstyle.serve.studio import Studio
from studio_server import live_server, make_studio, wait_ready


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A studio with an empty folder; `client` starts it."""
    return make_studio(tmp_path / "data")


@pytest.fixture
def client(studio: Studio) -> Generator[TestClient]:
    """A client of it."""
    with TestClient(create_app(studio), base_url="http://127.0.0.1") as made:
        wait_ready(studio)
        yield made


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a server that tests share which need a socket and no empty queue."""
    with live_server(tmp_path_factory.mktemp("server")) as (address, _):
        yield address
