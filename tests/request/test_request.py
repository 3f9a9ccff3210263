"""A request is a value: every field of it survives JSON and PNG, and what is wrong is a sentence."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from instantstyle import errors, request
from instantstyle.errors import InputError, OutputError, PictureError
from instantstyle.request import Control, GenerationMetadata, Init, Request, Result, StoredImage, StyleReference
from instantstyle.request.base import FrozenModel
from instantstyle.request.style_card import read_card
from instantstyle.utils import images as pictures

VERSION_0_1_0 = Path(__file__).parent / "data" / "version_0_1_0"
"""Files written by version 0.1.0."""


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which every pixel is its own."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def _model(kind: type[FrozenModel], /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    assert set(fields) == set(kind.model_fields), "a field without a strategy is a field that is not tested"
    return st.builds(kind, **fields)


units = st.floats(0, 1)
strengths = st.floats(0, 10)
images = st.builds(noise, st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
windows = st.tuples(units, units).map(lambda w: (min(w), max(w)))
words = st.text(max_size=30)
references = _model(
    StyleReference,
    image=images,
    content=st.none() | words | st.lists(words, max_size=3),
    content_weight=strengths,
    weight=strengths,
    mask=st.none() | images,
    plan=st.none() | words,
    adapter=st.none() | words,
)
controls = _model(Control, kind=words, image=images, weight=strengths, window=windows)
inits = _model(Init, image=images, strength=units, mask=st.none() | images)
sides = st.integers(8, 4096)
requests: st.SearchStrategy[Request] = _model(
    Request,
    prompt=words,
    negative=words,
    references=st.lists(references, max_size=2),
    method=words,
    plan=words,
    window=windows,
    controls=st.lists(controls, max_size=2),
    init=st.none() | inits,
    size=st.none() | st.tuples(sides, sides),
    steps=st.integers(1, 1000),
    guidance=st.none() | st.floats(0, 50),
    guidance_rescale=st.none() | st.floats(0, 1),
    true_guidance=st.none() | st.floats(0, 50),
    sampler=st.none() | words,
    seed=st.none() | st.integers(0, 2**63 - 1),
    count=st.integers(1, 64),
    subtraction=st.sampled_from(["paper", "normalised", "projected", "masked"]),
    combine=st.sampled_from(["concat", "average"]),
    fit=st.sampled_from(["crop", "pad", "squash"]),
    reading=st.sampled_from(["plain", "long", "weighted"]),
    clip_skip=st.none() | st.integers(1, 24),
    options=st.dictionaries(words, st.booleans() | st.integers(-99, 99) | st.floats(-1e9, 1e9) | words, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(requests)
def test_every_field_survives_json(asked: Request) -> None:
    text = asked.to_json()
    assert Request.from_json(text) == asked
    assert set(json.loads(text)) == set(Request.model_fields)
    for reference in Request.from_json(text).references:
        reference.image.open()


provenances = st.dictionaries(words, words, max_size=2)
metadata = _model(
    GenerationMetadata,
    request=requests,
    index=st.integers(0, 63),
    model=words,
    adapter=st.none() | words | provenances,
    identity=words,
    device=words,
    dtype=words,
    version=words,
    controls=provenances,
    depth=st.none() | words,
    image_encoder=st.none() | words,
    content_encoder=st.none() | words,
    loras=st.lists(st.tuples(words, strengths), max_size=2),
    presets=st.none() | st.dictionaries(words, st.dictionaries(words, strengths, max_size=2), max_size=2),
)


@settings(max_examples=40, deadline=None)
@given(held=metadata)
def test_every_field_survives_a_png(held: GenerationMetadata, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("png") / "picture.png"
    pictures.write_png(noise(5, 4), path, held.to_json(), held.parameters())
    assert request.read_metadata(path) == held
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(noise(5, 4)))


def test_a_result_survives_json_with_its_pixels() -> None:
    result = Result([noise(6, 5), noise(6, 5, 1)], Request("a cat", seed=7), model="emoji", identity="ab", seconds=1.5)
    again = Result.from_json(result.to_json())
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in result.images]
    assert again.model_dump(exclude={"images"}) == result.model_dump(exclude={"images"})


def test_a_large_result_survives_json_too() -> None:
    """A reference is bounded, a result is as large as it was made."""
    wide = noise(2100, 8)
    again = Result.from_json(Result([wide], Request("a cat")).to_json()).images[0]
    assert (again.size, again.tobytes()) == (wide.size, wide.tobytes())


def test_what_is_remembered_is_generated_from(tmp_path: Path) -> None:
    """A large reference is bounded once; remembering it again changes nothing, whatever way it came."""
    noise(1024, 600).save(tmp_path / "large.png")
    reference = StyleReference(tmp_path / "large.png")
    assert reference.image.open().size == (512, 300)
    (tmp_path / "large.png").unlink()
    once = Request.from_json(Request("a", references=[reference]).to_json())
    twice = Request.from_json(once.to_json())
    assert (
        len({cast("StoredImage", each.image).png for each in (reference, once.references[0], twice.references[0])}) == 1
    )


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    noise(9, 9).save(tmp_path / "a.png")
    expected = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert StyleReference(str(tmp_path / "a.png")).image.sha256 == expected


@pytest.mark.parametrize("way", [str, Path, Path.read_bytes, Image.open])
def test_a_reference_is_the_same_however_it_is_given(way: Any, tmp_path: Path) -> None:
    noise(20, 30).save(tmp_path / "a.png")
    assert StyleReference(way(tmp_path / "a.png")).image.open().tobytes() == noise(20, 30).tobytes()


@pytest.mark.parametrize(
    ("model", "positional"),
    [
        (StyleReference, ("image", "content", "content_weight", "weight", "mask", "plan", "adapter")),
        (Control, ("kind", "image", "weight", "window")),
        (Init, ("image", "strength", "mask")),
        (GenerationMetadata, ("request", "index")),
        (Result, ("images", "request", "seconds", "warnings")),
    ],
)
def test_fields_are_positional_in_their_order(model: type[FrozenModel], positional: tuple[str, ...]) -> None:
    assert model.positional_fields == positional
    assert Request.positional_fields == tuple(Request.model_fields)
    with pytest.raises(InputError, match=f"takes at most {len(positional)} values"):
        model(*range(len(positional) + 1))  # pyright: ignore[reportCallIssue]


def test_type_checkers_know_the_parameters(tmp_path: Path) -> None:
    """Pyright makes the signatures from the fields: inputs of converters are accepted, everything else is refused."""
    code = """from instantstyle.request import Control, Init, Request, Result, StyleReference
right = Request("a cat", "", [StyleReference("ref.png", ["dog"], mask=b"")], plan={"mid": 1.0}, size=(64, 64))
right.references[0].image
Init("a.png", 0.5, None), Control("canny", b"", 0.5), Result([], right, version="1")
Request(3)
Request("a cat", steps="many")
StyleReference(3.5)
Result([], right, "emoji", (), "a fifth")
right.steps = 4
"""
    (tmp_path / "code.py").write_text(code)
    python, root = sys.executable, Path(request.__file__).parents[2]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(root)], "pythonVersion": "3.11"}))
    command = [python, "-m", "pyright", "--outputjson", "--pythonpath", python, "-p", str(tmp_path)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    lines = [each["range"]["start"]["line"] + 1 for each in report["generalDiagnostics"] if each["severity"] == "error"]
    assert sorted(set(lines)) == [5, 6, 7, 8, 9]


def test_positional_forms_and_frozenness() -> None:
    asked = Request("a cat", "blurry", (StyleReference(noise(4, 4), "dog"),))
    assert (asked.negative, asked.references[0].content_phrases) == ("blurry", ("dog",))
    with pytest.raises(Exception, match="frozen"):
        asked.prompt = "a dog"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 1001}, "steps must be at most 1,000, not 1001"),
        ({"steps": "many"}, "steps must be a valid integer"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 2**63}, "seed must be at most"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"guidance": 51}, "guidance must be at most 50"),
        ({"prompt": "a" * 10_000}, "prompt is too long: 10,000 characters, and at most 2,000 fit"),
        ({"prompt": "\ud800"}, "prompt must be a valid string"),
        ({"count": 0}, "count must be at least 1"),
        ({"size": (64,)}, "size.1"),
        ({"size": (0, 64)}, "size.0 must be at least 8"),
        ({"window": (0.8, 0.2)}, "window"),
        ({"subtraction": "papr"}, "must be 'paper', 'normalised', 'projected' or 'masked', not 'papr'"),
        ({"stps": 3}, "did you mean 'steps'?"),
        ({"references": [3]}, "references.0"),
        ({"self": 3}, "a Request has no 'self'"),
        ({"references": [{"image": noise(2, 2), "content": ["dog"] * 17}]}, "content is too many: 17, and at most 16"),
        ({"references": [{"image": noise(2, 2), "content": ["d" * 2001]}]}, "is too long: 2,001 characters"),
    ],
)
def test_what_is_wrong_is_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    everything: dict[str, Any] = {"prompt": "a cat"} | fields
    with pytest.raises(InputError) as refused:
        Request(**everything)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_request_without_a_prompt_says_so() -> None:
    with pytest.raises(InputError, match="a Request needs its prompt"):
        Request.from_json("{}")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"prompt": 3}', "[" * 100_000, b"\xff", '{"prompt": "a", "self": 1}']
)
def test_json_that_is_none_is_a_sentence(text: str | bytes) -> None:
    with pytest.raises(InputError):
        Request.from_json(text)


@pytest.mark.parametrize("place", ["references", "controls", "init"])
def test_json_opens_no_file(place: str, tmp_path: Path) -> None:
    """A picture or a request from a stranger must not be able to name a file of ours."""
    noise(4, 4).save(tmp_path / "secret.png")
    image = str(tmp_path / "secret.png")
    fields: dict[str, Any] = {
        "references": [{"image": image}],
        "controls": [{"kind": "canny", "image": image}],
        "init": {"image": image, "strength": 1},
    }
    with pytest.raises(PictureError, match="not the path"):
        Request.from_fields({"prompt": "a", place: fields[place]})


@pytest.mark.parametrize("png", ["not base64!", base64.b64encode(b"no picture").decode(), ""])
def test_an_embedded_picture_is_read_as_carefully_as_a_file(png: str) -> None:
    with pytest.raises(PictureError):
        Request.from_fields({"prompt": "a", "references": [{"image": {"sha256": "0" * 64, "png": png}}]})


def test_an_embedded_picture_that_is_not_of_our_making_becomes_so() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (2000, 10), (255, 0, 0, 0)).save(buffer, "PNG")
    fields = {"sha256": "0" * 64, "png": base64.b64encode(buffer.getvalue()).decode()}
    kept = StyleReference.from_fields({"image": fields}).image
    assert isinstance(kept, StoredImage)
    assert kept.open().size == (512, 3)
    assert kept.open().getpixel((0, 0)) == (255, 255, 255)


def test_saving_numbers_several_and_writes_all_or_none(tmp_path: Path) -> None:
    result = Result([noise(4, 4), noise(4, 4, 1)], Request("a", seed=1, count=2))
    assert [path.name for path in result.save(tmp_path / "cat.png")] == ["cat-1.png", "cat-2.png"]
    assert [request.recall(tmp_path / f"cat-{i + 1}.png").index for i in range(2)] == [0, 1]
    (tmp_path / "dog-2.png").mkdir()
    with pytest.raises(OutputError):
        result.save(tmp_path / "dog.png")
    assert not (tmp_path / "dog-1.png").exists()


def test_without_metadata_nothing_is_remembered(tmp_path: Path) -> None:
    Result([noise(4, 4)], Request("a secret", seed=1)).save(tmp_path / "a.png", metadata=False)
    assert b"secret" not in (tmp_path / "a.png").read_bytes()
    with pytest.raises(PictureError, match="does not remember"):
        request.recall(tmp_path / "a.png")


def test_the_parameters_line_is_what_a1111_writes() -> None:
    asked = Request("a cat", "blurry", size=(64, 32), steps=25, guidance=3, seed=7, sampler="DDIM")
    lines = (
        GenerationMetadata(asked, model="emoji", identity="0123456789abcdef", version="1.2").parameters().split("\n")
    )
    assert lines[:2] == ["a cat", "Negative prompt: blurry"]
    assert lines[2] == (
        "Steps: 25, Sampler: DDIM, CFG scale: 3, Seed: 7, Size: 64x32, Model: emoji, Version: instantstyle 1.2"
    )


def test_errors_form_a_tree() -> None:
    assert issubclass(PictureError, InputError)
    assert issubclass(InputError, errors.InstantStyleError)


@pytest.mark.parametrize("name", sorted(path.name for path in VERSION_0_1_0.glob("*.png")))
def test_pictures_of_version_0_1_0_are_read(name: str) -> None:
    held = request.read_metadata(VERSION_0_1_0 / name)
    assert held.version == "0.1.0"
    assert GenerationMetadata.from_json(held.to_json()) == held
    raw = json.loads(pictures.read_texts(VERSION_0_1_0 / name)[pictures.METADATA_KEY])
    now = json.loads(held.to_json())
    assert {key: now["request"][key] for key in raw["request"]} == raw.pop("request"), "a field means something else"
    assert {key: now[key] for key in raw} == raw, "a field means something else today"


def test_a_result_and_a_style_card_of_version_0_1_0_are_read() -> None:
    result = Result.from_json((VERSION_0_1_0 / "result.json").read_text())
    assert (result.request.prompt, result.request.steps, result.images[0].size) == ("a cat", 2, (64, 64))
    card = read_card(VERSION_0_1_0 / "ball.style.safetensors")
    assert (card.content, card.plan, len(card.pictures())) == ("ball", "style", 2)
    assert StyleReference.from_json(StyleReference(card).to_json()).image == card


def test_a_picture_from_before_guidance_was_rescaled_is_made_again_without() -> None:
    memory = json.loads(GenerationMetadata(Request("a cat", seed=7), model="emoji").to_json())
    del memory["request"]["guidance_rescale"]
    assert GenerationMetadata.from_json(json.dumps(memory)).request.guidance_rescale == 0.0
