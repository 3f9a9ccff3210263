"""Hostile pictures, and pictures that carry hostile texts."""

import base64
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from PIL import Image, PngImagePlugin

import tiny_models
from hostile import mutations
from hostile.campaign import Case, Expected, rng_of
from instantstyle.request import GenerationMetadata, Request, StyleReference
from instantstyle.utils.images import METADATA_KEY

SUFFIXES: Mapping[str, str] = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}
FLIPS: Mapping[str, int] = {"PNG": 3, "JPEG": 3, "TIFF": 3, "WEBP": 2, "GIF": 2, "BMP": 1, "AVIF": 2}


def file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    """A case's input that is one file."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return write


def cases(seed: int) -> Iterator[Case]:
    """All cases of this module's readers."""
    yield from _pictures(seed)
    yield from _made_pictures()
    yield from _places()
    yield from _own_metadata(seed)
    yield from _third_party(seed)
    yield from _requests(seed)


@cache
def encoded(kind: str) -> bytes:
    """A good small picture of a format."""
    buffer = io.BytesIO()
    tiny_models.picture(3, 40).save(buffer, kind)
    return buffer.getvalue()


def _pictures(seed: int) -> Iterator[Case]:
    for kind, suffix in SUFFIXES.items():
        yield Case("picture", f"{kind}, as it is", file(f"a.{suffix}", encoded(kind)), "result")
        for name, content in mutations.of_bytes(encoded(kind), rng_of("picture", kind, seed), FLIPS[kind]):
            yield Case("picture", f"{kind}, {name}", file(f"a.{suffix}", content))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with a right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2, pixels: bytes | None = None) -> bytes:
    """A PNG that claims a size and a kind, with any chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = zlib.compress(b"\0" * 64) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """So many zero bytes, deflated: one block again and again, and the checksum that they have."""
    mebibyte, rest = (zlib.compressobj(9, zlib.DEFLATED, -15) for _ in range(2))
    block = mebibyte.compress(bytes(2**20)) + mebibyte.flush(zlib.Z_FULL_FLUSH)
    end = rest.compress(bytes(count % 2**20)) + rest.flush()
    return b"\x78\xda" + block * (count // 2**20) + end + struct.pack(">I", ((count % 65521) << 16) | 1)


def png_bomb(depth: int, colour: int, side: int = 7000) -> bytes:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    return png(side, side, depth=depth, colour=colour, pixels=zeros(side * (side * channels * depth // 8 + 1)))


def _tiff(entries: list[tuple[int, int, int, int]], following: int = 0, tail: bytes = b"") -> bytes:
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", following) + tail


def _made_pictures() -> Iterator[Case]:
    """Made to be harmful, not damaged by chance."""
    text = b"comment\0\0"
    icc = b"icc\0\0" + zlib.compress(b"\0" * 128)
    refused: Mapping[str, tuple[str, Callable[[], bytes]]] = {
        "PNG of 2^31 pixels a side": ("a.png", lambda: png(2**31 - 1, 2**31 - 1)),
        "PNG of 50,000 pixels a side": ("a.png", lambda: png(50_000, 50_000, pixels=zeros(2**20))),
        "PNG of one pixel by 40 million": ("a.png", lambda: png(1, 40_000_000, colour=0, pixels=zeros(80_000_000))),
        "PNG of 40 million pixels by one": ("a.png", lambda: png(40_000_000, 1, colour=0, pixels=zeros(40_000_001))),
        "PNG of no pixels": ("a.png", lambda: png(0, 10)),
        "PNG of a colour type nobody knows": ("a.png", lambda: png(8, 8, colour=5)),
        "PNG of a depth nobody knows": ("a.png", lambda: png(8, 8, depth=3)),
        "PNG with a chunk as long as an address": ("a.png", lambda: png(8, 8)[:33] + b"\xff" * 40),
        "PNG whose text inflates to 200 MB": ("a.png", lambda: png(8, 8, chunk(b"zTXt", text + zeros(200 * 2**20)))),
        "PNG with 300 texts of a megabyte each": (
            "a.png",
            lambda: png(8, 8, *[chunk(b"zTXt", b"%d\0\0" % i + zeros(2**20 - 1)) for i in range(300)]),
        ),
        "GIF of 65,535 pixels a side": ("a.gif", lambda: encoded("GIF")[:6] + b"\xff" * 4 + encoded("GIF")[10:]),
        "BMP of 2^31 pixels a side": (
            "a.bmp",
            lambda: encoded("BMP")[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + encoded("BMP")[26:],
        ),
        "TIFF of 2^31 pixels a side": (
            "a.tif",
            lambda: _tiff([(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), (258, 3, 1, 8), (262, 3, 1, 1)]),
        ),
        "TIFF whose directory is its own next": ("a.tif", lambda: _tiff([(256, 4, 1, 8), (257, 4, 1, 8)], 8)),
        "TIFF whose tag counts 2^32 values": (
            "a.tif",
            lambda: _tiff([(256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)]),
        ),
        "an SVG": ("a.png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
        "a PostScript program": ("a.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"),
        "a page of HTML": ("a.jpg", lambda: b"<!doctype html><title>404</title>"),
        "64 MB and one byte": ("a.png", lambda: bytes(64 * 2**20 + 1)),
    }  # fmt: skip
    for name, (path, content) in refused.items():
        yield Case("picture", name, file(path, content), "refused")
    either: Mapping[str, tuple[str, Callable[[], bytes]]] = {
        "PNG bomb of 49 megapixels, RGB": ("a.png", lambda: png_bomb(8, 2)),
        "PNG bomb of 49 megapixels, RGBA": ("a.png", lambda: png_bomb(8, 6)),
        "PNG bomb of 49 megapixels, 16 bits of grey": ("a.png", lambda: png_bomb(16, 0)),
        "PNG bomb of 49 megapixels, 16 bits of RGBA": ("a.png", lambda: png_bomb(16, 6)),
        "PNG whose pixels are missing": ("a.png", lambda: png(64, 64)),
        "PNG with a profile of zeros": ("a.png", lambda: png(8, 8, chunk(b"iCCP", icc), pixels=zeros(200))),
        "PNG whose profile inflates to 200 MB": (
            "a.png",
            lambda: png(8, 8, chunk(b"iCCP", b"icc\0\0" + zeros(200 * 2**20)), pixels=zeros(200)),
        ),
        "PNG with a palette too long": ("a.png", lambda: png(8, 8, chunk(b"PLTE", b"\1" * 900), colour=3)),
        "PNG with EXIF of a wrong order": ("a.png", lambda: png(8, 8, chunk(b"eXIf", b"MM\0*" + b"\xff" * 60))),
        "GIF of 10,000 frames": ("a.gif", lambda: _frames(10_000)),
        "JPEG with a profile of noise": ("a.jpg", lambda: _jpeg(icc_profile=b"\x01" * 3000)),
        "JPEG with EXIF of noise": ("a.jpg", lambda: _jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\x37" * 500)),
        "JPEG turned by a number that is none": ("a.jpg", lambda: _turned(77)),
        "TIFF of floating point with NaN and infinity": ("a.tif", _strange_floats),
    }
    for name, (path, content) in either.items():
        yield Case("picture", name, file(path, content))


def _frames(count: int) -> bytes:
    """A GIF whose first frame comes again and again."""
    content = encoded("GIF")
    palette = 13 + 3 * 2 ** ((content[10] & 7) + 1)
    return content[:palette] + content[palette:-1] * count + content[-1:]


def _jpeg(**fields: bytes) -> bytes:
    buffer = io.BytesIO()
    tiny_models.picture(3, 40).save(buffer, "JPEG", **cast("Any", fields))
    return buffer.getvalue()


def _turned(way: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = way
    return _jpeg(exif=exif.tobytes())


def _strange_floats() -> bytes:
    import numpy as np

    pixels = np.array([[float("nan"), float("inf")], [-1e30, 1e30]], np.float32)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


def _places() -> Iterator[Case]:
    """Paths that are no pictures."""

    def linked(target: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            (folder / "a.png").symlink_to(target)
            return folder / "a.png"

        return write

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "a.png")
        return folder / "a.png"

    yield Case("picture", "a link to itself", linked("a.png"), "refused")
    yield Case("picture", "a link to nothing", linked("b.png"), "refused")
    yield Case("picture", "a link to a device without end", linked("/dev/zero"), "refused")
    yield Case("picture", "a link to a folder", linked("."), "refused")
    yield Case("picture", "a pipe that nobody writes to", pipe, "refused")
    names = {
        "a name too long": "a" * 5000 + ".png",
        "a name with a null byte": "a\0.png",
        "a name with controls": "\x1b[2J\r.png",
        "a home that nobody has": "~nobody-at-all/a.png",
        "a name that is not UTF-8": "\udcff.png",
    }
    for name, path in names.items():
        yield Case("picture", name, lambda folder, path=path: folder / path, "refused")


def _with_texts(texts: Mapping[str, str | bytes], *, size: int = 8) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        if isinstance(text, bytes):
            info.add(b"tEXt", name.encode() + b"\0" + text)
        else:
            info.add_itxt(name, text)
    buffer = io.BytesIO()
    tiny_models.picture(3, size).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@cache
def _metadata() -> dict[str, Any]:
    request = Request("a cat", references=[StyleReference(tiny_models.picture())], seed=3, options={"shift": 0.5})
    return json.loads(GenerationMetadata(request, model="emoji", loras=[("a.safetensors", 0.5)]).to_json())


def _own_metadata(seed: int) -> Iterator[Case]:
    whole = _metadata()
    yield Case("own metadata", "as it is", file("a.png", _with_texts({METADATA_KEY: json.dumps(whole)})), "result")
    for name, text in mutations.of_json(whole, rng_of("own metadata", "json", seed)):
        yield Case("own metadata", name, file("a.png", _with_texts({METADATA_KEY: text})))
    bomb = base64.b64encode(png_bomb(16, 0)).decode()
    huge = base64.b64encode(png(50_000, 50_000, pixels=zeros(2**20))).decode()
    reference = whole["request"]["references"][0]

    def with_reference(image: Any) -> bytes:
        request = {**whole["request"], "references": [{**reference, "image": image}]}
        return _with_texts({METADATA_KEY: json.dumps({**whole, "request": request})})

    hash_ = reference["image"]["sha256"]
    made: Mapping[str, tuple[bytes | Callable[[], bytes], Expected]] = {
        "a picture that is a path": (with_reference("/etc/passwd"), "refused"),
        "a picture too large": (with_reference({"sha256": hash_, "png": huge}), "refused"),
        "a picture that is a bomb": (with_reference({"sha256": hash_, "png": bomb}), "either"),
        "a picture that is no base64": (with_reference({"sha256": hash_, "png": "*" * 100}), "refused"),
        "a million LoRAs": (
            lambda: _with_texts({METADATA_KEY: json.dumps({**whole, "loras": [["a", 1.0]] * 10**6})}),
            "either",
        ),
        "a key twice": (
            _with_texts({METADATA_KEY: json.dumps(whole)[:-1] + ', "model": "another"}'}),
            "refused",
        ),
        "none": (_with_texts({}), "refused"),
    }
    for name, (content, expected) in made.items():
        yield Case("own metadata", name, file("a.png", content), expected)


A1111 = (
    "a cat, (ink:1.2)\nNegative prompt: blurry\nSteps: 25, Sampler: Euler, CFG scale: 6.5, Seed: 7, Size: 512x768, "
    'Model: sdxl, Lora hashes: "one: aa, two: bb", Version: v1.9.3'
)
COMFY: Mapping[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8566257,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "normal",
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 2}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["4", 1]}},
}
INVOKE: Mapping[str, Any] = {
    "positive_prompt": "a red house",
    "negative_prompt": "people",
    "width": 1024,
    "height": 832,
    "seed": 42,
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "euler_a",
    "model": {"name": "sdxl"},
    "loras": [{"model": {"name": "ink"}, "weight": 0.75}],
}
FOOOCUS: Mapping[str, Any] = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "steps": 30,
    "seed": "9",
    "resolution": "(896, 1152)",
    "guidance_scale": 4.0,
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "base_model": "juggernaut",
    "version": "Fooocus v2.5.0",
}
SWARM: Mapping[str, Any] = {
    "sui_image_params": {"prompt": "a fox", "negativeprompt": "blurry", "seed": 5, "steps": 20, "cfgscale": 7.0}
}
PROGRAMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ComfyUI": ("prompt", COMFY),
    "InvokeAI": ("invokeai_metadata", INVOKE),
    "Fooocus": ("parameters", FOOOCUS),
    "SwarmUI": ("parameters", SWARM),
}


def _third_party(seed: int) -> Iterator[Case]:
    reader = "third-party metadata"
    for program, (key, good) in PROGRAMS.items():
        for name, text in mutations.of_json(good, rng_of(reader, program, seed)):
            yield Case(reader, f"{program}, {name}", file("a.png", _with_texts({key: text})))
    chance = rng_of(reader, "A1111", seed)
    yield Case(reader, "A1111, as it is", file("a.png", _with_texts({"parameters": A1111})), "result")
    for name, text in mutations.of_bytes(A1111.encode(), chance, 2):
        yield Case(reader, f"A1111, {name}", file("a.png", _with_texts({"parameters": text})))
    lines = {
        "a line that takes a regular expression long": "x\nSteps: 1, " + "a" * 400_000,
        "a name of 300,000 spaces": "x\nSteps: 1, a" + " " * 300_000,
        "a quotation that does not end": 'x\nSteps: 1, Model: "' + "\\" * 300_001,
        "many colons": "x\nSteps: 1, " + ":" * 300_000,
        "many names": "x\nSteps: 1, " + ", ".join(f"n{i}: {i}" for i in range(100_000)),
        "numbers of many digits": f"x\nSteps: {'9' * 5000}, Seed: {'9' * 5000}, CFG scale: 1e{'9' * 50}",
        "a size of many digits": f"x\nSteps: 1, Size: {'9' * 5000}x1",
        "numbers in other scripts": "x\nSteps: ٣, Seed: ²",
        "nothing": "",
        "brackets without end": "(" * 100_000 + "\nSteps: 1, Seed: 2",
    }
    for name, text in lines.items():
        yield Case(reader, f"A1111, {name}", file("a.png", _with_texts({"parameters": text})))
    loop = {**COMFY, "6": {"class_type": "X", "inputs": {"a": ["6", 0]}}}
    wide = {**COMFY, **{str(i): {"class_type": "X", "inputs": {"a": [str(i + 1), 0]}} for i in range(100, 30_000)}}
    wide["6"] = {"class_type": "X", "inputs": {"a": ["100", 0]}}
    graphs: Mapping[str, Any] = {
        "a node wired to itself": loop,
        "a chain of 30,000 nodes": wide,
        "nodes that are no objects": {**COMFY, "6": [1], "5": "x"},
        "inputs that are lists": {**COMFY, "5": {"class_type": "EmptyLatentImage", "inputs": [1, 2]}},
        "a size of text": {**COMFY, "5": {"class_type": "E", "inputs": {"width": "∞", "height": []}}},
    }
    for name, graph in graphs.items():
        yield Case(reader, f"ComfyUI, {name}", file("a.png", _with_texts({"prompt": json.dumps(graph)})))
    user_comment = {
        "UTF-16": b"UNICODE\0" + A1111.encode("utf-16-be"),
        "an odd number of bytes of UTF-16": b"UNICODE\0" + A1111.encode("utf-16-be")[:-1],
        "no code at all": b"\xff" * 64,
        "a JSON of Fooocus": b"ASCII\0\0\0" + json.dumps(dict(FOOOCUS)).encode(),
        "deep JSON": b"ASCII\0\0\0" + b"[" * 50_000,
        "empty": b"",
    }
    for kind in ("JPEG", "WEBP"):
        for name, comment in user_comment.items():
            yield Case(reader, f"{kind} with EXIF of {name}", file(f"a.{SUFFIXES[kind]}", _commented(kind, comment)))

    laughs = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
    packets: Mapping[str, bytes] = {
        "a bomb of entities": f"{laughs}]><x a='1'>&a9;</x>".encode(),
        "a bomb of entities in UTF-16": f"{laughs}]><x a='1'>&a9;</x>".encode("utf-16"),
        "an entity that is a file": b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>",
        "100,000 elements in each other": b"<a>" * 100_000 + b"x" + b"</a>" * 100_000,
        "no XML": b"\xff\x00<",
    }
    for name, packet in packets.items():
        content = png(8, 8, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet), pixels=zeros(200))
        yield Case(reader, f"PNG with XMP of {name}", file("a.png", content))


def _commented(kind: str, comment: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    buffer = io.BytesIO()
    tiny_models.picture(3, 40).save(buffer, kind, exif=exif.tobytes())
    return buffer.getvalue()


def _requests(seed: int) -> Iterator[Case]:
    request = _metadata()["request"]
    yield Case("request as JSON", "as it is", file("a.json", json.dumps(request).encode()), "result")
    for name, text in mutations.of_json(request, rng_of("request as JSON", "json", seed)):
        yield Case("request as JSON", name, file("a.json", text))
    deep: Any = 1
    for _ in range(800):
        deep = {"a": deep}
    fields: Mapping[str, Any] = {
        "a plan 800 deep": {**request, "plan": deep},
        "a prompt 800 deep": {**request, "prompt": deep},
        "a thousand options": {**request, "options": {f"o{i}": 1 for i in range(1000)}},
        "a style card by a path": {**request, "references": [{"image": "../../a.style.safetensors"}]},
        "a size of one pixel": {**request, "size": [1, 1]},
        "a window backwards": {**request, "window": [1, 0]},
    }
    for name, value in fields.items():
        yield Case("request as JSON", name, file("a.json", json.dumps(value).encode()), "refused")
    twice = json.dumps(request)[:-1] + ', "prompt": "another"}'
    yield Case("request as JSON", "a key twice", file("a.json", twice.encode()), "refused")
    noise = random.Random(seed).randbytes(4000)
    yield Case("request as JSON", "noise", file("a.json", noise), "refused")
