"""The GPU says what the CPU says: networks, pictures of every method, and diffusers beside us, in fp32 and bf16.

    python -m gpu.agreement [--minutes 9] [--dry]

The CPU in fp32 is the measure.  A row that lies outside its tolerance ends the program with 1.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gpu import kit
from instantstyle.emoji.build_style_cards import pictures_of
from instantstyle.families import EMOJI
from instantstyle.loading import load
from instantstyle.methods.image_prompts import ImagePrompt
from instantstyle.methods.instantstyle import add_image_prompt
from instantstyle.model import Model
from instantstyle.networks.attention import plain
from instantstyle.pipeline import generate
from instantstyle.request import Request, StyleReference
from oracle.paired_unets import TINY, Inputs, PairedUNets

METHODS = ("none", "instantstyle", "ip-adapter", "style-aligned", "swapped", "stylekeeper", "cleanstyle", "stylestudio")
DTYPES = ("float32", "bfloat16")
NETWORK: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far, relative to it, a prediction may lie from the measure."""
PICTURE: Mapping[str, float] = {"float32": 0.5, "bfloat16": 8.0}
"""How far pictures may lie apart: the mean over pixels, in levels of 255.  Each step multiplies what rounding began."""


@cache
def model(device: str, dtype: str) -> Model:
    """The built-in model somewhere in a precision."""
    return load("emoji", device=device, dtype=dtype)


def relative(found: Tensor, wanted: Tensor) -> float:
    """The distance of two tensors in units of the second's length."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm())


def _row(figure: float, limit: float, **more: Any) -> dict[str, Any]:
    return {"apart": figure, "at most": limit, "within": bool(figure <= limit), **more}


@torch.no_grad()
def prediction(model: Model) -> Tensor:
    """The UNet's answer to fixed numbers, with a reference at the blocks of the `style` preset."""
    config, make = model.family.unet, torch.Generator().manual_seed(1)
    rows, side = 4, model.family.size[0]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=make).to(model.device, model.dtype)

    latents, context = (
        drawn(config.in_channels, side // 8, side // 8),
        drawn(model.family.max_text_tokens, config.cross_attention_dim),
    )
    pooled, seen = drawn(config.pooled_projection_dim or 0), drawn(config.pooled_projection_dim or 0)
    sizes = torch.tensor([[side, side, 0.0, 0, side, side]], device=model.device).expand(rows, 6)
    plan = model.family.presets["style"]
    adapter = model.get_adapter(plan)
    kv = adapter.project_kv(adapter.image_tokens(seen), plan, config)
    attend = add_image_prompt(plain, ImagePrompt(kv, {site: plan.scale(site) for site in kv}))
    time = torch.tensor([999.0, 700, 300, 20], device=model.device)
    return model.unet(latents, time, model.unet.precompute_kv(context), pooled, sizes, attend=attend)


def _network(device: str, dtype: str) -> dict[str, Any]:
    wanted = prediction(model("cpu", "float32"))
    return _row(relative(prediction(model(device, dtype)), wanted), NETWORK[dtype])


@cache
def picture(device: str, dtype: str, method: str, steps: int) -> Image.Image:
    """One method's picture of a fixed request."""
    references = [] if method == "none" else [StyleReference(Image.fromarray(np.asarray(pictures_of("papercut")[0])))]
    asked = Request(prompt="a cat", references=references, method=method, seed=7, steps=steps, guidance=3.0)
    return generate(model(device, dtype), asked).images[0]


def _picture(device: str, dtype: str, method: str, steps: int) -> dict[str, Any]:
    found, wanted = (
        np.asarray(picture(*where, method, steps), float) for where in ((device, dtype), ("cpu", "float32"))
    )
    distance = np.abs(found - wanted)
    return _row(float(distance.mean()), PICTURE[dtype], largest=int(distance.max()))


def _oracle(layout: str, device: str, dtype: str) -> dict[str, Any]:
    """Ours and diffusers' on the same device, the same random weights."""
    kind = getattr(torch, dtype)
    config = EMOJI.unet if layout == "emoji" else TINY[layout]
    twins, inputs = PairedUNets.random(config), Inputs.random(config, size=(16, 8))
    for net in (twins.ours, twins.theirs):
        net.to(device, kind)
    numbers: Sequence[Tensor | None] = [inputs.latents, inputs.time, inputs.context, inputs.pooled, inputs.sizes]
    placed: list[Any] = [None if x is None else x.to(device, kind) for x in numbers]
    with torch.no_grad():
        return _row(relative(twins.predict(Inputs(*placed)), twins.expect(Inputs(*placed))), NETWORK[dtype])


def main(argv: Sequence[str] | None = None) -> None:
    """All rows."""
    given = kit.options(__doc__).parse_args(argv)
    # Else convolutions in fp32 run in tf32, which is right to three digits only.
    torch.backends.cudnn.allow_tf32 = False
    figures = kit.Figures("agreement", dry=given.dry, clock=kit.Clock(given.minutes))
    methods, steps = (METHODS[:2], 2) if given.dry else (METHODS, 25)
    for dtype in DTYPES:
        figures.measure(f"UNet, {dtype}", partial(_network, given.device, dtype))
        for layout in ("sdxl",) if given.dry else (*TINY, "emoji"):
            figures.measure(f"UNet beside diffusers', {layout}, {dtype}", partial(_oracle, layout, given.device, dtype))
        for method in methods:
            figures.measure(f"picture, {method}, {dtype}", partial(_picture, given.device, dtype, method, steps))
    figures.finish()
    if wrong := [what for what, row in figures.rows.items() if not row.get("within", True)]:
        sys.exit(f"outside their tolerance: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
