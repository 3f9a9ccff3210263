"""Run: one request in flight, from its first noise to its picture."""

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.controlnet import ActiveControl, controlnet_residuals, prepare_controls
from instantstyle.errors import Cancelled, InputError, InstantStyleError
from instantstyle.families import BASE_PRESETS
from instantstyle.methods.cfg_rescale import classifier_free_guidance
from instantstyle.methods.image_prompts import resolve_auto_content
from instantstyle.methods.injection import (
    Injection,
    Preparation,
    PreparationStep,
    ReferenceBatch,
    StepContext,
    make_injection,
)
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, CrossAttentionKV
from instantstyle.networks.denoiser import Conditioning, Denoiser, UNetDenoiser
from instantstyle.networks.unet import Residuals
from instantstyle.request import Request, Result
from instantstyle.sampling.batch import DenoiserInputs
from instantstyle.sampling.conditioning import encode_conditioning
from instantstyle.sampling.initial_latents import InitialState, first_step, initial_latents, keep_outside, read_init
from instantstyle.sampling.resolve import resolve
from instantstyle.sampling.schedulers import (
    alpha_sigma,
    make_scheduler,
    pred_original_sample,
    scale_model_input,
    set_timesteps,
    x0_coefficient,
)

RunState = Literal["preparing", "running", "done", "cancelled", "failed"]


@runtime_checkable
class Steppable(Protocol):
    """What steps runs: an engine."""

    model: Model

    def step(self) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step of its engine."""

    step: int
    """Steps done, of the phase."""
    steps: int
    seconds: float
    """Since the run was submitted."""
    run: "Run"
    phase: str = "sampling"
    """What the steps are of: "sampling", or what is done before it, such as "inverting the reference"."""

    def preview(self) -> list[Image.Image]:
        """The pictures as the model expects them to become; decoded when asked for."""
        return self.run.preview()


class Run:
    """One request in flight.  Made by `Engine.submit`; iterating over it steps its engine until it is done."""

    scheduler: Any
    """Diffusers' scheduler of this run alone."""
    injection: Injection
    """What the method asks for; known once the run is prepared, as are `controls`, `start` and `latents`."""
    controls: tuple[ActiveControl, ...]
    start: InitialState
    latents: Float[Tensor, "count channels height width"]
    step = 0
    """Calls of the denoiser that are done."""
    preparation_step = PreparationStep("preparing", 0, 1)
    _inputs: DenoiserInputs | None = None
    _pred_x0: Tensor | None = None
    _result: Result | None = None
    _failure: BaseException | None = None

    def __init__(self, engine: Steppable, request: Request) -> None:
        """Raises InputError for what does not fit the model or the method; calls no network."""
        self._began = time.perf_counter()
        self.engine, self.state = engine, cast("RunState", "preparing")
        self.resolved = resolve(engine.model, request)
        self.scheduler = make_scheduler(engine.model, self.request.sampler)
        set_timesteps(self.scheduler, engine.model, self.request.sampler, self.request.steps, self.resolved.size)
        self.begin_index = first_step(self.resolved, self.scheduler)
        self.timesteps: list[Tensor] = list(self.scheduler.timesteps)[self.begin_index :]
        self.init_pixels = read_init(self.request.init, self.resolved.size)
        self.generator = torch.Generator("cpu").manual_seed(self.resolved.seed)
        self._conditionings: dict[bool, Conditioning] = {}
        self._preparation = self._prepare()

    def _prepare(self) -> Preparation[None]:
        """All that calls a network before the first step, in pieces."""
        model = self.engine.model
        self.resolved = resolve_auto_content(model, self.resolved)
        self.injection = yield from make_injection(model, self.resolved)
        self.controls = prepare_controls(model, self.request)
        self.start = initial_latents(
            model, self.resolved, self.init_pixels, self.scheduler, self.timesteps[0], self.generator
        )
        self.latents = self.start.latents
        self._conditioning()

    @torch.no_grad()
    def prepare_step(self) -> None:
        """Do one piece of what comes before the first step; an error in it is the run's failure."""
        try:
            self.preparation_step = next(self._preparation)
        except StopIteration:
            if not self.done:  # cancelled meanwhile, from another thread
                self.state = "running"
        except Exception as failure:
            self.fail(failure)

    def prepare(self) -> "Run":
        """Do at once all that comes before the first step.  Raises what that fails with."""
        while self.state == "preparing":
            self.prepare_step()
        if self._failure is not None:
            raise self._failure
        return self

    @property
    def request(self) -> Request:
        """The request with every default filled in."""
        return self.resolved.request

    @property
    def injection_now(self) -> Injection:
        """What the run's method asks for in the coming step: nothing, outside of its window."""
        return self.injection.at(self.step, self.num_denoiser_calls)

    @property
    def own_batch_size(self) -> int:
        """Rows that predict for the run's latents: unconditional, conditional and further terms, each `count` times."""
        branches = 1 + self.resolved.do_classifier_free_guidance + len(self.injection_now.extra_guidance)
        return branches * self.resolved.count

    @property
    def batch_size(self) -> int:
        """Rows of the coming call, those of references with them."""
        return self.own_batch_size + len(self.injection_now.reference_batch or ())

    @property
    def num_denoiser_calls(self) -> int:
        """Calls of the denoiser that the run needs; some samplers need more than the steps of the request."""
        return len(self.timesteps)

    @property
    def done(self) -> bool:
        """Whether the run is over, well or not."""
        return self.state not in ("preparing", "running")

    def cancel(self) -> None:
        """Stop the run before its next step, or its next piece of preparation."""
        if not self.done:
            self.state = "cancelled"

    def close(self) -> None:
        """Let go of a preparation that is not to be ended; called by the engine when it drops a run."""
        self._preparation.close()

    def result(self) -> Result:
        """The pictures, once the run is done.  Raises Cancelled, or whatever the run failed with."""
        if self._result is not None:
            return self._result
        if self._failure is not None:
            raise self._failure
        if self.state == "cancelled":
            raise Cancelled(f"the run was cancelled after {self.step} of {self.num_denoiser_calls} steps")
        raise InputError(
            f"the run is at step {self.step} of {self.num_denoiser_calls}: step its engine until it is done"
        )

    def __iter__(self) -> Iterator[Progress]:
        """Step the engine, yielding after each step that succeeds; ends when the run is done.

        Raises Cancelled, or whatever the run failed with.
        """
        while not self.done:
            self.engine.step()
            if self.state in ("preparing", "running", "done"):
                yield self.progress()
        self.result()

    def progress(self) -> Progress:
        """Where the run stands."""
        seconds = time.perf_counter() - self._began
        if self.state == "preparing":
            at = self.preparation_step
            return Progress(at.step, at.steps, seconds, self, at.phase)
        return Progress(self.step, self.num_denoiser_calls, seconds, self)

    @torch.no_grad()
    def preview(self) -> list[Image.Image]:
        """The pictures as expected from the last step; before the first, what noise decodes to."""
        return self._decode(self.latents if self._pred_x0 is None else self._pred_x0)

    @property
    def attend(self) -> Attend:
        """What the run's rows do at attention layers in the coming step."""
        return self.injection_now.attend_for(self.step_context)

    @property
    def kv(self) -> CrossAttentionKV:
        """The keys and values of the texts that the run's rows read in the coming step."""
        return self._conditioning().kv or {}

    @property
    def step_context(self) -> StepContext:
        """The coming step, as methods may know it."""
        alpha, sigma = alpha_sigma(self.scheduler, self.begin_index + self.step)
        following = self.timesteps[self.step + 1 : self.step + 2]
        return StepContext(
            self.step,
            self.num_denoiser_calls,
            float(self.timesteps[self.step]),
            alpha,
            sigma,
            float(following[0]) if following else 0.0,
        )

    @property
    def denoiser(self) -> Denoiser:
        """The network of the coming step."""
        own = self.injection_now.unet
        return self.engine.model.denoiser if own is None else UNetDenoiser(own)

    def denoiser_inputs(self) -> DenoiserInputs:
        """What the run brings to the coming call of the denoiser."""
        if self._inputs is None:
            rows = self.injection_now.reference_batch
            scaled = scale_model_input(self.scheduler, self.latents, self.timesteps[self.step])
            own = torch.cat([scaled] * (self.own_batch_size // self.resolved.count))
            self._inputs = DenoiserInputs(
                self.denoiser,
                self.start.with_inpaint_channels(own, None if rows is None else self._reference_latents(rows)),
                self.timesteps[self.step],
                self._conditioning(),
                self.attend,
                self._controlnet_residuals(own),
            )
        return self._inputs

    def scheduler_step(self, prediction: Float[Tensor, "rows channels height width"]) -> None:
        """Take one step with the denoiser's prediction for the run's rows."""
        timestep, before = self.timesteps[self.step], self.latents
        prediction = self._apply_guidance(prediction[: self.own_batch_size])
        accepted = inspect.signature(self.scheduler.step).parameters
        more = {"generator": self.generator} if "generator" in accepted else {}
        out = self.scheduler.step(prediction, timestep, before, **more, return_dict=True)
        self.latents = out.prev_sample.to(before.dtype)
        x0 = getattr(out, "pred_original_sample", None)
        if x0 is None:
            x0 = pred_original_sample(self.scheduler, self.begin_index + self.step, prediction, before)
        x0 = cast("Tensor", x0).to(before.dtype)
        if (hook := self.injection_now.x0_hook) is not None:
            changed = hook(self.step_context, x0)
            factor = x0_coefficient(self.scheduler, self.begin_index + self.step + 1)
            self.latents, x0 = self.latents + factor * (changed - x0), changed
        self.step, self._inputs = self.step + 1, None
        if (blend := self.start.inpaint_blend) is not None:
            following = self.timesteps[self.step] if self.step < self.num_denoiser_calls else None
            self.latents = blend.apply(self.latents, self.scheduler, following).to(before.dtype)
            x0 = blend.apply(x0, self.scheduler, None).to(before.dtype)
        self._pred_x0 = x0

    def decode(self) -> None:
        """Decode, and remember how it was made.  Raises InstantStyleError when the numbers ran away."""
        model = self.engine.model
        if not self.latents.isfinite().all():
            raise InstantStyleError(
                f"the run ended in NaN or infinity, which is no picture: lower its guidance "
                f"({self.request.guidance:g}) or the strengths of its plan, or load the model with dtype float32"
            )
        self._result = Result(
            self._decode(self.latents),
            self.request,
            model=model.source.spec,
            adapter=model.source.adapter_spec,
            **model.source.encoder_specs,
            loras=model.loras,
            controls={kind: net.spec for kind, net in model.controls.items() if net.spec is not None},
            depth=None if model.depth is None else model.depth.spec,
            identity=model.weights_fingerprint,
            presets={name: model.family.presets[name].weights for name in BASE_PRESETS if name in model.family.presets},
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            seconds=time.perf_counter() - self._began,
            warnings=self.resolved.warnings,
        )
        self.state = "done"

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        """The pictures of latents, with the init picture's own pixels where a mask keeps them."""
        return [keep_outside(picture, self.init_pixels) for picture in self.engine.model.decode_latents(latents)]

    def fail(self, failure: BaseException) -> None:
        """The run is over, and its result is this error."""
        self.state, self._failure = "failed", failure

    @torch.no_grad()
    def _conditioning(self) -> Conditioning:
        """What the rows of the coming step read; encoded once inside the window and once outside of it."""
        now = self.injection_now
        injected = now.unet is not None or now.reference_batch is not None or bool(now.extra_guidance)
        injected = injected or now.uncond_text != "negative"
        if injected not in self._conditionings:
            self._conditionings[injected] = encode_conditioning(self.engine.model, self.resolved, now, self.denoiser)
        return self._conditionings[injected]

    def _reference_latents(self, rows: ReferenceBatch) -> Tensor:
        """The latents of the reference rows in the coming step.  Raises InputError when they are of another shape."""
        latents = rows.latents(self.step_context)
        expected = (len(rows), *self.latents.shape[1:])
        if tuple(latents.shape) != expected:
            raise InputError(
                f"reference rows are latents of the shape {tuple(latents.shape)} where the run has {expected}: encode "
                "the reference at the size of the request"
            )
        return latents.to(self.latents)

    def _controlnet_residuals(self, latents: Tensor) -> Residuals | None:
        """What the run's controls add to its own rows in the coming step."""
        own = self._conditioning()
        rows = slice(len(latents))
        pooled, time_ids = (None if x is None else x[rows] for x in (own.pooled_prompt_embeds, own.time_ids))
        timesteps = self.timesteps[self.step].float().expand(len(latents))
        unconditional = self.resolved.count if self.resolved.do_classifier_free_guidance else 0
        inputs = (latents, timesteps, own.prompt_embeds[rows], pooled, time_ids)
        return controlnet_residuals(
            self.controls, self.step, self.num_denoiser_calls, *inputs, unconditional=unconditional
        )

    def _apply_guidance(self, prediction: Tensor) -> Tensor:
        """One prediction of those for the unconditional, the conditional and the further rows."""
        parts = list(cast("Tensor", prediction.unflatten(0, (-1, self.resolved.count))))
        unconditional = parts.pop(0) if self.resolved.do_classifier_free_guidance else None
        conditional, *others = parts
        weights = [term.weight for term in self.injection_now.extra_guidance]
        return classifier_free_guidance(
            unconditional,
            conditional,
            self.resolved.guidance,
            self.resolved.guidance_rescale,
            list(zip(weights, others, strict=True)),
        )
