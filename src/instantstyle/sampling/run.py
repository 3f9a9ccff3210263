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

from instantstyle.controlnet import residuals, steer
from instantstyle.errors import Cancelled, InputError, InstantStyleError
from instantstyle.families import SAID
from instantstyle.methods import Injection, Moment, ReferenceRows, inject
from instantstyle.methods.cfg_rescale import rescaled
from instantstyle.methods.reference_embedding import warnings
from instantstyle.model import Model
from instantstyle.networks.attention import Attend, TextKeysValues
from instantstyle.networks.unet import Residuals
from instantstyle.request import Request, Result
from instantstyle.sampling.batch import Told, Turn
from instantstyle.sampling.conditioning import tell
from instantstyle.sampling.initial_latents import begin, cautions, settled_size
from instantstyle.sampling.schedulers import carried, clean, sampler_name, scheduler, set_steps, signal_and_noise

State = Literal["running", "done", "cancelled", "failed"]


@runtime_checkable
class Steps(Protocol):
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

    def __init__(self, engine: Steps, request: Request) -> None:
        self.engine, model = engine, engine.model
        self.scheduler = scheduler(model, request.sampler)
        set_steps(self.scheduler, request.sampler, request.steps, model.device)
        settled = {
            "size": settled_size(model, request),
            "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
            "guidance": model.family.guidance if request.guidance is None else request.guidance,
            "guidance_rescale": (
                model.family.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale
            ),
            "sampler": request.sampler or sampler_name(self.scheduler),
        }
        self.request = request.model_copy(update=settled)
        self.guided = self.request.guided
        self.injection = inject(model, self.request)
        self.request = self.request.model_copy(update=dict(self.injection.settled))
        self.controls = steer(model, self.request)
        self.warnings = (*cautions(model, self.request), *warnings(model, self.request))
        self.generator = torch.Generator("cpu").manual_seed(cast("int", self.request.seed))
        self.start = begin(model, self.request, self.scheduler, self.generator)
        self.times, self.latents = self.start.times, self.start.latents
        accepted = inspect.signature(self.scheduler.step).parameters
        self._step_arguments = {"generator": self.generator} if "generator" in accepted else {}
        self.step, self.state = 0, cast("State", "running")
        self._tolds: dict[bool, Told] = {}
        self._turn: Turn | None = None
        self._tell()
        self._began, self._seconds = time.perf_counter(), 0.0
        self._expected: Tensor | None = None
        self._result: Result | None = None
        self._failure: BaseException | None = None

    @property
    def asked(self) -> Injection:
        """What the run's method asks for in the coming step: nothing, outside of its window."""
        return self.injection.at(self.step, self.steps)

    @property
    def own_rows(self) -> int:
        """Rows that predict for the run's latents: unconditional, conditional and negatives, each `count` times."""
        return (1 + self.guided + len(self.asked.negatives)) * self.request.count

    @property
    def rows(self) -> int:
        """Rows of the UNet's batch that the run needs in the coming step, reference rows with them."""
        return self.own_rows + (0 if self.asked.rows is None else len(self.asked.rows))

    @property
    def steps(self) -> int:
        """UNet calls the run needs; some samplers need more than the steps asked for."""
        return len(self.times)

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
            raise Cancelled(f"the run was cancelled after {self.step} of {self.steps} steps")
        raise InputError(f"the run is at step {self.step} of {self.steps}: step its engine until it is done")

    def __iter__(self) -> Iterator[Progress]:
        """Step the engine, yielding after each step that succeeds; ends when the run is done.

        Raises Cancelled, or whatever the run failed with.
        """
        while not self.done:
            self.engine.step()
            if self.state in ("running", "done"):
                yield Progress(self.step, self.steps, time.perf_counter() - self._began, self)
        self.result()

    @torch.no_grad()
    def preview(self) -> list[Image.Image]:
        """The pictures as expected from the last step; before the first, what noise decodes to."""
        return self.engine.model.decode(self.latents if self._expected is None else self._expected)

    @property
    def attend(self) -> Attend:
        """What the run's rows do at attention layers in the coming step."""
        return self.asked.attend

    @property
    def text(self) -> TextKeysValues:
        """The keys and values of what the run's rows read in the coming step."""
        return self._tell().text

    @property
    def moment(self) -> Moment:
        """The coming step, as reference rows may know it."""
        signal, noise = signal_and_noise(self.scheduler, self.start.first + self.step)
        coming = float(self.times[self.step + 1]) if self.step + 1 < self.steps else 0.0
        return Moment(self.step, self.steps, float(self.times[self.step]), signal, noise, coming)

    def prepare(self) -> Turn:
        """What the run brings to the coming UNet call."""
        if self._turn is None:
            asked = self.asked
            scaled = self.scheduler.scale_model_input(self.latents, self.times[self.step])
            latents = torch.cat([scaled] * (self.own_rows // self.request.count))
            steered = self._steered(latents)
            latents = self.start.seen(latents, None if asked.rows is None else self._pinned(asked.rows))
            unet = asked.unet or self.engine.model.unet
            self._turn = Turn(unet, latents, self.times[self.step], self._tell(), asked.attend, steered)
        return self._turn

    def advance(self, prediction: Float[Tensor, "rows channels height width"]) -> None:
        """Take one step with the UNet's prediction for the run's rows."""
        time_now, before = self.times[self.step], self.latents
        prediction = self._combined(prediction[: self.own_rows])
        out = self.scheduler.step(prediction, time_now, before, **self._step_arguments, return_dict=True)
        self.latents = out.prev_sample.to(before.dtype)
        self._expected = getattr(out, "pred_original_sample", None)
        if self._expected is None:
            self._expected = clean(self.scheduler, prediction, time_now, before)
        self._expected = self._expected.to(before.dtype)
        if (expects := self.asked.expects) is not None:
            wanted = expects(self.moment, self._expected)
            after = carried(self.scheduler, self.start.first + self.step + 1)
            self.latents, self._expected = self.latents + after * (wanted - self._expected), wanted
        self.step, self._turn = self.step + 1, None
        if (kept := self.start.kept) is not None:
            coming = self.times[self.step] if self.step < self.steps else None
            self.latents = kept.imposed(self.latents, self.scheduler, coming).to(before.dtype)
            self._expected = kept.imposed(self._expected, self.scheduler, None).to(before.dtype)

    def finish(self) -> None:
        """Decode, and remember how it was made.  Raises InstantStyleError when the numbers ran away."""
        model = self.engine.model
        if not self.latents.isfinite().all():
            raise InstantStyleError(
                f"the run ended in NaN or infinity, which is no picture: lower its guidance "
                f"({self.request.guidance:g}) or the strengths of its plan, or load the model with dtype float32"
            )
        pictures = model.decode(self.latents)
        self._seconds = time.perf_counter() - self._began
        self._result = Result(
            pictures,
            self.request,
            model=model.found.spec,
            adapter=model.found.adapter_spec,
            **model.found.encoder_specs,
            loras=model.loras,
            controls={kind: net.spec for kind, net in model.controls.items() if net.spec is not None},
            depth=None if model.depth is None else model.depth.spec,
            identity=model.identity,
            presets={name: model.family.presets[name].weights for name in SAID},
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
    def _tell(self) -> Told:
        """What the rows of the coming step read; read once inside the window and once outside of it."""
        asked = self.asked
        other = asked.unet is not None or asked.rows is not None or bool(asked.negatives)
        other = other or asked.unconditional != "negative"
        if other not in self._tolds:
            self._tolds[other] = tell(self.engine.model, self.request, asked)
        return self._tolds[other]

    def _pinned(self, rows: ReferenceRows) -> Tensor:
        """The latents of the reference rows in the coming step.  Raises InputError when they are of another shape."""
        pinned = rows.latents(self.moment)
        wanted = (len(rows), *self.latents.shape[1:])
        if tuple(pinned.shape) != wanted:
            raise InputError(
                f"reference rows are latents of the shape {tuple(pinned.shape)} where the run has {wanted}: encode the "
                "reference at the size of the request"
            )
        return pinned.to(self.latents)

    def _steered(self, latents: Tensor) -> Residuals | None:
        """What the run's controls add to its own rows in the coming step."""
        told, rows = self._tell(), len(latents)
        pooled, sizes = (None if each is None else each[:rows] for each in (told.pooled, told.sizes))
        time_now = self.times[self.step].float().expand(rows)
        unconditional = self.request.count if self.guided else 0
        said = (latents, time_now, told.context[:rows], pooled, sizes)
        return residuals(self.controls, self.step, self.steps, *said, unconditional=unconditional)

    def _combined(self, prediction: Tensor) -> Tensor:
        """One prediction of those for the unconditional, the conditional and the negative rows."""
        parts = list(cast("Tensor", prediction.unflatten(0, (-1, self.request.count))))
        without = parts.pop(0) if self.guided else None
        given, *negatives = parts
        assert self.request.guidance is not None
        assert self.request.guidance_rescale is not None
        combined = given if without is None else without + self.request.guidance * (given - without)
        for negative, against in zip(self.asked.negatives, negatives, strict=True):
            combined = combined + negative.weight * (given - against)
        # Where nothing was pushed away from there is nothing to bring back, and the bits stay.
        return combined if combined is given else rescaled(combined, given, self.request.guidance_rescale)
