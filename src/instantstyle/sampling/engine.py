"""Engine: steps the runs of one model, as many in one UNet call as go together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from instantstyle.model import Model
from instantstyle.request import Request, Result
from instantstyle.sampling.batch import Batch
from instantstyle.sampling.run import Run

MAX_BATCH_ROWS = 64
"""Rows in one UNet call, unless an engine is told otherwise."""


class Engine:
    """Steps the runs of one model, as many at a time as there are."""

    def __init__(self, model: Model, *, max_rows: int = MAX_BATCH_ROWS) -> None:
        self.model, self.max_rows = model, max_rows
        self.runs: list[Run] = []
        self._batches: dict[tuple[int, ...], Batch] = {}

    def submit(self, request: Request) -> Run:
        """Begin a request; it takes part from the next step on.  Raises InputError when it does not fit the model."""
        with torch.no_grad():
            run = Run(self, request)
        self.runs.append(run)
        return run

    @torch.no_grad()
    def step(self) -> None:
        """Take every run one step further; those that are done are decoded and leave."""
        self._remove_done()
        kept: dict[tuple[int, ...], Batch] = {}
        for runs in self._groups():
            turns = [run.unet_inputs() for run in runs]
            key = tuple(id(turn.conditioning) for turn in turns)
            stack = kept[key] = self._batches.get(key) or Batch.collate([turn.conditioning for turn in turns])
            try:
                prediction = stack.forward(turns)
            except Exception as failure:
                # One call for all: whose fault it was cannot be told, and none of them got a prediction.
                for run in runs:
                    run.fail(failure)
                continue
            for run, rows in zip(runs, stack.row_slices, strict=True):
                self._advance(run, prediction[rows])
        self._batches = kept
        self._remove_done()

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
            run.scheduler_step(prediction)
            if run.step == run.num_unet_calls:
                run.decode()
        except Exception as failure:  # its own scheduler or its own picture: the others go on
            run.fail(failure)

    def _remove_done(self) -> None:
        self.runs = [run for run in self.runs if not run.done]
        if not self.runs:
            self._batches = {}

    def _groups(self) -> Iterator[list[Run]]:
        """Runs that go through the UNet together: of one network and shape, and no more rows than allowed."""
        kinds: dict[tuple[int, ...], list[Run]] = {}
        for run in self.runs:
            try:
                turn = run.unet_inputs()
            except Exception as failure:  # its own reference rows: the others go on
                run.fail(failure)
                continue
            shape = (*turn.latents.shape[1:], turn.conditioning.prompt_embeds.shape[1])
            kinds.setdefault((id(turn.unet), *shape), []).append(run)
        for alike in kinds.values():
            group: list[Run] = []
            for run in alike:
                if group and sum(each.batch_size for each in group) + run.batch_size > self.max_rows:
                    yield group
                    group = []
                group.append(run)
            yield group
