"""SDXL at its full size, random weights, diffusers beside us: seconds a step and peak memory.

    python -m gpu.speed [--minutes 9] [--dry]

Both read the same files, which benchmarks/fullsize.py writes once, and the same inputs, in bfloat16.  A step is one
call of the UNet as each library works: ours has the keys and values of text and picture from before the first step.
The rows `first part` and `rest` are the two halves of the UNet around the style block.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks import fullsize
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from gpu import kit
from gpu.agreement import relative
from instantstyle.loading import load
from instantstyle.methods.image_prompts import ImagePrompt
from instantstyle.methods.instantstyle import add_image_prompt
from instantstyle.model import Model
from instantstyle.networks.attention import plain

Step = Callable[[], Any]
SCALES = {"no style": 0.0, "style": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "all": 1.0}
"""How diffusers calls our presets."""


def files(*, dry: bool) -> Path:
    """A model of SDXL's size in random weights, written when it is not there yet."""
    folder = kit.work(dry) / "sdxl"
    if not (folder / "model_index.json").is_file():
        fullsize.write(folder, small=dry)
    return folder


def inputs(model: Model, rows: int, side: int) -> dict[str, Tensor]:
    """What both are given: rows of latents `side` wide, texts, pictures, sizes."""
    config = model.unet.config
    given = fullsize.inputs(config.cross_attention_dim, config.pooled_projection_dim or 0, side)
    return {name: tensor.expand(rows, *tensor.shape[1:]).to(model.device) for name, tensor in given.items()}


def ours(model: Model, preset: str, given: dict[str, Tensor], part: str = "") -> Step:
    """Our step: whole, or the `first part` before the style block, or the `rest`."""
    unet, plan, attend = model.unet, model.family.presets["style" if preset == "no style" else preset], plain
    if preset != "no style":
        adapter = model.get_adapter()
        image = adapter.project_kv(adapter.image_tokens(given["image"]), plan, unet.config)
        attend = add_image_prompt(plain, ImagePrompt(image, {site: plan.scale(site) for site in image}))
    text, time = unet.precompute_kv(given["context"]), torch.full((len(given["latents"]),), 500.0, device=model.device)
    known = (given["latents"], time, text, given["pooled"], given["sizes"])
    if not part:
        return lambda: unet(*known, attend=attend)
    first, rest = unet.split_at("up.0.1")
    if part == "first part":
        return lambda: first(*known, attend=attend)
    state = first(*known, attend=attend)
    return lambda: rest(state, text, attend=attend)


def theirs(pipeline: Any, preset: str, given: dict[str, Tensor]) -> Step:
    """The step of diffusers' UNet."""
    pipeline.set_ip_adapter_scale(SCALES[preset])
    added = {"text_embeds": given["pooled"], "time_ids": given["sizes"], "image_embeds": [given["image"][:, None]]}
    time = torch.tensor(500.0, device=given["latents"].device)
    return lambda: pipeline.unet(given["latents"], time, given["context"], added_cond_kwargs=added).sample


def main(argv: Sequence[str] | None = None) -> None:
    """All rows."""
    given = kit.options(__doc__).parse_args(argv)
    at, side, clock = torch.device(given.device), 8 if given.dry else 128, kit.Clock(given.minutes)
    figures, folder = kit.Figures("speed", dry=given.dry, clock=clock), files(dry=given.dry)
    model = load(folder, dtype="bfloat16", device=given.device)
    pipeline: Any = StableDiffusionXLPipeline
    pipeline = pipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipeline.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    pipeline.unet.to(at)
    repeats = 1 if given.dry else 10

    def measure(what: str, make: Callable[[], Step]) -> None:
        figures.measure(what, lambda: kit.timed(make(), at, repeats))

    with torch.no_grad():
        for rows in (2,) if given.dry else (2, 8):
            given_now = inputs(model, rows, side)
            for preset in SCALES:
                measure(f"ours, {preset}, {rows} rows", partial(ours, model, preset, given_now))
                measure(f"diffusers, {preset}, {rows} rows", partial(theirs, pipeline, preset, given_now))
            for part in ("first part", "rest"):
                measure(f"ours, style, {rows} rows, {part}", partial(ours, model, "style", given_now, part))
        for preset in SCALES:
            pair = partial(_apart, model, pipeline, preset, inputs(model, 1, side))
            figures.measure(f"ours against diffusers, {preset}", pair)
    figures.finish()


def _apart(model: Model, pipeline: Any, preset: str, given: dict[str, Tensor]) -> dict[str, float]:
    return {"apart": relative(ours(model, preset, given)(), theirs(pipeline, preset, given)())}


if __name__ == "__main__":
    main()
