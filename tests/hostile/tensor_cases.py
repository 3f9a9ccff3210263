"""Hostile weight files: safetensors and pickles, read as whatever they may be given as."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.numpy import save as save_numpy
from safetensors.torch import save

import checkpoints
import tiny_models
from hostile import mutations
from hostile.campaign import Case, Expected, rng_of
from hostile.picture_cases import encoded, file, png_bomb
from hostile.picture_cases import png as claimed_png
from instantstyle.request.style_card import SUFFIX, EncoderEmbeddings, StyleCard, float_array
from oracle import loras


def cases(seed: int) -> Iterator[Case]:
    """All cases of this module's readers."""
    for reader, (name, good) in _GOOD.items():
        yield Case(reader, "as it is", file(name, good), "result")
        for change, content in _mutated(reader, seed):
            yield Case(reader, change, file(name, content))
    yield from _pickles(seed)
    yield from _places()
    yield from _adapters()
    yield from _loras(seed)
    yield from _controls(seed)
    yield from _cards()
    yield from _checkpoints()


def _mutated(reader: str, seed: int) -> mutations.Made:
    return mutations.of_safetensors(_GOOD[reader][1](), rng_of(reader, "safetensors", seed))


Tensors = dict[str, torch.Tensor]


@cache
def _weights() -> bytes:
    return save(
        {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.float16), "d": torch.tensor(1.0)}
    )


@cache
def _adapter() -> Tensors:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    return tiny_models.adapter_tensors(tiny_models.folder("sdxl"), 24, 32)


@cache
def _lora() -> Tensors:
    folder = Path(tiny_models.folder("sdxl"))
    unet: dict[str, Any] = {"unet": tiny_models.model("sdxl").unet}
    path = loras.write(folder / ".hostile.safetensors", loras.random_lora(unet, attention_only=True), "kohya", towers=2)
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    tensors = dict(list(load_file(path).items())[:12])
    path.unlink()
    return tensors


@cache
def _control() -> Tensors:
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    return load_file(tiny_models.controlnet("sdxl") / "diffusion_pytorch_model.safetensors")


def _card() -> StyleCard:
    rng = np.random.default_rng(3)
    seen = EncoderEmbeddings("an encoder", float_array(rng.normal(size=5)), float_array(rng.normal(size=(1, 5))))
    return StyleCard("ink", [seen], [encoded("PNG")], licence="CC0-1.0")


@cache
def _card_file() -> bytes:
    card = _card()
    text = {**card.model_dump(mode="json", exclude={"sights", "thumbnails"}), "encoders": ["an encoder"]}
    return _card_of(text)


def _card_of(text: Any, **changes: Any) -> bytes:
    card = _card()
    tensors: dict[str, Any] = {
        "0.probe": card.sights[0].probe.array,
        "0.embeds": card.sights[0].embeds.array,
        "thumbnail.0": np.frombuffer(card.thumbnails[0], np.uint8),
    }
    said = text if isinstance(text, str) else json.dumps(text)
    return save_numpy({**tensors, **changes}, {"instantstyle": said})


@cache
def _checkpoint() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write(Path(folder) / "a.safetensors", "sd15")
        return (Path(folder) / "a.safetensors").read_bytes()


_GOOD: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "weight file": ("a.safetensors", _weights),
    "IP-Adapter": ("a.safetensors", lambda: save(_adapter())),
    "LoRA": ("a.safetensors", lambda: save(_lora())),
    "ControlNet": ("a.safetensors", lambda: save(_control())),
    "style card": (f"a{SUFFIX}", _card_file),
    "checkpoint": ("a.safetensors", _checkpoint),
}


def pickled(value: Any, *, old: bool = False) -> bytes:
    """A file of torch's, of today or as before its version 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


class Runs:
    """What unpickles by running a command."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def _zipped(data: bytes, *more: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=9) as archive:
        for name, content in (("a/data.pkl", data), ("a/version", b"3\n"), ("a/byteorder", b"little"), *more):
            archive.writestr(name, content)
    return buffer.getvalue()


def _repacked(content: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """A file of torch's with each entry changed, or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if (made := change(name, old.read(name))) is not None:
                new.writestr(*made)
    return buffer.getvalue()


def _pickles(seed: int) -> Iterator[Case]:
    good = {"a": torch.ones(3), "b": {"c": torch.zeros(2, 2)}}
    for old, kind in ((False, "pickle"), (True, "old pickle")):
        yield Case("weight file", f"{kind}, as it is", file("a.bin", pickled(good, old=old)), "result")
        for name, content in mutations.of_bytes(pickled(good, old=old), rng_of("weight file", kind, seed), 3):
            yield Case("weight file", f"{kind}, {name}", file("a.bin", content))
    touch = "touch owned"
    shared: dict[str, Any] = {"t": torch.ones(1)}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    deep: dict[str, Any] = {"t": torch.ones(1)}
    for _ in range(3000):
        deep = {"a": deep}
    itself: dict[str, Any] = {"t": torch.ones(1)}
    itself["me"] = itself
    inner = pickle.dumps({"a": "x" * 50}, 2)
    made: Mapping[str, tuple[bytes | Callable[[], bytes], Expected]] = {
        "runs a command": (lambda: pickle.dumps(Runs(cast("Any", os).system, touch), 2), "refused"),
        "runs a command in a zip": (
            lambda: _zipped(pickle.dumps({"a": Runs(cast("Any", os).system, touch)}, 2)),
            "refused",
        ),
        "runs a command beside tensors": (
            lambda: pickled({"t": torch.ones(1), "x": Runs(cast("Any", os).system, touch)}),
            "refused",
        ),
        "evaluates Python": (lambda: pickle.dumps(Runs(eval, "open('owned', 'w')"), 2), "refused"),
        "opens a file": (lambda: pickle.dumps(Runs(open, "owned", "w"), 2), "refused"),
        "loads a library": (lambda: _zipped(b"\x80\x02cctypes\nCDLL\n(X\x01\0\0\0xtR."), "refused"),
        "names within names": (lambda: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch owned\x85R.", "refused"),
        "tensors 2^60 times, by sharing": (lambda: pickled(shared), "refused"),
        "dictionaries 3,000 deep": (lambda: _deep_pickle(3000), "either"),
        "a dictionary that holds itself": (lambda: pickled(itself), "refused"),
        "a tensor of 2^50 numbers that are one": (
            lambda: pickled({"a": torch.ones(1).expand(2**25, 2**25)}),
            "refused",
        ),
        "a tensor of 2^33 numbers that are one": (lambda: pickled({"a": torch.ones(1).expand(2**33)}), "refused"),
        "a sparse tensor": (lambda: pickled({"a": torch.eye(3).to_sparse()}), "refused"),
        "a sparse tensor of 2^40 numbers": (
            lambda: pickled(
                {"a": cast("Any", torch).sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), [1.0], (2**20, 2**20))}
            ),
            "refused",
        ),
        "a quantized tensor": (lambda: pickled({"a": _quantized()}), "refused"),
        "a tensor of no place": (lambda: pickled({"a": torch.empty(2**40, device="meta")}), "refused"),
        "complex numbers": (lambda: pickled({"a": torch.ones(2, dtype=torch.complex64)}), "refused"),
        "numbers that are text": (lambda: pickled({"a": "text", "b": 5}), "refused"),
        "a list": (lambda: pickled([torch.ones(1)]), "refused"),
        "two names that are one": (lambda: pickled({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}), "refused"),
        "a name that clears the screen": (lambda: pickled({"\x1b[2J": "x"}), "refused"),
        "an entry of the zip missing": (
            lambda: _repacked(pickled(good), lambda name, data: None if "/data/" in name else (name, data)),
            "refused",
        ),
        "an entry of the zip cut short": (
            lambda: _repacked(pickled(good), lambda name, data: (name, data[:1] if "/data/" in name else data)),
            "refused",
        ),
        "entries of the zip that lead out": (
            lambda: _repacked(pickled(good), lambda name, data: (f"../../{name}", data)),
            "refused",
        ),
        "a zip bomb for its pickle": (
            lambda: _zipped(b"\x80\x02" + b"N0" * 2**22, method=zipfile.ZIP_DEFLATED),
            "refused",
        ),
        "a zip bomb for its tensors": (lambda: _bombed_tensors(), "either"),
        "a zip that is none of torch's": (lambda: _zipped(inner)[:50] + b"PK" * 40, "refused"),
        "a zip of other things": (lambda: _other_zip(), "refused"),
        "a text of 2^60 bytes": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.", "refused"),
        "a text of 2^31 bytes": (b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"x.", "refused"),
        "a memo of 2^31 things": (b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".", "refused"),
        "an old file of 2^60 numbers": (lambda: _old_of_size(2**60), "refused"),
        "an old file of 2^28 numbers that are not there": (lambda: _old_of_size(2**28), "refused"),
        "marks without end": (b"\x80\x02" + b"(" * 2_000_000, "refused"),
        "a number of many digits": (b"\x80\x02I" + b"9" * 100_000 + b"\n.", "refused"),
        "no stack": (b"\x80\x02" + b"R" * 10 + b".", "refused"),
        "nothing but its first byte": (b"\x80", "refused"),
    }
    for name, (content, expected) in made.items():
        yield Case("weight file", f"pickle, {name}", file("a.bin", content), expected)


def _deep_pickle(depth: int) -> bytes:
    """Nested dictionaries, written without recursion."""
    return b"\x80\x02" + b"}X\x01\0\0\0a" * depth + b"}" + b"s" * depth + b"."


def _quantized() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


def _bombed_tensors() -> bytes:
    """A file of torch's whose numbers are deflated."""
    buffer = io.BytesIO()
    count = 10_000_000
    whole = pickled({"a": torch.ones(2)})
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if "/data/" in name:
                with new.open(name, "w", force_zip64=True) as out:
                    for _ in range(4 * count // 2**20):
                        out.write(bytes(2**20))
            else:
                data = old.read(name)
                new.writestr(name, data.replace(b"K\x02", b"J" + struct.pack("<i", count)))
    return buffer.getvalue()


def _other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def _old_of_size(count: int) -> bytes:
    content = pickled({"a": torch.ones(77)}, old=True)
    many = pickle.dumps(count, 2)[2:-1]
    return content.replace(b"KM", many).replace(struct.pack("<q", 77), struct.pack("<q", count))


def _places() -> Iterator[Case]:
    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "a.safetensors")
        return folder / "a.safetensors"

    def linked(target: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            (folder / "a.safetensors").symlink_to(target)
            return folder / "a.safetensors"

        return write

    def sparse(folder: Path) -> Path:
        with (folder / "a.safetensors").open("wb") as out:
            out.write(_weights()[:8])
            out.truncate(3 * 2**40)
        return folder / "a.safetensors"

    for reader in ("weight file", "IP-Adapter", "LoRA", "ControlNet", "checkpoint", "style card", "image encoder"):
        yield Case(reader, "a pipe that nobody writes to", pipe, "refused")
        yield Case(reader, "a link to itself", linked("a.safetensors"), "refused")
        yield Case(reader, "a link to a device without end", linked("/dev/zero"), "refused")
        yield Case(reader, "a name too long", lambda folder: folder / ("a" * 5000 + ".safetensors"), "refused")
        yield Case(reader, "a home that nobody has", lambda folder: Path("~nobody-at-all/a.safetensors"), "refused")
    yield Case("weight file", "3 TiB of nothing", sparse, "refused")
    yield Case("weight file", "a folder", lambda folder: folder, "refused")


def _changed(tensors: Tensors, **changes: Any) -> bytes:
    """The file with tensors added, replaced, or (None) left out; names are spelt with `__` for a point."""
    given = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return save({name: tensor for name, tensor in {**tensors, **given}.items() if tensor is not None})


def _adapters() -> Iterator[Case]:
    good, f = _adapter(), torch.ones
    layer = next(name for name in good if name.endswith("to_k_ip.weight"))
    made: Mapping[str, bytes] = {
        "a layer of number 10^9": _changed(good, **{"ip_adapter.1000000000.to_k_ip.weight": f(1, 1)}),
        "a layer of many digits": _changed(good, **{f"ip_adapter.{'9' * 5000}.to_k_ip.weight": f(1, 1)}),
        "a layer of a digit of another script": _changed(good, **{"ip_adapter.²1.to_k_ip.weight": f(1, 1)}),
        "a layer without its other half": _changed(good, **{layer: None}),
        "a projection of no tokens": _changed(good, image_proj__proj__weight=f(0, 24), image_proj__proj__bias=f(0)),
        "a projection of numbers alone": _changed(good, image_proj__proj__weight=torch.tensor(1.0)),
        "no projection": _changed(good, **{name: None for name in good if name.startswith("image_proj")}),
        "a resampler of nothing": _changed(
            {name: t for name, t in good.items() if not name.startswith("image_proj")},
            **{
                "image_proj.latents": f(1, 0, 0),
                "image_proj.proj_in.weight": f(0, 0),
                "image_proj.layers.0.0.to_q.weight": f(0, 0),
                "image_proj.layers.0.1.1.weight": f(0, 0),
            },
        ),
        "a resampler of one tensor": _changed(good, **{"image_proj.latents": f(1, 4, 8)}),
        "a FaceID adapter": _changed(good, **{"ip_adapter.0.to_q_lora.down.weight": f(1, 1)}),
    }
    for name, content in made.items():
        yield Case("IP-Adapter", name, file("a.safetensors", content), "refused")
    nested = {"image_proj": {k.removeprefix("image_proj."): t for k, t in good.items() if k.startswith("image_proj")}}
    nested["ip_adapter"] = {k.removeprefix("ip_adapter."): t for k, t in good.items() if k.startswith("ip_adapter")}
    yield Case("IP-Adapter", "a pickle, as it is", file("a.bin", pickled(nested)), "result")
    nested["ip_adapter"] = {name: t[:, :1].expand(*t.shape) for name, t in nested["ip_adapter"].items()}
    yield Case("IP-Adapter", "a pickle whose numbers are one number", file("a.bin", pickled(nested)), "either")


def _loras(seed: int) -> Iterator[Case]:
    good, f = _lora(), torch.ones
    down = next(name for name in good if name.endswith("lora_down.weight"))
    stem = down.removesuffix(".lora_down.weight")
    into = good[down].shape[1]
    made: Mapping[str, tuple[bytes, Expected]] = {
        "an alpha of two numbers": (_changed(good, **{f"{stem}.alpha": f(2)}), "refused"),
        "an alpha of no numbers": (_changed(good, **{f"{stem}.alpha": f(0)}), "refused"),
        "a rank of nothing": (
            _changed(good, **{down: f(0, into), f"{stem}.lora_up.weight": f(len(good[f"{stem}.lora_up.weight"]), 0)}),
            "refused",
        ),
        "a half that is a number": (_changed(good, **{down: torch.tensor(1.0)}), "refused"),
        "a block of number 10^9": (_changed(good, **_kohya("down_blocks_999999999_attentions_0_proj_in")), "refused"),
        "a block of many digits": (_changed(good, **_kohya(f"input_blocks_{'9' * 5000}_1_proj_in")), "refused"),
        "a block of SGM's number 10^9": (_changed(good, **_kohya("input_blocks_999999999_1_proj_in")), "refused"),
        "a name of nothing": (_changed(good, **{".lora_down.weight": f(1, 1)}), "refused"),
        "a name of points": (_changed(good, **{"lora_unet_....lora_A.weight": f(1, 1)}), "refused"),
        "a text encoder's layer 10^9": (
            _changed(good, **{"lora_te1_text_model_encoder_layers_999999999_mlp_fc1.lora_down.weight": f(1, 1)}),
            "refused",
        ),
        "an alpha beyond all bounds": (_changed(good, **{f"{stem}.alpha": torch.tensor(3e38)}), "either"),
    }
    for name, (content, expected) in made.items():
        yield Case("LoRA", name, file("a.safetensors", content), expected)
    peft = _peft()
    settings = {"r": 3, "lora_alpha": 2.0, "alpha_pattern": {"to_q": 4.0}, "use_rslora": False}
    yield Case("LoRA", "peft, as it is", _peft_folder(peft, json.dumps(settings).encode()), "result")
    for name, text in mutations.of_json(settings, rng_of("LoRA", "peft", seed)):
        yield Case("LoRA", f"peft, {name}", _peft_folder(peft, text))
    patterns: Mapping[str, Any] = {
        "a pattern that takes a regular expression long": {"alpha_pattern": {"(([a-z0-9_.]+)+)+!": 1.0}},
        "a pattern that is no regular expression": {"alpha_pattern": {"((": 1.0}},
        "a pattern beyond all bounds": {"alpha_pattern": {"a{1,99999}{1,99999}": 1.0}},
        "a pattern for each of 100,000 layers": {"alpha_pattern": {f"layer{i}": 1.0 for i in range(100_000)}},
        "an alpha of NaN": {"lora_alpha": float("nan")},
        "an alpha of infinity": {"lora_alpha": float("inf")},
        "an alpha of text": {"lora_alpha": "2 * 2"},
        "an alpha in a list": {"lora_alpha": [2.0]},
    }
    for name, change in patterns.items():
        yield Case("LoRA", f"peft, {name}", _peft_folder(peft, json.dumps({**settings, **change}).encode()))
    for name, text in (("deep", "[" * 100_000), ("a list", "[1]"), ("a number for a network", '{"unet.r": []}')):
        content = save(peft, {"lora_adapter_metadata": text})
        yield Case("LoRA", f"metadata of diffusers, {name}", file("a.safetensors", content))


def _kohya(module: str) -> Tensors:
    return {f"lora_unet_{module}.lora_{half}.weight": torch.ones(3, 3) for half in ("down", "up")}


def _peft() -> Tensors:
    stem = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    width = tiny_models.model("sdxl").unet.get_parameter(f"{stem.removeprefix('base_model.model.')}.weight").shape
    return {f"{stem}.lora_A.weight": torch.ones(3, width[1]), f"{stem}.lora_B.weight": torch.ones(width[0], 3)}


def _peft_folder(tensors: Tensors, settings: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "adapter_model.safetensors").write_bytes(save(tensors))
        (folder / "adapter_config.json").write_bytes(settings)
        return folder

    return write


def _controls(seed: int) -> Iterator[Case]:
    good, f = _control(), torch.ones
    made: Mapping[str, bytes] = {
        "a block of number 10^9": _changed(good, **{"down_blocks.999999999.resnets.0.conv1.weight": f(1, 1, 1, 1)}),
        "a transformer of number 10^9": _changed(
            good, **{"down_blocks.1.attentions.0.transformer_blocks.999999999.norm1.weight": f(1)}
        ),
        "an eye of number 10^9": _changed(good, **{"controlnet_cond_embedding.blocks.999999999.weight": f(1)}),
        "its first layer a number": _changed(good, **{"conv_in.weight": torch.tensor(1.0)}),
        "names of the first ControlNets, and no more": save({"control_model.input_hint_block.0.weight": f(1)}),
        "names of the first ControlNets, of number 10^9": save(
            {"control_model.input_hint_block.0.weight": f(1), "control_model.input_blocks.999999999.0.weight": f(1)}
        ),
    }
    for name, content in made.items():
        yield Case("ControlNet", name, file("a.safetensors", content), "refused")
    folder = tiny_models.controlnet("sdxl")
    config = json.loads((folder / "config.json").read_text())

    def with_config(text: bytes) -> Callable[[Path], Path]:
        def write(where: Path) -> Path:
            (where / "diffusion_pytorch_model.safetensors").symlink_to(folder / "diffusion_pytorch_model.safetensors")
            (where / "config.json").write_bytes(text)
            return where

        return write

    yield Case("ControlNet", "folder, as it is", with_config(json.dumps(config).encode()), "result")
    for name, text in mutations.of_json(config, rng_of("ControlNet", "config", seed)):
        yield Case("ControlNet", f"folder, {name}", with_config(text))
    fields: Mapping[str, Any] = {
        "a billion layers": {"layers_per_block": 10**9},
        "a billion transformers": {"transformer_layers_per_block": [10**9, 1, 1]},
        "a billion channels": {"block_out_channels": [10**9, 10**9, 10**9]},
        "no groups": {"norm_num_groups": 0},
        "a block nobody knows": {"down_block_types": ["Evil"] * 3},
    }
    for name, change in fields.items():
        yield Case("ControlNet", f"folder, {name}", with_config(json.dumps({**config, **change}).encode()), "refused")


def _cards() -> Iterator[Case]:
    text = {**_card().model_dump(mode="json", exclude={"sights", "thumbnails"}), "encoders": ["an encoder"]}

    def picture(content: bytes) -> bytes:
        return _card_of(text, **{"thumbnail.0": np.frombuffer(content, np.uint8)})

    made: Mapping[str, tuple[bytes | Callable[[], bytes], Expected]] = {
        "a text of another kind": (_card_of("[1]"), "refused"),
        "a deep text": (_card_of("[" * 50_000), "refused"),
        "a name that leads out": (_card_of({**text, "name": "../../ink"}), "refused"),
        "a name that clears the terminal": (_card_of({**text, "name": "\x1b[2J"}), "refused"),
        "encoders that are no list": (_card_of({**text, "encoders": 5}), "refused"),
        "more encoders than there are": (_card_of({**text, "encoders": ["a"] * 100_000}), "refused"),
        "fields of its own": (_card_of({**text, "sights": [], "run": "x"}), "refused"),
        "content of 10,000 phrases": (_card_of({**text, "content": ["a"] * 10_000}), "refused"),
        "a key twice": (_card_of(json.dumps(text)[:-1] + ', "name": "b"}'), "refused"),
        "numbers of NaN": (_card_of(text, **{"0.probe": np.full(5, np.nan, np.float32)}), "refused"),
        "numbers that do not fit": (_card_of(text, **{"0.probe": np.ones((7, 7, 7, 7), np.float32)}), "refused"),
        "a picture that is none": (lambda: picture(b"<svg/>"), "refused"),
        "a picture too large": (lambda: picture(claimed_png(50_000, 50_000)), "refused"),
        "a picture that is a bomb": (lambda: picture(png_bomb(16, 0)), "either"),
        "a picture of a strange number": (_card_of(text, **{"thumbnail.²": np.ones(3, np.uint8)}), "refused"),
        "pictures of numbers far apart": (_card_of(text, **{"thumbnail.99999": np.ones(3, np.uint8)}), "refused"),
    }
    for name, (content, expected) in made.items():
        yield Case("style card", name, file(f"a{SUFFIX}", content), expected)


def _checkpoints() -> Iterator[Case]:
    from safetensors.torch import load

    good, f = load(_checkpoint()), torch.ones
    unet, clip = "model.diffusion_model", "cond_stage_model.transformer.text_model"
    made: Mapping[str, Callable[[], bytes]] = {
        "a block of number 10^9": lambda: _changed(good, **{f"{unet}.input_blocks.999999999.0.weight": f(1)}),
        "a block of a digit of another script": lambda: _changed(good, **{f"{unet}.input_blocks.².0.weight": f(1)}),
        "a block of many digits": lambda: _changed(good, **{f"{unet}.input_blocks.{'9' * 5000}.0.weight": f(1)}),
        "a transformer of number 10^9": lambda: _changed(
            good, **{f"{unet}.input_blocks.1.1.transformer_blocks.999999999.norm1.weight": f(1)}
        ),
        "a text encoder of 10^9 layers": lambda: _changed(
            good, **{f"{clip}.encoder.layers.999999999.mlp.fc1.weight": f(1)}
        ),
        "a VAE of 10^9 levels": lambda: _changed(
            good, **{"first_stage_model.encoder.down.999999999.block.0.conv1.weight": f(1)}
        ),
        "a first layer that is a number": lambda: _changed(
            good, **{f"{unet}.input_blocks.0.0.weight": torch.tensor(1.0)}
        ),
        "a vocabulary of no words": lambda: _changed(good, **{f"{clip}.embeddings.token_embedding.weight": f(0, 4)}),
        "places that are a number": lambda: _changed(
            good, **{f"{clip}.embeddings.position_embedding.weight": torch.tensor(1.0)}
        ),
        "a UNet's tensor nobody knows": lambda: _changed(good, **{f"{unet}.evil.weight": f(1)}),
    }  # fmt: skip
    for name, content in made.items():
        yield Case("checkpoint", name, file("a.safetensors", content), "refused")
