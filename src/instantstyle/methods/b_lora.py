# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

"""B-LoRA (arXiv 2403.14572): a low-rank change of two blocks, trained on the reference; the style block's is the style.

    W' = W + w B A

Trained together, one block takes what the picture shows and the other how it looks.  A picture is drawn with the style
block's change B A alone, added once times the reference's weight w (the published code multiplies both B and A by its
strength, so that there it acts squared: its 1.1 is 1.21 here).  What was trained is kept on disk, by pictures and
settings.
"""

import dataclasses
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence

from instantstyle.blocks import Site
from instantstyle.errors import InputError
from instantstyle.families import Family, LoRATraining
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.injection import Injection, Preparation, PreparationStep
from instantstyle.methods.lora_training import TrainProgress, train_lora
from instantstyle.methods.options import Value
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.weight_deltas import with_weight_deltas
from instantstyle.request import ImageInput, store_image
from instantstyle.utils.cache import cache_folder
from instantstyle.weights.lora import LoRADeltas, LoRAFactors, load_factors, save_lora


def b_lora(model: Model, request: ResolvedRequest) -> Preparation[Injection]:
    """The references' style blocks, or those of them that the request's plan names; several references are one fit."""
    sites = [site for site in model.family.unet.sites if request.plan.scale(site)]
    if not sites:
        return Injection(window=request.window)
    if model.offload_mode == "sequential":
        raise InputError(
            "method 'b-lora' changes the UNet's weights, which are not there between steps when layers are offloaded: "
            "load the model with memory keep or free"
        )
    content = ", ".join(dict.fromkeys(phrase for each in request.references for phrase in each.content))
    pictures = [reference.given.image.open() for reference in request.references]
    training = cached_or_train(model, pictures, _training_settings(model.family, request.options, content))
    factors = yield from _as_preparation(training)
    scales = {name: request.plan.scale(site) for name, site in attention_weight_sites(model).items()}
    used = {
        name: dataclasses.replace(each, scale=each.scale * scales[name])
        for name, each in factors.items()
        if scales[name]
    }
    shapes = {name: model.unet.get_parameter(name).shape for name in used}
    deltas = LoRADeltas(used, shapes, effective_weight([reference.weight for reference in request.references]))
    return Injection(window=request.window, unet=with_weight_deltas(model.unet, deltas))


def _as_preparation(
    training: Generator[TrainProgress, None, dict[str, LoRAFactors]],
) -> Preparation[dict[str, LoRAFactors]]:
    while True:
        try:
            progress = next(training)
        except StopIteration as end:
            return end.value
        yield PreparationStep("training the B-LoRA", progress.step, progress.steps)


def cached_or_train(
    model: Model, pictures: Sequence[ImageInput], fitting: LoRATraining
) -> Generator[TrainProgress, None, dict[str, LoRAFactors]]:
    """The changes of both blocks, by parameter: from disk where these pictures were trained on so before, else anew.

    A generator of the training's steps.  A training that was interrupted goes on where it stopped.
    """
    stored = [store_image(picture, max(model.family.size)) for picture in pictures]
    plan = model.family.b_lora_blocks
    settings = {
        "version": 1,
        "weights": model.weights_fingerprint,
        "dtype": str(model.dtype),
        **dataclasses.asdict(fitting),
    }
    settings |= {"plan": dict(plan.weights), "pictures": [hashlib.sha256(each.png).hexdigest() for each in stored]}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    file = cache_folder() / "b-lora" / f"{key}.safetensors"
    if file.is_file():
        return load_factors(file, model.unet, model.family.unet)
    state = file.with_suffix(".state")
    factors = yield from train_lora(model, [each.open() for each in stored], plan, fitting, keep=state)
    save_lora(file, factors, {"b-lora": json.dumps(settings, sort_keys=True)})
    return load_factors(file, model.unet, model.family.unet)


def attention_weight_sites(model: Model) -> dict[str, Site]:
    """The site of every attention projection, by its weight's name."""
    names = {id(module): name for name, module in model.unet.named_modules()}
    keys = ("to_q", "to_k", "to_v", "to_out.0")
    sites = model.family.unet.sites
    return {f"{names[id(model.unet.attention(site))]}.{key}.weight": site for site in sites for key in keys}


def _training_settings(family: Family, options: Mapping[str, Value], content: str) -> LoRATraining:
    own = family.b_lora_defaults
    return LoRATraining(
        rank=int(options["fit-rank"]) or own.rank,
        steps=int(options["fit-steps"]) or own.steps,
        learning_rate=float(options["fit-rate"]) or own.learning_rate,
        batch=own.batch,
        prompt=str(options["fit-prompt"]) or content or own.prompt,
    )
