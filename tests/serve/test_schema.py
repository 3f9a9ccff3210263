# pyright: reportUnknownMemberType=false

"""The whole HTTP description, by schemathesis: what it allows and what it forbids is answered, never a server error."""

from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from instantstyle.serve.limits import Limits
from studio_server import live_server

CONFIG = schemathesis.Config.from_path(Path(__file__).with_name("schemathesis.toml"))


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    limits = Limits(steps=2, count=1, wait_seconds=0.2, queued=20)
    with live_server(tmp_path_factory.mktemp("schema"), limits=limits) as (address, _):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json", config=CONFIG)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # schemathesis itself does
def test_every_route_keeps_its_description(schema: Any) -> None:
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue  # streams without an end: test_events.py

        @given(case=operation.as_strategy())
        @settings(
            max_examples=6,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(cast("Any", HealthCheck)),
        )
        def check(case: Any) -> None:
            case.call_and_validate()

        check()


def test_what_is_described(client: TestClient) -> None:
    said = client.get("/openapi.json").json()
    paths = said["paths"]
    for path in (
        *("/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/events", "/v1/images/{image}", "/v1/styles", "/v1/models"),
        *("/healthz", "/readyz", "/metrics", "/v1/images/generations", "/v1/images/edits"),
    ):
        assert path in paths
    assert set(paths["/v1/jobs/{job}"]) == {"get", "delete"}
    assert all("operationId" in each for path in paths.values() for each in path.values())
    wanted = said["components"]["schemas"]["Request"]
    assert {"prompt", "references", "seed", "plan"} <= set(wanted["properties"])
