"""CleanStyle (arXiv 2602.20721): the weaker singular directions of the image's keys and values, damped.

The strongest directions hold the style, the tail holds content.  Early in the run K = U S V' becomes U S' V' with

    S'_i = S_i exp(-a(t) S_i)   for all i behind the first `keep`

and a(t) falls from `damping` to 0 in the course of the run; the values likewise.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.methods.image_prompts import ImagePrompt, image_prompts
from instantstyle.methods.injection import Injection, StepContext
from instantstyle.methods.instantstyle import add_image_prompt
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, KeyValue, join_heads, plain, split_heads

SVDFactors = tuple[Tensor, Tensor, Tensor, int]
"""Left directions, singular values and right directions of keys or values, and the heads they were split into."""


def cleanstyle(model: Model, request: ResolvedRequest) -> Injection:
    """InstantStyle with damped image prompts.

    Its strength is the reference's weight, as InstantStyle's.  In the unconditional row all directions are damped, by
    the option `against`, so that guidance pushes away from the tail.
    """
    options = request.options
    damping, sharpness, centre = (float(options[name]) for name in ("damping", "sharpness", "centre"))
    prompts = image_prompts(model, request)
    factors = [{site: (svd_factors(k[-1:]), svd_factors(v[-1:])) for site, (k, v) in p.kv.items()} for p in prompts]

    @lru_cache(maxsize=2)
    def attend_at(step: StepContext) -> Attend:
        now = damping * damping_schedule((step.step + 1) / step.num_steps, sharpness, centre)
        attend: Attend = plain
        for prompt, parts in zip(prompts, factors, strict=True):
            attend = add_image_prompt(attend, damped(prompt, parts, request, now))
        return attend

    return Injection(window=request.window, attend_at=attend_at if prompts else None)


def damped(
    prompt: ImagePrompt, factors: Mapping[Site, tuple[SVDFactors, SVDFactors]], request: ResolvedRequest, damping: float
) -> ImagePrompt:
    """An image prompt whose keys and values have their tail damped."""
    keep, against = int(request.options["keep"]), float(request.options["against"])

    def rows(parts: SVDFactors, given: HeadsTensor) -> HeadsTensor:
        conditional = damp_tail(parts, keep, damping).to(given).expand(request.count, -1, -1, -1)
        if not request.do_classifier_free_guidance:
            return conditional
        if not against:
            return torch.cat([given[: request.count], conditional])
        return torch.cat([damp_tail(parts, 0, against).to(given).expand_as(conditional), conditional])

    def both(site: Site, k: HeadsTensor, v: HeadsTensor) -> KeyValue:
        return rows(factors[site][0], k), rows(factors[site][1], v)

    return replace(prompt, kv={site: both(site, *kv) for site, kv in prompt.kv.items()})


def damping_schedule(done: float, sharpness: float, centre: float) -> float:
    """The share of the damping that is left at a share of the run, from nearly 1 to nearly 0 (equations 5 and 6)."""
    return 1 - 1 / (1 + math.exp(-sharpness * (done - centre)))


def svd_factors(x: HeadsTensor) -> SVDFactors:
    """The singular directions of one row, [1, heads, tokens, dim], over all heads together, strongest first."""
    linalg: Any = torch.linalg
    left, values, right = linalg.svd(join_heads(x)[0].float(), full_matrices=False)
    return left, values, right, x.shape[1]


def damp_tail(factors: SVDFactors, keep: int, damping: float) -> Float[Tensor, "1 heads tokens dim"]:
    """The tensor of these factors, every direction behind the first `keep` smaller by exp(-damping * its value)."""
    left, values, right, heads = factors
    values = torch.cat([values[:keep], values[keep:] * (-damping * values[keep:]).exp()])
    return split_heads(((left * values) @ right)[None], heads)
