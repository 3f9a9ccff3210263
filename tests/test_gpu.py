"""The scripts that wait for a GPU work the first time they are needed: here in small, on the processor."""

import json
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu import adapter_step, agreement, kit, pack, speed, train
from PIL import Image
from torch import Tensor, nn

import instantstyle as ist
from instantstyle.emoji.procedural import THINGS, thing
from instantstyle.emoji.rasterize import rasters
from instantstyle.emoji.sources import SETS, concepts, in_set
from instantstyle.errors import InputError, WeightsError
from instantstyle.train.emoji import image_bank
from instantstyle.train.emoji.training import train_stage
from instantstyle.train.emoji.warm_start import warm_start

SHIPPED = train.SHIPPED


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What these tests share: the small model of SDXL's layout is written once."""
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture
def out(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results' folder of one test."""
    monkeypatch.setenv("OUT", str(tmp_path / "results"))
    monkeypatch.setattr(kit, "ROOT", home)
    return tmp_path / "results"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache filled from a pack of our own drawings."""
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path / "cache"))
    pack.unpack(pack.toy(tmp_path / "drawings.zip"), tmp_path / "cache")
    pack.forget()
    yield tmp_path / "cache"
    pack.forget()


@pytest.mark.parametrize("size", [0, 1, 100, 250])
def test_pieces_make_the_whole_again(tmp_path: Path, size: int) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(size))
    manifest = kit.split(file, tmp_path / "sent", limit=100)
    assert all(piece.stat().st_size <= 100 for piece in (tmp_path / "sent").glob("weights.bin.0*"))
    assert kit.join(manifest, tmp_path / "got").read_bytes() == file.read_bytes()


def test_a_folder_in_pieces_and_a_damaged_piece(tmp_path: Path) -> None:
    (tmp_path / "model/unet").mkdir(parents=True)
    (tmp_path / "model/unet/weights").write_bytes(os.urandom(3000))
    manifest = kit.split(tmp_path / "model", tmp_path / "sent", limit=1000)
    got = kit.join(manifest, tmp_path / "got")
    assert (got / "unet/weights").read_bytes() == (tmp_path / "model/unet/weights").read_bytes()
    piece = tmp_path / "sent/model.001"
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    with pytest.raises(InputError, match=r"model\.001 is missing or is not what was sent"):
        kit.join(manifest, tmp_path / "again")
    assert not (tmp_path / "again/model").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "link"])
def test_pieces_that_reach_out_of_their_folder(tmp_path: Path, name: str) -> None:
    whole = tmp_path / "model"
    with tarfile.open(whole, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = (tarfile.SYMTYPE, "/etc/hosts") if name == "link" else (tarfile.REGTYPE, "")
        tar.addfile(member)
    manifest = kit.split(whole, tmp_path / "sent")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "folder": True}))
    with pytest.raises(InputError, match="no plain file within their folder"):
        kit.join(manifest, tmp_path / "got")
    assert not (tmp_path / "got/model").exists()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where the tests were started in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_figures_go_on_where_they_were(out: Path) -> None:
    asked: list[str] = []

    def row(what: str) -> dict[str, float]:
        asked.append(what)
        return {"seconds": 1.0}

    first = kit.Figures("demo", dry=False, clock=kit.Clock(1))
    first.measure("a", lambda: row("a"))
    late = kit.Figures("demo", dry=False, clock=kit.Clock(-1))
    for what in ("a", "b"):
        late.measure(what, lambda what=what: row(what))
    assert not late.finish()
    assert late.waiting == ["b"]
    cut = kit.Figures("demo", dry=False, clock=kit.Clock(1))
    cut.measure("b", lambda: signal.raise_signal(signal.SIGINT) or row("never"))
    cut.measure("c", lambda: row("never"))
    assert cut.waiting == ["b", "c"]
    second = kit.Figures("demo", dry=False, clock=kit.Clock(1))
    for what in ("a", "b"):
        second.measure(what, lambda what=what: row(what))
    assert second.finish()
    assert asked == ["a", "b"], "each was measured once"
    assert list(json.loads((out / "demo.json").read_text())["rows"]) == ["a", "b"]


def test_the_clock_ends_a_training_which_has_saved_and_goes_on(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)

    def loss(number: int) -> Tensor:
        return net(torch.ones(1, 2)).square().mean()

    with pytest.raises(KeyboardInterrupt, match="saved"), kit.Clock(0.02):
        train_stage("demo", net, loss, folder=tmp_path, steps=10**9, lr=1e-3, batch=1)
    done = torch.load(tmp_path / "demo.pt", weights_only=True)["step"]
    train_stage("demo", net, loss, folder=tmp_path, steps=done + 1, lr=1e-3, batch=1)
    assert torch.load(tmp_path / "demo.pt", weights_only=True)["step"] == done + 1


def test_a_pack_is_the_drawings(toy: Path) -> None:
    assert [c.label for c in concepts()][-1] == "toy 7"
    assert all(in_set(name, concepts()[0]) for name in SETS)
    drawn, first = rasters("noto")[0], thing(next(iter(THINGS)))
    solid = first[..., 3] > 250
    error = drawn[solid][:, :3].astype(float) - first[solid][:, :3]
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 30
    assert np.abs(drawn[..., 3].astype(float) - first[..., 3]).mean() < 2
    assert len(image_bank.choose_things(24)) == 24
    with pytest.raises(InputError, match="24 at most"):
        image_bank.choose_things(25)


def test_a_bank_is_the_same_at_both_sizes(toy: Path) -> None:
    labels = image_bank.choose_things(20)
    small, large = (image_bank.make_bank(toy / "bank", "core", labels, 3, 4, 1, side) for side in (64, 128))
    assert np.array_equal(small.concept, large.concept)
    assert small.treatments == large.treatments
    shrunk = [np.asarray(Image.fromarray(each).reduce(2), float) for each in large.pictures]
    assert np.abs(np.stack(shrunk) - small.pictures).max() <= 1
    assert large.pictures.std() > 20


@pytest.mark.slow
def test_a_bank_is_the_same_by_however_many_processes(toy: Path) -> None:
    labels = image_bank.choose_things(20)
    one, two = (image_bank.make_bank(toy / str(n), "core", labels, 150, 2, 1, 64, processes=n) for n in (1, 2))
    assert np.array_equal(one.pictures, two.pictures)
    assert np.array_equal(one.style, two.style)


def test_agreement_in_small(out: Path) -> None:
    agreement.main(["--dry", "--device", "cpu"])
    rows = json.loads((out / "agreement.json").read_text())["rows"]
    assert rows["UNet, float32"]["apart"] == 0, "the measure is itself"
    assert rows["picture, instantstyle, float32"]["apart"] == 0
    assert 0 < rows["UNet, bfloat16"]["apart"] < 0.05
    assert rows["UNet beside diffusers', sdxl, float32"]["apart"] < 1e-4


def test_a_disagreement_is_a_failure(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "NETWORK", {"float32": 1e-4, "bfloat16": 1e-9})

    def agreed(*_: object) -> dict[str, bool]:
        return {"within": True}

    monkeypatch.setattr(agreement, "_picture", agreed)
    with pytest.raises(SystemExit, match="outside their tolerance: UNet, bfloat16"):
        agreement.main(["--dry", "--device", "cpu"])


def test_speed_in_small(out: Path) -> None:
    speed.main(["--dry", "--device", "cpu"])
    rows = json.loads((out / "speed.json").read_text())["rows"]
    assert {"ours, style, 2 rows", "diffusers, style, 2 rows", "ours, style, 2 rows, rest"} <= set(rows)
    assert all(row["seconds"] > 0 for what, row in rows.items() if "against" not in what)
    assert all(row["apart"] < 0.05 for what, row in rows.items() if "against" in what)


def test_an_adapters_step_in_small(out: Path) -> None:
    adapter_step.main(["--dry", "--device", "cpu"])
    rows = json.loads((out / "adapter_step.json").read_text())["rows"]
    assert set(rows) == {
        f"{what}, batch 2" for what in ("ours, style", "ours, style, fused AdamW", "ours, all", "published, all")
    }
    assert all(row["seconds"] > 0 for row in rows.values())


@pytest.fixture
def alone(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The results of a training: it changes which drawings there are."""
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    monkeypatch.setenv("INSTANTSTYLE_CACHE", os.environ.get("INSTANTSTYLE_CACHE", ""))
    yield out
    monkeypatch.undo()
    pack.forget()


def test_a_shipped_model_learns_on_at_128_pixels(alone: Path, tmp_path: Path) -> None:
    train.main(["bank", "joint", "--begin", "shipped", "--dry", "--device", "cpu", "--steps", "joint=1"])
    got = kit.join(alone / "emoji.pieces.json", tmp_path / "got")
    shipped, model = ist.load(SHIPPED), ist.load(got)
    assert model.family.size == (128, 128)
    assert len(model.vocabulary) == 20
    before, after = shipped.unet.state_dict(), model.unet.state_dict()
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 1e-3, "one step was taken from where the shipped model is"
    for part in ("text_encoder", "text_encoder_2", "vae"):
        ours, theirs = (each.networks[part].state_dict() for each in (shipped, model))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    drawn = ist.generate(
        model, ist.Request("a cat", references=[ist.StyleReference(Image.new("RGB", (8, 8)))], seed=1, steps=1)
    )
    assert drawn.images[0].size == (128, 128)


def test_a_training_begins_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "unet.pt").touch()
    with pytest.raises(WeightsError, match=r"has unet\.pt already"):
        warm_start(tmp_path, SHIPPED, 1)


@pytest.mark.slow
def test_all_stages_from_nothing_in_small(alone: Path, tmp_path: Path) -> None:
    stages = ["bank", "vae", "text", "clip", "unet", "look", "joint", "adapter", "control", "floors"]
    train.main([*stages, "--dry", "--device", "cpu", "--side", "64", "--count", "2"])
    assert (alone / "floors.md").exists()
    assert ist.load(kit.join(alone / "emoji.pieces.json", tmp_path / "got")).family.size == (64, 64)
