"""What a request says and its method does not use is refused in a sentence; what changes nothing is warned of."""

from typing import Any

import pytest

import tiny_models
from instantstyle.errors import InputError
from instantstyle.methods import METHODS
from instantstyle.methods.specs import drop_unused_fields
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import resolve

PICTURE, WHITE = tiny_models.picture(1), tiny_models.picture(2)
OF_REFERENCES: dict[str, Any] = {
    "content": "dog",
    "content_weight": 0.9,
    "mask": WHITE,
    "plan": "style",
    "adapter": "adapter",
}
OF_REQUESTS: dict[str, Any] = {"subtraction": "projected", "combine": "average", "fit": "crop", "window": (0.0, 0.5)}
STYLED = tuple(name for name, spec in METHODS.items() if spec.takes_references)


def request(method: str, reference: dict[str, Any] | None = None, **fields: Any) -> Request:
    given: dict[str, Any] = {"references": [StyleReference(PICTURE, **(reference or {}))], "steps": 2} | fields
    return Request("a cat", method=method, **given)


@pytest.mark.parametrize("method", STYLED)
@pytest.mark.parametrize("name", OF_REFERENCES)
def test_a_field_of_a_reference_is_used_or_refused(method: str, name: str) -> None:
    model, given = tiny_models.model("emoji"), {name: OF_REFERENCES[name]}
    if name in METHODS[method].reference_fields:
        reference = resolve(model, request(method, given)).request.references[0]
        assert getattr(reference, name) is not None
    else:
        words = name.replace("_", " ")
        with pytest.raises(
            InputError, match=f"method '{method}' does not use {words} of a reference: leave it out, or"
        ):
            resolve(model, request(method, given))


@pytest.mark.parametrize("method", STYLED)
@pytest.mark.parametrize("name", OF_REQUESTS)
def test_a_field_of_a_request_is_used_or_refused(method: str, name: str) -> None:
    model, given = tiny_models.model("emoji"), {name: OF_REQUESTS[name]}
    if name in METHODS[method].request_fields:
        assert getattr(resolve(model, request(method, **given)).request, name) == OF_REQUESTS[name]
    else:
        with pytest.raises(InputError, match=f"method '{method}' does not use {name}: leave it out, or use method"):
            resolve(model, request(method, **given))


def test_all_that_is_unused_is_named_at_once() -> None:
    asked = request("swapped", {"plan": "all", "mask": WHITE}, combine="average")
    with pytest.raises(InputError) as refused:
        resolve(tiny_models.model("emoji"), asked)
    assert str(refused.value) == (
        "method 'swapped' does not use combine and mask of a reference and plan of a reference: leave them out, or use "
        "method 'instantstyle' or 'ip-adapter'"
    )


@pytest.mark.parametrize("method", STYLED)
@pytest.mark.parametrize("name", [*OF_REFERENCES, *OF_REQUESTS])
def test_what_a_picture_remembers_and_its_method_does_not_use_is_named_and_left_out(method: str, name: str) -> None:
    """As pictures of 0.1.0 do, which dropped such fields."""
    given = {"reference": {name: OF_REFERENCES[name]}} if name in OF_REFERENCES else {name: OF_REQUESTS[name]}
    remembered, plain = request(method, **given), request(method)
    kept, dropped = drop_unused_fields(remembered)
    used = METHODS[method].reference_fields if name in OF_REFERENCES else METHODS[method].request_fields
    assert (kept == remembered) == (name in used)
    assert (kept == plain) == (name not in used)
    assert [each.replace(" of a reference", "").replace(" ", "_") for each in dropped] == [name] * (name not in used)
    resolve(tiny_models.model("emoji"), kept)


def test_references_of_the_bare_model_are_left_out_too() -> None:
    assert drop_unused_fields(request("none")) == (request("none", references=()), ["references"])


@pytest.mark.parametrize("method", [name for name in STYLED if name != "instantstyle"])
def test_a_method_without_a_reference_is_warned_of(method: str) -> None:
    warnings = resolve(tiny_models.model("emoji"), request(method, references=())).warnings
    assert any(f"method '{method}' does nothing without a reference" in each for each in warnings)
    if "reference-source" in METHODS[method].options:
        own = {"reference-source": "generated", "caption": "a dog"}
        assert not resolve(tiny_models.model("emoji"), request(method, references=(), options=own)).warnings


def test_the_bare_model_takes_no_reference() -> None:
    with pytest.raises(InputError, match="method 'none' draws without a reference"):
        resolve(tiny_models.model("emoji"), request("none"))


@pytest.mark.parametrize("fields", [{"plan": "all"}, {"combine": "average"}, {"window": (0.5, 1.0), "fit": "pad"}])
@pytest.mark.parametrize("method", ["instantstyle", "none"])
def test_without_a_reference_they_change_nothing_and_a_warning_says_so(method: str, fields: dict[str, Any]) -> None:
    warnings = resolve(tiny_models.model("emoji"), request(method, references=(), **fields)).warnings
    assert any(each.startswith("there is no reference, so") and all(f in each for f in fields) for each in warnings)


def test_subtraction_without_content_is_warned_of() -> None:
    model = tiny_models.model("emoji")
    assert any("subtraction" in each for each in resolve(model, request("instantstyle", subtraction="masked")).warnings)
    with_content = request("instantstyle", {"content": "dog"}, subtraction="masked")
    assert not any("subtraction" in each for each in resolve(model, with_content).warnings)


def test_a_negative_prompt_without_guidance_is_warned_of() -> None:
    model = tiny_models.model("emoji")
    warnings = resolve(model, request("instantstyle", negative="a dog", guidance=1.0)).warnings
    assert any("negative prompt changes nothing at guidance 1" in each for each in warnings)
    assert not resolve(model, request("instantstyle", negative="a dog", guidance=2.0)).warnings


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("instantstyle", "style"),
        ("ip-adapter", "all"),
        ("style-aligned", "all"),
        ("swapped", "up.1=1"),
        ("none", "style"),
    ],
)
def test_a_plan_that_is_not_given_is_the_methods_own_and_is_remembered(method: str, place: str) -> None:
    asked = request(method) if METHODS[method].takes_references else request(method, references=())
    assert resolve(tiny_models.model("emoji"), asked).request.plan == place


@pytest.mark.parametrize("method", [name for name in STYLED if name != "b-lora"])
def test_an_explicit_plan_is_honoured_by_every_method(method: str) -> None:
    model = tiny_models.model("emoji")
    resolved = resolve(model, request(method, plan="style"))
    assert resolved.request.plan == "style"
    assert resolved.plan == model.family.presets["style"]


def test_options_of_0_1_0_are_still_read() -> None:
    model = tiny_models.model("emoji")
    for former, present in {"renoised": "noised", "inverted": "inverted"}.items():
        options = resolve(model, request("swapped", options={"rows": former})).request.options
        assert options["reference-source"] == present
        assert "rows" not in options
    with pytest.raises(InputError, match="given twice"):
        resolve(model, request("swapped", options={"rows": "inverted", "reference-source": "noised"}))
