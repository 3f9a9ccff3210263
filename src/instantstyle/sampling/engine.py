"""Engine: steps the runs of one model, stacking in one call of the denoiser those that can be."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from instantstyle.model import Model
from instantstyle.request import Request, Result
from instantstyle.sampling.batch import DenoiserInputs, RunBatch
from instantstyle.sampling.run import Run

MAX_BATCH_ROWS = 64
"""Rows in one call, unless an engine is made with another number."""


class Engine:
    """The runs of one model.  Not for several threads at once."""

    def __init__(self, model: Model, *, max_rows: int = MAX_BATCH_ROWS) -> None:
        self.model, self.max_rows = model, max_rows
        self.runs: list[Run] = []
        self._batches: dict[tuple[int, ...], RunBatch] = {}

    def submit(self, request: Request) -> Run:
        """Begin a request; no network is called here.  Raises InputError when it does not fit the model or method."""
        run = Run(self, request)
        self.runs.append(run)
        return run

    @torch.no_grad()
    def step(self) -> None:
        """Take every run one step further: a piece of its preparation, or a step of the denoiser.

        A run whose preparation ends takes its first step at once.  Runs that are done are decoded and leave.
        """
        self._remove_done()
        self._prepare()
        used: dict[tuple[int, ...], RunBatch] = {}
        for group in self._groups():
            for run, prediction in self._predict(group, used):
                self._advance(run, prediction)
        self._batches = used
        self._remove_done()

    def run(self) -> list[Result]:
        """Step until no run is left; the results in the order of submission, cancelled runs left out.

        Raises what a run failed with, once the others are done.
        """
        runs = list(self.runs)
        while self.runs:
            self.step()
        return [run.result() for run in runs if run.state != "cancelled"]

    def _prepare(self) -> None:
        """A piece of every run that is preparing; of those that train first, one at a time.

        A training that is done is kept on disk, and the next run of the same reference finds it there.
        """
        training = False
        for run in self.runs:
            trains = run.state == "preparing" and run.resolved.method.fit_cost > 0
            if run.state == "preparing" and not (trains and training):
                run.prepare_step()
                training = training or (trains and run.state == "preparing")

    def _predict(
        self, group: Sequence[tuple[Run, DenoiserInputs]], used: dict[tuple[int, ...], RunBatch]
    ) -> Iterator[tuple[Run, Tensor]]:
        """The prediction for every run of a group, of one call; where that fails, of a call for each.

        A run whose own call fails has failed.
        """
        inputs = [each for _, each in group]
        key = tuple(id(each.conditioning) for each in inputs)
        try:
            batch = used[key] = self._batches.get(key) or RunBatch.collate([each.conditioning for each in inputs])
            prediction = batch.forward(inputs)
        except Exception as failure:
            if len(group) == 1:
                group[0][0].fail(failure)
                return
            for each in group:
                yield from self._predict([each], used)
            return
        for (run, _), rows in zip(group, batch.row_slices, strict=True):
            yield run, prediction[rows]

    def _advance(self, run: Run, prediction: Tensor) -> None:
        try:
            run.scheduler_step(prediction)
            if run.step == run.num_denoiser_calls:
                run.decode()
        except Exception as failure:  # its own scheduler or its own picture: the others go on
            run.fail(failure)

    def _remove_done(self) -> None:
        for run in self.runs:
            if run.done:
                run.close()
        self.runs = [run for run in self.runs if not run.done]
        if not self.runs:
            self._batches = {}

    def _groups(self) -> Iterator[list[tuple[Run, DenoiserInputs]]]:
        """Runs that can be stacked: of one denoiser, latent size and text length, and no more rows than allowed."""
        alike: dict[tuple[object, ...], list[tuple[Run, DenoiserInputs]]] = {}
        for run in self.runs:
            if run.state != "running":
                continue
            try:
                inputs = run.denoiser_inputs()
            except Exception as failure:  # its own reference rows: the others go on
                run.fail(failure)
                continue
            shape = (*inputs.latents.shape[1:], inputs.conditioning.prompt_embeds.shape[1])
            alike.setdefault((inputs.denoiser, *shape), []).append((run, inputs))
        for runs in alike.values():
            group: list[tuple[Run, DenoiserInputs]] = []
            for run, inputs in runs:
                if group and sum(len(each.latents) for _, each in group) + len(inputs.latents) > self.max_rows:
                    yield group
                    group = []
                group.append((run, inputs))
            yield group
