"""CleanStyle (arXiv 2602.20721) and StyleStudio (arXiv 2412.08503): InstantStyle's tokens, looked at in other ways.

CleanStyle keeps the strongest direction of the image's keys and values, in which it finds style, and quietens the
others; StyleStudio gives the text's answer the mean and spread of the image's instead of adding the two.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site, parse_block_plan
from instantstyle.errors import InputError
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.injection import Injection
from instantstyle.methods.instantstyle import add_image_prompt, build_injection
from instantstyle.methods.options import Option, Options, resolve_options
from instantstyle.methods.shared_attention import adain
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, KeyValue, join_heads, plain, split_heads
from instantstyle.request import Request

CLEANSTYLE: Options = {
    "keep": Option(1.0, "how many of the strongest directions stay as they are", 0.0, 64.0),
    "damping": Option(0.01, "how fast the others fade with their size", 0.0, 10.0),
    "sharpness": Option(20.0, "how suddenly the damping ends in the course of the run", 0.0, 100.0),
    "centre": Option(0.3, "when it ends, as a share of the run"),
    "against": Option(0.2, "damping of what stands in the unconditional row; 0: what stands there without this method"),
}
SVDFactors = tuple[Tensor, Tensor, Tensor, int]
"""Left directions, sizes and right directions of keys or values, and the number of heads they were split into."""


def cross_adain(
    attend: Attend, plan: BlockPlan, image: Mapping[Site, KeyValue], share: Tensor | None, loud: float = 1.0
) -> Attend:
    """(1 - s) A + s ((A - mean(A)) / std(A) * std(A') + mean(A')), over tokens; s: the plan's strength at the site.

    A is the text's answer, A' the image's.  `loud` is what the image's values were multiplied by: here it is part of
    the strength instead.
    """

    def attended(
        site: Site, q: HeadsTensor, k: HeadsTensor, v: HeadsTensor, *, bias: Tensor | None = None
    ) -> HeadsTensor:
        out = attend(site, q, k, v, bias=bias)
        if site not in image:
            return out
        there = plain(site, q, *image[site], bias=share) / loud
        like = adain(out.float(), there.float(), eps=1e-12).to(out)  # published without any eps
        return torch.lerp(out, like, plan.scale(site) * loud)

    return attended


def stylestudio(model: Model, request: Request) -> Injection:
    """StyleStudio's cross-modal AdaIN at the blocks of the request's plan.

    Its strength is the reference's weight: at 1 the text's answer has the image's statistics, as published, below a
    mix.  The paper's teacher for the first steps and its negative style pictures are not here.

    What the text says by the mean of its answer is replaced.  A model that hears its prompt at other layers too still
    draws the thing; the built-in one hears it at its style blocks alone, and at weight 1 loses it
    (benchmarks/results/reach.md).
    """
    plan = parse_block_plan(request.plan, model.family.unet, model.family.presets)
    _refuse_negative(request, plan)
    weights = [each.weight for each in request.references if each.weight]
    loud = effective_weight(weights) if weights else 1.0

    def way(attend: Attend, plan: BlockPlan, image: Mapping[Site, KeyValue], share: Tensor | None) -> Attend:
        return cross_adain(attend, plan, image, share, loud)

    return build_injection(model, request, plan, way)


@dataclass(frozen=True)
class TimeDependentInjection(Injection):
    """An injection whose way of attending depends on how much of the run is done; the layers know nothing of it."""

    timed: Callable[[float], Attend] = field(default=lambda share: plain)

    def at(self, step: int, steps: int) -> Injection:
        """What is asked for at a step, with the share of the run that is done when it is."""
        now = super().at(step, steps)
        return replace(self, attend=self.timed((step + 1) / steps)) if now is self else now


def cleanstyle(model: Model, request: Request) -> Injection:
    """CleanStyle at the blocks of the request's plan: the tail of the image's keys and values damped early in the run.

    K = U S V' becomes U S' V' with S'_i = S_i exp(-a(t) S_i) behind the first `keep`, where a(t) falls from `damping`
    to 0 in the course of the run; V the same.
    Its strength is the reference's weight, as InstantStyle's.  The unconditional row sees all directions damped, so
    that guidance pushes away from the tail.
    """
    knobs = resolve_options(request, CLEANSTYLE)
    keep, damping, sharpness, centre, against = (float(knobs[name]) for name in CLEANSTYLE)
    plan = parse_block_plan(request.plan, model.family.unet, model.family.presets)
    _refuse_negative(request, plan)
    parts: list[tuple[BlockPlan, Mapping[Site, KeyValue], dict[Site, Sequence[SVDFactors]], Tensor | None]] = []

    def way(attend: Attend, plan: BlockPlan, image: Mapping[Site, KeyValue], share: Tensor | None) -> Attend:
        parts.append((plan, image, {site: [svd_factors(x[-1:]) for x in pair] for site, pair in image.items()}, share))
        return attend

    @lru_cache(maxsize=2)
    def timed(done: float) -> Attend:
        attend, now = plain, damping * damping_schedule(done, sharpness, centre)
        for plan, image, directions, share in parts:
            cleaned: dict[Site, KeyValue] = {}
            for site, pair in directions.items():
                k, v = (
                    _reference_rows(part, whole, request, int(keep), now, against)
                    for part, whole in zip(pair, image[site], strict=True)
                )
                cleaned[site] = k, v
            attend = add_image_prompt(attend, plan, cleaned, share)
        return attend

    base = build_injection(model, request, plan, way)
    settled = {**base.resolved_fields, "options": dict(knobs)}
    if not parts:
        return replace(base, resolved_fields=settled)
    return TimeDependentInjection(timed(0.0), base.window, settled, timed=timed)


def damping_schedule(done: float, sharpness: float, centre: float) -> float:
    """How much of the damping is left: nearly 1 as the run begins, nearly 0 as it ends (equations 5 and 6)."""
    return 1 - 1 / (1 + math.exp(-sharpness * (done - centre)))


def svd_factors(x: HeadsTensor) -> SVDFactors:
    """Keys or values of one row, [1, heads, tokens, dim], by directions over all heads together, strongest first."""
    linalg: Any = torch.linalg
    left, sizes, right = linalg.svd(join_heads(x)[0].float(), full_matrices=False)
    return left, sizes, right, x.shape[1]


def damp_tail(parts: SVDFactors, keep: int, damping: float) -> Float[Tensor, "1 heads tokens dim"]:
    """The directions put together again, all but the first `keep` of them smaller by exp(-damping * size)."""
    left, sizes, right, heads = parts
    sizes = torch.cat([sizes[:keep], sizes[keep:] * (-damping * sizes[keep:]).exp()])
    return split_heads(((left * sizes) @ right)[None], heads)


def _reference_rows(
    parts: SVDFactors, whole: HeadsTensor, request: Request, keep: int, damping: float, against: float
) -> HeadsTensor:
    """The rows of `whole`, [unconditional, conditional] x count, cleaned."""
    clean = damp_tail(parts, keep, damping).to(whole).expand(request.count, -1, -1, -1)
    if not request.do_classifier_free_guidance:
        return clean
    other = damp_tail(parts, 0, against).to(whole).expand_as(clean) if against else whole[: request.count]
    return torch.cat([other, clean])


def _refuse_negative(request: Request, plan: BlockPlan) -> None:
    if plan.negative or any(each.effective_plan == "precise" for each in request.references):
        raise InputError(
            f"the plan {request.plan!r} puts the reference where guidance pushes away from, which method "
            f"{request.method!r} does not do: give a plan such as style or up.0.1=1"
        )
