# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

"""B-LoRA (arXiv 2403.14572): a low-rank change of two blocks, fitted to the reference; the style block's is the style.

W' = W + w B A.  Fitted together, one block takes what the picture shows and the other how it looks.  A picture is drawn
with the style block's change B A alone, added once times the reference's weight w (the published code multiplies both
B and A by its strength, so that there it acts squared: its 1.1 is 1.21 here).  A fit is kept on disk, by pictures and
settings.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from instantstyle.blocks import BlockPlan, Site, parse_block_plan
from instantstyle.errors import InputError
from instantstyle.families import Family, LoRATraining
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.injection import Injection
from instantstyle.methods.lora_training import train_lora
from instantstyle.methods.options import Option, Options, Value, resolve_options
from instantstyle.model import Model
from instantstyle.networks.weight_deltas import with_weight_deltas
from instantstyle.request import ImageInput, Request, store_image
from instantstyle.weights.lora import LoRADeltas, LoRAFactors, load_factors, save_lora

B_LORA: Options = {
    "fit-steps": Option(0, "steps of the fit; 0: the family's", 0.0, 20000.0),
    "fit-rank": Option(0, "rank of the change; 0: the family's", 0.0, 512.0),
    "fit-rate": Option(0.0, "learning rate of the fit; 0: the family's", 0.0, 0.1),
    "fit-prompt": Option("", "what the picture is called in the fit; unless given, its content, else the family's"),
}
"""Knobs of the method."""


def b_lora(model: Model, request: Request) -> Injection:
    """The references' style blocks, or those of their blocks that the request's plan names.

    Several references are one fit to all of them.  Raises InputError for a plan beyond the fitted blocks.
    """
    plan = parse_block_plan(request.plan, model.family.unet, model.family.presets)
    if plan.negative:
        raise InputError(f"the plan {request.plan!r} has blocks to push away from, which method 'b-lora' does not know")
    speaking = [reference for reference in request.references if reference.weight]
    spoken = [site for site in model.family.unet.sites if plan.scale(site)]
    if not speaking or not spoken or request.window[0] == request.window[1]:  # nothing to fit for
        return Injection(window=request.window)
    whole = b_lora_blocks(model.family)
    if beyond := list(dict.fromkeys(site.module for site in spoken if not whole.scale(site))):
        has = ", ".join(dict.fromkeys(site.module for site in model.family.unet.sites if whole.scale(site)))
        raise InputError(
            f"method 'b-lora' is fitted at {has}, and the plan speaks at {', '.join(beyond)}: leave it out"
        )
    phrases = [
        phrase for reference in speaking for phrase in reference.content_phrases if phrase.strip().lower() != "auto"
    ]
    said = ", ".join(dict.fromkeys(phrases))
    fitting = _training_settings(model.family, resolve_options(request, B_LORA), said)
    factors = cached_or_train(model, [reference.image.open() for reference in speaking], fitting)
    loud = {name: plan.scale(site) for name, site in attention_weight_sites(model).items()}
    heard = {
        name: dataclasses.replace(one, scale=one.scale * loud[name]) for name, one in factors.items() if loud[name]
    }
    shapes = {name: model.unet.get_parameter(name).shape for name in heard}
    deltas = LoRADeltas(heard, shapes, effective_weight([reference.weight for reference in speaking]))
    return Injection(window=request.window, unet=with_weight_deltas(model.unet, deltas))


def b_lora_blocks(family: Family) -> BlockPlan:
    """The blocks that are fitted together: content's and style's."""
    return BlockPlan({**family.content_blocks.weights, **family.presets["style"].weights})


def cached_or_train(model: Model, pictures: Sequence[ImageInput], fitting: LoRATraining) -> dict[str, LoRAFactors]:
    """The changes of both blocks, by parameter: from disk where these pictures were fitted so before, else fitted now.

    A fit that was interrupted goes on.  `fitting.watching` follows it.
    """
    remembered = [store_image(picture, max(model.family.size)) for picture in pictures]
    plan = b_lora_blocks(model.family)
    said = {
        "version": 1,
        "weights": model.weights_fingerprint,
        "dtype": str(model.dtype),
        **dataclasses.asdict(fitting),
    }
    said |= {"plan": dict(plan.weights), "pictures": [hashlib.sha256(each.png).hexdigest() for each in remembered]}
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    file = cache_folder() / "b-lora" / f"{key}.safetensors"
    if file.is_file():
        return load_factors(file, model.unet, model.family.unet)
    factors = train_lora(model, [each.open() for each in remembered], plan, fitting, keep=file.with_suffix(".state"))
    save_lora(file, factors, {"b-lora": json.dumps(said, sort_keys=True)})
    return load_factors(file, model.unet, model.family.unet)


def attention_weight_sites(model: Model) -> dict[str, Site]:
    """The site of every attention projection, by its weight's name."""
    names = {id(module): name for name, module in model.unet.named_modules()}
    keys = ("to_q", "to_k", "to_v", "to_out.0")
    sites = model.family.unet.sites
    return {f"{names[id(model.unet.attention(site))]}.{key}.weight": site for site in sites for key in keys}


def cache_folder() -> Path:
    """Where fits are kept: `INSTANTSTYLE_CACHE`, else the XDG cache folder."""
    base = os.environ.get("INSTANTSTYLE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instantstyle"


def _training_settings(family: Family, knobs: Mapping[str, Value], content: str) -> LoRATraining:
    own = family.b_lora_defaults
    return LoRATraining(
        rank=int(knobs["fit-rank"]) or own.rank,
        steps=int(knobs["fit-steps"]) or own.steps,
        learning_rate=float(knobs["fit-rate"]) or own.learning_rate,
        batch=own.batch,
        prompt=str(knobs["fit-prompt"]) or content or own.prompt,
    )
