"""The projection in an adapter's file, of whichever kind, told from the names and shapes of its tensors."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instantstyle.errors import WeightsError
from instantstyle.networks.image_projection import ImageProjection, MLPProjection, Resampler
from instantstyle.weights.tensor_files import TensorFile

PROJECTION = "image_proj."
"""What the names of its tensors begin with."""


def read_projection(file: TensorFile, context_dim: int, path: str | Path) -> tuple[nn.Module, int, int]:
    """The projection of an adapter's file, the width of what it reads, and the tokens it makes.

    `context_dim` is the width of the tokens.  Raises WeightsError.
    """
    shapes = {name.removeprefix(PROJECTION): s for name, s in file.shapes.items() if name.startswith(PROJECTION)}
    renamed = {name: name for name in shapes}
    try:
        with torch.device("meta"):
            if "time_embedding.linear_1.weight" in shapes:
                renamed = {_time_name(name): name for name in shapes}
                shapes = {name: shapes[stored] for name, stored in renamed.items()}
                module, width, count = _time_resampler(shapes)
            elif "latents" in shapes:
                module, width, count = _resampler(shapes, context_dim)
            elif "proj.weight" in shapes:
                out, width = shapes["proj.weight"]
                count = max(1, out // context_dim)
                module = ImageProjection(width, context_dim, count)
            elif "proj.0.weight" in shapes:
                width, middle, count = _mlp_shape(shapes, context_dim)
                module = MLPProjection(width, middle, context_dim, max(1, count))
            else:
                raise WeightsError(
                    f"{path} has a projection of another kind ({', '.join(list(shapes)[:3])}, ...): base and Plus "
                    "adapters are supported, FaceID and full-face ones are not"
                )
    except (KeyError, ValueError, IndexError, ZeroDivisionError, RuntimeError, TypeError, OverflowError) as e:
        raise WeightsError(f"the projection in {path} is incomplete or of wrong shapes: {e}") from e
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in [*expected, *(name for name in shapes if name not in expected)]:
        if shapes.get(name) != expected.get(name):
            has = f"has shape {list(shapes[name])}" if name in shapes else "is missing"
            needs = f"shape {list(expected[name])} is needed" if name in expected else "no such tensor belongs there"
            raise WeightsError(f"{PROJECTION}{name} in {path} {has}, but {needs}")
    tensors = {name: file.read(PROJECTION + renamed.get(name, name)) for name in expected}
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.requires_grad_(False).eval(), width, count


def _resampler(shapes: Mapping[str, tuple[int, ...]], context_dim: int) -> tuple[nn.Module, int, int]:
    _, count, dim = shapes["latents"]
    width = shapes["proj_in.weight"][1]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    heads = shapes["layers.0.0.to_q.weight"][0] // 64
    ff_mult = shapes["layers.0.1.1.weight"][0] // dim
    resampler = Resampler(width, context_dim, count, dim=dim, depth=depth, heads=heads, ff_mult=ff_mult)
    return resampler, width, count


def _mlp_shape(shapes: Mapping[str, tuple[int, ...]], context: int) -> tuple[int, int, int]:
    """Of InstantX' projection the width of what it reads, of its middle, and the tokens it makes."""
    middle, width = shapes["proj.0.weight"]
    return width, middle, shapes["proj.2.weight"][0] // context


_TIME_NAMES = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_kv": "attn.to_kv",
    "0.to_out": "attn.to_out.0",
    "1.0": "adaln_norm",
    "1.1": "ff.net.0.proj",
    "1.3": "ff.net.2",
    "2.1": "adaln_proj",
}
"""diffusers' names of the parts of a layer of InstantX' resampler, by the published ones."""
_TIME_LAYER = re.compile(r"(layers\.\d+)\.([012]\.\w+)\.(weight|bias)")


def _time_name(published: str) -> str:
    match = _TIME_LAYER.fullmatch(published)
    return published if match is None else f"{match[1]}.{_TIME_NAMES.get(match[2], match[2])}.{match[3]}"


def _time_resampler(shapes: Mapping[str, tuple[int, ...]]) -> tuple[nn.Module, int, int]:
    """diffusers' resampler whose tokens depend on the time (Stable Diffusion 3.5)."""
    kind: Any = importlib.import_module("diffusers.models.embeddings").IPAdapterTimeImageProjection
    hidden, width = shapes["proj_in.weight"]
    module = kind(
        embed_dim=width,
        output_dim=shapes["proj_out.weight"][0],
        hidden_dim=hidden,
        depth=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        heads=shapes["layers.0.attn.to_q.weight"][0] // 64,
        num_queries=shapes["latents"][1],
        timestep_in_dim=shapes["time_embedding.linear_1.weight"][1],
    )
    return module, width, shapes["latents"][1]
