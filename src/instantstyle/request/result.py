"""What comes back: a request's pictures, and what each of them remembers in its file."""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from PIL import Image
from pydantic import BeforeValidator, Field, PlainSerializer

from instantstyle.errors import InputError, PictureError
from instantstyle.request.base import FrozenModel, json_context
from instantstyle.request.image import unbase64
from instantstyle.request.request import Request
from instantstyle.utils import atomic_files
from instantstyle.utils import images as pictures


@cache
def package_version() -> str:
    """This package's version, as results remember it."""
    try:
        return installed.version("instantstyle")
    except installed.PackageNotFoundError:  # run from a source tree that was never installed
        return "source"


def _before_rescaling(value: object) -> object:
    """A request of a picture that was made when guidance was not yet rescaled: this one was not."""
    if isinstance(value, Mapping) and json_context.get():
        value = {"guidance_rescale": 0.0, **cast("Mapping[str, object]", value)}
    return cast("object", value)


class GenerationMetadata(FrozenModel):
    """What a picture's metadata holds: enough to make it again, and to know whether the same model does."""

    request: Annotated[Request, BeforeValidator(_before_rescaling)]
    index: Annotated[int, Field(ge=0)] = 0
    """Which of the request's `count` pictures this is."""
    model: str = ""
    adapter: str | Mapping[str, str] | None = None
    identity: str = ""
    """The hash of the model's weights."""
    device: str = "auto"
    dtype: str = "auto"
    version: str = Field(default_factory=package_version)
    controls: Mapping[str, str] = {}
    """ControlNets by kind, beside those that come with the model."""
    depth: str | None = None
    """The depth model."""
    image_encoder: str | None = None
    content_encoder: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    """LoRA files and how much of each."""
    presets: Mapping[str, Mapping[str, float]] | None = None
    """What the plans `style` and `layout` meant, strengths by block: a model's folder may come to say otherwise."""

    if TYPE_CHECKING:

        def __init__(
            self,
            request: Request,
            index: int = 0,
            model: str = "",
            adapter: str | Mapping[str, str] | None = None,
            identity: str = "",
            device: str = "auto",
            dtype: str = "auto",
            version: str = "",
            controls: Mapping[str, str] = {},
            depth: str | None = None,
            image_encoder: str | None = None,
            content_encoder: str | None = None,
            loras: Sequence[tuple[str, float]] = (),
            presets: Mapping[str, Mapping[str, float]] | None = None,
        ) -> None: ...

    def parameters(self) -> str:
        """The line that A1111 began and others read: prompt, negative prompt, then names and values."""
        r = self.request
        negative = [f"Negative prompt: {r.negative}"] if r.negative else []
        values: dict[str, object] = {"Steps": r.steps, "Sampler": r.sampler}
        values |= {"CFG scale": None if r.guidance is None else f"{r.guidance:g}"}
        values |= {"Seed": r.seed, "Size": f"{r.size[0]}x{r.size[1]}" if r.size else None}
        values |= {"Model hash": self.identity[:10], "Model": self.model.replace(",", " ")}
        for number, control in enumerate(r.controls):
            about = {"Module": control.kind.replace(",", " "), "Weight": f"{control.weight:g}"}
            about |= {"Guidance Start": f"{control.window[0]:g}", "Guidance End": f"{control.window[1]:g}"}
            values[f"ControlNet {number}"] = json.dumps(", ".join(f"{name}: {value}" for name, value in about.items()))
        values |= {"Version": f"instantstyle {self.version}"}
        return "\n".join(
            [r.prompt, *negative, ", ".join(f"{k}: {v}" for k, v in values.items() if v not in (None, ""))]
        )


def _image(value: object) -> object:
    if isinstance(value, str) and json_context.get():
        content = unbase64(value)
        assert isinstance(content, bytes)
        return pictures.load_image(content)  # of whatever size: a result is as large as it was made
    return value


RemadeImage = Annotated[
    Image.Image,
    BeforeValidator(_image),
    PlainSerializer(
        lambda image: base64.b64encode(pictures.encode_png(image)).decode(), return_type=str, when_used="json"
    ),
]


class Result(FrozenModel):
    """The pictures of one request, and all that is needed to make them again."""

    images: tuple[RemadeImage, ...]
    request: Request
    """With every default filled in: seed, size, guidance and sampler are those that were used."""
    model: str = ""
    adapter: str | Mapping[str, str] | None = None
    identity: str = ""
    device: str = "auto"
    dtype: str = "auto"
    seconds: float = 0.0
    version: str = Field(default_factory=package_version)
    warnings: tuple[str, ...] = ()
    """What of the request the model cannot do as it was said, a sentence each."""
    controls: Mapping[str, str] = {}
    depth: str | None = None
    image_encoder: str | None = None
    content_encoder: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    """LoRA files and how much of each."""
    presets: Mapping[str, Mapping[str, float]] | None = None
    """What the plans `style` and `layout` meant, strengths by block: a model's folder may come to say otherwise."""

    if TYPE_CHECKING:

        def __init__(
            self,
            images: Sequence[Image.Image],
            request: Request,
            model: str = "",
            adapter: str | Mapping[str, str] | None = None,
            identity: str = "",
            device: str = "auto",
            dtype: str = "auto",
            seconds: float = 0.0,
            version: str = "",
            warnings: Sequence[str] = (),
            controls: Mapping[str, str] = {},
            depth: str | None = None,
            image_encoder: str | None = None,
            content_encoder: str | None = None,
            loras: Sequence[tuple[str, float]] = (),
            presets: Mapping[str, Mapping[str, float]] | None = None,
        ) -> None: ...

    def metadata(self, index: int = 0) -> GenerationMetadata:
        """What the picture of this index remembers."""
        shared = {name: getattr(self, name) for name in GenerationMetadata.model_fields if name in Result.model_fields}
        return GenerationMetadata(index=index, **shared)

    def save(self, path: str | Path, *, metadata: bool = True) -> tuple[Path, ...]:
        """Write each picture as PNG, several as `name-1.png`, `name-2.png`...; returns the paths.

        Raises OutputError, having written nothing, when a name cannot be written.
        """
        paths = output_paths(path, len(self.images))
        for each in paths:
            atomic_files.check_writable(each)
        for index, (image, each) in enumerate(zip(self.images, paths, strict=True)):
            memory = self.metadata(index) if metadata else None
            pictures.write_png(
                image, each, memory.to_json() if memory else None, memory.parameters() if memory else None
            )
        return paths


def output_paths(path: str | Path, count: int) -> tuple[Path, ...]:
    """The file names of a result of `count` pictures.  Raises InputError when the name is not a PNG's."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"results are PNG files, so {str(path)!r} must end in .png")
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count))


def recall(path: str | Path) -> GenerationMetadata:
    """What a picture file of ours remembers.  Raises PictureError when it is no picture or remembers nothing."""
    text = pictures.read_metadata(path)
    if text is None:
        raise PictureError(
            f"{str(path)!r} does not remember how it was made: it has no {pictures.METADATA_KEY!r} text chunk"
        )
    try:
        return GenerationMetadata.from_json(text)
    except InputError as unreadable:
        raise PictureError(f"what {str(path)!r} remembers cannot be read: {unreadable}") from None
