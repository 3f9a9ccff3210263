"""Few-step presets: each runs, at the times its model was distilled for."""

import pytest

import factory
from instantstyle.engine import SAMPLERS, Engine
from instantstyle.errors import InputError
from instantstyle.presets import PRESETS, preset
from instantstyle.request import Request

TIMES = {"lightning-4": [999, 749, 499, 249], "hyper-4": [999, 749, 499, 249], "dmd2-4": [999, 749, 499, 249]}
"""As the models' pages say them, or as their samplers' trailing spacing counts."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_runs(name: str) -> None:
    few = PRESETS[name]
    assert few.sampler in SAMPLERS
    assert set(few.lora) <= {"sdxl", "sd15"}
    asked = Request("a cat", steps=few.steps, guidance=few.guidance, sampler=few.sampler, seed=1)
    run = Engine(factory.model("sdxl")).submit(asked)
    assert (run.steps, run.guided) == (few.steps, False)
    if name in TIMES:
        assert [round(float(time)) for time in run.times] == TIMES[name]


def test_what_is_not_there_is_a_sentence() -> None:
    with pytest.raises(InputError, match="did you mean 'lightning-4'"):
        preset("lightnin-4")
    with pytest.raises(InputError, match="'lcm' cannot take 60 steps"):
        Engine(factory.model("sdxl")).submit(Request("a cat", steps=60, sampler="lcm"))
