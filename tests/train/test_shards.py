# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

"""Data in every form people keep it in gives the same records, and what is bad is told by name; nothing is lost."""

import http.server
import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from instantstyle.errors import InputError
from instantstyle.train.data.records import BadSample, Sample, Shard
from instantstyle.train.data.sources import find_shards
from instantstyle.utils.images import encode_png, load_image
from train import gallery

EXPECTED = [(caption, style) for _, _, caption, style in gallery.PICTURES]


def items(shards: list[Shard]) -> list[Sample | BadSample]:
    return [item for shard in shards for item in shard.items()]


def records(shards: list[Shard]) -> list[Sample]:
    found = items(shards)
    assert all(isinstance(item, Sample) for item in found), found
    return [item for item in found if isinstance(item, Sample)]


def bad(shards: list[Shard]) -> list[BadSample]:
    return [item for item in items(shards) if isinstance(item, BadSample)]


def check(found: list[Sample], *, styles: bool = True) -> None:
    assert [(r.caption, r.style) for r in found] == [(c, s if styles else None) for c, s in EXPECTED]
    for record, (_, shown, _, _) in zip(found, gallery.PICTURES, strict=True):
        assert load_image(record.picture).tobytes() == shown.tobytes()


def test_a_folder_with_texts_beside_the_pictures(tmp_path: Path) -> None:
    gallery.folder(tmp_path)
    check(records(find_shards(tmp_path)), styles=False)
    check(records(find_shards(tmp_path, styles="folder")))
    assert [len(list(shard.items())) for shard in find_shards(tmp_path, size=4)] == [4, 2]


def test_an_imagefolder(tmp_path: Path) -> None:
    gallery.imagefolder(tmp_path)
    found = records(find_shards(tmp_path))
    check(found)
    assert {r.licence for r in found} == {"CC0-1.0"}
    check(records(find_shards(tmp_path, styles="none")), styles=False)


def test_the_json_list_of_ip_adapters_script(tmp_path: Path) -> None:
    gallery.folder(tmp_path)
    listed = [{"image_file": name, "text": caption} for name, _, caption, _ in gallery.PICTURES]
    (tmp_path / "data.json").write_text(json.dumps(listed))
    check(records(find_shards(tmp_path / "data.json")), styles=False)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Two tars on a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    gallery.tars(tmp_path / "tars")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "tars")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


WAYS: dict[str, Callable[[Path, str], str]] = {
    "folder": lambda root, _: str(root),
    "braces": lambda root, _: f"{root}/data-{{000..001}}.tar",
    "glob": lambda root, _: f"{root}/data-*.tar",
    "http": lambda _, url: f"{url}/data-{{000..001}}.tar",
    "http-and-file": lambda root, url: f"{url}/data-000.tar::{root}/data-001.tar",
}


@pytest.mark.parametrize("way", WAYS)
def test_tars(way: str, tmp_path: Path, served: str) -> None:
    shards = find_shards(WAYS[way](tmp_path / "tars", served))
    assert len(shards) == 2
    check(records(shards))


def test_a_pipe(tmp_path: Path) -> None:
    gallery.tars(tmp_path)
    shards = find_shards(f"pipe:cat {tmp_path}/data-{{000..001}}.tar")
    assert [shard.name.split("/")[-1] for shard in shards] == ["data-000.tar", "data-001.tar"]
    check(records(shards))
    assert all(shard.remote for shard in shards)
    (broken,) = bad(find_shards("pipe:exit 3"))
    assert broken.broken
    with pytest.raises(InputError, match="as a pattern of tars"):
        find_shards("pipe:cat {a,b.tar")


def test_a_dataset_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": encode_png(shown), "path": None} for _, shown, _, _ in gallery.PICTURES],
        "text": [caption for caption, _ in EXPECTED],
        "style": [style for _, style in EXPECTED],
    }
    kinds = {"image": datasets.Image(), "text": datasets.Value("string"), "style": datasets.Value("string")}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.save_to_disk(str(tmp_path / "set"))
    shards = find_shards(tmp_path / "set", size=4)
    assert [len(list(shard.items())) for shard in shards] == [4, 2]
    check(records(shards))
    with pytest.raises(InputError, match="cannot load the dataset"):
        find_shards("hf:nobody/nothing")


def test_what_is_wrong_in_a_folder_is_told(tmp_path: Path) -> None:
    gallery.folder(tmp_path)
    (tmp_path / "ink/cat.txt").unlink()
    (tmp_path / "ink/dog.txt").write_text("  \n")
    (tmp_path / "red/cat.txt").write_bytes(b"\xff\xfe\xff")
    shards = find_shards(tmp_path)
    found = items(shards)
    assert len(found) == len(EXPECTED)
    why = {Path(b.where).relative_to(tmp_path).as_posix(): b.why for b in bad(shards)}
    assert why.pop("red/cat.png").startswith("its caption")
    assert why == {"ink/cat.png": "it has no caption", "ink/dog.png": "it has no caption"}


def test_what_is_wrong_in_metadata_is_told(tmp_path: Path) -> None:
    gallery.imagefolder(tmp_path)
    table = tmp_path / "metadata.jsonl"
    lines = table.read_text().splitlines()
    lines[0] = lines[0][:-3]
    lines[1] = json.dumps({"file_name": "ink/gone.png", "text": "a dog"})
    lines[2] = json.dumps({"text": "a house"})
    table.write_text("\n".join(lines))
    whys = sorted(b.why for b in bad(find_shards(tmp_path)))
    assert [why.split(":")[0] for why in whys] == [
        "it names no picture",
        "metadata.jsonl does not list it",
        "metadata.jsonl does not list it",
        "metadata.jsonl does not list it",
        "the line is no JSON",
        "there is no such file",
    ]


def test_what_is_wrong_in_a_tar_is_told(tmp_path: Path) -> None:
    shown = encode_png(gallery.PICTURES[0][1])
    files = {
        "0.png": shown,
        "0.txt": b"fine",
        "1.png": shown,
        "2.txt": b"no picture",
        "3.png": shown,
        "3.json": b"{",
        "4.png": shown,
        "4.jpg": shown,
        "4.txt": b"two pictures",
        "sub/5.png": shown,
        "sub/5.txt": b"fine too",
        ".hidden": b"",
    }
    found = items(find_shards(str(gallery.tar(tmp_path / "a.tar", files))))
    assert [type(item).__name__ for item in found] == [
        "Sample",
        "BadSample",
        "BadSample",
        "BadSample",
        "BadSample",
        "Sample",
    ]
    whys = [item.why for item in found if isinstance(item, BadSample)]
    assert [why.split("(")[0].split(":")[0].strip() for why in whys] == [
        "it has no caption",
        "it has no pictures among its files",
        "its text cannot be read",
        "it has 2 pictures among its files",
    ]


@pytest.mark.parametrize(
    "way", ["cut in a picture", "cut in a header", "cut between", "spoilt header", "no tar", "empty"]
)
def test_a_damaged_tar_keeps_what_came_before(way: str, tmp_path: Path) -> None:
    path = gallery.tars(tmp_path) / "data-000.tar"
    whole = path.read_bytes()
    # Each member is a header of 512 bytes, and its content filled up to 512.
    starts = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
    assert len(starts) == 6
    second = starts[2]
    spoilt = {
        "cut in a picture": whole[: second + 700],
        "cut in a header": whole[: second + 100],
        "cut between": whole[:second],
        "spoilt header": whole[: second + 100] + b"xxxx" + whole[second + 104 :],
        "no tar": b"hello" * 300,
        "empty": b"",
    }
    path.write_bytes(spoilt[way])
    before = 0 if way in ("no tar", "empty") else 1
    found = items(find_shards(str(path)))
    assert [r.caption for r in found if isinstance(r, Sample)] == [caption for caption, _ in EXPECTED[:before]]
    last = found[-1]
    assert isinstance(last, BadSample)
    assert last.broken
    assert "damaged or cut short" in last.why


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_tar_suffers_is_told_and_what_came_before_stands(seed: int, tmp_path: Path) -> None:
    """Bytes anywhere are spoilt, lost or put in between: reading ends with records, and with what is wrong."""
    rng = random.Random(seed)
    path = gallery.tars(tmp_path) / "data-000.tar"
    whole = path.read_bytes()
    headers = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
    # Half of the time a field of a header, which sizes and names are in.
    at = rng.choice(headers) + rng.randrange(160) if rng.random() < 0.5 else rng.randrange(headers[-1])
    length = rng.choice((1, 12, 700))
    spoilt = rng.choice((rng.randbytes(length), b"", rng.randbytes(length // 2)))
    path.write_bytes(whole[:at] + spoilt + whole[at + length :])
    before = sum(start <= at for start in headers[2::2])  # samples that were over when the damage came
    found = items(find_shards(str(path)))
    for item, (_, shown, caption, _) in zip(found[:before], gallery.PICTURES[:before], strict=True):
        assert isinstance(item, Sample)
        assert (item.picture, item.caption) == (encode_png(shown), caption)
    assert len(spoilt) == length or any(isinstance(item, BadSample) for item in found)


@pytest.mark.parametrize("nothing", ["nowhere", "nowhere-{000..003}.tar", "empty"])
def test_where_there_is_nothing_it_is_said(nothing: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there (is|are) no"):
        find_shards(str(tmp_path / nothing))


def test_a_stamp_changes_with_what_it_stamps(tmp_path: Path) -> None:
    gallery.folder(tmp_path / "f")
    gallery.tars(tmp_path / "t")
    for root in (tmp_path / "f", tmp_path / "t"):
        before = [shard.source_fingerprint() for shard in find_shards(root)]
        assert [shard.source_fingerprint() for shard in find_shards(root)] == before
        file = next(path for path in sorted(root.rglob("*")) if path.suffix in (".png", ".tar"))
        file.write_bytes(file.read_bytes() + b"\0" * 512)
        assert [shard.source_fingerprint() for shard in find_shards(root)] != before
