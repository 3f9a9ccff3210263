"""resolve: a request and a model to a ResolvedRequest, once; below it nothing is parsed, settled or dropped.

It looks at no picture and calls no network, so that servers and command lines can refuse a request at once.  It lies in
`sampling` and not beside `Request`, since it asks the method table, the controls and the schedulers what they take.
"""

import math
import secrets
from dataclasses import replace
from typing import Any

from instantstyle.blocks import BlockPlan, TransformerConfig, parse_block_plan
from instantstyle.controlnet import resolve_control
from instantstyle.errors import InputError
from instantstyle.methods.image_prompts import is_auto, require_base_adapter
from instantstyle.methods.options import resolve_options
from instantstyle.methods.prompts import check_clip_skip, prompt_text, prompt_warnings
from instantstyle.methods.reference_latents import reference_captions
from instantstyle.methods.region_masks import binary_mask
from instantstyle.methods.resolved_request import ResolvedReference, ResolvedRequest
from instantstyle.methods.specs import MethodSpec, check_fields, find_method, unused_fields
from instantstyle.model import Model
from instantstyle.request import MAX_SIDE, Request, StyleReference
from instantstyle.sampling.schedulers import default_sampler, find_sampler

DEFAULT_METHOD = Request.model_fields["method"].default
"""What a request says that says nothing of its method."""


def resolve(model: Model, request: Request) -> ResolvedRequest:
    """The request with every default filled in, its plans parsed and its texts as they are to be read.

    Raises InputError, a sentence, for what does not exist, does not fit the model, or is not used by the method.
    """
    spec, family = find_method(request.method), model.family
    if spec.unet_only is not None and family.is_transformer:
        raise InputError(
            f"method {spec.name!r} is for models with a UNet, and {family.name} is a transformer: {spec.unet_only}; "
            "use style-aligned or swapped"
        )
    plan_text = _plan_text(model, spec, request)
    plan = parse_block_plan(plan_text, family.layout, family.presets)
    check_fields(spec, request)
    check_clip_skip(model, request)
    options = resolve_options(spec.name, request.options, spec.options)
    references = tuple(_resolve_reference(model, spec, each) for each in request.references if each.weight)
    guidance = family.guidance if request.guidance is None else request.guidance
    distilled = isinstance(family.layout, TransformerConfig) and family.layout.guidance_embeds
    if request.true_guidance is not None and not distilled:
        raise InputError(f"the guidance of {family.name} is true guidance: give guidance, and not true_guidance")
    sampler = find_sampler(request.sampler) if request.sampler is not None else default_sampler(model)
    settled: dict[str, Any] = {
        "plan": plan_text,
        "options": options,
        "size": resolve_size(model, request),
        "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
        "guidance": guidance,
        "true_guidance": (1.0 if request.true_guidance is None else request.true_guidance) if distilled else None,
        "guidance_rescale": family.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale,
        "sampler": sampler,
    }
    resolved = ResolvedRequest(
        request=request.model_copy(update=settled),
        method=spec,
        plan=plan,
        references=references,
        options=options,
        prompt=prompt_text(model, request.prompt, request.reading),
        negative=prompt_text(model, request.negative, request.reading),
        size=settled["size"],
        seed=settled["seed"],
        guidance=settled["true_guidance"] if distilled else guidance,
        guidance_rescale=settled["guidance_rescale"],
        warnings=(),
        distilled_guidance=guidance if distilled else None,
    )
    for own_plan in (plan, *(each.plan for each in references)):
        if own_plan is not None:
            _check_plan(model, resolved, own_plan)
    for reference in references:
        _check_reference(model, resolved, reference)
    if resolved.is_styled and "reference-source" in options:
        reference_captions(model, resolved)
    for control in request.controls:
        resolve_control(model, control.kind)
    return replace(resolved, warnings=_warnings(model, resolved, request))


def _plan_text(model: Model, spec: MethodSpec, request: Request) -> str:
    """Where the style is to enter.  Raises InputError where a family has no such place and the request names none."""
    family, text = model.family, request.plan
    text = spec.plan_for(family) if text is None else text
    if text == "style" and "style" not in family.presets:
        if request.references:
            raise InputError(
                f"it is not known where style lives in {family.name}: give a plan, all or terms such as "
                f"{family.layout.modules[len(family.layout.modules) // 2]}=1"
            )
        return "all"
    return text


def _resolve_reference(model: Model, spec: MethodSpec, reference: StyleReference) -> ResolvedReference:
    # A style card's own plan says where style enters; of a method with another place of its own it says nothing.
    text = reference.effective_plan if spec.default_plan == "style" else reference.plan
    plan = None if text is None or "plan" not in spec.reference_fields else text
    content = reference.content_phrases if "content" in spec.reference_fields else ()
    family = model.family
    return ResolvedReference(
        reference, None if plan is None else parse_block_plan(plan, family.layout, family.presets), content
    )


def _check_plan(model: Model, request: ResolvedRequest, plan: BlockPlan) -> None:
    """Raises InputError for a plan that the method, or the guidance, cannot follow."""
    spec, family = request.method, model.family
    if plan.negative and not spec.negative_plans and spec.request_fields:
        raise InputError(
            f"the plan {request.request.plan!r} puts the reference where guidance pushes away from, which method "
            f"{spec.name!r} does not do: give a plan such as all or {next(iter(family.presets['style'].weights))}=1"
        )
    if plan.negative and request.references and not request.do_classifier_free_guidance:
        raise InputError(
            f"the plan {request.request.plan!r} puts the reference where guidance pushes away from, which guidance "
            f"{request.guidance:g} does not do: give a guidance above 1"
        )
    if spec.plan_blocks is not None:
        allowed, sites = spec.plan_blocks(family), family.layout.sites
        if beyond := dict.fromkeys(site.module for site in sites if plan.scale(site) and not allowed.scale(site)):
            has = ", ".join(dict.fromkeys(site.module for site in sites if allowed.scale(site)))
            raise InputError(
                f"method {spec.name!r} is trained at {has}, and the plan names {', '.join(beyond)}: leave it out"
            )


def _check_reference(model: Model, request: ResolvedRequest, reference: ResolvedReference) -> None:
    """Raises InputError when a reference cannot be read as the request says."""
    given, plan = reference.given, request.plan if reference.plan is None else reference.plan
    if given.mask is not None:
        binary_mask(given.mask.open(), request.size)
    auto = any(map(is_auto, reference.content))
    if auto and not model.vocabulary:
        model.vocabulary_embeds(0)  # refuses
    if auto or (request.method.needs_adapter and plan):
        adapter = model.get_adapter(None if auto else plan, given.adapter)
        if auto or (reference.content and given.content_weight and given.content is not None):
            require_base_adapter(adapter)


def _warnings(model: Model, request: ResolvedRequest, given: Request) -> tuple[str, ...]:
    """What of the request changes nothing, or is not as it was said; a sentence each."""
    warnings = [*inpainting_warnings(model, given), *prompt_warnings(model, request)]
    kind = "guidance" if request.distilled_guidance is None else "true_guidance"
    if given.negative and not request.do_classifier_free_guidance:
        warnings.append(f"the negative prompt changes nothing at {kind} {request.guidance:g}: give a {kind} above 1")
    if given.guidance_rescale and not request.do_classifier_free_guidance:
        warnings.append(f"guidance_rescale changes nothing at {kind} {request.guidance:g}: give a {kind} above 1")
    if given.references and given.window[0] >= given.window[1]:
        start, end = given.window
        warnings.append(f"the window from {start:g} to {end:g} holds no step, so the references change nothing")
    if not given.references:
        idle = unused_fields(request.method, given, None if request.is_styled else frozenset())
        warnings += [f"there is no reference, so {' and '.join(idle)} changes nothing"] if idle else []
        if request.method.name not in (DEFAULT_METHOD, "none") and not request.is_styled:
            warnings.append(f"method {request.method.name!r} does nothing without a reference: give one")
    if request.method.needs_adapter and request.references and given.subtraction != "paper":
        subtracted = any(reference.content for reference in request.references)
        warnings += [] if subtracted else ["no content of a reference is given, so subtraction changes nothing"]
    return tuple(dict.fromkeys(warnings))


def resolve_size(model: Model, request: Request) -> tuple[int, int]:
    """(width, height): as requested, else the model's own; with an init picture as many pixels in its proportions.

    Raises InputError when the size is one that the model cannot make.
    """
    layout = model.family.layout
    multiple = max(model.family.size_multiple, model.vae_scale_factor * layout.patch_size)

    def near(side: float) -> int:
        return min(max(multiple, round(side / multiple) * multiple), MAX_SIDE // multiple * multiple)

    if request.size is None and request.init is not None:
        width, height = request.init.image.open().size
        factor = math.sqrt(math.prod(model.family.size) / (width * height))
        return near(width * factor), near(height * factor)
    width, height = request.size or model.family.size
    if width % multiple or height % multiple:
        raise InputError(
            f"the size {width}x{height} does not fit this model: both must be multiples of {multiple}, such as "
            f"{near(float(width))}x{near(float(height))}"
        )
    limit = layout.max_patches if isinstance(layout, TransformerConfig) else None
    if limit is not None and max(width, height) > limit * multiple:
        raise InputError(
            f"the size {width}x{height} does not fit this model: it knows positions up to {limit * multiple} pixels"
        )
    return width, height


def is_inpainting(model: Model) -> bool:
    """Whether the UNet reads a mask and a picture beside the latents.  Raises InputError when it reads what we lack."""
    if model.family.is_transformer:
        return False
    config = model.unet.config
    if config.in_channels == config.out_channels:
        return False
    if config.in_channels == 2 * config.out_channels + 1:
        return True
    raise InputError(
        f"this UNet reads {config.in_channels} channels and predicts {config.out_channels}: it wants something beside "
        f"the latents that is neither nothing nor a masked picture ({2 * config.out_channels + 1} channels)"
    )


def inpainting_warnings(model: Model, request: Request) -> tuple[str, ...]:
    """What an inpainting UNet does when nothing says what it is to keep, a sentence."""
    if not is_inpainting(model) or (request.init is not None and request.init.mask is not None):
        return ()
    return (
        f"the model {model.source.spec!r} is made for inpainting ({model.unet.config.in_channels} channels) and there "
        "is no mask, so the whole picture is painted anew: give a picture and a mask (--init, --mask), or a base model",
    )
