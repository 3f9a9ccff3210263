"""The attention seam on diffusers' transformers: `attend` is an argument of their forward call.

Once, after loading, every attention module gets a processor that knows its own site and nothing else.  It projects
queries, keys and values as diffusers' own processor does, hands them to the `attend` that came with the call, and
projects the output.  Nothing is patched for a request and no layer has a state:

    sites = install_processors(transformer)
    transformer(..., joint_attention_kwargs={"attend": attend, "text_seq_len": n})

Queries and keys are behind the network's norm of them and not rotated yet; see `tokens`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantstyle.blocks import AttentionKind, Site, Stage
from instantstyle.errors import WeightsError
from instantstyle.networks.attention import Attend, join_heads, plain
from instantstyle.networks.tokens import Rope, Tokens


@dataclass(frozen=True)
class JointAttendProcessor:
    """A processor of diffusers' attention modules whose arguments have diffusers' names, by which they are given.

    Text, where a module is handed it apart, has projections of its own.  After `FluxAttnProcessor`,
    `JointAttnProcessor2_0` (Stable Diffusion 3) and `QwenDoubleStreamAttnProcessor2_0` of diffusers 0.42.
    """

    site: Site
    text_first: bool
    """Whether the text's tokens stand before the picture's."""
    block_end: bool = False
    """Whether the block takes a third output, which it adds to the picture at its end: diffusers'
    `FluxTransformerBlock`, where XLabs' adapters enter, behind the output projection, the gate and the feed-forward.
    It is a site of its own, `double.3.cross`: unrotated queries of the picture, and no keys until a method has some."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        *,
        encoder_hidden_states_mask: Tensor | None = None,
        attend: Attend = plain,
        text_seq_len: int | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The picture's output, [rows, tokens, width]; with text handed in apart, that of both."""
        qkv = _project(hidden_states, attn, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        rope = _rope(image_rotary_emb)
        if encoder_hidden_states is None:
            count = self._text_length(attend, text_seq_len)
            out, _ = self._attend(qkv, attend, count, attention_mask, rope)
            return _project_out(attn, out)
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = _project(encoder_hidden_states, attn, added, (attn.norm_added_q, attn.norm_added_k))
        if encoder_hidden_states_mask is not None:
            attention_mask = F.pad(encoder_hidden_states_mask, (0, qkv[0].shape[1]), value=1)
        pairs = zip(text, qkv, strict=True) if self.text_first else zip(qkv, text, strict=True)
        joined = [torch.cat(pair, dim=1) for pair in pairs]
        out, tokens = self._attend(joined, attend, encoder_hidden_states.shape[1], attention_mask, rope)
        # Contiguous, else the output projection rounds otherwise in bfloat16 than diffusers'.
        image_out = _project_out(attn, out[:, tokens.image].contiguous())
        text_out = out[:, tokens.text].contiguous()
        text_out = text_out if attn.to_add_out is None else attn.to_add_out(text_out)
        if not self.block_end or attend is plain:
            return image_out, text_out
        q = qkv[0].transpose(1, 2)
        end = attend(self.site._replace(kind="cross"), q, q[:, :, :0], q[:, :, :0])
        return image_out, text_out, join_heads(end)

    def _text_length(self, attend: Attend, text_seq_len: int | None) -> int:
        """How many tokens are the text's where a module is handed text and picture as one sequence.

        Raises ValueError where nobody says so and it matters: words would be taken for the picture.
        """
        if self.site.kind != "joint":
            return 0
        if text_seq_len is None and attend is not plain:
            raise ValueError(f"{self.site} is handed text and picture as one: give text_seq_len beside attend")
        return text_seq_len or 0

    def _attend(
        self, qkv: Sequence[Tensor], attend: Attend, text_length: int, mask: Tensor | None, rope: Rope | None
    ) -> tuple[Tensor, Tokens]:
        """The output for queries, keys and values of [rows, tokens, heads, dim]: [rows, tokens, heads * dim]."""
        whole = qkv[0].shape[1]
        cut = text_length if self.text_first else whole - text_length
        first, second = slice(0, cut), slice(cut, whole)
        tokens = Tokens(*((second, first) if self.text_first else (first, second)), rope, rope)
        q, k, v = (x.transpose(1, 2) for x in qkv)
        return join_heads(attend(self.site, q, k, v, bias=_mask_bias(mask, q.dtype), tokens=tokens)), tokens


def _project(x: Tensor, attn: Any, projections: Sequence[nn.Module], norms: Sequence[nn.Module | None]) -> list[Tensor]:
    """Queries, keys and values, [rows, tokens, heads, dim] each; the first two behind their norms."""
    parts: list[Tensor] = [each(x).unflatten(-1, (-1, attn.inner_dim // attn.heads)) for each in projections]
    return [part if norm is None else norm(part) for part, norm in zip(parts, (*norms, None), strict=True)]


def _project_out(attn: Any, x: Tensor) -> Tensor:
    """The output projection, where the module has one."""
    for layer in getattr(attn, "to_out", None) or ():
        x = layer(x)
    return x


def _mask_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """diffusers' mask of the keys, 1 where they are looked at, [rows, keys] or [rows, 1, 1, keys], as a bias."""
    if mask is None or mask.is_floating_point():
        return mask
    mask = mask.bool() if mask.ndim > 2 else mask.bool()[:, None, None]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))


def _rope(given: Any) -> Rope | None:
    """The angles that a transformer of diffusers computes; None where it computes none.

    Flux: cosines and sines, [tokens, dim].  Qwen-Image: complex numbers of picture and text, [tokens, dim / 2] each.
    """
    if given is None:
        return None
    parts = cast("list[Tensor]", list(given))
    if not parts[0].is_complex():
        return Rope(*parts)
    angles = torch.cat(parts[::-1])
    return Rope(*(part.repeat_interleave(2, dim=-1) for part in (angles.real, angles.imag)))


_PROCESSORS: Mapping[str, Callable[[Site], JointAttendProcessor]] = {
    "FluxAttnProcessor": partial(JointAttendProcessor, text_first=True, block_end=True),
    "JointAttnProcessor2_0": partial(JointAttendProcessor, text_first=False),
    "QwenDoubleStreamAttnProcessor2_0": partial(JointAttendProcessor, text_first=True),
}
"""What takes the place of diffusers' own processors, by their class."""
_MODULE = re.compile(r"(?P<blocks>\w+)\.(?P<block>\d+)\.(?P<module>attn2?)")


def attention_norms(
    transformer: nn.Module, site: Site
) -> tuple[Float[Tensor, " dim"] | None, Float[Tensor, " dim"] | None]:
    """The scales of the norms of queries and keys of a `joint` stage's site, None where it has none."""
    block: Any = transformer.get_submodule(f"transformer_blocks.{site.block}")
    attn: Any = block.attn2 if site.kind == "self" else block.attn
    norms = attn.norm_q, attn.norm_k
    q, k = (None if norm is None else norm.weight for norm in norms)
    return q, k


def install_processors(transformer: nn.Module) -> tuple[Site, ...]:
    """Give every attention module its processor, once and for good; the sites, in the order of registration.

    That order is the N of published adapters' keys, `ip_adapter.N.to_k_ip.weight`.  Raises WeightsError, nothing
    changed, for a module that no processor here is for, or whose projections are fused.
    """
    # A network with one kind of block calls its sites joint, one with two calls them double and single.
    both = hasattr(transformer, "single_transformer_blocks")
    stages: dict[str, Stage] = {"transformer_blocks": "double" if both else "joint"}
    stages |= {"single_transformer_blocks": "single"}
    found: list[tuple[Any, JointAttendProcessor]] = []
    for name, module in cast("Iterable[tuple[str, Any]]", transformer.named_modules()):
        if not hasattr(module, "set_processor"):
            continue
        kind, place = type(module.processor).__name__, _MODULE.fullmatch(name)
        if kind not in _PROCESSORS or place is None or place["blocks"] not in stages:
            raise WeightsError(
                f"attention at {name} of a {type(transformer).__name__} is of a kind ({kind}) at which no method can "
                f"enter: those known are {', '.join(_PROCESSORS)}"
            )
        if getattr(module, "fused_projections", False):
            raise WeightsError(f"the projections of {name} are fused, so that no method can enter: unfuse them first")
        site_kind: AttentionKind = "self" if place["module"] == "attn2" else "joint"
        site = Site.of_block(stages[place["blocks"]], int(place["block"]), site_kind)
        found.append((module, _PROCESSORS[kind](site)))
    for module, processor in found:
        module.set_processor(processor)
    return tuple(processor.site for _, processor in found)
