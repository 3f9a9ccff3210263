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

from instantstyle.blocks import BlockPlan, Site, parse_plan
from instantstyle.errors import InputError
from instantstyle.families import Family, Fitting
from instantstyle.methods.content_subtraction import strength
from instantstyle.methods.injection import Injection
from instantstyle.methods.lora_training import fit
from instantstyle.methods.options import Option, Options, Value, settle
from instantstyle.model import Model
from instantstyle.networks.weight_deltas import varied
from instantstyle.request import PictureLike, Request, remember
from instantstyle.weights.lora import Deltas, Factors, load_factors, save_lora

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
    plan = parse_plan(request.plan, model.family.unet, model.family.presets)
    if plan.negative:
        raise InputError(f"the plan {request.plan!r} has blocks to push away from, which method 'b-lora' does not know")
    speaking = [reference for reference in request.references if reference.weight]
    spoken = [site for site in model.family.unet.sites if plan.at(site)]
    if not speaking or not spoken or request.window[0] == request.window[1]:  # nothing to fit for
        return Injection(window=request.window)
    whole = blocks(model.family)
    if beyond := list(dict.fromkeys(site.module for site in spoken if not whole.at(site))):
        has = ", ".join(dict.fromkeys(site.module for site in model.family.unet.sites if whole.at(site)))
        raise InputError(
            f"method 'b-lora' is fitted at {has}, and the plan speaks at {', '.join(beyond)}: leave it out"
        )
    phrases = [phrase for reference in speaking for phrase in reference.contents if phrase.strip().lower() != "auto"]
    said = ", ".join(dict.fromkeys(phrases))
    fitting = _fitting(model.family, settle(request, B_LORA), said)
    factors = fitted(model, [reference.image.open() for reference in speaking], fitting)
    loud = {name: plan.at(site) for name, site in addresses(model).items()}
    heard = {
        name: dataclasses.replace(one, scale=one.scale * loud[name]) for name, one in factors.items() if loud[name]
    }
    shapes = {name: model.unet.get_parameter(name).shape for name in heard}
    deltas = Deltas(heard, shapes, strength([reference.weight for reference in speaking]))
    return Injection(window=request.window, unet=varied(model.unet, deltas))


def blocks(family: Family) -> BlockPlan:
    """The blocks that are fitted together: content's and style's."""
    return BlockPlan({**family.content.weights, **family.presets["style"].weights})


def fitted(model: Model, pictures: Sequence[PictureLike], fitting: Fitting) -> dict[str, Factors]:
    """The changes of both blocks, by parameter: from disk where these pictures were fitted so before, else fitted now.

    A fit that was interrupted goes on.  `fitting.watching` follows it.
    """
    remembered = [remember(picture, max(model.family.size)) for picture in pictures]
    plan = blocks(model.family)
    said = {"version": 1, "weights": model.identity, "dtype": str(model.dtype), **dataclasses.asdict(fitting)}
    said |= {"plan": dict(plan.weights), "pictures": [hashlib.sha256(each.png).hexdigest() for each in remembered]}
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    file = cache_folder() / "b-lora" / f"{key}.safetensors"
    if file.is_file():
        return load_factors(file, model.unet, model.family.unet)
    factors = fit(model, [each.open() for each in remembered], plan, fitting, keep=file.with_suffix(".state"))
    save_lora(file, factors, {"b-lora": json.dumps(said, sort_keys=True)})
    return load_factors(file, model.unet, model.family.unet)


def addresses(model: Model) -> dict[str, Site]:
    """The site of every attention projection, by its weight's name."""
    names = {id(module): name for name, module in model.unet.named_modules()}
    keys = ("to_q", "to_k", "to_v", "to_out.0")
    sites = model.family.unet.sites
    return {f"{names[id(model.unet.attention(site))]}.{key}.weight": site for site in sites for key in keys}


def cache_folder() -> Path:
    """Where fits are kept: `INSTANTSTYLE_CACHE`, else the XDG cache folder."""
    base = os.environ.get("INSTANTSTYLE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instantstyle"


def _fitting(family: Family, knobs: Mapping[str, Value], content: str) -> Fitting:
    own = family.fitting
    return Fitting(
        rank=int(knobs["fit-rank"]) or own.rank,
        steps=int(knobs["fit-steps"]) or own.steps,
        rate=float(knobs["fit-rate"]) or own.rate,
        batch=own.batch,
        prompt=str(knobs["fit-prompt"]) or content or own.prompt,
    )
