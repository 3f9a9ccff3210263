"""Hostile training data: captions, JSON lists, tars, features; and YAML that names folders of models."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hostile import mutations
from hostile.campaign import Case, Expected, rng_of
from hostile.picture_cases import encoded, file


def cases(seed: int) -> Iterator[Case]:
    """All cases of this module's readers."""
    yield from _lists(seed)
    yield from _folders()
    yield from _tars(seed)
    yield from _features(seed)
    yield from _trees(seed)


def _with_pictures(name: str, content: bytes, *more: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        data = folder / "data"
        data.mkdir()
        (folder / "outside.png").write_bytes(encoded("PNG"))
        for each in ("1.png", "2.png", *more):
            (data / each).write_bytes(encoded("PNG"))
        (data / name).write_bytes(content)
        return data / name if name.endswith((".json", ".jsonl", ".tar")) else data

    return write


LIST: Sequence[Mapping[str, Any]] = [
    {"image_file": "1.png", "text": "a cat", "style": "ink"},
    {"image_file": "2.png", "text": "a dog", "style": "ink"},
]


def _lists(seed: int) -> Iterator[Case]:
    reader = "training pictures"
    yield Case(reader, "JSON list, as it is", _with_pictures("list.json", json.dumps(LIST).encode()), "result")
    for name, text in mutations.of_json(LIST, rng_of(reader, "json", seed)):
        yield Case(reader, f"JSON list, {name}", _with_pictures("list.json", text))
    lines = "\n".join(map(json.dumps, LIST)).encode()
    for name, text in mutations.of_bytes(lines, rng_of(reader, "jsonl", seed), 1):
        yield Case(reader, f"JSON lines, {name}", _with_pictures("metadata.jsonl", text))
    names = {
        "a path that leads out": "../outside.png",
        "a path that leads out by a detour": "1/../../outside.png",
        "a path from the root": "/etc/hostname",
        "a name too long": "a" * 5000 + ".png",
        "a name with a null byte": "a\0.png",
        "a name with controls": "\x1b[2J.png",
        "a home": "~/a.png",
        "half a surrogate pair": "\ud800.png",
    }
    for name, path in names.items():
        made = json.dumps([{"image_file": path, "text": "a cat"}, LIST[0]]).encode()
        yield Case(reader, f"a listed file, {name}", _with_pictures("list.json", made), "result")
    captions: Mapping[str, Any] = {
        "half a surrogate pair": "a \ud800 cat",
        "of ten million characters": "cat " * 2_500_000,
        "of controls": "\x1b[2J\x00\x07",
        "of spaces in Unicode": "\u2003\u200b\u3000",
    }
    for name, caption in captions.items():
        made = json.dumps([{"image_file": "1.png", "text": caption}]).encode()
        yield Case(reader, f"a caption {name}", _with_pictures("list.json", made), "result")
    deep = b'{"file_name": "1.png", "text": "a cat"}\n' + b"[" * 100_000 + b"\n"
    yield Case(reader, "JSON lines, one of them deep", _with_pictures("metadata.jsonl", deep), "result")


def _folders() -> Iterator[Case]:
    reader = "training pictures"

    def beside(name: str, content: bytes) -> Callable[[Path], Path]:
        write = _with_pictures(name, content)
        return lambda folder: write(folder).parent if name.endswith(".jsonl") else write(folder)

    def linked(target: str, name: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            data = _with_pictures("1.txt", b"a cat")(folder)
            (data / name).unlink(missing_ok=True)
            (data / name).symlink_to(target)
            return data

        return write

    def pipe(folder: Path) -> Path:
        data = _with_pictures("1.txt", b"a cat")(folder)
        os.mkfifo(data / "metadata.jsonl")
        return data

    made: Mapping[str, tuple[Callable[[Path], Path], Expected]] = {
        "a caption that is not UTF-8": (beside("1.txt", b"\xff\xfe\x00"), "result"),
        "a caption of 20 MB": (beside("1.txt", b"cat " * 5_000_000), "result"),
        "a caption that is a link to a device": (linked("/dev/zero", "1.txt"), "result"),
        "a caption that is a link to itself": (linked("1.txt", "1.txt"), "result"),
        "a link to the folder itself": (linked(".", "again"), "result"),
        "a picture that is a link to nothing": (linked("nothing", "3.png"), "result"),
        "a list that is a pipe": (pipe, "either"),
        "a list that is a link to itself": (linked("metadata.jsonl", "metadata.jsonl"), "either"),
    }
    for name, (write, expected) in made.items():
        yield Case(reader, f"folder, {name}", write, expected)


@cache
def _tar() -> bytes:
    return tar(
        [("a.png", encoded("PNG")), ("a.txt", b"a cat"), ("b.png", encoded("PNG")), ("b.json", b'{"text": "b"}')]
    )


def tar(members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of files by their names, or by headers that say more."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a right checksum, whatever it says."""
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    return header.tobuf(tarfile.GNU_FORMAT)


def _bomb(name: str, mebibytes: int, kind: bytes = tarfile.REGTYPE, times: int = 1) -> Callable[[Path], Path]:
    """Files of so much nothing, gzipped: one compressed stretch of nothing again and again."""
    nothing = gzip.compress(bytes(2**20), mtime=0)

    def write(folder: Path) -> Path:
        with (folder / "a.tar").open("wb") as out:
            for i in range(times):
                header = _header(name.replace("N", str(i)), mebibytes * 2**20, kind)
                out.write(gzip.compress(header, mtime=0) + nothing * mebibytes)
        return folder / "a.tar"

    return write


def _tars(seed: int) -> Iterator[Case]:
    reader, good = "training pictures", _tar()
    yield Case(reader, "tar, as it is", file("a.tar", good), "result")
    for name, content in mutations.of_bytes(good, rng_of(reader, "tar", seed), 4):
        yield Case(reader, f"tar, {name}", file("a.tar", content), "result")
    for name, content in mutations.of_bytes(gzip.compress(good, mtime=0), rng_of(reader, "tgz", seed), 2):
        yield Case(reader, f"gzipped tar, {name}", file("a.tar", content), "result")
    paths = {"out": "../../a", "from the root": "/etc/a", "controls": "\x1b[2J", "long": "d/" * 2000 + "a"}
    for name, path in paths.items():
        made = tar([(f"{path}.png", encoded("PNG")), (f"{path}.txt", b"a cat")])
        yield Case(reader, f"tar, names that lead {name}", file("a.tar", made), "result")
    link, device = tarfile.TarInfo("a.png"), tarfile.TarInfo("b.png")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    made = tar([(link, b""), ("a.txt", b"a cat"), (device, b""), ("b.txt", b"a dog")])
    yield Case(reader, "tar, pictures that are links and devices", file("a.tar", made), "result")
    texts = {
        "deep JSON": ("a.json", b"[" * 100_000),
        "JSON that is not UTF-8": ("a.json", b'{"text": "\xff"}'),
        "a caption that is not UTF-8": ("a.txt", b"\xff\xfe\xfa"),
        "half a surrogate pair": ("a.json", b'{"text": "\\ud800"}'),
        "a list for a caption": ("a.json", b'{"text": ["a"]}'),
        "a caption with controls": ("a.txt", b"\x1b[2Ja cat"),
    }
    for name, (path, content) in texts.items():
        yield Case(reader, f"tar, {name}", file("a.tar", tar([("a.png", encoded("PNG")), (path, content)])), "result")
    sizes: Mapping[str, Callable[[Path], Path]] = {
        "a file of 8 GiB that is not there": file("a.tar", _header("a.png", 2**33 - 1)),
        "a file of less than nothing": file("a.tar", _header("a.png", -5)),
        "a PAX header of 8 GiB that is not there": file("a.tar", _header("x", 2**33 - 1, tarfile.XHDTYPE)),
        "a long name of 8 GiB that is not there": file("a.tar", _header("x", 2**33 - 1, tarfile.GNUTYPE_LONGNAME)),
        "a sparse file of nothing": file("a.tar", _header("a.png", 2**30, tarfile.GNUTYPE_SPARSE)),
        "5,000 headers that each announce the next": file(
            "a.tar", (_header("x", 5, tarfile.GNUTYPE_LONGNAME) + b"name\0" + bytes(507)) * 5000
        ),
        "5,000 PAX headers in a row": file(
            "a.tar", (_header("x", 9, tarfile.XHDTYPE) + b"9 a=bcde\n" + bytes(503)) * 5000
        ),
        "a PAX header that is no text": file("a.tar", _header("x", 40, tarfile.XHDTYPE) + b"\xff" * 40 + bytes(472)),
        "a PAX header of sizes that lie": file(
            "a.tar",
            _header("x", 30, tarfile.XHDTYPE) + b"30 size=99999999999999999999 \n" + bytes(482) + _header("a", 0),
        ),
        "a gzipped long name of 1.5 GiB": _bomb("x", 1536, tarfile.GNUTYPE_LONGNAME),
        "a gzipped PAX header of 1.5 GiB": _bomb("x", 1536, tarfile.XHDTYPE),
        "a gzipped file of 1.5 GiB": _bomb("a.png", 1536),
        "a gzipped sample of 24 files of 60 MB": _bomb("a.N.bin", 60, times=24),
    }
    for name, write in sizes.items():
        yield Case(reader, f"tar, {name}", write, "result")


NOTE: Mapping[str, Any] = {
    "file": "00000.tar",
    "shard": "data[0:2]",
    "bytes": 0,
    "rows": [
        {"at": {"latents": [0, 0], "embed": [0, 0]}, "sizes": [64, 64, 0, 0, 64, 64], "style": "a", "caption": "a cat"},
        {"at": {"latents": [0, 0], "embed": [0, 0]}, "sizes": [64, 64, 0, 0, 64, 64], "style": None, "caption": "b"},
    ],
}


def _feature_folder(
    manifest: bytes | None = None, note: bytes | None = None, data: Callable[[bytes], bytes] = lambda content: content
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        content, good_note = _feature_data()
        (folder / "outside.json").write_text(json.dumps(good_note))
        (folder / "outside.tar").write_bytes(content)
        inside = folder / "features"
        inside.mkdir()
        (inside / "00000.tar").write_bytes(data(content))
        (inside / "00000.json").write_bytes(json.dumps(good_note).encode() if note is None else note)
        (inside / "manifest.json").write_bytes(json.dumps(_manifest()).encode() if manifest is None else manifest)
        return inside

    return write


def _manifest(name: str = "00000.tar") -> dict[str, Any]:
    return {"shards": [{"file": name, "sha256": "0" * 64, "rows": 2}], "key": "k", "counts": {"rows": 2}}


@cache
def _feature_data() -> tuple[bytes, dict[str, Any]]:
    note, content = json.loads(json.dumps(NOTE)), b""
    for row in note["rows"]:
        for part, shape in (("latents", (4, 8, 8)), ("embed", (24,))):
            buffer = io.BytesIO()
            np.save(buffer, np.ones(shape, np.float16))
            row["at"][part] = [len(content), len(buffer.getvalue())]
            content += buffer.getvalue()
    return content, note | {"bytes": len(content)}


def _features(seed: int) -> Iterator[Case]:
    reader = "features"
    yield Case(reader, "as they are", _feature_folder(), "result")
    for name, text in mutations.of_json(_manifest(), rng_of(reader, "manifest", seed)):
        yield Case(reader, f"manifest, {name}", _feature_folder(manifest=text))
    for name, text in mutations.of_json(_feature_data()[1], rng_of(reader, "note", seed)):
        yield Case(reader, f"index of a shard, {name}", _feature_folder(note=text))
    outside = json.dumps(_manifest("../outside.tar")).encode()
    yield Case(reader, "manifest, a file that lies outside", _feature_folder(manifest=outside), "refused")
    content, _ = _feature_data()
    for name, changed in mutations.of_bytes(content, rng_of(reader, "data", seed), 2):
        yield Case(reader, f"data, {name}", _feature_folder(data=lambda _, changed=changed: changed))
    huge = content.replace(b"(4, 8, 8)", b"(4,8<<60)").replace(b"(24,)", b"(1<<9,)")
    yield Case(reader, "data, a shape that lies", _feature_folder(data=lambda _: huge), "refused")
    objects = content.replace(b"'<f2'", b"'|O' ")
    yield Case(reader, "data, Python objects", _feature_folder(data=lambda _: objects), "refused")


YAML = b"""comfyui:
    base_path: models
    checkpoints: checkpoints
    loras: |
        loras
        more
"""


def _tree(content: bytes, name: str = "extra_model_paths.yaml") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for each in ("models/checkpoints", "models/loras"):
            (folder / each).mkdir(parents=True)
        (folder / "models/loras/ink.safetensors").write_bytes(b"x")
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _trees(seed: int) -> Iterator[Case]:
    reader = "model tree"
    yield Case(reader, "YAML, as it is", _tree(YAML), "result")
    for name, content in mutations.of_bytes(YAML, rng_of(reader, "yaml", seed), 3):
        yield Case(reader, f"YAML, {name}", _tree(content))
    laughs = b"a0: &a0 [lol]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 11)
    )
    strange: Mapping[str, bytes] = {
        "a bomb of aliases": laughs + b"c:\n    base_path: .\n    loras: *a10\n",
        "an alias of itself": b"a: &a\n    loras: [*a]\n    base_path: *a\n",
        "a list without end": b"[" * 20_000,
        "a deep object": b"".join(b" " * i + b"a:\n" for i in range(1500)),
        "a Python object": b"a: !!python/object/apply:os.system ['touch owned']\n",
        "a date that is none": b"a: 2001-99-99\n",
        "a number that is none": b"a: !!int ''\n",
        "a time that is none": b"a: !!timestamp x\n",
        "bytes that are none": b"a: !!binary '*'\n",
        "a number of many digits": b"a: " + b"9" * 10_000 + b"\n",
        "a list for a key": b"? [a]\n: b\n",
        "an object for a key": b"? {a: b}\n: b\n",
        "two documents": b"a: 1\n---\nb: 2\n",
        "a tag nobody knows": b"a: !x y\n",
        "merged with itself": b"a: &a\n    <<: *a\n",
        "tabs": b"a:\n\tb: c\n",
        "numbers for paths": b"c:\n    base_path: 5\n    loras: 7\n",
        "lists for paths": b"c:\n    base_path: [a]\n    loras: {a: b}\n",
        "a home that nobody has": b"c:\n    base_path: ~nobody-at-all/x\n    loras: loras\n",
        "a null byte": b'c:\n    base_path: "a\\0b"\n    loras: "l\\0"\n',
        "a path too long": b"c:\n    base_path: " + b"a" * 5000 + b"\n    loras: " + b"b" * 5000 + b"\n",
        "half a surrogate pair": b'c:\n    base_path: "\\ud800"\n    loras: loras\n',
        "20 MB": b"# " + b"x" * 20_000_000 + b"\n",
        "200,000 sections": b"".join(b"s%d: {loras: a}\n" % i for i in range(200_000)),
    }  # fmt: skip
    for name, content in strange.items():
        yield Case(reader, f"YAML, {name}", _tree(content))

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "a.yaml")
        return folder / "a.yaml"

    def loop(folder: Path) -> Path:
        (folder / "models/loras").mkdir(parents=True)
        (folder / "models/loras/again").symlink_to("..")
        (folder / "models/loras/ink.safetensors").symlink_to("ink.safetensors")
        return folder

    yield Case(reader, "YAML that is a pipe", pipe, "refused")
    yield Case(reader, "folders that are links to themselves", loop, "result")
    yield Case(reader, "a name too long", lambda folder: folder / ("a" * 5000), "refused")
    yield Case(reader, "a home that nobody has", lambda folder: Path("~nobody-at-all/x"), "refused")
