"""Engine: steps the runs of one model, as many in one UNet call as go together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from instantstyle.model import Model
from instantstyle.request import Request, Result
from instantstyle.sampling.batch import Stack
from instantstyle.sampling.run import Run

MAX_ROWS = 64
"""Rows in one UNet call, unless an engine is told otherwise."""


class Engine:
    """Steps the runs of one model, as many at a time as there are."""

    def __init__(self, model: Model, *, max_rows: int = MAX_ROWS) -> None:
        self.model, self.max_rows = model, max_rows
        self.runs: list[Run] = []
        self._stacks: dict[tuple[int, ...], Stack] = {}

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
        kept: dict[tuple[int, ...], Stack] = {}
        for runs in self._groups():
            turns = [run.prepare() for run in runs]
            key = tuple(id(turn.told) for turn in turns)
            stack = kept[key] = self._stacks.get(key) or Stack.of([turn.told for turn in turns])
            try:
                prediction = stack.predict(turns)
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
        """Runs that go through the UNet together: of one network and shape, and no more rows than allowed."""
        kinds: dict[tuple[int, ...], list[Run]] = {}
        for run in self.runs:
            try:
                turn = run.prepare()
            except Exception as failure:  # its own reference rows: the others go on
                run.fail(failure)
                continue
            shape = (*turn.latents.shape[1:], turn.told.context.shape[1])
            kinds.setdefault((id(turn.unet), *shape), []).append(run)
        for alike in kinds.values():
            group: list[Run] = []
            for run in alike:
                if group and sum(each.rows for each in group) + run.rows > self.max_rows:
                    yield group
                    group = []
                group.append(run)
            yield group
