"""What a run's rows are told: the request's texts and those of its reference rows, read once."""

import torch
from torch import Tensor

from instantstyle.encoders.prompt_weighting import fill
from instantstyle.errors import InputError
from instantstyle.methods import Injection
from instantstyle.methods.reference_embedding import understand
from instantstyle.model import Model
from instantstyle.request import Request
from instantstyle.sampling.batch import Told


def tell(model: Model, request: Request, injection: Injection) -> Told:
    """A row for each of the run's while the injection holds; `request.size` and its guidance are settled.

    Raises InputError when a text is too long for the encoders or reference rows do not fit the model.
    """
    said = ["prompt", *(negative.reads for negative in injection.negatives)]
    if request.guided:
        said.insert(0, injection.unconditional)
    typed = [request.prompt if each == "prompt" else request.negative for each in said]
    if request.reading == "plain":
        typed = [understand(model, each).text for each in typed]
    texts = model.say(typed, request.reading)
    context, pooled = texts.context, texts.pooled
    if not request.negative and model.family.zero_empty and "negative" in said:
        # What SDXL was trained to take for no text at all; an encoded empty string is something else.
        mask = torch.tensor([float(each == "prompt") for each in said], device=context.device, dtype=context.dtype)
        context, pooled = context * mask[:, None, None], None if pooled is None else pooled * mask[:, None]

    def repeated(x: Tensor) -> Tensor:
        return x if request.count == 1 else x.repeat_interleave(request.count, dim=0)

    context, pooled = repeated(context), None if pooled is None else repeated(pooled)
    unet, rows = injection.unet or model.unet, injection.rows
    if rows is not None:
        read = rows.text.context
        if request.reading != "plain" and read.shape[1] < context.shape[1]:
            read = fill(read, model.say([""]).context, context.shape[1])
        _check(read, context)
        context = torch.cat([context, read.to(context)])
        if pooled is not None:
            if rows.text.pooled is None:
                raise InputError("reference rows of this model need pooled text, as `Model.say` gives it")
            pooled = torch.cat([pooled, rows.text.pooled.to(pooled)])
    text = unet.read(context)
    if pooled is None or model.family.unet.pooled_dim is None:
        return Told(context, text, None, None)
    assert request.size is not None
    width, height = request.size
    # In float32 whatever the model's dtype: bfloat16 would make 1000 pixels of 1003.
    sizes = torch.tensor([[height, width, 0, 0, height, width]], device=model.device, dtype=torch.float32)
    sizes = sizes.repeat(len(context), 1)
    if rows is not None and rows.sizes is not None:
        sizes[-len(rows) :] = rows.sizes
    return Told(context, text, pooled, sizes)


def _check(context: Tensor, own: Tensor) -> None:
    if context.shape[1:] != own.shape[1:]:
        raise InputError(
            f"the texts of reference rows are {context.shape[1]} tokens of {context.shape[2]} numbers, and the run's "
            f"own {own.shape[1]} of {own.shape[2]}: rows that go together read texts of one length"
        )
