"""A hub on loopback: a repository is fetched as it is needed, goes on where it broke off, and is there offline."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories, in as much of the hub's API as huggingface_hub asks for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.cut: int | None = None
        """After so many bytes of a large file the connection breaks."""
        self.ranges: list[str] = []
        self.fetched: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/o/small/tree/[^/]+/?", path):
            tree = [
                {"type": "file", "path": name, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for name, c in self.server.files.items()
            ]
            self._json(tree)
        elif match := re.fullmatch(r"/api/models/o/small(/revision/[^/]+)?", path):
            self._json(
                {"id": "o/small", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.server.files]}
            )
        else:
            assert match is None
            self._file(body=True)

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, *, body: bool) -> None:
        match = re.fullmatch(r"/o/small/resolve/[^/]+/(.*)", self.path.split("?")[0])
        content = self.server.files.get(match[1]) if match else None
        if match is None or content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if body and (asked := self.headers.get("Range")):
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
        left = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(left)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        self.server.fetched.append(match[1])
        if self.server.cut is not None and len(left) > self.server.cut:
            self.wfile.write(left[: self.server.cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(left)


LARGE = os.urandom(2**20) * 24


@pytest.fixture
def hub() -> Generator[Hub]:
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    files = {f"{part}/config.json": b"{}" for part in parts} | {"model_index.json": b"{}"}
    files |= {"unet/diffusion_pytorch_model.safetensors": b"whole", "unet/diffusion_pytorch_model.bin": b"pickle"}
    files |= {"unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors": LARGE}
    files |= {"unet/diffusion_pytorch_model.safetensors.index.fp16.json": b"{}", "unet/flax_model.msgpack": b"flax"}
    files |= {"vae/diffusion_pytorch_model.safetensors": b"vae", "whole.ckpt": b"pickle", "README.md": b"words"}
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
import sys
from instantstyle.errors import WeightsError
from instantstyle.weights import hub
try:
    print(hub.fetch_model("o/small"))
except WeightsError as error:
    sys.exit(str(error))
"""


def fetch(hub: Hub, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its variables when it is imported."""
    told = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    told |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | told | more, capture_output=True, text=True, timeout=300
    )


def test_it_is_fetched_interrupted_resumed_and_there_offline(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 2**20
    broken = fetch(hub, tmp_path)
    assert "files that have come whole are kept, and asking again fetches the rest" in broken.stderr

    hub.fetched.clear()
    hub.cut = 11 * 2**20  # more than the ten MiB that huggingface_hub reads at a time: what has come is not asked again
    whole = fetch(hub, tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert set(hub.fetched) == {"unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors"}, "the rest is here"
    assert [int(asked.removeprefix("bytes=").split("-")[0]) for asked in hub.ranges] == [10 * 2**20, 20 * 2**20]
    folder = Path(whole.stdout.strip())
    got = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert got == set(hub.files) - {
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/flax_model.msgpack",
        "whole.ckpt",
        "README.md",
    }
    large = (folder / "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors").read_bytes()
    assert large == LARGE, "the parts fit together"

    hub.fetched.clear()
    again = fetch(hub, tmp_path)
    assert again.stdout == whole.stdout
    assert not hub.fetched, "what is here is not fetched again"
    offline = fetch(hub, tmp_path, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout == whole.stdout
    nothing = fetch(hub, tmp_path / "elsewhere", HF_HUB_OFFLINE="1")
    assert "cannot fetch 'o/small' from the hub, and it is not on this machine" in nothing.stderr
