"""Image prompts: references as keys and values of image tokens at the sites of a plan.

What IP-Adapter, InstantStyle, CleanStyle and StyleStudio share.  An adapter turns a reference's embedding into a few
tokens and projects them to keys and values at cross-attention sites; what a method then does with these is its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.blocks import BlockPlan, Site
from instantstyle.errors import InputError
from instantstyle.methods.content_subtraction import effective_weight, subtract_content, weighted_average
from instantstyle.methods.prompts import nearest_words, normalize_prompt
from instantstyle.methods.reference_embedding import embed_references
from instantstyle.methods.region_masks import RegionMask, region_mask
from instantstyle.methods.resolved_request import ResolvedReference, ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.attention import KeyValue
from instantstyle.weights.adapter import Adapter

Renormalize = Callable[[Tensor], Tensor]
"""From vectors under one norm to the same under another."""


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """What one adapter brings under one plan."""

    kv: Mapping[Site, KeyValue]
    """Keys and values of the image tokens, [rows, heads, tokens, dim], at the sites where the plan is not zero; values
    are multiplied by the weight of their reference.  Rows are (unconditional, conditional) x count, with guidance."""
    scales: Mapping[Site, float]
    """The plan's scale at each of these sites."""
    key_bias: Float[Tensor, "1 1 1 tokens"] | None = None
    """Added to the scores of the image tokens: the logarithm of each reference's weight, where they differ."""
    mask: RegionMask | None = None
    """The region that the references are bound to; None: the whole picture."""
    own_norms: Mapping[Site, tuple[Renormalize, Renormalize]] | None = None
    """Of adapters by which the picture attends to its own keys too (Stable Diffusion 3.5): from the network's
    normalised queries and keys to those under the adapter's norms."""


@dataclass(frozen=True, eq=False)
class ReferenceGroup:
    """References that share one softmax: of one adapter, one plan and one region."""

    adapter: Adapter
    plan: BlockPlan
    references: Sequence[ResolvedReference]
    mask: RegionMask | None = None


def image_prompts(model: Model, request: ResolvedRequest) -> list[ImagePrompt]:
    """The image prompts of a request, to be applied one after the other.

    A plan with negative blocks makes two: at those the reference stands in the unconditional row, and the conditional
    row has nothing there.  Raises InputError for masks that are averaged, and for content that cannot be subtracted.
    """
    return [prompt for group in group_references(model, request) for prompt in _prompts_of(model, request, group)]


def _prompts_of(model: Model, request: ResolvedRequest, group: ReferenceGroup) -> list[ImagePrompt]:
    """The one or two prompts of a group."""
    if group.adapter.time_norms is not None:
        raise InputError(
            f"this adapter's tokens depend on the time, and method {request.method.name!r} reads them once: use "
            "instantstyle or ip-adapter"
        )
    tokens, weights = _image_tokens(model, group.adapter, request, group.references)
    image, empty = tokens[:1], tokens[1:]
    rows = torch.cat([empty, image]) if request.do_classifier_free_guidance else image
    prompts = [_project(model, group, group.plan.weights, rows, rows, weights, request.count)]
    if group.plan.negative:
        keys, values = torch.cat([image, image]), torch.cat([image, torch.zeros_like(image)])
        prompts.append(_project(model, group, group.plan.negative, keys, values, weights, request.count))
    return prompts


def group_references(model: Model, request: ResolvedRequest) -> list[ReferenceGroup]:
    """The references by adapter and plan, those with masks each alone."""
    groups: list[tuple[str | None, BlockPlan | None, list[ResolvedReference]]] = []
    for reference in request.references:
        key = (reference.given.adapter, reference.plan)
        together = next((members for *other, members in groups if tuple(other) == key), None)
        if together is None:
            groups.append((*key, together := []))
        together.append(reference)
    grouped: list[ReferenceGroup] = []
    for name, own_plan, members in groups:
        plan = request.plan if own_plan is None else own_plan
        if not plan:
            continue
        adapter = model.get_adapter(plan, name)
        if all(reference.given.mask is None for reference in members):
            grouped.append(ReferenceGroup(adapter, plan, members))
            continue
        if request.request.combine == "average" and len(members) > 1:
            raise InputError(
                "references with masks speak each in its own place, and combine='average' makes one of them: leave the "
                "masks out, or give combine='concat'"
            )
        grouped.extend(ReferenceGroup(adapter, plan, [each], _mask(model, request, each)) for each in members)
    return grouped


def _mask(model: Model, request: ResolvedRequest, reference: ResolvedReference) -> RegionMask | None:
    mask = reference.given.mask
    return None if mask is None else region_mask(model, mask.open(), request.size)


def _project(
    model: Model,
    group: ReferenceGroup,
    scales: Mapping[str, float],
    keys: Float[Tensor, "branches tokens context_dim"],
    values: Float[Tensor, "branches tokens context_dim"],
    weights: Sequence[float],
    count: int,
) -> ImagePrompt:
    """Keys of some tokens and values of others at the blocks of `scales`, each row `count` times."""
    plan, config = BlockPlan(scales), model.family.layout
    weight = torch.tensor(weights, dtype=keys.dtype, device=keys.device)
    weight = weight.repeat_interleave(keys.shape[1] // len(weights))

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(count, dim=0)

    with torch.no_grad():
        of_keys = group.adapter.project_kv(keys, plan, config)
        of_values = of_keys if values is keys else group.adapter.project_kv(values, plan, config)
    kv = {site: (repeated(of_keys[site][0]), repeated(of_values[site][1] * weight[:, None])) for site in of_keys}
    # A reference of weight w counts w times among the tokens, and its values are w times as large: of one reference
    # that is its weight times the plan's scale, and one whose weight goes to zero leaves the softmax too.
    key_bias = weight.log()[None, None, None] if len(set(weights)) > 1 else None
    return ImagePrompt(kv, {site: plan.scale(site) for site in kv}, key_bias, group.mask)


def _image_tokens(
    model: Model, adapter: Adapter, request: ResolvedRequest, references: Sequence[ResolvedReference]
) -> tuple[Float[Tensor, "2 tokens context_dim"], list[float]]:
    """The tokens of the references and those of no reference, and the weight of each reference."""
    embeds, weights = reference_features(model, adapter, request, references)
    with torch.no_grad():
        tokens, empty = adapter.image_tokens(embeds), adapter.image_tokens(model.uncond_image_embeds(adapter))
    return torch.cat([tokens.flatten(0, 1)[None], empty.repeat(1, len(tokens), 1)]), weights


def reference_features(
    model: Model, adapter: Adapter, request: ResolvedRequest, references: Sequence[ResolvedReference]
) -> tuple[Float[Tensor, "n *sequence width"], list[float]]:
    """The features of the references without their content, and the weight of each; one of all where it is averaged."""
    embeds = embed_references(model, [each.given.image for each in references], request.request.fit, adapter)
    parts = [
        _subtracted(model, adapter, request, reference, embeds[i : i + 1]) for i, reference in enumerate(references)
    ]
    embeds, weights = torch.cat(parts), [reference.weight for reference in references]
    if request.request.combine == "average":
        embeds, weights = weighted_average(embeds, weights), [effective_weight(weights)]
    return embeds, weights


def _subtracted(
    model: Model, adapter: Adapter, request: ResolvedRequest, reference: ResolvedReference, embeds: Tensor
) -> Tensor:
    """The reference's embedding without its content; a style card's own content is left in by Plus adapters."""
    given = reference.given
    if not reference.content or not given.content_weight or (adapter.is_plus and given.content is None):
        return embeds
    require_base_adapter(adapter)
    texts = [normalize_prompt(model, phrase).text for phrase in reference.content]
    content = model.encode_content_text(texts, embeds.shape[-1])
    return subtract_content(embeds, content, given.content_weight, request.request.subtraction)


def require_base_adapter(adapter: Adapter) -> None:
    """Raises InputError for Plus adapters: subtraction is defined for embeddings alone."""
    if adapter.is_plus:
        raise InputError(
            "content cannot be subtracted with a Plus adapter, which reads patches and no embedding: leave content "
            "out, or load a base adapter"
        )


def resolve_auto_content(model: Model, request: ResolvedRequest) -> ResolvedRequest:
    """The request with every content "auto" replaced by the word of the vocabulary nearest to the reference."""
    if not any(is_auto(phrase) for reference in request.references for phrase in reference.content):
        return request
    chosen = {id(each.given): _with_nearest_word(model, request, each) for each in request.references}
    given = tuple(chosen[id(each)].given if id(each) in chosen else each for each in request.request.references)
    return replace(
        request,
        references=tuple(chosen[id(each.given)] for each in request.references),
        request=request.request.model_copy(update={"references": given}),
    )


def _with_nearest_word(model: Model, request: ResolvedRequest, reference: ResolvedReference) -> ResolvedReference:
    if not any(map(is_auto, reference.content)):
        return reference
    given, adapter = reference.given, model.get_adapter(name=reference.given.adapter)
    embeds = embed_references(model, [given.image], request.request.fit, adapter)
    (word,) = nearest_words(model, embeds)
    content = tuple(word if is_auto(phrase) else phrase for phrase in reference.content)
    changed = given.model_copy(update={"content": word if isinstance(given.content, str) else content})
    return replace(reference, given=changed, content=content)


def is_auto(phrase: str) -> bool:
    """Whether a content is to be chosen from the model's vocabulary."""
    return phrase.strip().lower() == "auto"
