# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Training a low-rank change of a few attention modules to pictures: what B-LoRA asks of training.

The network is copied around its own weights and every attention projection of the modules gets two thin matrices; all
upstream of the first of them runs without a graph.  Each step's noise depends on its number alone, so a training that
was interrupted goes on as if it had not been.
"""

import copy
import importlib
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from instantstyle.blocks import BlockPlan, Site
from instantstyle.errors import InstantStyleError
from instantstyle.families import LoRATraining
from instantstyle.model import Model
from instantstyle.networks.attention import CrossAttentionKV, plain
from instantstyle.networks.denoiser import make_time_ids
from instantstyle.networks.prediction import prediction_target
from instantstyle.networks.unet import UNet
from instantstyle.optimisation import optimise
from instantstyle.utils.atomic_files import atomic_write
from instantstyle.utils.images import resize_to
from instantstyle.utils.signals import DeferredSignals
from instantstyle.weights.lora import LoRAFactors

CHECKPOINT_SECONDS = 30.0
"""Seconds between what is kept of a fit under way."""


@dataclass(frozen=True)
class TrainProgress:
    """Where a fit stands after a step."""

    step: int
    """Steps done."""
    steps: int
    loss: float


TrainProgressFn = Callable[[TrainProgress], None]
_watch: ContextVar[TrainProgressFn | None] = ContextVar("watch", default=None)


@contextmanager
def on_progress(watch: TrainProgressFn) -> Generator[None]:
    """While entered, `watch` is called after every step of a fit; what it raises ends the fit, which can go on."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


class LoRALinear(nn.Module):
    """A frozen linear layer plus up(down(x)), which is nothing at first."""

    def __init__(self, base: nn.Linear, rank: int, make: torch.Generator) -> None:
        super().__init__()
        self.base = base
        # diffusers' LoRALinearLayer, which B-LoRA was trained with: N(0, 1/rank) and zeros, in float32.
        self.down = nn.Parameter(torch.randn(rank, base.in_features, generator=make).to(base.weight.device) / rank)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Float[Tensor, "*rows width_in"]) -> Float[Tensor, "*rows width_out"]:
        change = F.linear(F.linear(x.float(), self.down), self.up)
        return self.base(x) + change.to(x.dtype)


def attach_lora(unet: UNet, plan: BlockPlan, rank: int, seed: int) -> tuple[UNet, dict[str, LoRALinear]]:
    """A copy of the network that shares its weights, with thin matrices beside every attention projection of a plan.

    The matrices are by parameter, as `up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight`.
    """
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    copied = copy.deepcopy(unet, cast("dict[int, Any]", shared))
    names = {id(module): name for name, module in copied.named_modules()}
    make, layers = torch.Generator().manual_seed(seed), dict[str, LoRALinear]()
    for site in copied.config.sites:
        if plan.scale(site):
            attention = copied.attention(site)
            for where, key in ((attention, "to_q"), (attention, "to_k"), (attention, "to_v"), (attention.to_out, "0")):
                layer = LoRALinear(cast("nn.Linear", getattr(where, key)), rank, make)
                setattr(where, key, layer)
                layers[f"{names[id(where)]}.{key}.weight"] = layer
    return copied, layers


def train_lora(
    model: Model,
    pictures: Sequence[Image.Image],
    plan: BlockPlan,
    fitting: LoRATraining,
    *,
    keep: Path | None = None,
    seed: int = 0,
) -> Generator[TrainProgress, None, dict[str, LoRAFactors]]:
    """The change, at the plan's modules, that makes the model draw these pictures when told `fitting.prompt`.

    A generator of its steps.  Pictures are cut to the family's size.  With `keep`, a fit that is interrupted (also by
    SIGINT, which waits for the end of a step) leaves its state there, and the next one goes on from it.  Raises
    InstantStyleError when it diverges.
    """
    net, layers = attach_lora(model.unet, plan, fitting.rank, seed)
    parameters = [p for layer in layers.values() for p in (layer.down, layer.up)]
    optimiser = torch.optim.AdamW(parameters, lr=fitting.learning_rate, betas=(0.9, 0.999), weight_decay=1e-4)
    loss, watch = _loss(model, net, pictures, plan, fitting, seed), _watch.get()
    start, saved_at = _resume(keep, parameters, optimiser), time.monotonic()
    training = optimise(
        parameters,
        lambda step: (loss(step),),
        optimiser,
        range(start, fitting.steps),
        lr=lambda step: fitting.learning_rate,
        clip=1.0,
    )
    with DeferredSignals((signal.SIGINT,)) as signals:
        for done in training:  # a step that fails may have spoiled the state, which is then not saved
            value = float(done.loss)
            if not math.isfinite(value):
                raise InstantStyleError(f"the fit diverged at step {done.step}: give a lower rate")
            progress = TrainProgress(done.step, fitting.steps, value)
            try:
                if watch is not None:
                    watch(progress)
                yield progress
                if signals.received:
                    raise KeyboardInterrupt
            except InstantStyleError:
                raise
            except BaseException:
                _save(keep, done.step, parameters, optimiser)
                raise
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                _save(keep, done.step, parameters, optimiser)
                saved_at = time.monotonic()
    factors = {name: LoRAFactors(layer.up.detach(), layer.down.detach()) for name, layer in layers.items()}
    if keep is not None:
        keep.unlink(missing_ok=True)
    return factors


def _loss(
    model: Model, net: UNet, pictures: Sequence[Image.Image], plan: BlockPlan, fitting: LoRATraining, seed: int
) -> Callable[[int], Tensor]:
    """The mean squared error of the prediction at a step, of pictures, times and noise that its number decides."""
    width, height = model.family.size
    latents = torch.cat(
        [model.encode_latents(resize_to(picture, "crop", (width, height))) for picture in pictures]
    ).float()
    with torch.no_grad():
        said = model.encode_prompt([fitting.prompt])
        context = said.prompt_embeds.expand(fitting.batch, -1, -1)
        pooled = None if said.pooled_prompt_embeds is None else said.pooled_prompt_embeds.expand(fitting.batch, -1)
        text = model.unet.precompute_kv(context)
    time_ids = None if pooled is None else make_time_ids((width, height), fitting.batch, model.device)
    scheduler = importlib.import_module("diffusers").DDIMScheduler.from_config(dict(model.scheduler_config))
    alphas_cumprod, kind = scheduler.alphas_cumprod.to(model.device), scheduler.config.prediction_type
    crossed = [site for site in net.config.sites if site.kind == "cross" and plan.scale(site)]
    spoken = {site.module for site in net.config.sites if plan.scale(site)}
    upstream, rest = net.split_at(next(module for module in net.config.modules if module in spoken))

    def loss(step: int) -> Tensor:
        make = torch.Generator().manual_seed(seed * 1_000_003 + step)
        which = torch.randint(len(latents), (fitting.batch,), generator=make)
        time = torch.randint(len(alphas_cumprod), (fitting.batch,), generator=make).to(model.device)
        clean = latents[which.to(latents.device)]
        noise = torch.randn(clean.shape, generator=make).to(clean)
        alpha_squared = alphas_cumprod[time].clamp(0, 1)[:, None, None, None]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        noised = (alpha * clean + sigma * noise).to(model.dtype)
        with torch.no_grad():
            state = upstream(noised, time.float(), text, pooled, time_ids)
        prediction = rest(state, _with_read(net, text, crossed, context), attend=plain).float()
        return F.mse_loss(prediction, prediction_target(clean, noise, alpha, sigma, kind))

    return loss


def _with_read(net: UNet, text: CrossAttentionKV, sites: Sequence[Site], context: Tensor) -> CrossAttentionKV:
    """The text's keys and values, read anew where the projections that read it change."""
    return {**text, **{site: net.attention(site).project_kv(context) for site in sites}}


def _save(keep: Path | None, step: int, parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> None:
    if keep is None:
        return
    tensors = [p.detach() for p in parameters]
    with atomic_write(keep) as partial:
        torch.save({"step": step, "parameters": tensors, "optimiser": optimiser.state_dict()}, partial)


def _resume(keep: Path | None, parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> int:
    """The step a kept fit had come to, its state restored; 0 where there is none that can be read."""
    if keep is None or not keep.exists():
        return 0
    saved: Mapping[str, Any] = {}
    with suppress(Exception):  # damaged: it is begun anew
        saved = torch.load(keep, weights_only=True, map_location=parameters[0].device)
    shapes = [tensor.shape for tensor in saved.get("parameters", ())]
    if shapes != [p.shape for p in parameters]:
        return 0
    optimiser.load_state_dict(saved["optimiser"])
    with torch.no_grad():
        for parameter, tensor in zip(parameters, saved["parameters"], strict=True):
            parameter.copy_(tensor)
    return int(saved["step"])
