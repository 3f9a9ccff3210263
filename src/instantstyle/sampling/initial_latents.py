"""What a run begins from: noise, a picture under noise, or a picture of which a part is painted anew.

As diffusers' StableDiffusion(XL), Img2Img and Inpaint pipelines do it, down to the order in which random numbers are
drawn: one draw for all pictures of a run, on the CPU whatever the device.
"""

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from instantstyle.encoders.clip import to_unit_pixels
from instantstyle.errors import InputError
from instantstyle.model import Model
from instantstyle.request import MAX_SIDE, Init, Request

Latents = Float[Tensor, "count channels height width"]


@dataclass(frozen=True, eq=False)
class InpaintBlend:
    """What a mask keeps of the init picture; a UNet that knows nothing of masks is brought back to it every step."""

    picture: Latents
    noise: Latents
    mask: Float[Tensor, "1 1 height width"]
    """1 where the picture is painted anew, 0 where it stays."""

    def apply(self, latents: Latents, scheduler: Any, coming: Tensor | None) -> Latents:
        """The latents with the picture outside of the mask, as noisy as the coming step expects; None: not at all."""
        there = self.picture
        if coming is not None:
            there = scheduler.add_noise(self.picture, self.noise, coming[None])
        return (1 - self.mask) * there + self.mask * latents


@dataclass(frozen=True, eq=False)
class InitialState:
    """A run before its first step."""

    latents: Latents
    timesteps: list[Tensor]
    """The timesteps still to take."""
    begin_index: int = 0
    """The position in the scheduler's own list of the first of them."""
    inpaint_blend: InpaintBlend | None = None
    inpaint_channels: Float[Tensor, "count more_channels height width"] | None = None
    """What an inpainting UNet reads beside the latents: the mask, and the latents of what it keeps."""
    blank_channels: Float[Tensor, "1 more_channels height width"] | None = None
    """The same where nothing is known of the picture: for reference rows."""

    def with_inpaint_channels(self, own: Tensor, pinned: Tensor | None) -> Tensor:
        """Rows as the UNet is to see them, a run's own and those of references behind them."""
        if self.inpaint_channels is not None and self.blank_channels is not None:
            own = torch.cat([own, self.inpaint_channels.repeat(len(own) // len(self.inpaint_channels), 1, 1, 1)], dim=1)
            if pinned is not None:
                pinned = torch.cat([pinned, self.blank_channels.expand(len(pinned), -1, -1, -1)], dim=1)
        return own if pinned is None else torch.cat([own, pinned])


def initial_latents(model: Model, request: Request, scheduler: Any, generator: torch.Generator) -> InitialState:
    """The start of a run whose size is settled, and whose scheduler knows its timesteps.

    Raises InputError when the init picture, its mask or its strength leave nothing to do.
    """
    assert request.size is not None
    width, height = request.size
    shape = (
        request.count,
        model.unet.config.out_channels,
        height // model.vae_scale_factor,
        width // model.vae_scale_factor,
    )

    def drawn() -> Tensor:
        draw: Any = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
        return draw(shape, generator=generator, device=model.device, dtype=model.dtype)

    init, inpainting = request.init, _is_inpainting(model)
    times, first = _img2img_timesteps(request, scheduler)
    if init is None and not inpainting:
        return InitialState(drawn() * scheduler.init_noise_sigma, times)
    shown, changed = _preprocess_init(model, init, (width, height))
    pure = init is None or (init.strength == 1 and (init.mask is not None or inpainting))
    known = None if pure and inpainting else model.encode_pixels(shown, generator).expand(shape)
    noise = drawn()
    if pure:
        latents = noise * scheduler.init_noise_sigma
    else:
        assert known is not None
        latents = scheduler.add_noise(known, noise, times[0].repeat(request.count))
    small = F.interpolate(changed, size=shape[2:]).to(model.device, model.dtype)
    if inpainting:
        outside = model.encode_pixels(shown * (changed < 0.5), generator)
        beside = torch.cat([small, outside], dim=1).expand(request.count, -1, -1, -1)
        nothing = torch.cat([torch.ones_like(small), model.encode_pixels(torch.zeros_like(shown))], dim=1)
        return InitialState(latents, times, first, inpaint_channels=beside, blank_channels=nothing)
    if init is None or init.mask is None:
        return InitialState(latents, times, first)
    assert known is not None
    # Theirs encodes what the mask keeps here and does not use it; samplers that draw noise at each step would notice.
    model.encode_pixels(shown * (changed < 0.5), generator)
    return InitialState(latents, times, first, inpaint_blend=InpaintBlend(known, noise, small))


def inpainting_warnings(model: Model, request: Request) -> tuple[str, ...]:
    """What an inpainting UNet does when nothing says what it is to keep, a sentence."""
    if not _is_inpainting(model) or (request.init is not None and request.init.mask is not None):
        return ()
    return (
        f"the model {model.source.spec!r} is made for inpainting ({model.unet.config.in_channels} channels) and there "
        "is no mask, so the whole picture is painted anew: give a picture and a mask (--init, --mask), or a base model",
    )


def resolve_size(model: Model, request: Request) -> tuple[int, int]:
    """(width, height): as asked for, else the model's own; with an init picture as many pixels in its proportions.

    Raises InputError when the size asked for is one that the model cannot make.
    """
    multiple = max(model.family.size_multiple, model.vae_scale_factor)

    def near(side: float) -> int:
        return min(max(multiple, round(side / multiple) * multiple), MAX_SIDE // multiple * multiple)

    if request.size is None and request.init is not None:
        width, height = request.init.image.open().size
        by = math.sqrt(math.prod(model.family.size) / (width * height))
        return near(width * by), near(height * by)
    width, height = request.size or model.family.size
    if width % multiple or height % multiple:
        raise InputError(
            f"the size {width}x{height} does not fit this model: both must be multiples of {multiple}, such as "
            f"{near(float(width))}x{near(float(height))}"
        )
    return width, height


def _img2img_timesteps(request: Request, scheduler: Any) -> tuple[list[Tensor], int]:
    """The timesteps that strength leaves, and where in the schedule they begin."""
    times = list(scheduler.timesteps)
    if request.init is None:
        return times, 0
    left = min(int(request.steps * request.init.strength), request.steps)
    if left == 0:
        raise InputError(
            f"strength {request.init.strength:g} of {request.steps} steps leaves no step to take: give a strength of "
            f"at least {math.ceil(100 / request.steps) / 100:g}, or more steps"
        )
    order = int(getattr(scheduler, "order", 1))
    first = (request.steps - left) * order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return times[first:], first


def _is_inpainting(model: Model) -> bool:
    """Whether the UNet reads a mask and a picture beside the latents.  Raises InputError when it reads what we lack."""
    config = model.unet.config
    if config.in_channels == config.out_channels:
        return False
    if config.in_channels == 2 * config.out_channels + 1:
        return True
    raise InputError(
        f"this UNet reads {config.in_channels} channels and predicts {config.out_channels}: it wants something beside "
        f"the latents that is neither nothing nor a masked picture ({2 * config.out_channels + 1} channels)"
    )


def _preprocess_init(model: Model, init: Init | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The init picture, [1, 3, height, width] from -1 to 1, and where it changes, [1, 1, height, width] of 0 and 1.

    Grey and everywhere where there is no init picture.  What does not fit the size's proportions is cut off evenly.
    """
    width, height = size
    if init is None:
        return torch.zeros(1, 3, height, width), torch.ones(1, 1, height, width)
    picture = init.image.open()
    shown = to_unit_pixels(_center_crop(picture, size))[None] * 2 - 1
    if init.mask is None:
        return shown, torch.ones(1, 1, height, width)
    mask = init.mask.open()
    if abs(mask.width * picture.height - mask.height * picture.width) > 0.02 * picture.width * mask.height:
        raise InputError(
            f"the mask is {mask.width}x{mask.height} and the init picture {picture.width}x{picture.height}: draw the "
            "mask over the picture, in its proportions"
        )
    changed = torch.tensor(np.asarray(_center_crop(mask, size).convert("L"), np.float32) / 255 >= 0.5).float()[
        None, None
    ]
    if not changed.any():
        raise InputError("the mask of the init picture is black everywhere: white is where it is painted anew")
    return shown, changed


def _center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
