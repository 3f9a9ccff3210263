"""StyleAligned (arXiv 2312.02133) and swapped self-attention (Visual Style Prompting, arXiv 2402.12974), as attention.

A reference goes through the network in rows of its own beside the run's, and the run's rows look at it in
self-attention: StyleAligned at every layer, at themselves and at the reference, their statistics first matched to it;
swapped in the late layers, at the reference instead of themselves.  What the reference rows are is not known here.

So a style enters only as far as self-attention carries style.  In the built-in model, whose self-attention sees maps of
2 x 2 and 4 x 4, it carries next to none: all of its answers taken from the reference move a prediction by a hundredth
of the way to the reference's (benchmarks/results/reach.md).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site, UNetConfig, parse_block_plan
from instantstyle.errors import InputError
from instantstyle.methods import reference_latents
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.injection import GuidanceTerm, Injection, StepContext, X0Hook
from instantstyle.methods.instantstyle import resolve_auto_content
from instantstyle.methods.options import Option, Options, Value, resolve_options
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, plain
from instantstyle.request import Request

ReferenceIndex = Int[Tensor, "rows references"]
"""For each row of the run the reference rows it looks at; a row that looks at itself alone is as it would be."""


def shared_attention(
    attend: Attend,
    plan: BlockPlan,
    looked: ReferenceIndex,
    weights: Sequence[float],
    *,
    match_statistics: bool = True,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Attend:
    """softmax([q k, scale q k' + shift + ln w]) [v, v'], where q and k have the mean and spread of the reference's.

    w is the reference's weight times the plan's strength: how often its keys count.  Below 1, statistics are matched
    by that share only, so that a weight that goes to 0 fades out.  w = 1 is the published code; there `scale` is
    `shared_score_scale`, and `shift` is `shared_score_shift`.
    """
    itself = looked == torch.arange(len(looked), device=looked.device)[:, None]
    scales = 1 + (scale - 1) * (~itself[:, 0]).float()[:, None, None, None]

    def attended(
        site: Site, q: HeadsTensor, k: HeadsTensor, v: HeadsTensor, *, bias: Tensor | None = None
    ) -> HeadsTensor:
        loud = plan.scale(site) if site.kind == "self" else 0.0
        if not loud:
            return attend(site, q, k, v, bias=bias)
        if match_statistics:
            share = min(1.0, loud * max(weights))
            q, k = (torch.lerp(x, adain(x, gather_references(x, looked)), share) for x in (q, k))
        there_k, there_v = gather_references(k, looked), gather_references(v, looked)
        if scale != 1:
            there_k = there_k * scales.to(there_k)
        bias = _bias(bias, k, [0.0], [shift + math.log(loud * weight) for weight in weights])
        return attend(site, q, torch.cat([k, there_k], dim=2), torch.cat([v, there_v], dim=2), bias=bias)

    return attended


def swapped_attention(
    attend: Attend,
    plan: BlockPlan,
    looked: ReferenceIndex,
    weights: Sequence[float],
    asks: Int[Tensor, " rows"] | None = None,
) -> Attend:
    """softmax([q k + ln(1 - w), q k' + ln w]) [v, v']: at w = 1 the reference's keys and values instead of one's own.

    w is the references' strength times the plan's, at most 1.  w = 1 is the published method and w = 1/2 its option
    `use_shared_attention`.  `asks`: for each row the row whose queries it asks with, where not its own.
    """
    own, loudest = torch.arange(len(looked), device=looked.device), effective_weight(weights)

    def attended(
        site: Site, q: HeadsTensor, k: HeadsTensor, v: HeadsTensor, *, bias: Tensor | None = None
    ) -> HeadsTensor:
        share = min(1.0, plan.scale(site) * loudest) if site.kind == "self" else 0.0
        if not share:
            return attend(site, q, k, v, bias=bias)
        if asks is not None:
            q = torch.where((asks != own)[:, None, None, None], q[asks], q)
        heard = [math.log(share * weight / sum(weights)) for weight in weights]
        if share == 1:
            return attend(
                site, q, gather_references(k, looked), gather_references(v, looked), bias=_bias(bias, k, [], heard)
            )
        bias = _bias(bias, k, [math.log(1 - share)], heard)
        return attend(site, q, *(torch.cat([x, gather_references(x, looked)], dim=2) for x in (k, v)), bias=bias)

    return attended


CALIBRATION_OPTIONS = 150.0, 100.0
"""The times between which colours are calibrated: the published start, and the start less the published window."""


def adain_x0(shown: Float[Tensor, "references channels _height _width"], weights: Sequence[float]) -> X0Hook:
    """x0 <- (x0 - mean(x0)) / std(x0) * std(z) + mean(z), by channel over pixels, late in the run; z: the reference.

    The noise that goes with x0 is not computed anew.  At steps strictly between the two times as published; where a run
    of few steps leaps over them, at the step that does.  The published code reads mean and std off the reference
    row's own prediction, which at these times is the picture but for a little blur; here they are the picture's.
    Several references share by their weights, and below 1 a strength calibrates by that share only.
    """
    (first, last), share = CALIBRATION_OPTIONS, min(1.0, effective_weight(weights))

    def expects(moment: StepContext, picture: Tensor) -> Tensor:
        if not (last < moment.timestep < first or moment.next_timestep <= last < first <= moment.timestep):
            return picture
        x, like = (each.float().flatten(2).transpose(1, 2)[:, None] for each in (picture, shown))
        ways = [
            weight * adain(x, z.expand(len(x), -1, -1, -1), eps=1e-8) for weight, z in zip(weights, like, strict=True)
        ]
        wanted = (sum(ways[1:], ways[0]) / sum(weights))[:, 0].transpose(1, 2).reshape(picture.shape)
        return torch.lerp(picture, wanted.to(picture), share)

    return expects


STYLE_ALIGNED: Options = {
    **reference_latents.REFERENCE_OPTIONS,
    "rows": dataclasses.replace(reference_latents.REFERENCE_OPTIONS["rows"], default="inverted"),
    "adain": Option(True, "match the statistics of queries and keys to the reference's"),
    "scale": Option(1.0, "what the reference's keys are multiplied by", 0.0, 10.0),
    "shift": Option(math.log(2), "what is added to the scores of the reference's keys", -10.0, 10.0),
}
SWAPPED: Options = {
    **reference_latents.REFERENCE_OPTIONS,
    "calibrate": Option(False, "late in the run, give the picture the reference's colours, by channel of the latents"),
}
STYLEKEEPER: Options = {
    **reference_latents.REFERENCE_OPTIONS,
    "leak": Option(1.0, "how far to push away from the picture that asks with the reference's queries", 0.0, 10.0),
}


def style_aligned(model: Model, request: Request) -> Injection:
    """StyleAligned (arXiv 2312.02133), at every self-attention unless the plan says where.

    Its strength is the reference's weight: how often the reference's keys count.  Weight 1 with the options' defaults
    is what was published for real pictures, but for the sharing of group norm statistics, which is no attention.
    """
    knobs = resolve_options(request, STYLE_ALIGNED)
    match_statistics, scale, shift = bool(knobs["adain"]), float(knobs["scale"]), float(knobs["shift"])

    def attend(plan: BlockPlan, looked: ReferenceIndex, weights: Sequence[float]) -> Attend:
        return shared_attention(
            plain, plan, looked, weights, match_statistics=match_statistics, scale=scale, shift=shift
        )

    return _with_reference_batch(model, request, "all", knobs, attend)


def swapped(model: Model, request: Request) -> Injection:
    """Visual Style Prompting (arXiv 2402.12974), in all up blocks after the first unless the plan says where.

    Its strength is the reference's weight: the share of attention that goes to the reference, all of it at 1, as
    published.  With the option `calibrate` colours follow too.
    """
    knobs = resolve_options(request, SWAPPED)

    def attend(plan: BlockPlan, looked: ReferenceIndex, weights: Sequence[float]) -> Attend:
        return swapped_attention(plain, plan, looked, weights)

    injection = _with_reference_batch(model, request, late_up_blocks(model.family.unet), knobs, attend)
    if injection.reference_batch is None or injection.reference_batch.clean_latents is None or not knobs["calibrate"]:
        return injection
    weights = [each.weight for each in request.references if each.weight] or [1.0]
    return dataclasses.replace(injection, x0_hook=adain_x0(injection.reference_batch.clean_latents, weights))


def stylekeeper(model: Model, request: Request) -> Injection:
    """StyleKeeper (arXiv 2510.06827): swapped, and away from a picture that asks with the reference's queries.

    Keys and values carry style and queries content, so a pass with the reference's queries and its own keys and values
    leaks on purpose:

        eps = eps_u + g (eps_c - eps_u) + w leak (eps_c - eps_leaking),  eps_leaking with softmax(q' k) v

    Its strength w is the reference's weight, of the swap and of the push.  After the paper's words: its code is not
    published.
    """
    knobs = resolve_options(request, STYLEKEEPER)
    weights = [each.weight for each in request.references if each.weight]
    push = GuidanceTerm(float(knobs["leak"]) * min(1.0, effective_weight(weights) if weights else 1.0))

    def attend(plan: BlockPlan, looked: ReferenceIndex, weights: Sequence[float]) -> Attend:
        branches = 2 if request.do_classifier_free_guidance else 1
        own = torch.arange(len(looked), device=looked.device)
        leaks = (own >= branches * request.count) & (own < (branches + 1) * request.count)
        asks = torch.where(leaks, looked[:, 0], own)
        return swapped_attention(plain, plan, torch.where(leaks[:, None], own[:, None], looked), weights, asks)

    return _with_reference_batch(model, request, late_up_blocks(model.family.unet), knobs, attend, (push,))


def late_up_blocks(config: UNetConfig) -> str:
    """The plan of all up blocks after the first that has attention: in SDXL the block that was published, up.1."""
    blocks = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in config.modules if name.startswith("up.")))
    return ",".join(f"{block}=1" for block in blocks[1:] or blocks)


def _with_reference_batch(
    model: Model,
    request: Request,
    where: str,
    knobs: Mapping[str, Value],
    attend: Callable[[BlockPlan, ReferenceIndex, Sequence[float]], Attend],
    negatives: tuple[GuidanceTerm, ...] = (),
) -> Injection:
    """Reference rows beside the run's own, looked at in the way of `attend`; at `where` unless the request has a plan.

    Raises InputError for a plan that these methods cannot follow, and what reference rows raise.
    """
    where = where if request.plan == "style" else request.plan  # the first is what a request says that says nothing
    plan = parse_block_plan(where, model.family.unet, model.family.presets)
    if plan.negative:
        raise InputError(
            f"the plan {request.plan!r} puts the reference where guidance pushes away from, which method "
            f"{request.method!r} does not do: give a plan such as all or up.1=1"
        )
    references = tuple(resolve_auto_content(model, request, each) for each in request.references)
    settled = {"references": references, "plan": where, "options": dict(knobs)}
    speaking = [each for each in references if each.weight]
    if not plan or (references and not speaking):
        return Injection(window=request.window, resolved_fields=settled)
    weights = [each.weight for each in speaking] or [1.0]
    rows = reference_latents.reference_batch(model, request, speaking, knobs)
    looked = reference_latents.reference_index(request, len(weights), model.device, len(negatives))
    return Injection(
        attend(plan, looked, weights), request.window, settled, reference_batch=rows, extra_guidance=negatives
    )


def gather_references(x: HeadsTensor, looked: ReferenceIndex) -> HeadsTensor:
    """For each row the tokens of all that it looks at, one after the other."""
    return x[looked].transpose(1, 2).flatten(2, 3)


def adain(
    x: Float[Tensor, "rows heads _tokens dim"], like: Float[Tensor, "rows heads _others dim"], eps: float = 1e-5
) -> Float[Tensor, "rows heads _tokens dim"]:
    """AdaIN: each channel of `x` with the mean and spread over tokens that it has in `like`."""

    def spread(t: Tensor) -> Tensor:
        alone = t.shape[2] == 1  # the smallest pictures end in maps of one token, which has no spread
        return (t.var(dim=2, keepdim=True, correction=0 if alone else 1) + eps).sqrt()

    return (x - x.mean(dim=2, keepdim=True)) / spread(x) * spread(like) + like.mean(dim=2, keepdim=True)


def _bias(given: Tensor | None, like: HeadsTensor, own: Sequence[float], there: Sequence[float]) -> Tensor | None:
    """What is added to scores: to those of one's own keys, if they are looked at, and to those of each reference's.

    None where that is the same for all, which no softmax sees.
    """
    added, tokens = [*own, *there], like.shape[2]
    if given is None and len(set(added)) == 1:
        return None
    bias = torch.cat([like.new_full((tokens,), each) for each in added])[None, None, None]
    if given is None or not own:
        return bias  # what was given is about keys that nobody looks at
    given = given if given.ndim > 1 else given[None]
    return bias + F.pad(given.expand(*given.shape[:-1], tokens), (0, tokens * len(there)))
