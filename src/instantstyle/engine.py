"""The step loop: many requests in flight, their rows stacked in one UNet call.

A run brings its own latents, scheduler, guidance, random generator and way of attending.  All that is linear is
batched over runs, although every one may differ in prompt, references, method, seed, steps and guidance; at each
attention layer `together` hands each run its own rows.  Runs join and leave between steps.
"""

import importlib
import inspect
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.errors import Cancelled, InputError, InstantStyleError, WeightsError, nearest
from instantstyle.methods import inject
from instantstyle.model import Model
from instantstyle.nets.attention import Attend, Heads, TextKeysValues, plain
from instantstyle.request import Request, Result

SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Names of samplers, and diffusers' classes for them."""
MAX_ROWS = 64
"""Rows in one UNet call, unless an engine is told otherwise."""

State = Literal["running", "done", "cancelled", "failed"]


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

    def __init__(self, engine: "Engine", request: Request) -> None:
        _refuse_what_comes_later(request)
        self.engine, model = engine, engine.model
        self.guided = request.guidance > 1
        self.scheduler = scheduler(model, request.sampler)
        self.scheduler.set_timesteps(request.steps, device=model.device)
        self.times: list[Tensor] = list(self.scheduler.timesteps)
        width, height = _size(model, request)
        self.injection = inject(model, request)
        self.request = request.model_copy(
            update={
                "size": (width, height),
                "seed": secrets.randbelow(2**32) if request.seed is None else request.seed,
                "sampler": request.sampler or _sampler_name(self.scheduler),
                **self.injection.settled,
            }
        )
        self.generator = torch.Generator("cpu").manual_seed(cast("int", self.request.seed))
        self.latents = self._noise(width // model.scale, height // model.scale)
        self.text, self.pooled, self.sizes = self._read(width, height)
        accepted = inspect.signature(self.scheduler.step).parameters
        self._step_arguments = {"generator": self.generator} if "generator" in accepted else {}
        self.step, self.state = 0, cast("State", "running")
        self._began, self._seconds = time.perf_counter(), 0.0
        self._expected: Tensor | None = None
        self._result: Result | None = None
        self._failure: BaseException | None = None

    @property
    def rows(self) -> int:
        """Rows of the UNet's batch that the run needs: [unconditional, conditional] x count, or conditional alone."""
        return (1 + self.guided) * self.request.count

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
        return self.injection.at(self.step, self.steps)

    def scaled(self) -> Float[Tensor, "rows channels height width"]:
        """The latents as the UNet is to see them in the coming step, a copy for each row."""
        scaled = self.scheduler.scale_model_input(self.latents, self.times[self.step])
        return torch.cat([scaled, scaled]) if self.guided else scaled

    def advance(self, prediction: Float[Tensor, "rows channels height width"]) -> None:
        """Take one step with the UNet's prediction for the run's rows."""
        time_now, before = self.times[self.step], self.latents
        if self.guided:
            without, given = prediction.chunk(2)
            prediction = without + self.request.guidance * (given - without)
        out = self.scheduler.step(prediction, time_now, before, **self._step_arguments, return_dict=True)
        self.latents = out.prev_sample.to(before.dtype)
        self._expected = getattr(out, "pred_original_sample", None)
        if self._expected is None:
            self._expected = self._clean(prediction, time_now, before)
        self._expected = self._expected.to(before.dtype)
        self.step += 1

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
            identity=model.identity,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            seconds=self._seconds,
        )
        self.state = "done"

    def fail(self, failure: BaseException) -> None:
        """The run is over, and its result is this error."""
        self.state, self._failure = "failed", failure

    def _noise(self, width: int, height: int) -> Tensor:
        """As diffusers draws it: one draw for all pictures of the run, on the CPU whatever the device."""
        model = self.engine.model
        draw: Any = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
        shape = (self.request.count, model.unet.config.out_channels, height, width)
        noise: Tensor = draw(shape, generator=self.generator, device=model.device, dtype=model.dtype)
        return noise * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def _read(self, width: int, height: int) -> tuple[TextKeysValues, Tensor | None, Tensor | None]:
        """The text's keys and values, pooled text and sizes, a row for each of the run's."""
        model, request = self.engine.model, self.request
        said = model.say([request.negative, request.prompt] if self.guided else [request.prompt])
        context, pooled = said.context, said.pooled
        if self.guided and not request.negative and model.family.zero_empty:
            # What SDXL was trained to take for no text at all; an encoded empty string is something else.
            mask = torch.tensor([0.0, 1.0], device=context.device, dtype=context.dtype)
            context, pooled = context * mask[:, None, None], None if pooled is None else pooled * mask[:, None]

        def repeated(x: Tensor) -> Tensor:
            return x if request.count == 1 else x.repeat_interleave(request.count, dim=0)

        text = {site: (repeated(k), repeated(v)) for site, (k, v) in model.unet.read(context).items()}
        if pooled is None or model.family.unet.pooled_dim is None:
            return text, None, None
        # In float32 whatever the model's dtype: bfloat16 would make 1000 pixels of 1003.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=model.device, dtype=torch.float32)
        return text, repeated(pooled), sizes.repeat(self.rows, 1)

    def _clean(self, prediction: Tensor, when: Tensor, noisy: Tensor) -> Tensor:
        """The expected picture, for schedulers that keep it to themselves; all of those preserve variance."""
        signal = self.scheduler.alphas_cumprod.to(noisy.device)[int(when)].clamp(min=1e-4)
        mean, spread = signal.sqrt().to(noisy.dtype), (1 - signal).sqrt().to(noisy.dtype)
        match self.scheduler.config.prediction_type:
            case "v_prediction":
                return mean * noisy - spread * prediction
            case "sample":
                return prediction
            case _:
                return (noisy - spread * prediction) / mean


class Engine:
    """Steps the runs of one model, as many at a time as there are."""

    def __init__(self, model: Model, *, max_rows: int = MAX_ROWS) -> None:
        self.model, self.max_rows = model, max_rows
        self.runs: list[Run] = []
        self._stacks: dict[tuple[int, ...], _Stack] = {}

    def submit(self, request: Request) -> Run:
        """Begin a request; it takes part from the next step on.  Raises InputError when it does not fit the model."""
        with torch.no_grad():
            run = Run(self, request)
        self.runs.append(run)
        return run

    @torch.no_grad()
    def step(self) -> None:
        """Take every run one step further; those that are done are decoded and leave."""
        self._leave()
        kept: dict[tuple[int, ...], _Stack] = {}
        for runs in self._groups():
            key = tuple(id(run) for run in runs)
            stack = kept[key] = self._stacks.get(key) or _Stack.of(runs)
            try:
                prediction = stack.predict()
            except Exception as failure:
                # One call for all: whose fault it was cannot be told, and none of them got a prediction.
                for run in runs:
                    run.fail(failure)
                continue
            for run, rows in zip(runs, stack.rows, strict=True):
                self._advance(run, prediction[rows])
        self._stacks = kept
        self._leave()

    def run(self) -> list[Result]:
        """Step until no run is left; the results in the order of submission, cancelled runs left out.

        Raises what a run failed with, once the others are done.
        """
        runs = list(self.runs)
        while self.runs:
            self.step()
        return [run.result() for run in runs if run.state != "cancelled"]

    def _advance(self, run: Run, prediction: Tensor) -> None:
        try:
            run.advance(prediction)
            if run.step == run.steps:
                run.finish()
        except Exception as failure:  # its own scheduler or its own picture: the others go on
            run.fail(failure)

    def _leave(self) -> None:
        self.runs = [run for run in self.runs if not run.done]
        if not self.runs:
            self._stacks = {}

    def _groups(self) -> Iterator[list[Run]]:
        """Runs that go through the UNet together: of one latent shape, and no more rows than allowed."""
        shapes: dict[tuple[int, ...], list[Run]] = {}
        for run in self.runs:
            shapes.setdefault(tuple(run.latents.shape[1:]), []).append(run)
        for alike in shapes.values():
            group: list[Run] = []
            for run in alike:
                if group and sum(each.rows for each in group) + run.rows > self.max_rows:
                    yield group
                    group = []
                group.append(run)
            yield group


@dataclass(frozen=True)
class _Stack:
    """The arguments of a UNet call that do not change from step to step, for runs that go together."""

    runs: Sequence[Run]
    rows: Sequence[slice]
    text: TextKeysValues
    pooled: Tensor | None
    sizes: Tensor | None

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "_Stack":
        ends = [sum(run.rows for run in runs[: i + 1]) for i in range(len(runs))]
        rows = [slice(end - run.rows, end) for run, end in zip(runs, ends, strict=True)]
        if len(runs) == 1:
            return cls(runs, rows, runs[0].text, runs[0].pooled, runs[0].sizes)
        text = {
            site: (torch.cat([run.text[site][0] for run in runs]), torch.cat([run.text[site][1] for run in runs]))
            for site in runs[0].text
        }
        pooled, sizes = ([getattr(run, name) for run in runs] for name in ("pooled", "sizes"))
        return cls(runs, rows, text, _joined(pooled), _joined(sizes))

    def predict(self) -> Tensor:
        """One UNet call for the coming step of every run."""
        latents = torch.cat([run.scaled() for run in self.runs])
        times = [run.times[run.step].float().expand(run.rows) for run in self.runs]
        attend = together([(rows, run.attend) for rows, run in zip(self.rows, self.runs, strict=True)])
        unet = self.runs[0].engine.model.unet
        return unet(latents, torch.cat(times), self.text, self.pooled, self.sizes, attend=attend)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def together(parts: Sequence[tuple[slice, Attend]]) -> Attend:
    """One `attend` for all rows: each run's own on its own rows; neighbours that are plain share a call."""
    merged: list[tuple[slice, Attend]] = []
    for rows, attend in parts:
        if merged and attend is plain and merged[-1][1] is plain:
            merged[-1] = slice(merged[-1][0].start, rows.stop), plain
        else:
            merged.append((rows, attend))
    if len(merged) == 1:
        return merged[0][1]

    def attended(site: Site, q: Heads, k: Heads, v: Heads, *, bias: Tensor | None = None) -> Heads:
        def own(rows: slice) -> Tensor | None:
            return bias if bias is None or bias.shape[0] == 1 else bias[rows]

        return torch.cat([attend(site, q[rows], k[rows], v[rows], bias=own(rows)) for rows, attend in merged])

    return attended


def scheduler(model: Model, sampler: str | None) -> Any:
    """A fresh diffusers scheduler with the checkpoint's own numbers; of the checkpoint's own class unless named.

    Raises InputError for an unknown sampler, WeightsError when the checkpoint names a scheduler diffusers lacks.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise InputError(
            f"there is no sampler {sampler!r}: give one of {', '.join(SAMPLERS)}{nearest(sampler, SAMPLERS)}"
        )
    name = SAMPLERS[sampler] if sampler is not None else str(model.scheduler_config.get("_class_name", "DDIMScheduler"))
    kind: Any = getattr(importlib.import_module("diffusers"), name, None)
    if kind is None:
        raise WeightsError(f"the model asks for the scheduler {name}, which this version of diffusers does not have")
    return kind.from_config(dict(model.scheduler_config))


def _sampler_name(scheduler: Any) -> str | None:
    return next((name for name, kind in SAMPLERS.items() if kind == type(scheduler).__name__), None)


def _size(model: Model, request: Request) -> tuple[int, int]:
    width, height = request.size or model.family.size
    multiple = max(model.family.multiple, model.scale)
    if width % multiple or height % multiple:
        near = "x".join(str(max(multiple, round(side / multiple) * multiple)) for side in (width, height))
        raise InputError(
            f"the size {width}x{height} does not fit this model: both must be multiples of {multiple}, such as {near}"
        )
    return width, height


def _refuse_what_comes_later(request: Request) -> None:
    masks = any(reference.mask is not None for reference in request.references)
    asked = {
        "controls": bool(request.controls),
        "an init picture": request.init is not None,
        "masks of references": masks,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise InputError(
                f"{what} are planned, and not in this version: leave them out".replace("picture are", "picture is")
            )
