"""Run: one request in flight, from its first noise to its picture."""

import inspect
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.controlnet import controlnet_residuals, prepare_controls
from instantstyle.errors import Cancelled, InputError, InstantStyleError
from instantstyle.families import BASE_PRESETS
from instantstyle.methods import Injection, ReferenceBatch, StepContext, make_injection
from instantstyle.methods.cfg_rescale import rescale_noise_cfg
from instantstyle.methods.reference_embedding import prompt_warnings
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, CrossAttentionKV
from instantstyle.networks.unet import Residuals
from instantstyle.request import Request, Result
from instantstyle.sampling.batch import Conditioning, UNetInputs
from instantstyle.sampling.conditioning import encode_conditioning
from instantstyle.sampling.initial_latents import initial_latents, inpainting_warnings, resolve_size
from instantstyle.sampling.schedulers import (
    alpha_sigma,
    make_scheduler,
    pred_original_sample,
    scheduler_name,
    set_timesteps,
    x0_coefficient,
)

State = Literal["running", "done", "cancelled", "failed"]


@runtime_checkable
class Steppable(Protocol):
    """What steps runs: an engine."""

    model: Model

    def step(self) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    """Steps done."""
    steps: int
    seconds: float
    """Since the run was submitted."""
    run: "Run"

    def preview(self) -> list[Image.Image]:
        """The pictures as the model expects them to become; decoded when asked for."""
        return self.run.preview()


class Run:
    """One request in flight.  Made by `Engine.submit`; iterating over it steps its engine until it is done."""

    def __init__(self, engine: Steppable, request: Request) -> None:
        self.engine, model = engine, engine.model
        self.scheduler = make_scheduler(model, request.sampler)
        set_timesteps(self.scheduler, request.sampler, request.steps, model.device)
        settled = {
            "size": resolve_size(model, request),
            "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
            "guidance": model.family.guidance if request.guidance is None else request.guidance,
            "guidance_rescale": (
                model.family.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale
            ),
            "sampler": request.sampler or scheduler_name(self.scheduler),
        }
        self.request = request.model_copy(update=settled)
        self.do_classifier_free_guidance = self.request.do_classifier_free_guidance
        self.injection = make_injection(model, self.request)
        self.request = self.request.model_copy(update=dict(self.injection.resolved_fields))
        self.controls = prepare_controls(model, self.request)
        self.warnings = (*inpainting_warnings(model, self.request), *prompt_warnings(model, self.request))
        self.generator = torch.Generator("cpu").manual_seed(cast("int", self.request.seed))
        self.start = initial_latents(model, self.request, self.scheduler, self.generator)
        self.timesteps, self.latents = self.start.timesteps, self.start.latents
        accepted = inspect.signature(self.scheduler.step).parameters
        self._step_arguments = {"generator": self.generator} if "generator" in accepted else {}
        self.step, self.state = 0, cast("State", "running")
        self._conditionings: dict[bool, Conditioning] = {}
        self._unet_inputs: UNetInputs | None = None
        self._conditioning()
        self._began, self._seconds = time.perf_counter(), 0.0
        self._pred_x0: Tensor | None = None
        self._result: Result | None = None
        self._failure: BaseException | None = None

    @property
    def injection_now(self) -> Injection:
        """What the run's method asks for in the coming step: nothing, outside of its window."""
        return self.injection.at(self.step, self.num_unet_calls)

    @property
    def own_batch_size(self) -> int:
        """Rows that predict for the run's latents: unconditional, conditional and negatives, each `count` times."""
        return (1 + self.do_classifier_free_guidance + len(self.injection_now.extra_guidance)) * self.request.count

    @property
    def batch_size(self) -> int:
        """Rows of the UNet's batch that the run needs in the coming step, reference rows with them."""
        return self.own_batch_size + (
            0 if self.injection_now.reference_batch is None else len(self.injection_now.reference_batch)
        )

    @property
    def num_unet_calls(self) -> int:
        """UNet calls the run needs; some samplers need more than the steps asked for."""
        return len(self.timesteps)

    @property
    def done(self) -> bool:
        """Whether the run is over, well or not."""
        return self.state != "running"

    def cancel(self) -> None:
        """Ask the run to stop; it does so before its next step."""
        if not self.done:
            self.state = "cancelled"

    def result(self) -> Result:
        """The pictures, once the run is done.  Raises Cancelled, or whatever the run failed with."""
        if self._result is not None:
            return self._result
        if self._failure is not None:
            raise self._failure
        if self.state == "cancelled":
            raise Cancelled(f"the run was cancelled after {self.step} of {self.num_unet_calls} steps")
        raise InputError(f"the run is at step {self.step} of {self.num_unet_calls}: step its engine until it is done")

    def __iter__(self) -> Iterator[Progress]:
        """Step the engine, yielding after each step that succeeds; ends when the run is done.

        Raises Cancelled, or whatever the run failed with.
        """
        while not self.done:
            self.engine.step()
            if self.state in ("running", "done"):
                yield Progress(self.step, self.num_unet_calls, time.perf_counter() - self._began, self)
        self.result()

    @torch.no_grad()
    def preview(self) -> list[Image.Image]:
        """The pictures as expected from the last step; before the first, what noise decodes to."""
        return self.engine.model.decode_latents(self.latents if self._pred_x0 is None else self._pred_x0)

    @property
    def attend(self) -> Attend:
        """What the run's rows do at attention layers in the coming step."""
        return self.injection_now.attend

    @property
    def kv(self) -> CrossAttentionKV:
        """The keys and values of what the run's rows read in the coming step."""
        return self._conditioning().kv

    @property
    def step_context(self) -> StepContext:
        """The coming step, as reference rows may know it."""
        signal, noise = alpha_sigma(self.scheduler, self.start.begin_index + self.step)
        coming = float(self.timesteps[self.step + 1]) if self.step + 1 < self.num_unet_calls else 0.0
        return StepContext(self.step, self.num_unet_calls, float(self.timesteps[self.step]), signal, noise, coming)

    def unet_inputs(self) -> UNetInputs:
        """What the run brings to the coming UNet call."""
        if self._unet_inputs is None:
            asked = self.injection_now
            scaled = self.scheduler.scale_model_input(self.latents, self.timesteps[self.step])
            latents = torch.cat([scaled] * (self.own_batch_size // self.request.count))
            steered = self._controlnet_residuals(latents)
            latents = self.start.with_inpaint_channels(
                latents, None if asked.reference_batch is None else self._reference_latents(asked.reference_batch)
            )
            unet = asked.unet or self.engine.model.unet
            self._unet_inputs = UNetInputs(
                unet, latents, self.timesteps[self.step], self._conditioning(), asked.attend, steered
            )
        return self._unet_inputs

    def scheduler_step(self, prediction: Float[Tensor, "rows channels height width"]) -> None:
        """Take one step with the UNet's prediction for the run's rows."""
        time_now, before = self.timesteps[self.step], self.latents
        prediction = self._apply_guidance(prediction[: self.own_batch_size])
        out = self.scheduler.step(prediction, time_now, before, **self._step_arguments, return_dict=True)
        self.latents = out.prev_sample.to(before.dtype)
        self._pred_x0 = getattr(out, "pred_original_sample", None)
        if self._pred_x0 is None:
            self._pred_x0 = pred_original_sample(self.scheduler, prediction, time_now, before)
        self._pred_x0 = self._pred_x0.to(before.dtype)
        if (expects := self.injection_now.x0_hook) is not None:
            wanted = expects(self.step_context, self._pred_x0)
            after = x0_coefficient(self.scheduler, self.start.begin_index + self.step + 1)
            self.latents, self._pred_x0 = self.latents + after * (wanted - self._pred_x0), wanted
        self.step, self._unet_inputs = self.step + 1, None
        if (kept := self.start.inpaint_blend) is not None:
            coming = self.timesteps[self.step] if self.step < self.num_unet_calls else None
            self.latents = kept.apply(self.latents, self.scheduler, coming).to(before.dtype)
            self._pred_x0 = kept.apply(self._pred_x0, self.scheduler, None).to(before.dtype)

    def decode(self) -> None:
        """Decode, and remember how it was made.  Raises InstantStyleError when the numbers ran away."""
        model = self.engine.model
        if not self.latents.isfinite().all():
            raise InstantStyleError(
                f"the run ended in NaN or infinity, which is no picture: lower its guidance "
                f"({self.request.guidance:g}) or the strengths of its plan, or load the model with dtype float32"
            )
        pictures = model.decode_latents(self.latents)
        self._seconds = time.perf_counter() - self._began
        self._result = Result(
            pictures,
            self.request,
            model=model.source.spec,
            adapter=model.source.adapter_spec,
            **model.source.encoder_specs,
            loras=model.loras,
            controls={kind: net.spec for kind, net in model.controls.items() if net.spec is not None},
            depth=None if model.depth is None else model.depth.spec,
            identity=model.weights_fingerprint,
            presets={name: model.family.presets[name].weights for name in BASE_PRESETS},
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            seconds=self._seconds,
            warnings=self.warnings,
        )
        self.state = "done"

    def fail(self, failure: BaseException) -> None:
        """The run is over, and its result is this error."""
        self.state, self._failure = "failed", failure

    @torch.no_grad()
    def _conditioning(self) -> Conditioning:
        """What the rows of the coming step read; read once inside the window and once outside of it."""
        asked = self.injection_now
        other = asked.unet is not None or asked.reference_batch is not None or bool(asked.extra_guidance)
        other = other or asked.uncond_text != "negative"
        if other not in self._conditionings:
            self._conditionings[other] = encode_conditioning(self.engine.model, self.request, asked)
        return self._conditionings[other]

    def _reference_latents(self, rows: ReferenceBatch) -> Tensor:
        """The latents of the reference rows in the coming step.  Raises InputError when they are of another shape."""
        pinned = rows.latents(self.step_context)
        wanted = (len(rows), *self.latents.shape[1:])
        if tuple(pinned.shape) != wanted:
            raise InputError(
                f"reference rows are latents of the shape {tuple(pinned.shape)} where the run has {wanted}: encode the "
                "reference at the size of the request"
            )
        return pinned.to(self.latents)

    def _controlnet_residuals(self, latents: Tensor) -> Residuals | None:
        """What the run's controls add to its own rows in the coming step."""
        told, rows = self._conditioning(), len(latents)
        pooled, sizes = (None if each is None else each[:rows] for each in (told.pooled_prompt_embeds, told.time_ids))
        time_now = self.timesteps[self.step].float().expand(rows)
        unconditional = self.request.count if self.do_classifier_free_guidance else 0
        said = (latents, time_now, told.prompt_embeds[:rows], pooled, sizes)
        return controlnet_residuals(self.controls, self.step, self.num_unet_calls, *said, unconditional=unconditional)

    def _apply_guidance(self, prediction: Tensor) -> Tensor:
        """One prediction of those for the unconditional, the conditional and the negative rows."""
        parts = list(cast("Tensor", prediction.unflatten(0, (-1, self.request.count))))
        without = parts.pop(0) if self.do_classifier_free_guidance else None
        given, *negatives = parts
        assert self.request.guidance is not None
        assert self.request.guidance_rescale is not None
        combined = given if without is None else without + self.request.guidance * (given - without)
        for negative, against in zip(self.injection_now.extra_guidance, negatives, strict=True):
            combined = combined + negative.weight * (given - against)
        # Where nothing was pushed away from there is nothing to bring back, and the bits stay.
        return combined if combined is given else rescale_noise_cfg(combined, given, self.request.guidance_rescale)
