"""Result: a request's pictures; GenerationMetadata: what each of them remembers in its file."""

import base64
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata as distributions
from pathlib import Path
from typing import Annotated, cast

from PIL import Image
from pydantic import BeforeValidator, Field, PlainSerializer

from instantstyle.errors import InputError, PictureError
from instantstyle.request.base import FrozenModel, decode_base64, field, json_context, to_tuple
from instantstyle.request.request import Request
from instantstyle.utils import atomic_files
from instantstyle.utils.images import METADATA_KEY, encode_png, load_image, read_texts, write_png


@cache
def package_version() -> str:
    """This package's version, as results remember it."""
    try:
        return distributions.version("instantstyle")
    except distributions.PackageNotFoundError:  # run from a source tree that was never installed
        return "source"


def _before_rescaling(value: object) -> object:
    """A request of a picture that was made when guidance was not yet rescaled: this one was not."""
    if isinstance(value, Mapping) and json_context.get():
        value = {"guidance_rescale": 0.0, **cast("Mapping[str, object]", value)}
    return cast("object", value)


class Provenance(FrozenModel, kw_only=True):
    """The model, its parts and the machine that made a picture."""

    model: str = ""
    adapter: str | Mapping[str, str] | None = None
    identity: str = ""
    """Fingerprint of the model's weights (`Model.weights_fingerprint`)."""
    device: str = "auto"
    dtype: str = "auto"
    version: str = field(default_factory=package_version)
    """Of this package."""
    controls: Mapping[str, str] = {}
    """ControlNets by kind, beside those that come with the model."""
    depth: str | None = None
    """The depth model."""
    image_encoder: str | None = None
    content_encoder: str | None = None
    loras: tuple[tuple[str, float], ...] = field(default=(), converter=to_tuple)
    """LoRA files and the scale of each."""
    presets: Mapping[str, Mapping[str, float]] | None = None
    """What the plans `style` and `layout` meant, strengths by block: a model's folder may come to say otherwise."""


class GenerationMetadata(Provenance):
    """What a picture's metadata holds: enough to make it again, and to know whether the same model does."""

    request: Annotated[Request, BeforeValidator(_before_rescaling)]
    index: Annotated[int, Field(ge=0)] = 0
    """Which of the request's `count` pictures this is."""

    def parameters(self) -> str:
        """A1111's generation parameters, which other programs read: prompt, negative prompt, then names and values."""
        r = self.request
        negative = [f"Negative prompt: {r.negative}"] if r.negative else []
        values: dict[str, object] = {"Steps": r.steps, "Sampler": r.sampler}
        values |= {"CFG scale": None if r.guidance is None else f"{r.guidance:g}"}
        values |= {"Seed": r.seed, "Size": f"{r.size[0]}x{r.size[1]}" if r.size else None}
        values |= {"Model": self.model.replace(",", " ")}  # no Model hash, which is the SHA-256 of one checkpoint file
        for number, control in enumerate(r.controls):
            about = {"Module": control.kind.replace(",", " "), "Weight": f"{control.weight:g}"}
            about |= {"Guidance Start": f"{control.window[0]:g}", "Guidance End": f"{control.window[1]:g}"}
            values[f"ControlNet {number}"] = json.dumps(", ".join(f"{name}: {value}" for name, value in about.items()))
        values |= {"Version": f"instantstyle {self.version}"}
        return "\n".join(
            [r.prompt, *negative, ", ".join(f"{k}: {v}" for k, v in values.items() if v not in (None, ""))]
        )


def _to_pillow(value: object) -> object:
    """A picture in JSON, base64 PNG of any size, as a PIL image."""
    content = decode_base64(value)
    return load_image(content) if isinstance(content, bytes) else content


ResultImage = Annotated[
    Image.Image,
    BeforeValidator(_to_pillow),
    PlainSerializer(lambda image: base64.b64encode(encode_png(image)).decode(), return_type=str, when_used="json"),
]


class Result(Provenance):
    """The pictures of one request, and all that is needed to make them again."""

    images: tuple[ResultImage, ...] = field(converter=to_tuple)
    request: Request
    """With every default filled in: seed, size, guidance and sampler are those that were used."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = field(default=(), converter=to_tuple)
    """What of the request the model cannot do as it was said, a sentence each."""

    def metadata(self, index: int = 0) -> GenerationMetadata:
        """What the picture of this index remembers."""
        provenance = {name: getattr(self, name) for name in Provenance.model_fields}
        return GenerationMetadata(self.request, index, **provenance)

    def save(self, path: str | Path, *, metadata: bool = True) -> tuple[Path, ...]:
        """Write each picture as PNG, several as `name-1.png`, `name-2.png`...; returns the paths.

        Raises OutputError, having written nothing, when a name cannot be written.
        """
        paths = output_paths(path, len(self.images))
        for each in paths:
            atomic_files.check_writable(each)
        for index, (image, each) in enumerate(zip(self.images, paths, strict=True)):
            held = self.metadata(index) if metadata else None
            write_png(image, each, held.to_json() if held else None, held.parameters() if held else None)
        return paths


def output_paths(path: str | Path, count: int) -> tuple[Path, ...]:
    """The file names of a result of `count` pictures.  Raises InputError when the name is not a PNG's."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"results are PNG files, so {str(path)!r} must end in .png")
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count))


def read_metadata(path: str | Path | bytes) -> GenerationMetadata:
    """What a picture file of ours remembers.  Raises PictureError when it is no picture or remembers nothing."""
    text = read_texts(path).get(METADATA_KEY)
    name = "the picture" if isinstance(path, bytes) else repr(str(path))
    if text is None:
        raise PictureError(f"{name} does not remember how it was made: it has no {METADATA_KEY!r} text chunk")
    try:
        return GenerationMetadata.from_json(text)
    except InputError as unreadable:
        raise PictureError(f"what {name} remembers cannot be read: {unreadable}") from None


recall = read_metadata
"""The public name of `read_metadata`."""
