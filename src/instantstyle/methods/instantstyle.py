"""InstantStyle (arXiv 2404.02733) and IP-Adapter (arXiv 2308.06721).

IP-Adapter turns a reference picture into a few tokens and lets cross-attention read them beside the text's:

    Z = Attention(Q, K_text, V_text) + s * Attention(Q, K_image, V_image)

with the scale s the same at every block.  InstantStyle changes two things:

1.  s is zero but at the blocks where style lives (section 3.2; `families.py` says which, and where that is known from).
2.  The image's features are CLIP_image(reference) - w * CLIP_text(content), so that what the reference shows does not
    come along (section 3.1; `content_subtraction.py`).

Both are said of the reference (`image_prompts.py`) and of the plan, so what is left is the equation, applied once for
every image prompt.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.methods.image_prompts import ImagePrompt, image_prompts
from instantstyle.methods.injection import Injection, StepContext
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.methods.timed_image_prompts import timed_image_prompts
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, plain
from instantstyle.networks.tokens import Tokens


def instantstyle(model: Model, request: ResolvedRequest) -> Injection:
    """The references' style at the blocks of the plan, by default the style blocks, their content subtracted."""
    prompts_at = timed_image_prompts(model, request)
    if prompts_at is None:
        return Injection(_add_all(image_prompts(model, request)), request.window)

    @lru_cache(maxsize=2)
    def attend_at(step: StepContext) -> Attend:
        return _add_all(prompts_at(step.timestep))

    return Injection(window=request.window, attend_at=attend_at)


def _add_all(prompts: Sequence[ImagePrompt]) -> Attend:
    attend: Attend = plain
    for prompt in prompts:
        attend = add_image_prompt(attend, prompt)
    return attend


def ip_adapter(model: Model, request: ResolvedRequest) -> Injection:
    """The same with the plan `all` and no content subtracted: the adapter as published (`MethodSpec` says so)."""
    return instantstyle(model, request)


def add_image_prompt(attend: Attend, prompt: ImagePrompt) -> Attend:
    """`attend`, and s * Attention(Q, K_image, V_image) added at the sites of an image prompt.

    With a mask the sum is taken in its region alone.  In a transformer the image's tokens have no position, and the
    queries are the picture's: in blocks with one stream for both the text's too, as InstantX published it, but with a
    mask, which is of the picture.
    """

    def attended(
        site: Site,
        q: HeadsTensor,
        k: HeadsTensor,
        v: HeadsTensor,
        *,
        bias: Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> HeadsTensor:
        out = attend(site, q, k, v, bias=bias, tokens=tokens)
        if site not in prompt.kv:
            return out
        where = slice(None)
        if tokens is not None and (site.stage != "single" or prompt.mask is not None):
            where = tokens.image
        q_image, keys, values, key_bias = q[:, :, where], *prompt.kv[site], prompt.key_bias
        if prompt.own_norms is not None:
            of_q, of_k = prompt.own_norms[site]
            q_image, own = of_q(q_image), k[:, :, where]
            keys, values = torch.cat([of_k(own), keys], dim=2), torch.cat([v[:, :, where], values], dim=2)
            key_bias = None if key_bias is None else F.pad(key_bias, (own.shape[2], 0))
        image = prompt.scales[site] * plain(site, q_image, keys, values, bias=key_bias)
        image = image if prompt.mask is None else image * prompt.mask[site]
        if image.shape == out.shape:
            return out + image
        out = out.clone()
        out[:, :, where] += image
        return out

    return attended
