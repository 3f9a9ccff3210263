# pyright: reportUnknownMemberType=false

"""Features made by Ray, on this machine or on a cluster that is there, are to the byte those that one process makes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instantstyle.train.data.feature_cache import FeatureConfig, compute_features, verify, write_manifest
from instantstyle.train.data.ray_cluster import ray_session
from instantstyle.train.data.sources import find_shards
from tiny_models import folder as model_folder
from tiny_models import model as made
from train import gallery

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a start of Ray takes 18 to 30 s of two shared cores, and every test needs one or two


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery's features, in two shards."""
    root = tmp_path_factory.mktemp("whole")
    alone(gallery.tars(root / "tars"), root / "features")
    return root / "features"


def alone(data: Path | str, folder: Path) -> None:
    """The features as this process makes them."""
    model, shards, options = made("sdxl"), find_shards(data), FeatureConfig()
    compute_features(model, shards, folder, options)
    write_manifest(model, shards, folder, options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".tar"}


def by_ray(data: Path | str, out: Path, ray: str = "local") -> subprocess.Popen[bytes]:
    """`train features --ray` in a process group of its own."""
    argv = ["train", "features", "--data", str(data), "--out", str(out), "--model", str(model_folder("sdxl"))]
    code = [sys.executable, "-m", "instantstyle", *argv, "--device", "cpu", "--ray", ray]
    return subprocess.Popen(code, stderr=subprocess.PIPE, start_new_session=True)


def test_a_cluster_that_is_there_makes_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    with ray_session("local", cores=1) as ray:
        done = by_ray(whole.parent / "tars", tmp_path, ray.get_runtime_context().gcs_address)
        _, said = done.communicate()
    assert done.returncode == 0, said.decode()
    assert files(tmp_path) == files(whole)


def test_where_no_cluster_is_it_is_said(whole: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as held:
        nobody = f"127.0.0.1:{held.getsockname()[1]}"
    done = by_ray(whole.parent / "tars", tmp_path, nobody)
    _, said = done.communicate()
    assert done.returncode == 2, said.decode()
    assert f"there is no Ray cluster at {nobody!r}" in said.decode()
    assert "Traceback" not in said.decode()


def test_ray_makes_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    done = by_ray(whole.parent / "tars", tmp_path)
    _, said = done.communicate()
    assert done.returncode == 0, said.decode()
    assert "features 2/2" in said.decode()
    assert files(tmp_path) == files(whole)
    theirs, ours = (json.loads((folder / "manifest.json").read_text())["sha256"] for folder in (tmp_path, whole))
    assert theirs == ours
    assert verify(tmp_path) == []


def test_ray_goes_on_by_shard_after_a_kill(tmp_path: Path) -> None:
    tars = [gallery.tars(tmp_path / f"{n}") / "data-000.tar" for n in range(6)]
    for number, each in enumerate(tars):
        each.rename(tmp_path / f"{number}.tar")
    data = f"pipe:sleep 2; cat {tmp_path}/{{0..5}}.tar"
    alone(data, tmp_path / "alone")
    killed = tmp_path / "killed"
    first = by_ray(data, killed)
    deadline = time.monotonic() + 600
    while not list(killed.glob("*.json")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("*.json")}
    assert 1 <= len(kept) < 6, "it was killed on the way"
    again = by_ray(data, killed)
    _, said = again.communicate()
    assert again.returncode == 0, said.decode()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was whole is not made again"
    assert files(killed) == files(tmp_path / "alone")
    assert not list(killed.glob(".*.part"))


def test_what_a_worker_of_the_cluster_cannot_do_is_its_own_sentence(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "00001.tar").mkdir()
    failed = by_ray(whole.parent / "tars", tmp_path)
    _, said = failed.communicate()
    assert failed.returncode == 1
    assert "cannot write" in said.decode()
    assert "of 2 shards are whole and kept" in said.decode()
