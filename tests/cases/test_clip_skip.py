"""Clip skip: another hidden state of the text encoders, as diffusers' `clip_skip` reads it."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch

import instantstyle as ist
import tiny_models
from instantstyle.errors import InputError
from instantstyle.methods.prompts import encode_prompts
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import resolve

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


@pytest.mark.parametrize(("name", "skipped"), [("sd15", 0), ("sd15", 1), ("sdxl", 0), ("sdxl", 1)])
def test_it_is_diffusers(name: str, skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers counts the layers that are left out beyond the family's own, and this the hidden state from the end."""
    diffusers: Any = importlib.import_module("diffusers")
    kind = diffusers.StableDiffusionPipeline if name == "sd15" else diffusers.StableDiffusionXLPipeline
    pipe = kind.from_pretrained(tiny_models.folder(name))
    # transformers 5 has no module of this name any more, and diffusers asks for it where it skips.
    monkeypatch.setattr(type(pipe.text_encoder), "text_model", property(lambda self: self), raising=False)  # pyright: ignore
    model = tiny_models.model(name)
    with torch.no_grad():
        theirs = pipe.encode_prompt(
            "a red house",
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=skipped or None,
        )[0]
    ours = encode_prompts(model, ["a red house"], clip_skip=model.family.clip_skip + skipped).prompt_embeds
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_it_changes_the_picture_and_is_remembered() -> None:
    model = tiny_models.model("sd15")
    request = Request("a red house", seed=1, steps=2)
    plain, same, other = (ist.generate(model, request.model_copy(update={"clip_skip": skip})) for skip in (None, 1, 2))
    assert np.array_equal(np.asarray(plain.images[0]), np.asarray(same.images[0]))
    assert not np.array_equal(np.asarray(plain.images[0]), np.asarray(other.images[0]))
    again = Request.from_json(other.request.to_json())
    assert again.clip_skip == 2


def test_captions_of_reference_rows_are_read_so_too() -> None:
    model, picture = tiny_models.model("sd15"), StyleReference(tiny_models.picture(1), content="dog")
    runs = [
        ist.Engine(model).submit(Request("a cat", references=[picture], method="swapped", clip_skip=skip)).prepare()
        for skip in (1, 2)
    ]
    first, second = (run.injection.reference_batch for run in runs)
    assert first is not None
    assert second is not None
    assert not torch.allclose(first.text.prompt_embeds, second.text.prompt_embeds)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"clip_skip": 20}, "more than the"), ({"clip_skip": 2, "reading": "long"}, "leave one of the two out")],
)
def test_what_cannot_be_read_is_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve(tiny_models.model("sd15"), Request("a cat", **fields))
