"""What the studio uses of the package besides its public names, in one place.

No torch is imported with this module, so that a server answers before its model is loaded.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from instantstyle.encoders.prompt_vocabulary import PromptVocabulary
from instantstyle.request import Request, package_version
from instantstyle.request.style_card import SUFFIX as CARD_SUFFIX
from instantstyle.request.style_card import StyleCard, list_style_cards, read_card
from instantstyle.request.third_party_metadata import read_third_party_request
from instantstyle.utils import atomic_files, images

if TYPE_CHECKING:
    from instantstyle.model import Model

__all__ = [
    "CARD_SUFFIX",
    "PromptVocabulary",
    "compare_images",
    "encode_png",
    "encode_webp",
    "list_style_cards",
    "load_image",
    "package_version",
    "prompt_vocabulary",
    "read_card",
    "read_third_party_request",
    "remove_stale_temp_files",
    "strip_metadata",
    "write_atomic",
    "write_png",
]

load_image = images.load_image
encode_png = images.encode_png
remove_stale_temp_files = atomic_files.remove_stale_temp_files
write_atomic = atomic_files.write_atomic


def write_png(picture: Image.Image, path: Path, request_json: str, parameters: str) -> None:
    """Write a PNG whole, its request inside.  Raises OutputError."""
    images.write_png(picture, path, request_json, parameters)


def strip_metadata(content: bytes) -> bytes:
    """The same pixels without a word of how they were made."""
    with Image.open(io.BytesIO(content)) as opened:
        return images.encode_png(opened.convert("RGB"))


def encode_webp(picture: Image.Image, longest: int) -> bytes:
    """A small lossy copy, for previews and thumbnails."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def compare_images(before: Image.Image, after: Image.Image) -> dict[str, int | bool]:
    """Whether two pictures are the same to the pixel; else how many differ, and the largest difference of a channel."""
    if before.size != after.size:
        pixels = before.width * before.height
        return {"identical": False, "differing": pixels, "pixels": pixels, "largest": 255}
    apart = np.abs(np.asarray(before.convert("RGB"), np.int16) - np.asarray(after.convert("RGB"), np.int16)).max(-1)
    differing = int((apart > 0).sum())
    return {
        "identical": differing == 0,
        "differing": differing,
        "pixels": int(apart.size),
        "largest": int(apart.max()),
    }


def check_fits(model: "Model", request: "Request") -> None:
    """Refuse at once what the model would refuse later.  Raises InputError."""
    from instantstyle.sampling.resolve import resolve

    resolve(model, request)


def method_table() -> list[dict[str, object]]:
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


LIVE_COST = 1.7
"""Times the bare model's cost up to which a method follows a slider."""


def prompt_vocabulary(model: "Model") -> PromptVocabulary | None:
    """The names of things that a model was taught, None for one that reads whatever is typed."""
    from instantstyle.methods.prompts import vocabulary_of

    return vocabulary_of(model)


def sampler_names() -> list[str]:
    """The samplers a request may name."""
    from instantstyle.sampling.schedulers import SAMPLERS

    return list(SAMPLERS)


def nearest_words(model: "Model", picture: Image.Image, count: int) -> list[str]:
    """What a picture shows, by the words of the model's vocabulary, the likeliest first; none where it has no words."""
    import torch.nn.functional as F

    if not model.vocabulary or model.image_encoder is None:
        return []
    seen = model.encode_image([picture])
    near = (F.normalize(seen, dim=-1) @ F.normalize(model.vocabulary_embeds(seen.shape[-1]), dim=-1).T)[0]
    return [model.vocabulary[int(i)] for i in near.topk(min(count, len(model.vocabulary))).indices]


def make_style_card(
    model: "Model", name: str, pictures: list[bytes], content: str | None, licence: str, credit: str
) -> StyleCard:
    """A card of pictures.  Raises InputError, PictureError."""
    from instantstyle.methods.reference_embedding import make_card

    return make_card(model, name, pictures, content=content, licence=licence, credit=credit)


def count_tokens(model: "Model", text: str) -> int:
    """Tokens of a text, by the model's first tokenizer, its begin and end left out."""
    return (
        max(0, len(model.text_encoders[0].tokenizer(text, verbose=False).input_ids) - 2) if model.text_encoders else 0
    )
