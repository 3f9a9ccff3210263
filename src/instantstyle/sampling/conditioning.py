"""What a run's rows are told: the request's texts and those of its reference rows, read once."""

import torch
from torch import Tensor

from instantstyle.encoders.prompt_weighting import pad_context
from instantstyle.errors import InputError
from instantstyle.methods import Injection
from instantstyle.methods.reference_embedding import normalize_prompt
from instantstyle.model import Model
from instantstyle.request import Request
from instantstyle.sampling.batch import Conditioning


def encode_conditioning(model: Model, request: Request, injection: Injection) -> Conditioning:
    """A row for each of the run's while the injection holds; `request.size` and its guidance are settled.

    Raises InputError when a text is too long for the encoders or reference rows do not fit the model.
    """
    said = ["prompt", *(negative.text for negative in injection.extra_guidance)]
    if request.do_classifier_free_guidance:
        said.insert(0, injection.uncond_text)
    typed = [request.prompt if each == "prompt" else request.negative for each in said]
    if request.reading == "plain":
        typed = [normalize_prompt(model, each).text for each in typed]
    texts = model.encode_prompt(typed, request.reading)
    context, pooled = texts.prompt_embeds, texts.pooled_prompt_embeds
    if not request.negative and model.family.force_zeros_for_empty_prompt and "negative" in said:
        # What SDXL was trained to take for no text at all; an encoded empty string is something else.
        mask = torch.tensor([float(each == "prompt") for each in said], device=context.device, dtype=context.dtype)
        context, pooled = context * mask[:, None, None], None if pooled is None else pooled * mask[:, None]

    def repeated(x: Tensor) -> Tensor:
        return x if request.count == 1 else x.repeat_interleave(request.count, dim=0)

    context, pooled = repeated(context), None if pooled is None else repeated(pooled)
    unet, rows = injection.unet or model.unet, injection.reference_batch
    if rows is not None:
        read = rows.text.prompt_embeds
        if request.reading != "plain" and read.shape[1] < context.shape[1]:
            read = pad_context(read, model.encode_prompt([""]).prompt_embeds, context.shape[1])
        _check(read, context)
        context = torch.cat([context, read.to(context)])
        if pooled is not None:
            if rows.text.pooled_prompt_embeds is None:
                raise InputError("reference rows of this model need pooled text, as `Model.say` gives it")
            pooled = torch.cat([pooled, rows.text.pooled_prompt_embeds.to(pooled)])
    text = unet.precompute_kv(context)
    if pooled is None or model.family.unet.pooled_projection_dim is None:
        return Conditioning(context, text, None, None)
    assert request.size is not None
    width, height = request.size
    # In float32 whatever the model's dtype: bfloat16 would make 1000 pixels of 1003.
    sizes = torch.tensor([[height, width, 0, 0, height, width]], device=model.device, dtype=torch.float32)
    sizes = sizes.repeat(len(context), 1)
    if rows is not None and rows.time_ids is not None:
        sizes[-len(rows) :] = rows.time_ids
    return Conditioning(context, text, pooled, sizes)


def _check(context: Tensor, own: Tensor) -> None:
    if context.shape[1:] != own.shape[1:]:
        raise InputError(
            f"the texts of reference rows are {context.shape[1]} tokens of {context.shape[2]} numbers, and the run's "
            f"own {own.shape[1]} of {own.shape[2]}: rows that go together read texts of one length"
        )
