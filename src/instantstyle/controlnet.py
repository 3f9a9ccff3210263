"""ControlNet (arXiv 2302.05543): control images (edges, lines, depth) and the residuals that are made of them.

A kind is `how` or `how:which`: how the control picture is made of the given one, and which of the model's ControlNets
reads it.  `canny` makes edges and gives them to the ControlNet called canny; `image` gives the picture as it is to the
only ControlNet there is, `image:canny` to that one; a name that nothing is made by, such as `pose`, is the picture as
it is for the ControlNet of that name.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from instantstyle.errors import InputError, did_you_mean
from instantstyle.model import Model
from instantstyle.networks.unet import Residuals
from instantstyle.request import Control, Request
from instantstyle.weights.control import PUBLISHED_CONTROLNETS, ControlNet

CANNY = (50, 200)
"""Lower and upper threshold, as in InstantStyle's code (infer_style_controlnet.py)."""
PASSTHROUGH = ("image", "none")
"""Kinds that leave the picture as it is."""

PixelArray = UInt8[np.ndarray, "height width 3"]
EdgeMap = UInt8[np.ndarray, "height width"]


def canny(pixels: PixelArray) -> EdgeMap:
    """Edges, white on black, of the channel that changes most (Canny 1986, by OpenCV)."""
    return _cv2().Canny(pixels, *CANNY)


def soft_edge(pixels: PixelArray) -> EdgeMap:
    """How steep the picture is, white where it is steepest: what HED draws, without a network.

    The gradient (Scharr) of the channel that changes most, at three blurs, so that broad edges count as thin ones do;
    then made relative to the steepest hundredth.
    """
    cv2, x = _cv2(), pixels.astype(np.float32) / 255
    steep = np.zeros(x.shape[:2], np.float32)
    for blur in (0.5, 1.0, 2.0):
        soft = cv2.GaussianBlur(x, (0, 0), blur)
        across, down = cv2.Scharr(soft, cv2.CV_32F, 1, 0), cv2.Scharr(soft, cv2.CV_32F, 0, 1)
        steep = np.maximum(steep, blur * np.hypot(across, down).max(axis=2))
    full = max(float(np.percentile(steep, 99)), 1.0)  # an even picture has no edges, however faint its noise
    return (np.clip(steep / full, 0, 1) * 255).round().astype(np.uint8)


def lineart(pixels: PixelArray) -> EdgeMap:
    """What is darker than its surroundings, as white lines on black: a difference of Gaussians.

    The lines are made about half white whatever the picture's contrast, as controlnet_aux's standard lineart does.
    """
    x = pixels.astype(np.float32)
    darker = np.clip((_cv2().GaussianBlur(x, (0, 0), max(pixels.shape[:2]) * _LINE) - x).min(axis=2), 0, 255)
    drawn = darker[darker > 8]
    typical = max(16.0, float(np.median(drawn))) if drawn.size else 16.0
    return np.clip(darker / typical * 127, 0, 255).round().astype(np.uint8)


_LINE = 6 / 512
"""Width of the surroundings as a share of the picture: 6 pixels at the 512 that the kind was made for."""

PREPROCESSORS: Mapping[str, Callable[[PixelArray], EdgeMap]] = {
    "canny": canny,
    "soft-edge": soft_edge,
    "lineart": lineart,
}
"""How control pictures are made by OpenCV; `depth` needs a model, and everything else is given as it is."""
CONTROL_KINDS = (*PREPROCESSORS, "depth", *PASSTHROUGH)


@dataclass(frozen=True, eq=False)
class ActiveControl:
    """One control of a run, ready for its steps."""

    control: ControlNet
    control_image: Float[Tensor, "1 3 height width"]
    """The control picture, 0 to 1."""
    weight: float
    window: tuple[float, float]

    def active_at(self, step: int, steps: int) -> bool:
        """Whether it holds in a step, counted from 0: all of the step lies in the window, as in diffusers."""
        start, end = self.window
        return bool(self.weight) and not (step / steps < start or (step + 1) / steps > end)


def prepare_controls(model: Model, request: Request) -> tuple[ActiveControl, ...]:
    """The request's controls, its size settled; those of no weight left out.

    Raises InputError for kinds that do not exist and for ControlNets that the model was not loaded with.
    """
    chosen = [(control, resolve_control(model, control.kind)[1]) for control in request.controls]
    return tuple(
        ActiveControl(net, _tensor(make_control_image(model, request, control), model), control.weight, control.window)
        for control, net in chosen
        if control.weight
    )


def resolve_control(model: Model, kind: str) -> tuple[str, ControlNet]:
    """How a kind's picture is made, and the ControlNet that reads it.  Raises InputError."""
    how, which = parse_control(kind)
    nets = model.controls
    if which is None and how in PASSTHROUGH and how not in nets and nets:
        if len(nets) > 1:
            raise InputError(
                f"the model has several ControlNets, so {kind!r} does not say which is to read the picture: give one "
                f"of {', '.join(f'{how}:{name}' for name in nets)}"
            )
        which = next(iter(nets))
    name = which or how
    if name in nets:
        if how == "depth" and model.depth is None:
            raise InputError(
                "a depth picture is made by a depth model, and none was loaded: load with depth=... (--depth-model), "
                "such as depth-anything/Depth-Anything-V2-Small-hf, or give a depth picture as kind 'image:depth'"
            )
        return how, nets[name]
    if nets:
        known = tuple(nets)
        raise InputError(f"the model has no ControlNet {name!r}: it has {', '.join(known)}{did_you_mean(name, known)}")
    wanted = "canny" if name in PASSTHROUGH else name
    where = PUBLISHED_CONTROLNETS.get(model.family.name, {}).get(wanted, "a file")
    raise InputError(
        f"the model {model.source.spec!r} has no ControlNet, so no picture can be followed: load it with "
        f"controls={{{wanted!r}: {where!r}}} (--control-model)"
    )


def parse_control(kind: str) -> tuple[str, str | None]:
    """`how:which` in its two parts.  Raises InputError for a `how` before a colon that nothing is made by."""
    how, colon, which = kind.partition(":")
    if colon and (how not in CONTROL_KINDS or not which):
        raise InputError(
            f"the kind of control {kind!r} is not understood: before the colon stands how the picture is made, one of "
            f"{', '.join(CONTROL_KINDS)}{did_you_mean(how, CONTROL_KINDS)}, and behind it the name of a ControlNet"
        )
    return how, which or None


def make_control_image(model: Model, request: Request, control: Control) -> Image.Image:
    """The control picture made of the given one, of the request's size.  Raises InputError as `prepare_controls` does.

    The given picture is brought to that size first (by Lanczos, its proportions given up, as diffusers does): edges
    made smaller would be grey.
    """
    how, _ = resolve_control(model, control.kind)
    picture, size = control.image.open(), request.size or model.family.size
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if how == "depth" and model.depth is not None:
        return Image.fromarray(model.depth.estimate(picture)).convert("RGB")
    make = PREPROCESSORS.get(how)
    return picture if make is None else Image.fromarray(make(np.asarray(picture))).convert("RGB")


def controlnet_residuals(
    controls: Sequence[ActiveControl],
    step: int,
    steps: int,
    latents: Float[Tensor, "rows channels height width"],
    time: Float[Tensor, " rows"],
    context: Float[Tensor, "rows tokens context_dim"],
    pooled: Float[Tensor, "rows pooled_dim"] | None,
    sizes: Float[Tensor, "rows 6"] | None,
    *,
    unconditional: int = 0,
) -> Residuals | None:
    """What the controls that hold in a step add to the UNet, summed; None when none does.

    `latents` are as the UNet sees them, and so many of their first rows are unconditional: they get the control too, as
    in diffusers' pipelines.  The tensors may be [rows, channels, 1, 1] (ControlNets that pool).
    """
    total: tuple[list[Tensor], Tensor] | None = None
    for active in controls:
        if not active.active_at(step, steps):
            continue
        down, mid = _residuals(active, latents, time, context, pooled, sizes, unconditional)
        if total is not None:
            down, mid = [a + b for a, b in zip(total[0], down, strict=True)], total[1] + mid
        total = down, mid
    return total


def _residuals(
    active: ActiveControl,
    latents: Tensor,
    time: Tensor,
    context: Tensor,
    pooled: Tensor | None,
    sizes: Tensor | None,
    unconditional: int,
) -> tuple[list[Tensor], Tensor]:
    net = active.control.net
    # A ControlNet that pools is applied to the conditional rows alone: what diffusers calls guess mode.
    skipped = unconditional if net.config.global_pool_conditions else 0
    own = slice(skipped, None)
    added_cond = None if pooled is None or sizes is None else {"text_embeds": pooled[own], "time_ids": sizes[own]}
    down, mid = net(
        latents[own, : net.config.in_channels],  # an inpainting UNet's other inputs are not for a ControlNet
        time[own],
        context[own],
        active.control_image.expand(len(latents) - skipped, -1, -1, -1),
        conditioning_scale=active.weight,
        added_cond_kwargs=added_cond,
        return_dict=False,
    )
    return [_pad_rows(r, skipped) for r in down], _pad_rows(mid, skipped)


def _pad_rows(residual: Tensor, skipped: int) -> Tensor:
    return torch.cat([residual.new_zeros(skipped, *residual.shape[1:]), residual]) if skipped else residual


def _tensor(picture: Image.Image, model: Model) -> Float[Tensor, "1 3 height width"]:
    pixels = torch.tensor(np.asarray(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    return pixels.to(model.device, model.dtype)


def _cv2() -> Any:
    return importlib.import_module("cv2")
