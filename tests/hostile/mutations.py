"""Changes that make a good file a bad one, whatever its format is."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any, cast

Made = Iterator[tuple[str, bytes]]
"""The name of each change, and the changed file."""


def of_bytes(content: bytes, chance: random.Random, flips: int = 4) -> Made:
    """Cut short, changed bits, lengths that lie, stretches of nothing, too much."""
    size = len(content)
    yield "empty", b""
    for cut in (1, 7, size // 10, size // 2, size - 1):
        yield f"cut at {cut}", content[:cut]
    for i in range(flips):
        yield f"bits flipped at its head {i}", _flipped(content, chance, min(size, 96))
        yield f"bits flipped anywhere {i}", _flipped(content, chance, size)
    for i, number in enumerate((0xFFFFFFFF, 0x7FFFFFFF, 0)):
        at = chance.randrange(0, max(1, min(size, 256) - 4))
        order = chance.choice("<>")
        yield f"a number of {number:#x} {i}", content[:at] + struct.pack(f"{order}I", number) + content[at + 4 :]
    third = size // 3
    yield "a stretch of zeros", content[:third] + bytes(third) + content[2 * third :]
    yield "a stretch of ones", content[:third] + b"\xff" * third + content[2 * third :]
    yield "noise", chance.randbytes(size)
    yield "noise behind its first bytes", content[:16] + chance.randbytes(min(size, 4096))
    yield "itself twice", content + content
    yield "something before it", b"\xef\xbb\xbf" + content
    yield "something behind it", content + chance.randbytes(512)


def _flipped(content: bytes, chance: random.Random, within: int) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(max(1, within))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def of_json(value: Any, chance: random.Random) -> Made:
    """Texts that are no JSON or strange JSON, and the value with one thing in it that is of another kind."""
    text = json.dumps(value)
    yield "no text", b""
    yield "cut short", text[: len(text) // 2].encode()
    yield "not UTF-8", text.encode().replace(b'"', b'\xff"', 1)
    yield "UTF-16", text.encode("utf-16")
    yield "a null byte", text.encode().replace(b'"', b'"\\u0000', 1)
    yield "half a surrogate pair", text.encode().replace(b'"', b'"\\ud800', 1)
    yield "deep lists", b"[" * 200_000
    yield "deep lists that end", b"[" * 50_000 + b"]" * 50_000
    yield "deep objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    yield "NaN", b"NaN"
    yield "a number", b"1e999"
    yield "a number of many digits", b"9" * 10_000
    yield "null", b"null"
    yield "a text", b'"text"'
    yield "a list of itself", f"[{text}]".encode()
    yield "an object where a list is, or the other way", b"{}" if isinstance(value, list) else b"[]"
    yield "a long text", json.dumps("x" * 2_000_000).encode()
    strange: list[Any] = [None, True, -1, 0, 1e308, float("nan"), 2**80, "\x1b[2J", "x" * 100_000, [], {}, [[[]]]]
    places = list(_places(value))
    for i, other in enumerate(strange):
        place = chance.choice(places)
        shown = repr(other)[:12].encode("unicode_escape").decode()
        yield (
            f"{i}: {shown} at {'.'.join(map(str, place)) or 'the top'}",
            json.dumps(_replaced(value, place, other)).encode(),
        )


def _places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    inside: Any = (
        cast("dict[str, Any]", value).items()
        if isinstance(value, dict)
        else enumerate(cast("list[Any]", value))
        if isinstance(value, list)
        else ()
    )
    for key, each in inside:
        yield from _places(each, (*here, key))


def _replaced(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    if not place:
        return other
    copied = json.loads(json.dumps(value))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = other
    return copied


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with any header, its length told as it is or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def of_safetensors(content: bytes, chance: random.Random) -> Made:
    """As any bytes, and headers that lie."""
    yield from of_bytes(content, chance)
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    data = content[8 + size :]
    yield "a header as long as an address", safetensors(content[8 : 8 + size], data, 2**63 - 1)
    yield "a header longer than its file", safetensors(content[8 : 8 + size], data, size + len(data) + 1)
    yield "a header of no tensors", safetensors({}, b"")
    yield "a header of nothing but words", safetensors({"__metadata__": {"a": "b"}}, b"")
    yield "a deep header", safetensors(b'{"a":' * 50_000, b"")
    names = [name for name in header if name != "__metadata__"]
    name = chance.choice(names)

    def changed(**fields: Any) -> bytes:
        return safetensors({**header, name: {**header[name], **fields}}, data)

    yield "a shape of another size", changed(shape=[*header[name]["shape"], 2])
    yield "a shape beyond all bounds", changed(shape=[2**62, 2**62])
    yield "a shape below zero", changed(shape=[-1])
    yield "offsets that run backwards", changed(data_offsets=header[name]["data_offsets"][::-1])
    yield "offsets beyond the file", changed(data_offsets=[0, 2**40])
    yield "offsets over another tensor's", changed(data_offsets=[0, header[name]["data_offsets"][1] + 4])
    yield "a dtype nobody knows", changed(dtype="F128")
    for dtype in ("I32", "U32", "F4", "F6_E2M3", "F8_E8M0", "F8_E4M3", "C64", "BOOL"):
        start = 0
        rows: dict[str, Any] = {}
        bits = {"F4": 4, "F6_E2M3": 6, "I32": 32, "U32": 32, "C64": 64}.get(dtype, 8)
        for each in names:
            shape = header[each]["shape"]
            many = 1
            for side in shape:
                many *= side
            end = start + many * bits // 8
            rows[each], start = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}, end
        yield f"tensors of {dtype}", safetensors(rows, bytes(start))
    empty = {each: {"dtype": "F32", "shape": [0, 2**61], "data_offsets": [0, 0]} for each in names}
    yield "all shapes vast and empty", safetensors(empty)
    flat = {each: {"dtype": "F32", "shape": [], "data_offsets": [4 * i, 4 * i + 4]} for i, each in enumerate(names)}
    yield "every tensor a number", safetensors(flat, bytes(4 * len(names)))
    none = {each: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for each in names}
    yield "every tensor empty", safetensors(none)
    nan = bytearray(data)
    at = header[name]["data_offsets"][0]
    if header[name]["dtype"] == "F32":
        nan[at : at + 4] = struct.pack("<f", float("nan"))
    yield "NaN in it", safetensors(header, bytes(nan))
    twice = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    yield "a name twice", safetensors(twice.encode(), data)
    yield "a name with controls", safetensors({**header, "\x1b[2J\r\n\x00": header[name]}, data)
    evil = {**{each: row for each, row in header.items() if each != name}, "\x1b[2J\x07" + name: header[name]}
    yield "a name that clears the screen", safetensors(evil, data)
    long = {**{each: row for each, row in header.items() if each != name}, name + "x" * 100_000: header[name]}
    yield "a long name", safetensors(long, data)
