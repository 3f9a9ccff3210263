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
from jaxtyping import Float, Num
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

from instantstyle.encoders.clip import to_unit_pixels
from instantstyle.errors import InputError
from instantstyle.methods.resolved_request import ResolvedRequest
from instantstyle.model import Model
from instantstyle.networks.prediction import Latents
from instantstyle.request import Init
from instantstyle.sampling.resolve import is_inpainting
from instantstyle.sampling.schedulers import add_noise, init_noise_sigma, is_flow

EDGE_PIXELS = 4
"""How far inside of a mask a repainted picture is blended with the init picture."""


@dataclass(frozen=True, eq=False)
class InitPixels:
    """The init picture at the size of the run, before any network: what does not fit its proportions is cut off."""

    picture: Float[Tensor, "1 3 height width"]
    """From -1 to 1; grey without an init picture."""
    mask: Float[Tensor, "1 1 height width"]
    """From 0, where it stays, to 1, where it is painted anew; 1 everywhere without a mask."""

    @property
    def repaint(self) -> Float[Tensor, "1 1 height width"]:
        """The mask at 0.5, as diffusers takes masks: 1 where latents are painted anew, 0 where they stay."""
        return (self.mask >= 0.5).float()


@dataclass(frozen=True, eq=False)
class InpaintBlend:
    """What a mask keeps of the init picture; a UNet that knows nothing of masks is brought back to it every step."""

    picture: Latents
    noise: Latents
    repaint: Float[Tensor, "1 1 height width"]
    """1 where the picture is painted anew, 0 where it stays."""

    def apply(self, latents: Latents, scheduler: Any, next_timestep: Num[Tensor, ""] | None) -> Latents:
        """The latents with the picture outside of the mask, as noisy as the coming step expects; None: not at all."""
        outside = self.picture
        if next_timestep is not None:
            outside = add_noise(scheduler, self.picture, self.noise, next_timestep[None])
        return (1 - self.repaint) * outside + self.repaint * latents


@dataclass(frozen=True, eq=False)
class InitialState:
    """A run before its first step."""

    latents: Latents
    inpaint_blend: InpaintBlend | None = None
    inpaint_channels: Float[Tensor, "n more_channels height width"] | None = None
    """What an inpainting UNet reads beside the latents: the mask, and the latents of what it keeps."""
    blank_channels: Float[Tensor, "1 more_channels height width"] | None = None
    """The same where nothing is known of the picture: for reference rows."""

    def with_inpaint_channels(
        self,
        own: Float[Tensor, "rows channels height width"],
        reference: Float[Tensor, "others channels height width"] | None,
    ) -> Float[Tensor, "_rows _channels height width"]:
        """Rows as the UNet is to see them, a run's own and those of references behind them."""
        if self.inpaint_channels is not None and self.blank_channels is not None:
            own = torch.cat([own, self.inpaint_channels.repeat(len(own) // len(self.inpaint_channels), 1, 1, 1)], dim=1)
            if reference is not None:
                reference = torch.cat([reference, self.blank_channels.expand(len(reference), -1, -1, -1)], dim=1)
        return own if reference is None else torch.cat([own, reference])


def initial_latents(
    model: Model,
    request: ResolvedRequest,
    init: InitPixels,
    scheduler: Any,
    first_timestep: Num[Tensor, ""],
    generator: torch.Generator,
) -> InitialState:
    """The latents that the first step takes, and what a mask keeps of the init picture."""
    width, height = request.size
    factor = model.vae_scale_factor
    shape = (request.count, model.family.layout.latent_channels, height // factor, width // factor)

    def draw_noise() -> Tensor:
        randn: Any = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
        return randn(shape, generator=generator, device=model.device, dtype=model.dtype)

    given, inpainting = request.request.init, is_inpainting(model)
    if given is None and not inpainting:
        return InitialState(draw_noise() * init_noise_sigma(scheduler))
    from_noise = given is None or (given.strength == 1 and (given.mask is not None or inpainting))
    known = None if from_noise and inpainting else model.encode_pixels(init.picture, generator).expand(shape)
    noise = draw_noise()
    if from_noise:
        latents = noise * init_noise_sigma(scheduler)
    else:
        assert known is not None
        latents = add_noise(scheduler, known, noise, first_timestep.repeat(request.count))
    repaint = F.interpolate(init.repaint, size=shape[2:]).to(model.device, model.dtype)
    if inpainting:
        outside = model.encode_pixels(init.picture * (init.repaint < 0.5), generator)
        channels = torch.cat([repaint, outside], dim=1).expand(request.count, -1, -1, -1)
        nothing = torch.cat([torch.ones_like(repaint), model.encode_pixels(torch.zeros_like(init.picture))], dim=1)
        return InitialState(latents, inpaint_channels=channels, blank_channels=nothing)
    if given is None or given.mask is None:
        return InitialState(latents)
    assert known is not None
    # diffusers encodes what the mask keeps here and does not use it; samplers that draw noise at every step notice.
    model.encode_pixels(init.picture * (init.repaint < 0.5), generator)
    return InitialState(latents, inpaint_blend=InpaintBlend(known, noise, repaint))


def first_step(request: ResolvedRequest, scheduler: Any) -> int:
    """Where in the schedule a run begins: behind the steps that an init picture's strength leaves out.

    Raises InputError when that leaves no step.
    """
    init, steps = request.request.init, request.steps
    if init is None:
        return 0
    left = min(int(steps * init.strength), steps)
    if is_flow(scheduler):  # as diffusers' pipelines of Flux and Stable Diffusion 3 round
        left = steps - int(max(steps - min(steps * init.strength, steps), 0))
    if left == 0:
        raise InputError(
            f"strength {init.strength:g} of {steps} steps leaves no step to take: give a strength of "
            f"at least {math.ceil(100 / steps) / 100:g}, or more steps"
        )
    first = (steps - left) * int(getattr(scheduler, "order", 1))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return first


def read_init(init: Init | None, size: tuple[int, int]) -> InitPixels:
    """The init picture and its mask at a size.  Raises InputError for a mask of other proportions, or black."""
    width, height = size
    everywhere = torch.ones(1, 1, height, width)
    if init is None:
        return InitPixels(torch.zeros(1, 3, height, width), everywhere)
    picture = init.image.open()
    pixels = to_unit_pixels(_center_crop(picture, size))[None] * 2 - 1
    if init.mask is None:
        return InitPixels(pixels, everywhere)
    mask = init.mask.open()
    if abs(mask.width * picture.height - mask.height * picture.width) > 0.02 * picture.width * mask.height:
        raise InputError(
            f"the mask is {mask.width}x{mask.height} and the init picture {picture.width}x{picture.height}: draw the "
            "mask over the picture, in its proportions"
        )
    grey = np.asarray(_center_crop(mask, size).convert("L"), np.float32) / 255
    init_pixels = InitPixels(pixels, torch.tensor(grey)[None, None])
    if not init_pixels.repaint.any():
        raise InputError("the mask of the init picture is black everywhere: white is where it is painted anew")
    return init_pixels


def keep_outside(picture: Image.Image, init: InitPixels) -> Image.Image:
    """A decoded picture with the init picture's own pixels outside of the mask.

    A VAE does not give back what it was given, so what a mask keeps is taken from the init picture.  The two are
    blended by the grey of the mask, and within EDGE_PIXELS inside of a hard edge; where the mask is black every pixel
    is the init picture's.
    """
    if bool((init.mask == 1).all()):
        return picture
    grey, inside = (
        Image.fromarray((each[0, 0].numpy() * 255).round().astype("uint8")) for each in (init.mask, init.repaint)
    )
    edge = inside.filter(ImageFilter.GaussianBlur(EDGE_PIXELS / 2)).point([max(value, 128) for value in range(256)])
    pixels = ((init.picture[0].permute(1, 2, 0) / 2 + 0.5) * 255).round().to(torch.uint8)
    return Image.composite(picture, Image.fromarray(pixels.numpy()), ImageChops.darker(grey, edge))


def _center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
