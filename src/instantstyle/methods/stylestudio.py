"""StyleStudio (arXiv 2412.08503): cross-modal AdaIN in place of IP-Adapter's sum.

The text's attention output takes on the mean and the spread of the image's, per channel over tokens:

    Z = (1 - s) A + s ((A - mean(A)) / std(A) * std(A') + mean(A'))

with A = Attention(Q, K_text, V_text) and A' = Attention(Q, K_image, V_image).
"""

import torch
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.methods.content_subtraction import effective_weight
from instantstyle.methods.image_prompts import ImagePrompt, image_prompts
from instantstyle.methods.injection import Injection
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.methods.shared_attention import adain
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, HeadsTensor, plain
from instantstyle.networks.tokens import Tokens


def stylestudio(model: Model, request: ResolvedRequest) -> Injection:
    """Cross-modal AdaIN at the blocks of the plan.

    Its strength is the reference's weight: at 1 the text's output has the image's statistics, as published, below 1 it
    is a mix.  The paper's teacher for the first steps and its negative style pictures are not implemented.

    The mean of the text's output is replaced, and what the prompt says by it is lost.  A model that reads its prompt at
    other layers too still draws the thing; the built-in one reads it at its style blocks alone, and at weight 1 loses
    it (benchmarks/results/reach.md).
    """
    weight = effective_weight([reference.weight for reference in request.references])
    attend: Attend = plain
    for prompt in image_prompts(model, request):
        attend = cross_adain(attend, prompt, weight)
    return Injection(attend, request.window)


def cross_adain(attend: Attend, prompt: ImagePrompt, weight: float = 1.0) -> Attend:
    """The module's equation, s being the plan's scale times `weight`.

    `weight` is what the prompt's values were multiplied by; here it is part of s instead.
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
        text = attend(site, q, k, v, bias=bias, tokens=tokens)
        if site not in prompt.kv:
            return text
        image = plain(site, q, *prompt.kv[site], bias=prompt.key_bias) / weight
        matched = adain(text.float(), image.float(), eps=1e-12).to(text)  # published without any eps
        return torch.lerp(text, matched, prompt.scales[site] * weight)

    return attended
