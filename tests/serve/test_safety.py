"""What strangers send: refused with a sentence, logged, and nothing of it on the disk."""

import base64
import io
import json
import logging
import struct
import zlib
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from starlette.testclient import TestClient

from instantstyle.serve.app import create_app
from instantstyle.serve.guards import COOKIE, host_of, is_loopback
from instantstyle.serve.limits import Limits
from instantstyle.serve.studio import Studio
from studio_server import make_studio, wait_ready

QUICK: dict[str, Any] = {"prompt": "a cat", "steps": 2, "guidance": 1.0, "seed": 5}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name}


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100000))
        + chunk(b"IEND", b"")
    )


def url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("a path as a picture", {"references": [{"image": "/etc/passwd"}]}),
    ("a file address", {"references": [{"image": "file:///etc/passwd"}]}),
    ("an address elsewhere", {"references": [{"image": "http://169.254.169.254/latest"}]}),
    ("a path upwards", {"references": [{"image": "/v1/images/../../../etc/passwd"}]}),
    ("a path upwards in a style's name", {"references": [{"image": "../../secret"}]}),
    ("a path upwards as an input", {"init": {"image": "/v1/inputs/../../x", "strength": 1}}),
    ("a card's file", {"references": [{"image": "x.style.safetensors"}]}),
    ("a bomb", {"references": [{"image": url(bomb())}]}),
    (
        "a bomb in a remembered picture",
        {"init": {"image": {"sha256": "0" * 64, "png": url(bomb())[22:]}, "strength": 1}},
    ),
    ("no picture", {"references": [{"image": url(b"GIF89a but not really")}]}),
    ("an SVG", {"references": [{"image": url(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}]}),
    ("a PostScript", {"references": [{"image": url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}]}),
    ("a pickle", {"references": [{"image": url(b"\x80\x04cos\nsystem\n(S'true'\ntR.")}]}),
    ("broken base64", {"references": [{"image": "data:image/png;base64,!!!"}]}),
    ("a huge number", {"seed": 2**70}),
    ("a negative number", {"steps": -1}),
    ("many steps", {"steps": 999}),
    ("many pictures", {"count": 64}),
    ("a huge size", {"size": [4096, 4096]}),
    ("a wrong type", {"prompt": {"$gt": ""}}),
    ("a list as a prompt", {"prompt": ["a"]}),
    ("a long prompt", {"prompt": "a" * 100_000}),
    ("many references", {"references": [{"image": "neon"}] * 100}),
    ("an unknown field", {"__class__": "x"}),
    ("options that are a list", {"options": [1]}),
    ("an unknown method", {"method": "os.system"}),
    ("an unknown plan", {"plan": "__import__('os')"}),
    ("an unknown sampler", {"sampler": "../x"}),
    ("no attachment", {"references": [{"image": "attachment:none"}]}),
    ("an image of nobody", {"init": {"image": "/v1/images/" + "0" * 32, "strength": 1}}),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client whose studio's folder is looked at; shared, for nothing of all this may leave a trace."""
    folder = tmp_path_factory.mktemp("hostile")
    made = make_studio(folder)
    with TestClient(create_app(made), base_url="http://127.0.0.1") as client:
        wait_ready(made)
        yield client, made, folder


@pytest.mark.parametrize(("what", "fields"), HOSTILE, ids=[what for what, _ in HOSTILE])
def test_hostile_requests_are_refused_in_a_sentence(hostile: Any, what: str, fields: dict[str, Any]) -> None:
    client, studio, folder = hostile
    before = files_in(folder)
    answer = client.post("/v1/jobs", json={**QUICK, **fields})
    assert answer.status_code in (400, 404), (what, answer.text)
    error = answer.json()["error"]
    assert len(error["message"]) > 15
    assert "Traceback" not in answer.text
    assert str(folder) not in answer.text
    assert files_in(folder) == before
    assert studio.store.counts()["queued"] == 0


def test_bodies_that_are_no_requests(hostile: Any) -> None:
    client, _, _ = hostile
    deep = "[" * 100_000
    for body, kind, status in [
        (b"{", "application/json", 400),
        (deep.encode(), "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"prompt": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b"--x\r\n", "multipart/form-data", 400),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n", "multipart/form-data; boundary=x", 400),
    ]:
        answer = client.post("/v1/jobs", content=body, headers={"content-type": kind})
        assert answer.status_code == status, (body[:30], answer.text)
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2fapp.py",
        "/v1/images/..%2f..%2fstudio.sqlite3",
        "/v1/images/" + "A" * 32,
        "/v1/images/" + "0" * 5000,
        "/v1/inputs/..%2fx",
        "/v1/styles/..%2f..%2fstudio/file",
        "/v1/styles/%00/file",
        "/v1/jobs/x/inputs/__class__.__init__",
        "/v1/jobs/%27%20OR%201=1/request",
        "/docs",
        "/redoc",
    ],
)
def test_no_path_reaches_the_disk(hostile: Any, path: str) -> None:
    client, _, _ = hostile
    answer = client.get(path)
    assert answer.status_code == 404
    assert b"root:" not in answer.content


def test_a_pickle_is_no_style(hostile: Any) -> None:
    client, _, folder = hostile
    before = files_in(folder)
    for content in (b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"", b"\0" * 100, struct.pack("<Q", 2**62) + b"{}"):
        answer = client.post("/v1/styles", files={"card": ("x.style.safetensors", content)})
        assert answer.status_code == 400
        assert "style card" in answer.json()["error"]["message"]
    assert client.post("/v1/styles", data={"name": "../x"}, files={"picture": ("p.png", b"x")}).status_code == 400
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "127.0.0.1@evil.example"}, 421),
        ({"host": "127.0.0.1/x"}, 421),
        ({"host": ""}, 421),
        ({"host": "localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_hosts_and_sites(hostile: Any, headers: dict[str, str], status: int, caplog: pytest.LogCaptureFixture) -> None:
    client, studio, _ = hostile
    with caplog.at_level(logging.WARNING, "instantstyle.serve"):
        answer = client.post("/v1/guess", json={"image": "data:,"}, headers=headers)
    assert answer.status_code == (400 if status == 200 else status)
    assert ("refused" in caplog.text) == (status != 200)
    assert "access-control-allow-origin" not in answer.headers
    assert b"instantstyle_refused" in studio.metrics_text()


def test_every_answer_carries_the_policy(hostile: Any) -> None:
    client, _, _ = hostile
    for path in ("/", "/static/app.js", "/v1/styles", "/nothing"):
        answer = client.get(path)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/static/app.js").headers["cache-control"] == "no-cache"


def test_bodies_are_limited_before_they_are_read(tmp_path: Path) -> None:
    studio = make_studio(tmp_path, limits=Limits(body_bytes=1000, upload_pixels=100))
    with TestClient(create_app(studio), base_url="http://127.0.0.1") as client:
        wait_ready(studio)
        answer = client.post("/v1/jobs", content=b"x" * 2000, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        chunks = (b"x" * 100 for _ in range(100))
        answer = client.post("/v1/jobs", content=chunks, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"
        answer = client.post("/v1/jobs", content=b"", headers={"content-length": "9" * 30})
        assert answer.status_code == 400
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20)).save(buffer, "PNG")
        answer = client.post("/v1/inputs", content=buffer.getvalue())
        assert answer.status_code == 400
        assert "100" in answer.json()["error"]["message"]


def test_a_named_site_may_ask(tmp_path: Path) -> None:
    site = "https://my.example"
    studio = make_studio(tmp_path)
    with TestClient(create_app(studio, origins=[site]), base_url="http://127.0.0.1") as client:
        headers = {"origin": site, "sec-fetch-site": "cross-site"}
        answer = client.get("/v1/styles", headers=headers)
        assert answer.headers["access-control-allow-origin"] == site
        asked = client.options("/v1/jobs", headers={**headers, "access-control-request-method": "POST"})
        assert asked.status_code == 204
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert client.post("/v1/jobs", content=b"{", headers=headers).status_code == 415
        assert client.options("/v1/jobs", headers={"origin": "https://other.example"}).status_code == 405


def test_a_token_is_asked_for_and_the_page_logs_in(tmp_path: Path) -> None:
    studio = make_studio(tmp_path)
    app = create_app(studio, token="a long secret", any_address=True)
    with TestClient(app, base_url="http://192.168.0.9") as client:
        wait_ready(studio)
        for path in ("/v1/jobs", "/v1/images", "/v1/events", "/metrics", "/openapi.json", "/readyz"):
            answer = client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/static/app.js", "/healthz", "/v1/session"):
            assert client.get(path).status_code == 200, path
        for given in ("Basic YTpi", "Bearer wrong", "Bearer ", "Bearer ä", "a long secret"):
            assert client.get("/v1/jobs", headers=cast("Any", {"authorization": given.encode()})).status_code == 401
        assert client.get("/v1/jobs", headers={"authorization": "Bearer a long secret"}).status_code == 200
        assert client.post("/v1/login", json={"token": "wrong"}).status_code == 401
        answer = client.post("/v1/login", json={"token": "a long secret"})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "a long secret" not in cookie
        assert client.get("/v1/jobs").status_code == 200  # by the cookie
        client.cookies.set(COOKIE, "0" * 64)
        assert client.get("/v1/session").json()["token"] is True


def test_the_words_of_a_host() -> None:
    assert host_of("[::1]:80") == "::1"
    assert host_of("a:x") is None
    assert host_of("LOCALHOST:1") == "localhost"
    assert is_loopback("127.0.0.5")
    assert not is_loopback("0.0.0.0")


def test_a_client_that_vanishes_in_mid_upload_leaves_nothing(tmp_path: Path) -> None:
    import socket
    import time

    from studio_server import live_server

    with live_server(tmp_path) as (address, studio):
        host, port = address.removeprefix("http://").split(":")
        raw = socket.create_connection((host, int(port)))
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
        )
        raw.sendall(head.encode() + b'{"prompt": "a')
        time.sleep(0.1)
        raw.close()
        time.sleep(0.1)
        assert studio.store.counts() == {"queued": 0, "running": 0}
        import httpx

        assert httpx.get(f"{address}/healthz").status_code == 200


def test_a_full_disk_is_said_and_the_server_lives(studio: Studio, client: TestClient, monkeypatch: Any) -> None:
    import time

    from instantstyle.errors import OutputError

    def refused(*_: object) -> str:
        raise OutputError("cannot write 'x.png': there is no room left for it; nothing half-written is left")

    with monkeypatch.context() as full:
        full.setattr(studio.files, "write", refused)
        view = client.post("/v1/jobs", json=QUICK, params={"wait": 30}).json()
        assert view["state"] == "failed"
        assert "no room left" in view["error"]
    import sqlite3

    real = studio.store.finish

    def full_once(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(studio.store, "finish", real)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(studio.store, "finish", full_once)
    view = client.post("/v1/jobs", json=QUICK).json()
    limit = time.monotonic() + 30
    while client.get(view["url"]).json()["state"] != "done":
        assert time.monotonic() < limit
        time.sleep(0.02)

    def no_put(*_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(studio.store, "put", no_put)
    answer = client.post("/v1/jobs", json=QUICK)
    assert answer.status_code == 507
    assert json.loads(answer.text)["error"]["code"] == "disk_full"
