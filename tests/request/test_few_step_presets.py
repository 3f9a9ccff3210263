"""Few-step presets: each runs, at the times its model was distilled for."""

import pytest

import tiny_models
from instantstyle.errors import InputError
from instantstyle.request import Request
from instantstyle.request.few_step_presets import FEW_STEP_PRESETS, few_step_preset
from instantstyle.sampling import SAMPLERS, Engine

TIMES = {
    "lightning-4": [999, 749, 499, 249],
    "hyper-2": [999, 499],
    "hyper-4": [999, 749, 499, 249],
    "hyper-8-cfg": [999, 874, 749, 624, 499, 374, 249, 124],
    "dmd2-4": [999, 749, 499, 249],
    "lcm": [999, 759, 499, 259],
}
"""Trailing spacing counts down from 1000 in equal steps, less one; DMD2's are on its card; LCM's are the 0th, 12th,
25th and 37th of the 50 times from 999 down by 20 that it was distilled at."""
ADDED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
"""SDXL's own, which every card keeps (`from_config(pipe.scheduler.config, ...)`)."""
SPACED = {"lightning": "trailing", "hyper": "trailing"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy
@pytest.mark.parametrize("name", FEW_STEP_PRESETS)
def test_presets_are_runs(name: str) -> None:
    few = FEW_STEP_PRESETS[name]
    assert few.sampler in SAMPLERS
    assert set(few.lora) <= {"sdxl", "sd15"}
    assert few.source.partition(",")[0].count("/") or "arXiv" in few.source
    asked = Request("a cat", steps=few.steps, guidance=few.guidance, sampler=few.sampler, seed=1)
    run = Engine(tiny_models.model("sdxl")).submit(asked)
    assert (run.num_denoiser_calls, run.resolved.do_classifier_free_guidance) == (few.steps, few.guidance > 1)
    config = run.scheduler.config
    assert {key: config[key] for key in ADDED} == ADDED
    if name.partition("-")[0] in SPACED and few.sampler != "tcd":
        assert config["timestep_spacing"] == SPACED[name.partition("-")[0]]
    if name in TIMES:
        assert [round(float(time)) for time in run.timesteps] == TIMES[name]


def test_what_is_not_there_is_a_sentence() -> None:
    with pytest.raises(InputError, match="did you mean 'lightning-4'"):
        few_step_preset("lightnin-4")
    with pytest.raises(InputError, match="'lcm' cannot take 60 steps"):
        Engine(tiny_models.model("sdxl")).submit(Request("a cat", steps=60, sampler="lcm"))
