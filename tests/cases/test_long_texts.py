"""Every text of a request is read by one rule, whatever the method; a refusal for length names the one that helps."""

from typing import Any

import pytest

import instantstyle as ist
import tiny_models
from instantstyle.errors import InputError
from instantstyle.methods import METHODS
from instantstyle.request import Request, StyleReference
from instantstyle.sampling import resolve

pytestmark = pytest.mark.filterwarnings("ignore")  # compel's and diffusers' own

LONG = "a dog, " * 30
REFERENCE_ROWS = [name for name, spec in METHODS.items() if "caption" in spec.options]


def request(**fields: Any) -> Request:
    references = [StyleReference(tiny_models.picture(1))]
    given: dict[str, Any] = {"prompt": "a cat", "references": references, "steps": 1, "seed": 1} | fields
    return Request(**given)


@pytest.mark.parametrize("method", [*REFERENCE_ROWS, "instantstyle"])
@pytest.mark.parametrize("field", ["prompt", "negative"])
def test_a_long_text_is_read_with_every_method(method: str, field: str) -> None:
    asked = request(method=method, reading="long", **{field: LONG})
    assert ist.generate(tiny_models.model("emoji"), asked).images


@pytest.mark.parametrize("source", ["noised", "inverted"])
def test_a_long_caption_is_read_beside_a_short_prompt(source: str) -> None:
    options = {"reference-source": source, "caption": LONG}
    asked = request(method="style-aligned", reading="long", options=options)
    assert ist.generate(tiny_models.model("emoji"), asked).images


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": LONG},
        {"negative": LONG},
        {"method": "swapped", "negative": LONG},
        {"method": "style-aligned", "options": {"caption": LONG}},
        {"method": "stylekeeper", "references": [StyleReference(tiny_models.picture(1), content=LONG)]},
    ],
)
def test_a_refusal_names_what_helps_and_comes_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="reading='long'"):
        resolve(tiny_models.model("emoji"), request(**fields))
