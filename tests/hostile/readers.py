"""The readers of the campaign: each opens one path by the package's own entry points and says what it found.

An assertion of a reader's is a wrong result.  Results are looked at as callers do: pixels are decoded, weights read.
"""

import importlib
import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny_models
from instantstyle.blocks import BlockPlan
from instantstyle.loading import load
from instantstyle.request import Request, StyleReference, recall
from instantstyle.request.image import MAX_IMAGE_SIZE, store_image
from instantstyle.request.style_card import read_card
from instantstyle.request.third_party_metadata import read_third_party_request
from instantstyle.sampling.schedulers import make_scheduler, set_timesteps
from instantstyle.train.data.dataset import FeatureDataset
from instantstyle.train.data.records import BadSample
from instantstyle.train.data.sources import find_shards
from instantstyle.utils import images
from instantstyle.weights.adapter import adapter_input_dim, adapter_modules, extract_blocks, load_adapter
from instantstyle.weights.control import load_control
from instantstyle.weights.lora import LoRADeltas, lora_file, read_lora
from instantstyle.weights.model_folders import find_file, list_files
from instantstyle.weights.resolve import encoder_layout, resolve_model
from instantstyle.weights.tensor_files import open_tensors


def picture(path: Path) -> str:
    """A picture that a request holds, and all texts that it carries."""
    stored = store_image(path, MAX_IMAGE_SIZE)
    opened = stored.open()
    assert opened.mode == "RGB"
    assert 0 < max(opened.size) <= MAX_IMAGE_SIZE
    images.read_texts(path)
    return f"{opened.width} x {opened.height}"


def own_metadata(path: Path) -> str:
    """What a picture of ours remembers."""
    return _request(recall(path).request)


def third_party_metadata(path: Path) -> str:
    """What another program's picture remembers."""
    read = read_third_party_request(path)
    return f"{read.program}: {_request(read.request)}"


def request_json(path: Path) -> str:
    """A request as it comes over HTTP."""
    return _request(Request.from_json(path.read_bytes()))


def _request(request: Request) -> str:
    assert Request.from_json(request.to_json()) == request
    return f"{len(request.prompt)} characters"


def style_card(path: Path) -> str:
    """A style card, its pictures, and a request that holds it."""
    card = read_card(path)
    pictures = [each.mode for each in card.pictures()] if card.thumbnails else []
    assert set(pictures) <= {"RGB"}
    assert all(math.isfinite(float(sight.embeds.array.sum())) for sight in card.sights)
    _request(Request("a cat", references=[StyleReference(card)]))
    return f"{len(card.sights)} encoders, {len(pictures)} pictures"


def tensors(path: Path) -> str:
    """Every tensor of a weight file."""
    with open_tensors(path) as file:
        for name, shape in file.shapes.items():
            tensor = file.read(name)
            assert tuple(tensor.shape) == shape
            _sound(tensor)
        return f"{len(file.shapes)} tensors"


def _sound(tensor: Tensor) -> None:
    assert bool(torch.isfinite(tensor.float()).all())


@cache
def _model() -> Any:
    return tiny_models.model("sdxl")


def adapter(path: Path) -> str:
    """An IP-Adapter: what it reads, where it speaks, its weights, and a smaller file of it."""
    config, out = _model().family.unet, Path("slim.safetensors")
    plus, width = adapter_input_dim(path)
    modules = adapter_modules(path, config)
    loaded = load_adapter(path, config)
    for weights in (loaded.keys, loaded.values):
        for weight in weights.values():
            _sound(weight)
    assert loaded.is_plus == plus
    assert loaded.embed_dim == width
    extract_blocks(path, out, BlockPlan({modules[0]: 1.0}), config)
    adapter_modules(out, config)
    out.unlink()
    return ", ".join(modules)


def lora(path: Path) -> str:
    """A LoRA and the changes that it makes."""
    parts = {name: net for name, net in _model().networks.items() if name.startswith(("unet", "text_encoder"))}
    read = read_lora(lora_file(path), parts, _model().family.unet)
    for part, factors in read.items():
        shapes = {name: tuple(parameter.shape) for name, parameter in parts[part].named_parameters()}
        for change in LoRADeltas(factors, shapes, 1.0).values():
            _sound(change)
    return f"{sum(map(len, read.values()))} weights"


def controlnet(path: Path) -> str:
    """A ControlNet, as a file or a folder."""
    loaded = load_control(path, _model().family)
    return f"{sum(tensor.numel() for tensor in loaded.net.parameters())} numbers"


def checkpoint(path: Path) -> str:
    """A whole checkpoint in one file."""
    return _loaded(path)


def image_encoder(path: Path) -> str:
    """The layout of an image encoder, of a folder or of a file."""
    found = resolve_model(tiny_models.folder("sdxl"), image_encoder=path).image_encoder
    assert found is not None
    return f"{len(encoder_layout(found))} fields"


def model_folder(path: Path) -> str:
    """A model in diffusers' layout."""
    return _loaded(path)


def _loaded(path: Path) -> str:
    """A whole model, with what it says of sizes, plans, words and noise."""
    model = load(path)
    scheduler = make_scheduler(model, None)
    set_timesteps(scheduler, model, None, 4, model.family.size)
    assert all(0 < side <= 2**14 for side in model.family.size)
    assert all(isinstance(word, str) for word in model.vocabulary)
    return f"{len(model.networks)} networks"


def model_tree(path: Path) -> str:
    """A tree of models, as an environment variable names it."""
    os.environ["INSTANTSTYLE_MODELS"] = str(path)
    found = find_file("loras", "ink")
    return f"{found and found.name}, {len(list_files('checkpoints'))} checkpoints"


def training_pictures(path: Path) -> str:
    """Pictures with captions, from a folder, a JSON list or a tar; what is bad among them is told one by one."""
    good = bad = 0
    for shard in find_shards(path):
        shard.source_fingerprint()
        for item in shard.items():
            if isinstance(item, BadSample):
                bad += 1
                assert 5 < len(item.why) < 1000
                assert item.why.isprintable()
            else:
                good += 1
                assert item.caption.strip()
                item.caption.encode()
                inside = isinstance(item.picture, bytes) or path.parent.resolve() in item.picture.resolve().parents
                assert inside, f"{item.picture} lies outside"
    return f"{good} good, {bad} bad"


def features(path: Path) -> str:
    """Features that were computed before training."""
    import numpy as np

    data = FeatureDataset(path)
    rows = np.arange(len(data))
    batch = data.read(rows, rows)
    return f"{len(batch.captions)} rows"


def import_libraries() -> None:
    """Import what readers import late, once and not for every case anew."""
    _model()
    names = ("PIL.AvifImagePlugin", "PIL.WebPImagePlugin", "PIL.TiffImagePlugin", "webdataset.shardlists", "yaml")
    for name in ("diffusers.loaders.lora_pipeline", "diffusers.loaders.single_file_utils", *names):
        importlib.import_module(name)
    for kind in ("AutoencoderKL", "ControlNetModel", "EulerDiscreteScheduler"):
        getattr(importlib.import_module("diffusers"), kind)


READERS: Mapping[str, Callable[[Path], str]] = {
    "picture": picture,
    "own metadata": own_metadata,
    "third-party metadata": third_party_metadata,
    "request as JSON": request_json,
    "style card": style_card,
    "weight file": tensors,
    "IP-Adapter": adapter,
    "LoRA": lora,
    "ControlNet": controlnet,
    "checkpoint": checkpoint,
    "image encoder": image_encoder,
    "model folder": model_folder,
    "model tree": model_tree,
    "training pictures": training_pictures,
    "features": features,
}
