"""What the page needs to know of a model: its methods, the words it has, the settings of a live draft.

No torch is imported with this module, so that a server answers before its model is loaded.
"""

from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from instantstyle.model import Model

LIVE_COST = 1.7
"""Times the bare model's cost up to which a method follows a slider."""


def method_table() -> list[dict[str, Any]]:
    """Each method with one line on it, the fields it uses, its options, and whether it can follow a slider."""
    from instantstyle.methods.specs import METHODS

    return [
        {
            "name": name,
            "help": spec.help,
            "strength": None if spec.strength is None else spec.strength.help,
            "masks": spec.supports_mask,
            "live": not spec.fit_cost and spec.cost <= LIVE_COST,
            "request_fields": sorted(spec.request_fields),
            "reference_fields": sorted(spec.reference_fields),
            "options": [
                {
                    "name": option,
                    "default": each.default,
                    "help": each.help,
                    "low": each.low,
                    "high": each.high,
                    "choices": each.choices,
                }
                for option, each in spec.options.items()
            ],
        }
        for name, spec in METHODS.items()
    ]


def live_settings(model: "Model") -> dict[str, Any] | None:
    """Steps, guidance and sampler of a live draft; None for a model that cannot follow a slider on this device.

    Guidance and sampler are the model's own, as in the picture that is kept.  With the built-in model 4 such steps are
    28 dB from what 30 give; 8 with guidance 2, which take twice the time, 27 dB (`python benchmarks/live.py`).  A
    larger model on a GPU gets 8, which has not been measured.
    """
    small = max(model.family.size) <= 256
    if not small and model.device.type == "cpu":
        return None
    return {"steps": 4 if small else 8, "guidance": None, "sampler": None}


def guess_content(model: "Model", picture: Image.Image, count: int) -> list[str]:
    """What a picture shows, by the words of the model's vocabulary, the likeliest first; none where it has no words."""
    from instantstyle.methods.prompts import nearest_words

    if not model.vocabulary or model.image_encoder is None:
        return []
    return nearest_words(model, model.encode_image([picture]), count)
