# pyright: reportUnknownMemberType=false

"""Features are what the model makes of each picture, once, in shards that survive a kill, a full disk and bad data."""

import http.server
import io
import json
import resource
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instantstyle.errors import InputError, OutputError
from instantstyle.model import Model
from instantstyle.train.data.aspect_buckets import buckets, crop
from instantstyle.train.data.dataset import FeatureDataset
from instantstyle.train.data.feature_cache import (
    FeatureConfig,
    compute_features,
    truncate_caption,
    verify,
    write_manifest,
)
from instantstyle.train.data.records import Shard
from instantstyle.train.data.sources import find_shards
from tiny_models import model as made
from train import gallery

OPTIONS = FeatureConfig()


@pytest.fixture(scope="module")
def model() -> Model:
    """SDXL in small, 64 pixels a side."""
    return made("sdxl")


def run(model: Model, shards: Sequence[Shard], folder: Path, options: FeatureConfig = OPTIONS) -> dict[str, Any]:
    compute_features(model, shards, folder, options)
    return write_manifest(model, shards, folder, options)


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery's features, in two shards."""
    root = tmp_path_factory.mktemp("whole")
    run(model, find_shards(gallery.tars(root / "tars")), root / "features")
    return root / "features"


def test_buckets_are_those_of_sdxls_paper() -> None:
    # arXiv 2307.01952, appendix I: (height, width), of those at least as wide as they are high every one.
    listed = [
        *((512, w) for w in (1856, 1920, 1984, 2048)),
        *((576, w) for w in (1664, 1728, 1792)),
        *((640, w) for w in (1536, 1600)),
        *((704, w) for w in (1344, 1408, 1472)),
        *((768, w) for w in (1280, 1344)),
        *((832, w) for w in (1152, 1216)),
        *((896, w) for w in (1088, 1152)),
        *((960, w) for w in (1024, 1088)),
        *((1024, w) for w in (960, 1024)),
    ]
    ours = buckets(1024, 64)
    assert {(h, w) for w, h in ours if w >= h} == {(h, w) for h, w in listed if w >= h}
    assert {(h, w) for w, h in ours} == {(w, h) for w, h in ours}, "and as many upright ones"


def test_a_crop_says_what_was_done() -> None:
    cut = crop((2000, 1500), buckets(1024, 64))
    assert cut.target == (1152, 896)
    # The short way decides: 896 / 1500 > 1152 / 2000, so it is scaled to 1195 x 896 and loses 43 columns.
    assert cut.scaled == (1195, 896)
    assert cut.conditioning == (1500, 2000, 0, 21, 896, 1152)
    shown = Image.new("RGB", (2000, 1500))
    assert cut.apply(shown).size == (1152, 896)
    assert crop((64, 64), ((64, 64),)).conditioning == (64, 64, 0, 0, 64, 64)


def test_features_are_what_the_model_says(model: Model, whole: Path) -> None:
    features = FeatureDataset(whole)
    assert len(features) == len(gallery.PICTURES)
    rows = np.arange(6)
    assert features.captions(rows) == tuple(caption for _, _, caption, _ in gallery.PICTURES)
    assert features.style.tolist() == [0, 0, 0, 1, 1, 1]
    said = model.encode_prompt(features.captions(rows))
    assert said.pooled_prompt_embeds is not None
    half: dict[str, Any] = {"atol": 2e-3, "rtol": 2e-3}
    torch.testing.assert_close(features.array("context", rows), said.prompt_embeds, **half)
    torch.testing.assert_close(features.array("pooled", rows), said.pooled_prompt_embeds, **half)
    shown = [picture for _, picture, _, _ in gallery.PICTURES]
    torch.testing.assert_close(features.array("embed", rows), model.encode_image(shown), **half)
    # The first of them has the model's own size, so nothing is cut.
    torch.testing.assert_close(features.array("latents", rows[:1]), model.encode_latents(shown[0]), **half)
    assert features.sizes[0].tolist() == [64, 64, 0, 0, 64, 64]
    height, width, top, left, high, wide = features.sizes[1].tolist()
    assert (height, width) == (48, 96)
    cut = crop((96, 48), buckets(64, model.family.size_multiple))
    assert (wide, high, left, top) == (*cut.target, cut.left, cut.top)
    torch.testing.assert_close(features.array("latents", rows[1:2]), model.encode_latents(cut.apply(shown[1])), **half)
    assert json.loads((whole / "manifest.json").read_text())["licences"] == {"CC0-1.0": 6}


@pytest.mark.filterwarnings("ignore")  # of files that the library leaves open
def test_shards_are_webdatasets(whole: Path) -> None:
    """Read by the library whose format it is."""
    webdataset = pytest.importorskip("webdataset")
    features = FeatureDataset(whole)
    read = list(webdataset.WebDataset(str(whole / "00000.tar"), shardshuffle=False, empty_check=False))
    assert len(read) == 3
    for number, sample in enumerate(read):
        said = json.loads(sample["json"])
        assert said["caption"] == features.captions(np.array([number]))[0]
        latents = np.load(io.BytesIO(sample["latents.npy"]))
        assert torch.equal(torch.from_numpy(latents).float(), features.array("latents", np.array([number]))[0])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".tar"}


def test_what_is_there_is_not_made_again(model: Model, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = find_shards(whole.parent / "tars")
    times = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    compute_features(model, shards, whole, OPTIONS)
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == times
    # A kill leaves a shard without its note, or a part of one: only that one is made, and to the same bytes.
    before = files(whole)
    (whole / "00001.json").unlink()
    (whole / "00001.tar").write_bytes(b"half")
    run(model, shards, whole)
    assert files(whole) == before
    assert (whole / "00000.tar").stat().st_mtime_ns == times["00000.tar"]
    assert verify(whole) == []
    content = before["00001.tar"]
    (whole / "00001.tar").write_bytes(content[:600] + b"x" + content[601:])
    assert verify(whole) == ["00001.tar"]
    (whole / "00001.tar").write_bytes(content)


def test_two_processes_share_the_work(model: Model, whole: Path, tmp_path: Path) -> None:
    shards = find_shards(whole.parent / "tars")
    compute_features(model, shards, tmp_path, OPTIONS, process=(1, 2))
    assert list(files(tmp_path)) == ["00001.tar"]
    with pytest.raises(InputError, match="1 of 2 shards have no features yet"):
        write_manifest(model, shards, tmp_path, OPTIONS)
    compute_features(model, shards, tmp_path, OPTIONS, process=(0, 2))
    write_manifest(model, shards, tmp_path, OPTIONS)
    assert files(tmp_path) == files(whole)


def test_a_change_of_model_or_data_makes_them_anew(model: Model, whole: Path) -> None:
    shards = find_shards(whole.parent / "tars")
    with pytest.raises(InputError, match="2 of 2"):
        write_manifest(model, shards, whole, replace(OPTIONS, square=True))
    with pytest.raises(InputError, match="2 of 2"):
        write_manifest(made("emoji"), shards, whole, OPTIONS)


def test_all_that_is_bad_is_counted_and_listed(model: Model, tmp_path: Path) -> None:
    root = gallery.folder(tmp_path / "pictures")
    (root / "ink/cat.png").write_bytes((root / "ink/cat.png").read_bytes()[:100])
    (root / "ink/dog.txt").unlink()
    Image.new("RGB", (15, 64)).save(root / "red/cat.png")
    Image.new("RGB", (1200, 32)).save(root / "red/dog.png")
    manifest = run(model, find_shards(root), tmp_path / "features")
    assert manifest["counts"] | {"bytes": 0} == {
        "read": 6,
        "kept": 2,
        "bad": 4,
        "captions cut": 0,
        "shards": 1,
        "broken shards": 0,
        "styles": 0,
        "bytes": 0,
    }
    lines = [json.loads(line) for line in (tmp_path / "features/skipped.jsonl").read_text().splitlines()]
    whys = {Path(line["where"]).name + Path(line["where"]).parent.name: line["why"] for line in lines}
    assert "damaged" in whys["cat.pngink"]
    assert "no caption" in whys["dog.pngink"]
    assert "at least 16" in whys["cat.pngred"]
    assert "cut off" in whys["dog.pngred"]


def test_a_broken_tar_gives_what_it_has(model: Model, tmp_path: Path) -> None:
    path = gallery.tars(tmp_path / "tars") / "data-001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    manifest = run(model, find_shards(tmp_path / "tars"), tmp_path / "features")
    counts = manifest["counts"]
    assert counts["broken shards"] == 1
    assert 3 <= counts["kept"] < 6
    assert counts["read"] == counts["kept"] + counts["bad"]
    assert "cut short" in (tmp_path / "features/skipped.jsonl").read_text()


def test_nothing_good_at_all_is_a_sentence(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(InputError, match="not one of 1 records can be used"):
        run(model, find_shards(tmp_path), tmp_path / "features")


@contextmanager
def full(room: int) -> Generator[None]:
    """While entered the system itself refuses a file's growth over so many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_keeps_what_is_whole(model: Model, whole: Path, tmp_path: Path) -> None:
    shards = find_shards(whole.parent / "tars")
    compute_features(model, shards[:1], tmp_path, OPTIONS)
    with full(5000), pytest.raises(OutputError, match=r"no room left.*1 of 2 shards are whole and kept"):
        compute_features(model, shards, tmp_path, OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.json", "00000.tar"]
    run(model, shards, tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_set_with_every_damage_adds_up(model: Model, tmp_path: Path) -> None:
    """Corrupt tars, wrong sizes, missing captions and a full disk together: every record is kept, or told by name."""
    data, out = tmp_path / "data", tmp_path / "features"
    for name in ("cut", "spoilt", "whole"):
        gallery.tars(data / name)
        (data / name / "data-000.tar").rename(data / f"{name}.tar")
    content = (data / "cut.tar").read_bytes()
    starts = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    (data / "cut.tar").write_bytes(content[: starts[2] + 700])
    (data / "spoilt.tar").write_bytes(content[: starts[4] + 100] + b"xxxx" + content[starts[4] + 104 :])
    odd: dict[str, bytes] = {}
    sides = {"thin": (8, 64), "long": (1200, 32), "mute": (64, 64), "good": (64, 64), "gone": (64, 64)}
    for name, side in sides.items():
        odd |= gallery.members(f"{name}.png", Image.new("RGB", side, "red"), f"a {name} one", "ink")
    odd["mute.json"], odd["gone.png"] = b"{}", odd["gone.png"][:60]
    gallery.tar(data / "odd.tar", odd)
    (data / "odd.tar").rename(data / "a-odd.tar")
    (data / "no.tar").write_bytes(b"no tar at all")
    shards = find_shards(data)
    assert [Path(shard.name).stem for shard in shards] == ["a-odd", "cut", "no", "spoilt", "whole"]
    with full(25_000), pytest.raises(OutputError, match=r"no room left.*\d of 5 shards are whole and kept"):
        compute_features(model, shards, out, OPTIONS)
    before = files(out)
    assert 0 < len(before) < 5
    manifest = run(model, shards, out)
    assert files(out).items() >= before.items()
    assert manifest["counts"] | {"bytes": 0, "styles": 0} == {
        "read": 5 + 1 + 0 + 2 + 3,
        "kept": 1 + 1 + 0 + 2 + 3,
        "bad": 4,
        "captions cut": 0,
        "shards": 5,
        "broken shards": 3,
        "styles": 0,
        "bytes": 0,
    }
    here = [caption for _, _, caption, _ in gallery.PICTURES[:3]]
    assert list(FeatureDataset(out).captions(np.arange(7))) == ["a good one", here[0], *here[:2], *here]
    told = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [Path(line["shard"]).stem for line in told] == ["a-odd"] * 4 + ["cut", "no", "spoilt"]
    for name, why in {"thin": "at least 16", "long": "cut off", "mute": "no caption", "gone": "damaged"}.items():
        assert any(name in line["where"] and why in line["why"] for line in told[:4]), name
    assert verify(out) == []


def test_a_shard_whose_server_hung_up_is_read_again(model: Model, whole: Path, tmp_path: Path) -> None:
    """It may be whole the next time; one that is broken on disk stays as it is."""
    content = (whole.parent / "tars/data-000.tar").read_bytes()
    sent = [len(content) // 2]

    class Tired(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: sent[-1]])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tired) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        shards = find_shards(f"http://127.0.0.1:{server.server_port}/data.tar")
        assert run(model, shards, tmp_path)["counts"]["broken shards"] == 1
        half = files(tmp_path)["00000.tar"]
        sent.append(len(content))
        assert run(model, shards, tmp_path)["counts"]["broken shards"] == 0
        server.shutdown()
    assert files(tmp_path)["00000.tar"] == files(whole)["00000.tar"] != half


def test_long_captions_are_cut_by_words(model: Model) -> None:
    caption = " ".join(["a red cat"] * 40)
    short, was_cut = truncate_caption(model, caption)
    assert was_cut
    assert caption.startswith(short)
    model.encode_prompt([short])
    with pytest.raises(InputError):
        model.encode_prompt([" ".join(caption.split()[: len(short.split()) + 1])])
    assert truncate_caption(model, "a cat") == ("a cat", False)


@pytest.mark.parametrize("side", [60, 4])
def test_a_side_the_model_cannot_draw_is_refused(side: int, model: Model) -> None:
    with pytest.raises(InputError, match="no multiple"):
        FeatureConfig(side=side).resolved(model)
