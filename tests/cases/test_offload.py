"""Sparing memory with everything else: each pair of options gives the picture it gives without, or a sentence."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from instantstyle.errors import InputError
from instantstyle.families import LoRATraining
from instantstyle.loading import load, parse_offload_mode
from instantstyle.methods import METHODS
from instantstyle.methods.lora_training import on_progress, train_lora
from instantstyle.model import Model
from instantstyle.request import Init, Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = pytest.mark.filterwarnings("ignore")

LONG = "a red cat in the house, " * 20
PAIRS: dict[str, dict[str, Any]] = {
    "long": {"prompt": LONG, "reading": "long"},
    "weighted": {"prompt": "a (red:1.3) [cat]", "reading": "weighted", "negative": "(dog:1.2)"},
    "two styles": {
        "references": [StyleReference(tiny_models.picture(1)), StyleReference(tiny_models.picture(2), weight=0.5)]
    },
    "init": {"init": Init(tiny_models.picture(3), 0.9)},
    **{method: {"method": method} for method in METHODS},
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANTSTYLE_CACHE", str(tmp_path / "cache"))


@cache
def sparing(memory: Any) -> Model:
    return load(tiny_models.folder("sdxl"), memory=memory)


def drawn(model: Model, fields: dict[str, Any]) -> torch.Tensor:
    options = {"fit-steps": 1, "fit-rank": 1} if fields.get("method") == "b-lora" else {}
    references = [] if fields.get("method") == "none" else [StyleReference(tiny_models.picture(1))]
    given: dict[str, Any] = {"prompt": "a cat", "references": references, "steps": 2, "seed": 3, "options": options}
    run = Engine(model).submit(Request(**(given | fields)))
    for _ in run:
        pass
    return run.latents


@pytest.mark.parametrize("pair", PAIRS)
def test_offloaded_layers(pair: str) -> None:
    if pair == "b-lora":
        with pytest.raises(InputError, match="memory keep or free"):
            drawn(sparing("offload"), PAIRS[pair])
        return
    torch.testing.assert_close(drawn(sparing("offload"), PAIRS[pair]), drawn(tiny_models.model("sdxl"), PAIRS[pair]))


@pytest.mark.parametrize("pair", ["long", "weighted", "b-lora"])
def test_encoders_that_are_read_for_each_use(pair: str) -> None:
    torch.testing.assert_close(drawn(sparing("free"), PAIRS[pair]), drawn(tiny_models.model("sdxl"), PAIRS[pair]))


@pytest.mark.parametrize(
    ("memory", "mode"),
    [("keep", "none"), ("free", "reload"), ("offload", "sequential"), ("none", "none"), ("sequential", "sequential")],
)
def test_either_name_of_a_mode(memory: Any, mode: str) -> None:
    assert sparing(memory).offload_mode == mode


def test_a_mode_that_there_is_not() -> None:
    with pytest.raises(InputError, match="did you mean 'offload'"):
        parse_offload_mode("ofload")


def test_the_hash_of_offloaded_weights_is_that_of_the_weights() -> None:
    assert sparing("offload").weights_hash() == tiny_models.model("sdxl").weights_hash()


@pytest.mark.parametrize("failing", [0, 1])
def test_no_state_is_kept_of_a_step_that_was_not_done(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error inside a step leaves nothing behind; one between two steps leaves the steps before it."""
    model, keep = tiny_models.model("sdxl"), tmp_path / "fit.state"
    fitting = LoRATraining(rank=1, steps=3, learning_rate=1e-3, batch=1, prompt="a cat")
    calls = 0
    adamw: Any = torch.optim.AdamW
    step = adamw.step

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise RuntimeError("out of luck")
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        list(train_lora(model, [tiny_models.picture(1)], model.family.b_lora_blocks, fitting, keep=keep))
    assert not keep.exists()
    monkeypatch.undo()

    def stop(progress: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), on_progress(stop):
        list(train_lora(model, [tiny_models.picture(1)], model.family.b_lora_blocks, fitting, keep=keep))
    assert torch.load(keep, weights_only=True)["step"] == 1
