"""What comes before a run's first step is stepped like the rest: `submit` returns at once and neighbours go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_models
from instantstyle.errors import Cancelled, InputError
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import Engine, Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

TOGETHER = 1e-4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path))
    return tmp_path / "b-lora"


LONG: dict[str, dict[str, Any]] = {
    "style-aligned": {},
    "swapped": {"reference-source": "inverted"},
    "stylekeeper": {"reference-source": "generated", "caption": "a dog"},
    "b-lora": {"fit-steps": 4, "fit-rank": 2, "fit-rate": 0.01},
}
"""Methods with much to do first: inversions, a generated reference, a training."""


def styled(method: str, **fields: Any) -> Request:
    generated = LONG.get(method, {}).get("reference-source") == "generated"
    references = () if generated else [StyleReference(tiny_models.picture(1))]
    given: dict[str, Any] = {"references": references, "options": LONG.get(method, {}), "seed": 5, "steps": 4}
    return Request("a cat", method=method, **(given | fields))


def alone(request: Request) -> Tensor:
    run = Engine(tiny_models.model("emoji")).submit(request)
    for _ in run:
        pass
    return run.latents


@pytest.mark.parametrize("method", ["instantstyle", *LONG])
def test_submit_calls_no_network(method: str) -> None:
    calls: list[str] = []
    hook = nn.modules.module.register_module_forward_pre_hook(lambda net, args: calls.append(type(net).__name__))  # pyright: ignore
    try:
        run = Engine(tiny_models.model("emoji")).submit(styled(method))
    finally:
        hook.remove()  # pyright: ignore
    assert (calls, run.state) == ([], "preparing")


@pytest.mark.parametrize("method", LONG)
def test_neighbours_go_on_and_nobody_is_changed(method: str) -> None:
    """The neighbour has taken as many steps as the other pieces, and both are what they are alone."""
    engine = Engine(tiny_models.model("emoji"))
    slow, neighbour = engine.submit(styled(method)), engine.submit(Request("a dog", seed=2, steps=8))
    phases: list[tuple[str, int, int]] = []
    while not slow.done or not neighbour.done:
        engine.step()
        if slow.state == "preparing":
            at = slow.progress()
            phases.append((at.phase, at.step, at.steps))
            assert neighbour.step == len(phases)
    assert phases == [(phases[0][0], n, 4) for n in (1, 2, 3, 4)]
    assert phases[0][0] != "sampling"
    torch.testing.assert_close(slow.latents, alone(styled(method)), atol=TOGETHER, rtol=0)
    torch.testing.assert_close(neighbour.latents, alone(Request("a dog", seed=2, steps=8)), atol=TOGETHER, rtol=0)


@pytest.mark.parametrize("method", LONG)
def test_cancelling_takes_effect_in_the_preparation(method: str) -> None:
    engine = Engine(tiny_models.model("emoji"))
    run, other = engine.submit(styled(method)), engine.submit(Request("a dog", seed=2, steps=3))
    engine.step()
    run.cancel()
    assert len(engine.run()) == 1
    assert (run.state, run.step, other.state) == ("cancelled", 0, "done")
    with pytest.raises(Cancelled):
        run.result()


def test_a_cancelled_training_goes_on_where_it_stopped(cache: Path) -> None:
    engine = Engine(tiny_models.model("emoji"))
    run = engine.submit(styled("b-lora"))
    engine.step()
    engine.step()
    run.cancel()
    engine.step()
    assert [path.suffix for path in cache.iterdir()] == [".state"]
    again = engine.submit(styled("b-lora"))
    engine.step()
    assert again.progress().step == 3
    engine.run()
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_runs_of_one_reference_share_a_training() -> None:
    engine = Engine(tiny_models.model("emoji"))
    first, second = (engine.submit(styled("b-lora", seed=seed)) for seed in (1, 2))
    steps = 0
    while second.state == "preparing":
        engine.step()
        steps += 1
    assert steps == 5  # four of the training, and one in which it ends and the second run reads it
    engine.run()
    assert first.state == second.state == "done"


def test_a_failure_in_the_preparation_is_its_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_models.model("emoji"))
    bad, good = engine.submit(styled("instantstyle")), engine.submit(Request("a dog", seed=2, steps=2))

    def broken(*args: Any) -> None:
        raise InputError("a picture that cannot be read")

    monkeypatch.setattr("instantstyle.methods.image_prompts.embed_references", broken)
    with pytest.raises(InputError, match="cannot be read"):
        engine.run()
    assert (bad.state, good.state) == ("failed", "done")


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_one_run_that_spoils_a_stacked_call_does_not_take_its_neighbours_along(culprit: int) -> None:
    """Its attention raises: the call for all is tried again run by run, and the others' pictures are as alone."""
    engine = Engine(tiny_models.model("emoji"))
    requests = [styled("instantstyle", seed=seed) for seed in (1, 2, 3)]
    runs: list[Run] = [engine.submit(request).prepare() for request in requests]

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("out of memory")

    object.__setattr__(runs[culprit].injection, "attend", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run()
    assert [run.state for run in runs] == ["failed" if i == culprit else "done" for i in range(3)]
    for i, run in enumerate(runs):
        if i != culprit:
            torch.testing.assert_close(run.latents, alone(requests[i]), atol=TOGETHER, rtol=0)
