"""For those who stay with diffusers: what its pipelines lack, as arguments that they take, without touching them.

    style = diffusers_style(model, request)          # the references' content subtracted, a plan as block scales
    pipe.set_ip_adapter_scale(style.scale)
    pipe(prompt, ..., ip_adapter_image_embeds=style.ip_adapter_image_embeds)

`model` is this library's, loaded from the pipeline's folder and adapter; `widen_adapter` makes of a style-only file one
that diffusers loads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site, TransformerConfig, UNetConfig
from instantstyle.errors import InputError
from instantstyle.methods.image_prompts import group_references, reference_features
from instantstyle.model import Model
from instantstyle.request import Request
from instantstyle.sampling.resolve import resolve
from instantstyle.utils.atomic_files import atomic_write, check_writable
from instantstyle.weights.adapter import open_adapter
from instantstyle.weights.transformer_adapter import adapter_places, layer_parts

BlockScales = float | list[float] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class DiffusersStyle:
    """The style of a request as diffusers' pipelines take it."""

    ip_adapter_image_embeds: Any
    """For the pipeline's call: a list of one tensor, [rows, references, width] or for Plus adapters [rows, references,
    sequence, width]; with guidance the unconditional row first.  Of Stable Diffusion 3 the tensor, [rows, sequence,
    width].  Of Flux the conditional row alone."""
    negative_ip_adapter_image_embeds: list[Tensor] | None
    """Of Flux what stands in the unconditional row."""
    scale: BlockScales
    """For `set_ip_adapter_scale`: a UNet's nested dictionary, a scale for each of Flux' double blocks, a number."""


@torch.no_grad()
def diffusers_style(model: Model, request: Request) -> DiffusersStyle:
    """What a request says of its references, for the pipeline that has the model's networks and its adapter.

    Raises InputError for what diffusers has no argument for: windows, masks, several adapters or plans, negative
    blocks, references whose weights differ.
    """
    resolved = resolve(model, request)
    groups = group_references(model, resolved)
    lacking = {
        "a window": resolved.window != (0.0, 1.0),
        "masks of references": any(each.mask is not None for each in groups),
        "several adapters or plans at once": len(groups) > 1,
        "a plan with negative blocks": any(each.plan.negative for each in groups),
    }
    if any(lacking.values()) or not groups or not resolved.method.needs_adapter:
        said = (
            ", ".join(name for name, given in lacking.items() if given) or "a style without a reference and an adapter"
        )
        raise InputError(f"diffusers' pipelines have no argument for {said}: leave it out, or generate here")
    group = groups[0]
    adapter, layout = group.adapter, model.family.layout
    features, weights = reference_features(model, adapter, resolved, group.references)
    if len(set(weights)) > 1:
        raise InputError("diffusers' pipelines weigh all references alike: give them one weight, or combine='average'")
    plan, nothing = group.plan.scaled(weights[0]), model.uncond_image_embeds(adapter)
    shown = features[None]
    hidden = nothing.expand_as(features)[None]
    both = torch.cat([hidden, shown]) if resolved.do_classifier_free_guidance else shown
    if isinstance(layout, UNetConfig):
        return DiffusersStyle([both], None, _nested(plan, layout))
    if adapter.normalizes_keys:
        raise InputError("diffusers does not load InstantX' adapters of Flux: generate here")
    adapter.speaking(plan, layout)
    scales = [plan.scale(site) for site in adapter.places or ()]
    if adapter.time_norms is None:
        return DiffusersStyle([shown], [hidden], scales)
    if len(set(scales)) > 1 or len(features) > 1:
        raise InputError("diffusers has one scale for all layers of this adapter, and one reference: generate here")
    return DiffusersStyle(both[:, 0], None, scales[0])


def _nested(plan: BlockPlan, layout: UNetConfig) -> dict[str, Any]:
    """A plan as diffusers' dictionary: a stage, in it a block, in it a scale for each of its attentions."""
    scales: dict[str, Any] = {}
    for module in layout.modules:
        scale = next(plan.scale(site) for site in layout.sites if site.module == module)
        stage, *block = module.split(".")
        if not block:
            scales[stage] = scale
        else:
            scales.setdefault(stage, {}).setdefault(f"block_{block[0]}", []).append(scale)
    return scales


def widen_adapter(path: str | Path, out: str | Path, model: Model) -> None:
    """Write a style-only adapter with zeros for the blocks it lacks, which diffusers' loader wants.

    Zero keys and values answer zero, so that at those blocks nothing enters.  Raises WeightsError, OutputError.
    """
    layout = model.family.layout
    with open_adapter(path) as file:
        tensors = {name: file.read(name) for name in file.shapes}
        parts = layer_parts(file)
    transformer = isinstance(layout, TransformerConfig)
    places = adapter_places(layout, xlabs="to_k_ip.bias" in parts) if transformer else layout.sites
    for number, site in enumerate(places):
        if transformer or site.kind == "cross":
            for part in parts:
                name = f"ip_adapter.{number}.{part}"
                tensors.setdefault(name, torch.zeros(_shape(layout, site, part, tensors)))
    check_writable(Path(out))
    with atomic_write(Path(out)) as partial:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        import_module("safetensors.torch").save_file(contiguous, partial, metadata={"format": "pt"})


def _shape(
    layout: UNetConfig | TransformerConfig, site: Site, part: str, tensors: Mapping[str, Tensor]
) -> Sequence[int]:
    """The shape of a layer's tensor: a transformer's are all alike."""
    if isinstance(layout, TransformerConfig):
        return next(tuple(tensor.shape) for name, tensor in tensors.items() if name.endswith(f".{part}"))
    width = layout.block_out_channels[site.resolution_level(len(layout.block_out_channels))]
    return width, layout.cross_attention_dim
