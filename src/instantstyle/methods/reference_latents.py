"""Reference rows: a picture noised anew at every step, its DDIM inversion, or a picture generated beforehand.

Each source is a function from a step of the run to the latents that the denoiser is to see there.  A reference has a
row for each branch of guidance; all unconditional rows read the negative prompt, the others the reference's caption.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from instantstyle.encoders.clip import TextEmbeddings
from instantstyle.errors import InputError
from instantstyle.methods.ddim_inversion import (
    NoiseLevel,
    PredictFn,
    Trajectory,
    Walk,
    cfg_denoiser,
    noise_levels,
    walk_down,
    walk_up,
)
from instantstyle.methods.injection import Preparation, PreparationStep, ReferenceBatch, ReferenceLatents, StepContext
from instantstyle.methods.prompts import encode_prompts, prompt_text
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.prediction import Latents, prediction_type
from instantstyle.utils.images import resize_to

ReferenceIndex = Int[Tensor, "rows references"]
"""For each row of the run the reference rows it attends to; a row that attends to itself alone is as it would be."""


def renoise(latents: Latents, seed: int) -> ReferenceLatents:
    """The picture under fresh noise at every step, as in training: no call of the network, no inversion to go wrong."""
    return lambda step: step.alpha * latents + step.sigma * _noise(latents, f"renoised {step.step}", seed)


def follow_trajectory(trajectory: Trajectory, offset: float = 0.0) -> ReferenceLatents:
    """The latents of a trajectory; its noisiest levels, a share `offset`, are replaced by the noisiest that is left."""
    levels = trajectory.noise_levels
    first = levels[max(1, round((1 - offset) * (len(levels) - 1)))]

    def latents(step: StepContext) -> Tensor:
        now = NoiseLevel(step.timestep, step.alpha, step.sigma)
        return trajectory.at(first if now.timestep > first.timestep else now)

    return latents


def reference_batch(model: Model, request: ResolvedRequest) -> Preparation[ReferenceBatch]:
    """The rows of the request's references, in their order and for each (unconditional, conditional), as the run has.

    Raises InputError when a caption is missing.
    """
    captions, branches = reference_captions(model, request), request.branches
    texts = [text for caption in captions for text in ([request.negative] * (branches - 1) + [caption])]
    match request.options["reference-source"]:
        case "generated":
            trajectory = yield from _generate(model, request, *captions)
            source, clean = follow_trajectory(trajectory), trajectory.at(trajectory.noise_levels[0])
        case "inverted":
            clean = _encode_references(model, request)
            source = yield from _invert(model, request, clean, captions)
        case _:
            clean = _encode_references(model, request)
            source = renoise(clean, request.seed)

    def latents(step: StepContext) -> Tensor:
        return source(step).repeat_interleave(branches, dim=0)

    return ReferenceBatch(_encode(model, request, texts), latents, clean_latents=clean)


def reference_captions(model: Model, request: ResolvedRequest) -> list[str]:
    """What each reference's own row reads: the option `caption`, else its content; of a generated one the option."""
    given = str(request.options["caption"])
    if request.options["reference-source"] == "generated":
        if request.request.references:
            raise InputError(
                "with reference-source=generated the reference is drawn from its caption, so a picture does not go "
                "with it: leave the picture out, or give reference-source=noised or inverted"
            )
        if not given.strip():
            raise InputError(
                "with reference-source=generated the reference is drawn from its caption: give the option caption"
            )
    typed = [given or ", ".join(reference.content) for reference in request.references] or [given]
    return [prompt_text(model, caption, request.request.reading) for caption in typed]


def reference_index(
    branches: int, count: int, references: int, device: torch.device, extra_guidance: int = 0
) -> ReferenceIndex:
    """For each of the run's rows and the reference rows after them the reference rows that it attends to.

    A run has `branches` (unconditional and conditional) and `extra_guidance` rows for each of `count` pictures.  A row
    attends to the references' rows of its own branch, and reference rows to themselves.
    """
    own = (branches + extra_guidance) * count
    branch_of = [min(row // count, branches - 1) for row in range(own)]
    of_own = [[own + each * branches + branch for each in range(references)] for branch in branch_of]
    of_references = [[row] * references for row in range(own, own + references * branches)]
    return torch.tensor([*of_own, *of_references], device=device)


def _encode_references(model: Model, request: ResolvedRequest) -> Latents:
    """The latents of the references at the request's size, each once."""
    pictures = [resize_to(each.given.image.open(), request.request.fit, request.size) for each in request.references]
    return torch.cat([model.encode_latents(picture) for picture in pictures])


def _invert(
    model: Model, request: ResolvedRequest, latents: Latents, captions: Sequence[str]
) -> Preparation[ReferenceLatents]:
    """The pictures' trajectories by DDIM inversion, each with its own caption and no negative prompt."""
    guidance, offset = float(request.options["inversion-guidance"]), float(request.options["offset"])
    levels, kind = noise_levels(model, request.steps, request.size), prediction_type(model.scheduler_config)
    sources: list[ReferenceLatents] = []
    for number, caption in enumerate(captions):
        predict = _predictor(model, request, caption, guidance, "")
        walk = walk_up(predict, latents[number : number + 1], levels, kind)
        done, steps = number * (len(levels) - 1), len(captions) * (len(levels) - 1)
        trajectory = yield from _counted(walk, "inverting the reference", done, steps)
        sources.append(follow_trajectory(trajectory, offset))
    return lambda step: torch.cat([source(step) for source in sources])


def _generate(model: Model, request: ResolvedRequest, caption: str) -> Preparation[Trajectory]:
    """A picture of the caption, sampled by the run's own steps and guidance before the run: no style but the model's.

    Nothing that attends to it changes it, so that sampled before and sampled beside the run are the same.
    """
    width, height = request.size
    factor = model.vae_scale_factor
    shape = (1, model.family.layout.latent_channels, height // factor, width // factor)
    noise = _noise(torch.empty(shape, dtype=model.dtype, device=model.device), "alongside", request.seed)
    predict = _predictor(model, request, caption, request.guidance, request.negative, request.guidance_rescale)
    levels = noise_levels(model, request.steps, request.size)
    walk = walk_down(predict, noise, levels, prediction_type(model.scheduler_config))
    return (yield from _counted(walk, "generating the reference", 0, len(levels) - 1))


def _counted(walk: Walk, phase: str, done: int, steps: int) -> Preparation[Trajectory]:
    """A walk whose levels are pieces of the preparation."""
    while True:
        try:
            step = next(walk)
        except StopIteration as end:
            return end.value
        yield PreparationStep(phase, done + step, steps)


def _predictor(
    model: Model, request: ResolvedRequest, caption: str, guidance: float, negative: str, rescale: float = 0.0
) -> PredictFn:
    texts = [negative, caption] if guidance > 1 else [caption]
    told = request.distilled_guidance
    return cfg_denoiser(model, _encode(model, request, texts), request.size, guidance, rescale, told)


def _encode(model: Model, request: ResolvedRequest, texts: Sequence[str]) -> TextEmbeddings:
    return encode_prompts(model, texts, request.request.reading, request.request.clip_skip)


def _noise(like: Latents, what: str, seed: int) -> Float[Tensor, "n channels height width"]:
    """Noise that depends on the request's seed and on what it is for, drawn on the CPU whatever the device."""
    number = int.from_bytes(hashlib.blake2b(f"{what} {seed}".encode(), digest_size=7).digest())
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(number)).to(like)
