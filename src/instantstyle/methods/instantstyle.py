"""IP-Adapter (arXiv 2308.06721) and InstantStyle (arXiv 2404.02733): one way of attending, with two plans.

A picture becomes a few tokens, and cross-attention looks at them beside the text's.  IP-Adapter does so everywhere.
InstantStyle does so only where style lives, and takes out of the picture's embedding what the picture shows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site, parse_block_plan
from instantstyle.errors import InputError
from instantstyle.methods.content_subtraction import effective_weight, nearest_text, subtract_content, weighted_average
from instantstyle.methods.injection import Injection
from instantstyle.methods.reference_embedding import embed_references, normalize_prompt
from instantstyle.methods.region_masks import RegionMask, region_mask
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, KeyValue, plain
from instantstyle.request import Request, StyleReference
from instantstyle.weights.adapter import Adapter

AttentionCombiner = Callable[[Attend, BlockPlan, Mapping[Site, KeyValue], Tensor | None], Attend]
"""How the image's keys and values are looked at beside the text's: as `image_prompt`, or as follow-ups have it."""


def add_image_prompt(
    attend: Attend,
    plan: BlockPlan,
    image: Mapping[Site, KeyValue],
    share: Tensor | None,
    where: RegionMask | None = None,
) -> Attend:
    """Z = Attn(Q, K_text, V_text) + s * Attn(Q, K_image, V_image), where s is the plan's strength at the site.

    `share` is added to the scores of the image's tokens, so that references count by their weights; with `where` the
    image is heard in its region alone.
    """

    def attended(
        site: Site, q: HeadsTensor, k: HeadsTensor, v: HeadsTensor, *, bias: Tensor | None = None
    ) -> HeadsTensor:
        out = attend(site, q, k, v, bias=bias)
        if site not in image:
            return out
        said = plan.scale(site) * plain(site, q, *image[site], bias=share)
        return out + (said if where is None else said * where[site])

    return attended


def instantstyle(model: Model, request: Request) -> Injection:
    """The references' style at the blocks of the request's plan, their content subtracted."""
    return _inject(model, request, parse_block_plan(request.plan, model.family.unet, model.family.presets))


def ip_adapter(model: Model, request: Request) -> Injection:
    """The references at every block, nothing subtracted: the adapter as published.

    Raises InputError when the request has a plan of its own or content to subtract: that is method instantstyle.
    """
    if request.plan not in ("style", "all"):  # the first is what a request says that says nothing
        raise InputError(
            f"method 'ip-adapter' speaks at all blocks, so the plan {request.plan!r} does not go with it: use method "
            "'instantstyle' with this plan"
        )
    typed = [reference for reference in request.references if reference.content is not None]
    if any(reference.content_phrases and reference.content_weight for reference in typed):
        raise InputError(
            "method 'ip-adapter' subtracts nothing, so content does not go with it: leave content out, or use method "
            "'instantstyle'"
        )
    if any(reference.plan is not None for reference in request.references):
        raise InputError(
            "method 'ip-adapter' speaks at all blocks, so a reference's own plan does not go with it: use method "
            "'instantstyle'"
        )
    # What a style card says of itself goes with the method that it was not made for, so nothing of it is heard here.
    bare = [each.model_copy(update={"content": (), "plan": "all"}) for each in request.references]
    plain_request = request.model_copy(update={"plan": "all", "references": tuple(bare)})
    injection = _inject(model, plain_request, model.family.presets["all"])
    return replace(injection, resolved_fields={"references": request.references, "plan": "all"})


@dataclass(frozen=True)
class ReferenceGroup:
    """References that speak together: through one adapter, by one plan."""

    adapter: Adapter
    plan: BlockPlan
    references: Sequence[StyleReference]
    mask: RegionMask | None = None
    """The part of the picture they speak in; None: all of it."""


def _inject(model: Model, request: Request, plan: BlockPlan) -> Injection:
    return build_injection(model, request, plan, add_image_prompt)


def build_injection(model: Model, request: Request, plan: BlockPlan, way: AttentionCombiner) -> Injection:
    """The references at the blocks of a plan, looked at in a way.  Raises InputError."""
    references = tuple(resolve_auto_content(model, request, reference) for reference in request.references)
    settled = {"references": references, "plan": request.plan}
    voices, attend = _group_references(model, request, references, plan), cast("Attend", plain)
    for voice in voices:
        attend = _spoken(model, request, voice, attend, way)
    return Injection(attend, request.window, settled)


def _group_references(
    model: Model, request: Request, references: Sequence[StyleReference], plan: BlockPlan
) -> list[ReferenceGroup]:
    """References by adapter and plan; those that say nothing are left out.  Raises InputError."""
    together: dict[tuple[str | None, str | None], list[StyleReference]] = {}
    for reference in references:
        together.setdefault((reference.adapter, reference.effective_plan), []).append(reference)
    voices: list[ReferenceGroup] = []
    for (name, own), group in together.items():
        spoken = plan if own is None else parse_block_plan(own, model.family.unet, model.family.presets)
        if spoken.negative and not request.do_classifier_free_guidance:
            raise InputError(
                f"the plan {own or request.plan!r} puts the reference where guidance pushes away from, which guidance "
                f"{request.guidance:g} does not do: give a guidance above 1"
            )
        speaking = [reference for reference in group if reference.weight]
        if not spoken or not speaking:
            continue
        adapter = model.get_adapter(spoken, name)
        if all(reference.mask is None for reference in speaking):
            voices.append(ReferenceGroup(adapter, spoken, speaking))
            continue
        if request.combine == "average" and len(speaking) > 1:
            raise InputError(
                "references with masks speak each in its own place, and combine='average' makes one of them: leave the "
                "masks out, or give combine='concat'"
            )
        voices.extend(ReferenceGroup(adapter, spoken, [each], _region(model, request, each)) for each in speaking)
    return voices


def _region(model: Model, request: Request, reference: StyleReference) -> RegionMask | None:
    assert request.size is not None
    return None if reference.mask is None else region_mask(model, reference.mask.open(), request.size)


def _spoken(model: Model, request: Request, voice: ReferenceGroup, inner: Attend, way: AttentionCombiner) -> Attend:
    """`inner`, and then what a voice says: in the conditional row, or where its plan is negative in the other."""
    adapter, plan, where = voice.adapter, voice.plan, voice.mask
    if where is not None:
        way = partial(add_image_prompt, where=where)
    tokens, weights = _tokens(model, adapter, request, voice.references)
    seen, unseen = tokens[:1], tokens[1:]
    rows = torch.cat([unseen, seen]) if request.do_classifier_free_guidance else seen
    attend = _attend(model, adapter, plan.weights, rows, rows, weights, request.count, inner, way)
    if plan.negative:
        # The reference stands in the unconditional row, and in the conditional one nothing does (no value speaks).
        attend = _attend(
            model,
            adapter,
            plan.negative,
            torch.cat([seen, seen]),
            torch.cat([seen, torch.zeros_like(seen)]),
            weights,
            request.count,
            attend,
            way,
        )
    return attend


def _attend(
    model: Model,
    adapter: Adapter,
    strengths: Mapping[str, float],
    keys: Tensor,
    values: Tensor,
    weights: Sequence[float],
    count: int,
    inner: Attend,
    way: AttentionCombiner,
) -> Attend:
    """`inner` and then the image's tokens, read once here; each row `count` times."""
    plan, config = BlockPlan(strengths), model.family.unet
    each = keys.shape[1] // len(weights)
    loud = torch.tensor(weights, dtype=keys.dtype, device=keys.device).repeat_interleave(each)

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(count, dim=0)

    with torch.no_grad():
        read_keys = adapter.project_kv(keys, plan, config)
        read_values = read_keys if values is keys else adapter.project_kv(values, plan, config)
    image = {site: (repeated(read_keys[site][0]), repeated(read_values[site][1] * loud[:, None])) for site in read_keys}
    # A reference of weight w counts w times among the tokens and speaks w times as loudly: for one reference that is
    # its weight times the plan's, and one whose weight goes to zero fades out of the softmax too.
    unequal = len(set(weights)) > 1
    return way(inner, plan, image, loud.log()[None, None, None] if unequal else None)


def _tokens(
    model: Model, adapter: Adapter, request: Request, references: Sequence[StyleReference]
) -> tuple[Tensor, list[float]]:
    """Tokens of the references and of no reference, [2, tokens, context_dim], and the weight of each reference."""
    seen = embed_references(model, [reference.image for reference in references], request.fit, adapter)
    without = [
        _subtract_content_embedding(model, adapter, request, *pair)
        for pair in zip(references, [seen[i : i + 1] for i in range(len(seen))], strict=True)
    ]
    seen, weights = torch.cat(without), [reference.weight for reference in references]
    if request.combine == "average":
        seen, weights = weighted_average(seen, weights), [effective_weight(weights)]
    with torch.no_grad():
        tokens, empty = adapter.image_tokens(seen), adapter.image_tokens(model.uncond_image_embeds(adapter))
    return torch.cat([tokens.flatten(0, 1)[None], empty.repeat(1, len(tokens), 1)]), weights


def _subtract_content_embedding(
    model: Model, adapter: Adapter, request: Request, reference: StyleReference, seen: Tensor
) -> Tensor:
    if not reference.content_phrases or not reference.content_weight or (adapter.is_plus and reference.content is None):
        return seen
    _check_base(adapter)
    said = [normalize_prompt(model, phrase).text for phrase in reference.content_phrases]
    texts = model.encode_content_text(said, seen.shape[-1])
    return subtract_content(seen, texts, reference.content_weight, request.subtraction)


def _check_base(adapter: Adapter) -> None:
    """Subtraction is defined for embeddings alone.  Raises InputError."""
    if adapter.is_plus:
        raise InputError(
            "content cannot be subtracted with a Plus adapter, which reads patches and no embedding: leave content "
            "out, or load a base adapter"
        )


def resolve_auto_content(model: Model, request: Request, reference: StyleReference) -> StyleReference:
    """The reference with "auto" among its contents replaced by the word nearest to what it shows."""
    if not any(map(_is_auto, reference.content_phrases)):
        return reference
    adapter = model.get_adapter(name=reference.adapter)
    _check_base(adapter)
    seen = embed_references(model, [reference.image], request.fit, adapter)
    word = model.vocabulary[nearest_text(seen, model.vocabulary_embeds(seen.shape[-1]))[0]]
    said = tuple(word if _is_auto(phrase) else phrase for phrase in reference.content_phrases)
    return reference.model_copy(update={"content": word if isinstance(reference.content, str) else said})


def _is_auto(phrase: str) -> bool:
    return phrase.strip().lower() == "auto"
