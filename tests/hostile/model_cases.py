"""Hostile folders of models: configurations, plans, words and indices that lie about the weights beside them."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import ones

import tiny_models
from hostile import mutations
from hostile.campaign import Case, Expected, rng_of
from hostile.picture_cases import file

READER = "model folder"


def cases(seed: int) -> Iterator[Case]:
    """All cases of this module's readers."""
    yield Case(READER, "as it is", with_files({}), "result")
    yield from _plans(seed)
    yield from _configurations(seed)
    yield from _indices()
    yield from _image_encoders(seed)


def with_files(changed: Mapping[str, bytes | None]) -> Callable[[Path], Path]:
    """A small model's folder with files replaced, added or (None) left out."""

    def write(folder: Path) -> Path:
        good = Path(tiny_models.folder("sdxl"))
        for path in good.rglob("*"):
            name = path.relative_to(good)
            if path.is_dir():
                (folder / name).mkdir()
            elif str(name) not in changed:
                (folder / name).symlink_to(path)
        for name, content in changed.items():
            if content is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return folder

    return write


def _json(name: str) -> Any:
    return json.loads((Path(tiny_models.folder("sdxl")) / name).read_text("utf-8"))


def _plans(seed: int) -> Iterator[Case]:
    plans = {"style": {"up.0.1": 1.0}, "layout": {"down.2.1": 0.5}, "source": "measured"}
    words = ["cat", "dog", "house"]
    for name, good in (
        ("presets.json", plans),
        ("vocabulary.json", words),
        ("model_index.json", _json("model_index.json")),
    ):
        for change, text in mutations.of_json(good, rng_of(READER, name, seed)):
            yield Case(READER, f"{name}, {change}", with_files({name: text}))
    made: Mapping[str, Any] = {
        "a strength of NaN": {"style": {"up.0.1": float("nan")}},
        "a strength of text": {"style": {"up.0.1": "1,down.2.1=1"}},
        "a strength of 10^400": {"style": {"up.0.1": 10**400}},
        "a block of a plan's signs": {"style": {"up.0.1=1,down.2.1": 1}},
        "a plan in a list": {"style": ["up.0.1"]},
        "a source in a list": {**plans, "source": ["a"] * 100_000},
        "100,000 blocks": {"style": {f"up.{i}": 1 for i in range(100_000)}},
    }
    for name, value in made.items():
        yield Case(READER, f"presets.json, {name}", with_files({"presets.json": json.dumps(value).encode()}), "refused")
    twice = b'{"style": {"up.0.1": 1.0}, "style": {"up.0.0": 1.0}}'
    yield Case(READER, "presets.json, a key twice", with_files({"presets.json": twice}), "refused")

    def pipe(folder: Path) -> Path:
        os.mkfifo(with_files({})(folder) / "presets.json")
        return folder

    yield Case(READER, "presets.json, a pipe", pipe, "refused")
    yield Case(
        READER, "vocabulary.json, 20 MB", with_files({"vocabulary.json": json.dumps(["w" * 9] * 10**6).encode()})
    )


def _configurations(seed: int) -> Iterator[Case]:
    kept = ("deep lists", "NaN", "null", "not UTF-8", "a list of itself", "a number of many digits")
    for part in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        for name, text in mutations.of_json(_json(part), rng_of(READER, part, seed)):
            if name in kept or name[0].isdigit():
                yield Case(READER, f"{part}, {name}", with_files({part: text}))
    fields: Mapping[str, tuple[str, Any]] = {
        "a billion layers a block": ("unet/config.json", {"layers_per_block": 10**9}),
        "a billion transformers": ("unet/config.json", {"transformer_layers_per_block": [10**9, 10**9, 10**9]}),
        "no heads": ("unet/config.json", {"attention_head_dim": [0, 0, 0]}),
        "no groups": ("unet/config.json", {"norm_num_groups": 0}),
        "channels below zero": ("unet/config.json", {"block_out_channels": [-16, 32, 32]}),
        "channels beyond all bounds": ("unet/config.json", {"block_out_channels": [2**62, 2**62, 2**62]}),
        "channels that no group divides": ("unet/config.json", {"block_out_channels": [17, 31, 33]}),
        "no latents": ("unet/config.json", {"in_channels": 0, "out_channels": 0}),
        "a width of half a number": ("unet/config.json", {"cross_attention_dim": 32.5}),
        "a million levels": ("unet/config.json", {"block_out_channels": [16] * 10**6}),
        "a size beyond all bounds": ("unet/config.json", {"sample_size": 10**12}),
        "a size below zero": ("unet/config.json", {"sample_size": -8}),
        "a billion layers": ("vae/config.json", {"layers_per_block": 10**9}),
        "a thousand levels": ("vae/config.json", {"block_out_channels": [8] * 1000}),
        "levels that are a number": ("vae/config.json", {"block_out_channels": 8}),
        "a scale of NaN": ("vae/config.json", {"scaling_factor": float("nan")}),
        "a scale of nothing": ("vae/config.json", {"scaling_factor": 0}),
        "a scale of text": ("vae/config.json", {"scaling_factor": "x"}),
        "a billion layers of text": ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        "a vocabulary of 10^12 words": ("text_encoder/config.json", {"vocab_size": 10**12}),
        "no heads of text": ("text_encoder/config.json", {"num_attention_heads": 0}),
        "a code of its own": (
            "text_encoder/config.json",
            {"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"], "model_type": "evil"},
        ),
        "an activation nobody knows": ("text_encoder/config.json", {"hidden_act": "__import__('os').system('x')"}),
        "a scheduler nobody knows": ("scheduler/scheduler_config.json", {"_class_name": "DiffusionPipeline"}),
        "a scheduler that is a function": ("scheduler/scheduler_config.json", {"_class_name": "__doc__"}),
        "a scheduler in a list": ("scheduler/scheduler_config.json", {"_class_name": ["DDIMScheduler"]}),
        "noise of 10^10 steps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}),
        "noise of no steps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        "noise of text": ("scheduler/scheduler_config.json", {"beta_start": "x"}),
        "noise of NaN": ("scheduler/scheduler_config.json", {"beta_start": float("nan")}),
        "noise of a kind nobody knows": ("scheduler/scheduler_config.json", {"beta_schedule": "evil"}),
        "a prediction nobody knows": ("scheduler/scheduler_config.json", {"prediction_type": "evil"}),
    }
    for name, (part, change) in fields.items():
        text = json.dumps({**_json(part), **change}).encode()
        expected: Expected = "either" if "auto_map" in change else "refused"  # the class is ours, whatever it names
        yield Case(READER, f"{part}, {name}", with_files({part: text}), expected)


def _indices() -> Iterator[Case]:
    weights = "unet/diffusion_pytorch_model.safetensors"
    index = f"{weights}.index.json"
    maps: Mapping[str, Any] = {
        "a file that lies outside": {"a": "../../outside.safetensors"},
        "a file from the root": {"a": "/etc/passwd"},
        "a number": {"a": 5},
        "a list": ["a"],
        "nothing": {},
        "a file that is not there": {"a": "b.safetensors"},
        "a name with a null byte": {"a": "\0"},
        "a name too long": {"a": "a" * 5000},
        "numbers and names": {"a": 5, "b": "c"},
    }
    for name, shards in maps.items():
        text = json.dumps({"weight_map": shards}).encode()
        yield Case(READER, f"index of weights, {name}", with_files({weights: None, index: text}), "refused")
    files: Mapping[str, tuple[Mapping[str, bytes | None], Expected]] = {
        "weights of no tensors": ({weights: save({})}, "refused"),
        "weights of another network": ({weights: save({"a": ones(1)})}, "refused"),
        "weights that are a page of HTML": ({weights: b"<!doctype html><title>404</title>"}, "refused"),
        "weights that are a pointer of Git LFS": (
            {weights: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"},
            "refused",
        ),
        "a VAE's weights cut short": ({"vae/diffusion_pytorch_model.safetensors": b"\x40" + bytes(60)}, "refused"),
        "a text encoder's weights cut short": ({"text_encoder/model.safetensors": b"\x40" + bytes(60)}, "refused"),
        "no text encoder's weights": ({"text_encoder/model.safetensors": None}, "refused"),
        "a tokenizer of deep JSON": ({"tokenizer/tokenizer.json": b"[" * 100_000}, "refused"),
        "a tokenizer of nothing": ({"tokenizer/tokenizer.json": b"{}"}, "refused"),
        "a tokenizer with a configuration of NaN": ({"tokenizer/tokenizer_config.json": b"NaN"}, "refused"),
        "a tokenizer with code of its own": (
            {
                "tokenizer/tokenizer_config.json": json.dumps(
                    {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
                ).encode(),
                "tokenizer/evil.py": b"open('owned', 'w')\nclass T: pass\n",
            },
            "either",
        ),
    }
    for name, (changed, expected) in files.items():
        yield Case(READER, name, with_files(changed), expected)


def _image_encoders(seed: int) -> Iterator[Case]:
    config = _json("image_encoder/config.json")

    def folder(text: bytes) -> Callable[[Path], Path]:
        def write(where: Path) -> Path:
            (where / "config.json").write_bytes(text)
            return where

        return write

    for name, text in mutations.of_json(config, rng_of("image encoder", "config", seed)):
        yield Case("image encoder", f"folder, {name}", folder(text))
    eyes = "vision_model.embeddings"
    good = {
        f"{eyes}.patch_embedding.weight": ones(8, 3, 4, 4),
        f"{eyes}.position_embedding.weight": ones(5, 8),
        "vision_model.encoder.layers.0.mlp.fc1.weight": ones(16, 8),
        "visual_projection.weight": ones(4, 8),
    }
    made: Mapping[str, Mapping[str, Any]] = {
        "a layer of number 10^9": {"vision_model.encoder.layers.999999999.mlp.fc1.weight": ones(1)},
        "a patch that is a number": {f"{eyes}.patch_embedding.weight": ones(())},
        "places that are a number": {f"{eyes}.position_embedding.weight": ones(())},
        "no places": {f"{eyes}.position_embedding.weight": ones(0, 8)},
        "a projection that is a number": {"visual_projection.weight": ones(())},
    }
    yield Case("image encoder", "file, as it is", file("a.safetensors", save(good)), "result")
    for name, change in made.items():
        expected: Expected = "either" if "layer" in name else "refused"  # layers are counted, and refused when read
        yield Case("image encoder", f"file, {name}", file("a.safetensors", save({**good, **change})), expected)
