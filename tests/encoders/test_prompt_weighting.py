"""Long and weighted texts are compel's own embeddings of the same folder; plain texts stay what they were."""

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from instantstyle.errors import InputError
from instantstyle.request import Request
from instantstyle.sampling import Engine

pytestmark = pytest.mark.filterwarnings("ignore")

LONG = "a red cat in the house, " * 20 + "a blue dog."
WEIGHTED = "a (red)1.3 cat++ in the house-- of ink"


def theirs(name: str, texts: list[str]) -> tuple[Any, Any]:
    compel: Any = importlib.import_module("compel")
    diffusers: Any = importlib.import_module("diffusers")
    kind, wrapper = (
        (diffusers.StableDiffusionPipeline, compel.CompelForSD)
        if name == "sd15"
        else (diffusers.StableDiffusionXLPipeline, compel.CompelForSDXL)
    )
    pipe = kind.from_pretrained(tiny_models.folder(name), image_encoder=None, unet=None, vae=None, scheduler=None)
    with torch.no_grad():
        said = wrapper(pipe)(texts)
    return said.embeds, said.pooled_embeds


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_it_is_compel(name: str) -> None:
    texts = [WEIGHTED, LONG]
    said = tiny_models.model(name).encode_prompt(texts, "weighted")
    context, pooled = theirs(name, texts)
    assert said.prompt_embeds.shape[1] > 77
    torch.testing.assert_close(said.prompt_embeds, context, atol=1e-5, rtol=1e-4)
    if pooled is not None:  # of the bare words; compel's knows the weights as text
        assert said.pooled_prompt_embeds is not None
        torch.testing.assert_close(said.pooled_prompt_embeds[1], pooled[1], atol=1e-5, rtol=1e-4)
        bare = tiny_models.model(name).encode_prompt(["a red cat in the house of ink"]).text_embeds
        assert bare is not None
        torch.testing.assert_close(said.pooled_prompt_embeds[0], bare[0])


def test_a_short_text_without_weights_is_read_as_plainly() -> None:
    model = tiny_models.model("sdxl")
    plain = model.encode_prompt(["a red cat"])
    for reading in ("long", "weighted"):
        said = model.encode_prompt(["a red cat"], reading)
        torch.testing.assert_close(said.prompt_embeds, plain.prompt_embeds, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(said.pooled_prompt_embeds, plain.pooled_prompt_embeds, atol=1e-6, rtol=1e-5)


def test_other_spellings_of_weights() -> None:
    model = tiny_models.model("sd15")
    one, other = (
        model.encode_prompt([text], "weighted").prompt_embeds
        for text in ("a (red cat:1.3) house", "a (red cat)1.3 house")
    )
    assert torch.equal(one, other)
    assert not torch.allclose(one, model.encode_prompt(["a red cat house"]).prompt_embeds, atol=1e-3)
    with pytest.raises(InputError, match="swap"):
        model.encode_prompt(["a cat.swap(dog) house"], "weighted")


def test_runs_with_long_texts_go_beside_others() -> None:
    engine = Engine(tiny_models.model("sdxl"))
    long = Request(LONG, negative="red", reading="long", steps=2, seed=1)
    runs = [engine.submit(each) for each in (long, Request("a cat", steps=2, seed=1))]
    together = [np.asarray(result.images[0], np.int16) for result in engine.run()]
    alone = Engine(tiny_models.model("sdxl")).submit(long)
    for _ in alone:
        pass
    assert np.abs(together[0] - np.asarray(alone.result().images[0], np.int16)).max() <= 1
    assert runs[1].result().images
    with pytest.raises(InputError, match="tokens long"):
        engine.submit(long.model_copy(update={"reading": "plain"}))


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_clip_skip_is_the_same_in_every_mode(name: str, clip_skip: int) -> None:
    model = tiny_models.model(name)
    skipped = dataclasses.replace(model, family=dataclasses.replace(model.family, clip_skip=clip_skip))
    plain, weighted = (skipped.encode_prompt(["a red cat"], mode).prompt_embeds for mode in ("plain", "weighted"))
    torch.testing.assert_close(plain, weighted, atol=1e-5, rtol=1e-4)
