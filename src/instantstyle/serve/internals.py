"""What the studio uses of the package besides its public names, in one place.

No torch is imported with this module, so that a server answers before its model is loaded.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from instantstyle.blocks import parse_block_plan
from instantstyle.encoders.prompt_vocabulary import PromptVocabulary
from instantstyle.errors import InputError, did_you_mean
from instantstyle.request import Request, package_version
from instantstyle.request.style_card import SUFFIX as CARD_SUFFIX
from instantstyle.request.style_card import StyleCard, list_style_cards, read_card
from instantstyle.request.third_party_metadata import read_third_party_request
from instantstyle.utils import atomic_files, images

if TYPE_CHECKING:
    from instantstyle.model import Model
    from instantstyle.sampling import Run

__all__ = [
    "CARD_SUFFIX",
    "METADATA_KEYS",
    "PromptVocabulary",
    "compare_images",
    "encode_png",
    "encode_webp",
    "list_style_cards",
    "load_image",
    "package_version",
    "prompt_vocabulary",
    "read_card",
    "read_text_chunks",
    "read_third_party_request",
    "remove_stale_temp_files",
    "strip_metadata",
    "write_atomic",
    "write_png",
]

load_image = images.load_image
read_text_chunks = images.read_text_chunks
METADATA_KEYS = {images.METADATA_KEY, "prompt", "invokeai_metadata", "parameters"}
"""Text chunks of a PNG in which some program says how it was made."""
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
    from instantstyle.methods import METHODS
    from instantstyle.sampling.schedulers import SAMPLERS

    if request.method not in METHODS:
        raise InputError(
            f"there is no method {request.method!r}: give one of {', '.join(METHODS)}"
            f"{did_you_mean(request.method, METHODS)}"
        )
    parse_block_plan(request.plan, model.family.unet, model.family.presets)
    if request.sampler is not None and request.sampler not in SAMPLERS:
        raise InputError(
            f"there is no sampler {request.sampler!r}: give one of {', '.join(SAMPLERS)}"
            f"{did_you_mean(request.sampler, SAMPLERS)}"
        )


def method_table(model: "Model") -> list[dict[str, object]]:
    """Each method with one line on it, its options, and whether its references may be masked."""
    from instantstyle.methods import METHODS, OPTIONS, STRENGTH_SWEEPS, SUPPORTS_MASK

    return [
        {
            "name": name,
            "help": METHOD_HELP.get(name) or (method.__doc__ or "").strip().splitlines()[0],
            "strength": STRENGTH_SWEEPS[name].help if name in STRENGTH_SWEEPS else None,
            "masks": name in SUPPORTS_MASK,
            "live": name in LIVE_METHODS,
            "options": [
                {
                    "name": option,
                    "default": spec.default,
                    "help": spec.help,
                    "low": spec.low,
                    "high": spec.high,
                    "choices": spec.choices,
                }
                for option, spec in OPTIONS[name].items()
            ],
        }
        for name, method in METHODS.items()
    ]


LIVE_METHODS = ("instantstyle", "ip-adapter", "cleanstyle", "stylestudio", "none")
"""Methods that need nothing computed before their first step, and so can follow a slider."""
METHOD_HELP = {
    "instantstyle": "The reference speaks only where style lives; what it shows is taken out. Start here.",
    "ip-adapter": "The reference speaks everywhere: style and content come along.",
    "style-aligned": "Drawn side by side with the reference, sharing its attention; no adapter is needed.",
    "swapped": "Attention looks at the reference's keys and values in place of its own.",
    "stylekeeper": "As swapped, and leakage is pushed away by guidance.",
    "cleanstyle": "InstantStyle with the reference's content filtered out of its tokens step by step.",
    "stylestudio": "The text's answer takes on the statistics of the image's.",
    "b-lora": "Learns the reference as a small LoRA first: slow, close to it.",
    "none": "No style: the bare model, to compare with.",
}
"""One line each, for people who choose."""


def prompt_vocabulary(model: "Model") -> PromptVocabulary | None:
    """The names of things that a model was taught, None for one that reads whatever is typed."""
    from instantstyle.methods.reference_embedding import vocabulary_of

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


def total_steps(run: "Run") -> int:
    """Steps of a run, as far as it knows yet."""
    return run.num_unet_calls
