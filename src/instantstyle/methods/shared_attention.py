"""Methods that attend to a reference's own rows in self-attention: StyleAligned, swapped self-attention, StyleKeeper.

A reference goes through the network in rows of its own beside the run's.  StyleAligned (arXiv 2312.02133) attends at
every layer to the row itself and to the reference, queries and keys matched to it by AdaIN; swapped self-attention
(Visual Style Prompting, arXiv 2402.12974) attends in the late layers to the reference instead.  Where the reference
rows come from is `reference_latents`.

A style enters only as far as self-attention carries style.  In a model whose self-attention sees maps of 2 x 2 and
4 x 4 that is next to nothing (benchmarks/results/reach.md).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.injection import GuidanceTerm, Injection, Preparation, StepContext, X0Hook
from instantstyle.methods.reference_latents import ReferenceIndex, reference_batch, reference_index
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, plain
from instantstyle.networks.tokens import Tokens


def style_aligned(model: Model, request: ResolvedRequest) -> Preparation[Injection]:
    """StyleAligned, by default in all self-attention.

    Its strength is the reference's weight: how often the reference's keys count.  Weight 1 with the options' defaults
    is what was published for real pictures, but for the sharing of group norm statistics, which is no attention.
    """
    if not request.plan:
        return Injection(window=request.window)
    options, weights = request.options, _weights(request)
    rows = yield from reference_batch(model, request)
    attend = shared_attention(
        plain,
        request.plan,
        reference_index(request.branches, request.count, len(weights), model.device),
        weights,
        match_statistics=bool(options["adain"]),
        scale=float(options["scale"]),
        shift=float(options["shift"]),
    )
    return Injection(attend, request.window, reference_batch=rows)


def swapped(model: Model, request: ResolvedRequest) -> Preparation[Injection]:
    """Swapped self-attention, by default in all up blocks after the first.

    Its strength is the reference's weight: the share of attention that goes to the reference, all of it at 1, as
    published.  With the option `calibrate` colours follow too.
    """
    if not request.plan:
        return Injection(window=request.window)
    weights = _weights(request)
    rows = yield from reference_batch(model, request)
    index = reference_index(request.branches, request.count, len(weights), model.device)
    calibrate = request.options["calibrate"] and rows.clean_latents is not None
    return Injection(
        swapped_attention(plain, request.plan, index, weights),
        request.window,
        reference_batch=rows,
        x0_hook=adain_x0(rows.clean_latents, weights) if calibrate and rows.clean_latents is not None else None,
    )


def stylekeeper(model: Model, request: ResolvedRequest) -> Preparation[Injection]:
    """StyleKeeper (arXiv 2510.06827): swapped, guided away from a prediction with the reference's queries.

    Keys and values carry style and queries content, so a pass with the reference's queries and its own keys and values
    leaks content on purpose:

        eps = eps_u + g (eps_c - eps_u) + w leak (eps_c - eps_leaking),  eps_leaking with softmax(q' k) v

    Its strength w is the reference's weight, of the swap and of the guidance term.  Written after the paper's words:
    its code is not published.
    """
    if not request.plan:
        return Injection(window=request.window)
    weights, count = _weights(request), request.count
    rows = yield from reference_batch(model, request)
    index = reference_index(request.branches, count, len(weights), model.device, extra_guidance=1)
    own = torch.arange(len(index), device=index.device)
    leaking = (own >= request.branches * count) & (own < (request.branches + 1) * count)
    query_index = torch.where(leaking, index[:, 0], own)
    index = torch.where(leaking[:, None], own[:, None], index)
    term = GuidanceTerm(float(request.options["leak"]) * min(1.0, effective_weight(weights)))
    attend = swapped_attention(plain, request.plan, index, weights, query_index)
    return Injection(attend, request.window, reference_batch=rows, extra_guidance=(term,))


def _weights(request: ResolvedRequest) -> list[float]:
    """The references' weights; a generated reference has weight 1."""
    return [reference.weight for reference in request.references] or [1.0]


ATTENDED_KINDS = ("self", "joint")
"""Kinds of sites at which a reference's rows are attended to: wherever a picture attends to itself."""


def shared_attention(
    attend: Attend,
    plan: BlockPlan,
    index: ReferenceIndex,
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
    itself = index == torch.arange(len(index), device=index.device)[:, None]
    scales = 1 + (scale - 1) * (~itself[:, 0]).float()[:, None, None, None]

    def attended(
        site: Site,
        q: HeadsTensor,
        k: HeadsTensor,
        v: HeadsTensor,
        *,
        bias: Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> HeadsTensor:
        scale_here = plan.scale(site) if site.kind in ATTENDED_KINDS else 0.0
        if not scale_here:
            return attend(site, q, k, v, bias=bias, tokens=tokens)
        image = slice(None) if tokens is None else tokens.image
        if match_statistics:
            share = min(1.0, scale_here * max(weights))
            q, k = (_with_image(x, image, _matched(x[:, :, image], index, share)) for x in (q, k))
        reference_k, reference_v = (gather_references(x[:, :, image], index) for x in (k, v))
        if scale != 1:
            reference_k = reference_k * scales.to(reference_k)
        counts = [k.shape[2], *[reference_k.shape[2] // len(weights)] * len(weights)]
        bias = _of_keys(bias, k.shape[2], [slice(None)])
        bias = _bias(bias, k, counts, [0.0, *(shift + math.log(scale_here * weight) for weight in weights)])
        if tokens is not None:
            # In a UNet a row that attends to itself is as it would be; beside text its picture would count twice.
            twice = F.pad(itself.repeat_interleave(counts[-1], 1), (counts[0], 0))[:, None, None]
            masked = torch.zeros(twice.shape, dtype=q.dtype, device=q.device).masked_fill(twice, -math.inf)
            bias = masked if bias is None else bias + masked
            tokens = tokens.with_keys(slice(None), *[image] * len(weights))
        keys, values = torch.cat([k, reference_k], dim=2), torch.cat([v, reference_v], dim=2)
        return attend(site, q, keys, values, bias=bias, tokens=tokens)

    return attended


def swapped_attention(
    attend: Attend,
    plan: BlockPlan,
    index: ReferenceIndex,
    weights: Sequence[float],
    query_index: Int[Tensor, " rows"] | None = None,
) -> Attend:
    """softmax([q k + ln(1 - w), q k' + ln w]) [v, v']: at w = 1 the reference's keys and values instead of one's own.

    w is the references' strength times the plan's, at most 1.  w = 1 is the published method and w = 1/2 its option
    `use_shared_attention`.  `query_index`: for each row the row whose queries it takes, where not its own.
    """
    own, strength = torch.arange(len(index), device=index.device), effective_weight(weights)

    def attended(
        site: Site,
        q: HeadsTensor,
        k: HeadsTensor,
        v: HeadsTensor,
        *,
        bias: Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> HeadsTensor:
        share = min(1.0, plan.scale(site) * strength) if site.kind in ATTENDED_KINDS else 0.0
        if not share:
            return attend(site, q, k, v, bias=bias, tokens=tokens)
        if query_index is not None:
            q = torch.where((query_index != own)[:, None, None, None], q[query_index], q)
        image, text = (slice(None), slice(0, 0)) if tokens is None else (tokens.image, tokens.text)
        kept = [text, image] if share < 1 else [text]
        shares = [0.0, math.log(1 - share)] if share < 1 else [0.0]
        counts = [k[:, :, part].shape[2] for part in (*kept, *[image] * len(weights))]
        bias = _of_keys(bias, k.shape[2], kept)
        bias = _bias(bias, k, counts, [*shares, *(math.log(share * weight / sum(weights)) for weight in weights)])
        keys, values = (
            torch.cat([*(x[:, :, part] for part in kept), gather_references(x[:, :, image], index)], dim=2)
            for x in (k, v)
        )
        there = None if tokens is None else tokens.with_keys(*kept, *[image] * len(weights))
        return attend(site, q, keys, values, bias=bias, tokens=there)

    return attended


CALIBRATION_TIMESTEPS = 150.0, 100.0
"""The times between which colours are calibrated: the published start, and the start less the published window."""


def adain_x0(clean: Float[Tensor, "references channels _height _width"], weights: Sequence[float]) -> X0Hook:
    """x0 <- (x0 - mean(x0)) / std(x0) * std(z) + mean(z), by channel over pixels, late in the run; z: the reference.

    The noise that goes with x0 is not computed anew.  At steps strictly between the two times as published; where a run
    of few steps leaps over them, at the step that does.  The published code reads mean and std off the reference
    row's own prediction, which at these times is the picture but for a little blur; here they are the picture's.
    Several references share by their weights, and below 1 a strength calibrates by that share only.
    """
    (first, last), share = CALIBRATION_TIMESTEPS, min(1.0, effective_weight(weights))

    def hook(step: StepContext, picture: Tensor) -> Tensor:
        if not (last < step.timestep < first or step.next_timestep <= last < first <= step.timestep):
            return picture
        x, like = (each.float().flatten(2).transpose(1, 2)[:, None] for each in (picture, clean))
        matched = [
            weight * adain(x, z.expand(len(x), -1, -1, -1), eps=1e-8) for weight, z in zip(weights, like, strict=True)
        ]
        target = (sum(matched[1:], matched[0]) / sum(weights))[:, 0].transpose(1, 2).reshape(picture.shape)
        return torch.lerp(picture, target.to(picture), share)

    return hook


def gather_references(x: HeadsTensor, index: ReferenceIndex) -> HeadsTensor:
    """For each row the tokens of all reference rows that it attends to, one after the other."""
    return x[index].transpose(1, 2).flatten(2, 3)


def adain(
    x: Float[Tensor, "rows heads _tokens dim"], like: Float[Tensor, "rows heads _others dim"], eps: float = 1e-5
) -> Float[Tensor, "rows heads _tokens dim"]:
    """AdaIN: each channel of `x` with the mean and spread over tokens that it has in `like`."""

    def spread(t: Tensor) -> Tensor:
        alone = t.shape[2] == 1  # the smallest pictures end in maps of one token, which has no spread
        return (t.var(dim=2, keepdim=True, correction=0 if alone else 1) + eps).sqrt()

    return (x - x.mean(dim=2, keepdim=True)) / spread(x) * spread(like) + like.mean(dim=2, keepdim=True)


def _matched(x: HeadsTensor, index: ReferenceIndex, share: float) -> HeadsTensor:
    """Tokens with the statistics of those that they attend to, by a share."""
    return torch.lerp(x, adain(x, gather_references(x, index)), share)


def _with_image(x: HeadsTensor, image: slice, changed: HeadsTensor) -> HeadsTensor:
    """The tokens with those of the picture changed; as they were where nothing else is among them."""
    if changed.shape == x.shape:
        return changed
    x = x.clone()
    x[:, :, image] = changed
    return x


def _bias(given: Tensor | None, like: HeadsTensor, counts: Sequence[int], added: Sequence[float]) -> Tensor | None:
    """A bias on the scores of `counts` keys each, beside the one that was given for the first of them.

    None where it is the same for all, which no softmax sees.
    """
    parts = [(count, each) for count, each in zip(counts, added, strict=True) if count]
    if given is None and len({each for _, each in parts}) == 1:
        return None
    bias = torch.cat([like.new_full((count,), each) for count, each in parts])[None, None, None]
    if given is None:
        return bias
    return bias + F.pad(given, (0, bias.shape[-1] - given.shape[-1]))


def _of_keys(bias: Tensor | None, keys: int, parts: Sequence[slice]) -> Tensor | None:
    """A bias of so many keys for some of them; None where it is about none that is left."""
    if bias is None:
        return None
    bias = bias if bias.ndim > 1 else bias[None]
    bias = bias.expand(*bias.shape[:-1], keys)
    left = torch.cat([bias[..., part] for part in parts], dim=-1)
    return left if left.shape[-1] else None
