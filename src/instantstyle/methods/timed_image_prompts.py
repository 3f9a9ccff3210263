"""Image prompts whose tokens depend on the time: InstantX' adapter of Stable Diffusion 3.5.

    z = AdaLN(tokens(reference, t), t)
    Z = JointAttention(q, k, v) + s Attention(q', [k'; K(z)], [v; V(z)])    for the picture's queries

where q' and k' are the picture's queries and keys under norms that are the adapter's.  After diffusers'
`SD3IPAdapterJointAttnProcessor2_0`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.errors import InputError, WeightsError
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.image_prompts import (
    ImagePrompt,
    ReferenceGroup,
    Renormalize,
    group_references,
    reference_features,
)
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.attention import KeyValue, split_heads
from instantstyle.networks.transformer import attention_norms

EPS = 1e-6
"""Of the adapter's norms, and of the network's."""


def timed_image_prompts(model: Model, request: ResolvedRequest) -> Callable[[float], list[ImagePrompt]] | None:
    """The image prompts of a request as a function of the timestep; None where no adapter's tokens depend on it.

    Raises InputError for a plan with negative blocks.
    """
    groups = group_references(model, request)
    if not any(group.adapter.time_norms is not None for group in groups):
        return None
    if any(group.plan.negative for group in groups):
        raise InputError("a plan with negative blocks does not go with an adapter whose tokens depend on the time")
    features = [reference_features(model, group.adapter, request, group.references) for group in groups]

    def at(timestep: float) -> list[ImagePrompt]:
        pairs = zip(groups, features, strict=True)
        return [_prompt(model, request, group, *each, timestep) for group, each in pairs]

    return at


@torch.no_grad()
def _prompt(
    model: Model,
    request: ResolvedRequest,
    group: ReferenceGroup,
    hidden: Tensor,
    weights: Sequence[float],
    timestep: float,
) -> ImagePrompt:
    """The prompt of references' hidden states, [references, sequence, width], at a timestep."""
    adapter, layout = group.adapter, model.family.layout
    heads, norms = cast("int", layout.num_attention_heads), adapter.time_norms or {}
    parts, time = adapter.tokens_at(hidden, timestep)
    tokens = parts.flatten(0, 1)[None]
    if request.do_classifier_free_guidance:
        empty, _ = adapter.tokens_at(model.uncond_image_embeds(adapter), timestep)
        tokens = torch.cat([empty.repeat(1, len(parts), 1), tokens])
    # One softmax is over the picture's own keys too, so that a weight is of the whole: what goes to 0 fades out.
    strength = effective_weight(weights)
    shares = torch.tensor(weights, dtype=tokens.dtype, device=tokens.device) / strength
    key_bias = shares.log().repeat_interleave(parts.shape[1])[None, None, None] if len(set(weights)) > 1 else None
    kv: dict[Site, KeyValue] = {}
    own: dict[Site, tuple[Renormalize, Renormalize]] = {}
    for site in adapter.speaking(group.plan, layout):
        at: Mapping[str, Tensor] = {name: tensors[site] for name, tensors in norms.items()}
        linear = F.linear(F.silu(time[:1]), at["norm_ip.linear.weight"], at["norm_ip.linear.bias"])
        shift, scale = linear[:, None].chunk(2, dim=-1)
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS) * (1 + scale) + shift
        k, v = (split_heads(F.linear(x, each[site]), heads) for each in (adapter.keys, adapter.values))
        k = F.rms_norm(k, k.shape[-1:], at["norm_ip_k.weight"], eps=EPS)
        kv[site] = k.repeat_interleave(request.count, 0), v.repeat_interleave(request.count, 0)
        q_scale, k_scale = attention_norms(model.network, site)
        own[site] = _renormalized(q_scale, at["norm_q.weight"]), _renormalized(k_scale, at["norm_k.weight"])
    scales = {site: group.plan.scale(site) * strength for site in kv}
    return ImagePrompt(kv, scales, key_bias, group.mask, own)


def _renormalized(network: Tensor | None, adapter: Tensor) -> Renormalize:
    """From vectors under the network's RMS norm to those under the adapter's: by the ratio of their scales.

    Of a network without such a norm the adapter's norm itself.  Raises WeightsError where a scale is zero, behind
    which nothing is left.
    """
    if network is None:
        return lambda x: F.rms_norm(x, x.shape[-1:], adapter, eps=EPS)
    if not bool((network != 0).all()):
        raise WeightsError(
            "the model's norm of queries or keys has a scale of zero: this adapter cannot be used with it"
        )
    return lambda x: x * (adapter / network)
