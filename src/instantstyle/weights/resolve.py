"""Where a model's files are: built in, in a folder, in one file, in a model tree or on the hub.

A model is a folder in diffusers' layout, `model_index.json` and a folder for each part, or a single file (`single`).
Which family it belongs to, `layout` tells.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from instantstyle.errors import InputError, WeightsError, abbreviate, did_you_mean
from instantstyle.utils import files
from instantstyle.utils.files import local_path
from instantstyle.weights import hub, model_folders
from instantstyle.weights.adapter import adapter_input_dim
from instantstyle.weights.single_file import SingleFile, open_single_file, vision_layout
from instantstyle.weights.tensor_files import open_tensors

BUILT_IN = Path(__file__).resolve().parent.parent / "assets"
HUB: Mapping[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "sd35-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd35-large": "stabilityai/stable-diffusion-3.5-large",
}
"""Short names of hub repositories."""
HUB_ADAPTERS: Mapping[str, str] = {
    "sdxl": "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors",
    "sd15": "h94/IP-Adapter/models/ip-adapter_sd15.safetensors",
}
"""The adapter that goes with each short name, where none is asked for."""
CONTENT_ENCODER = "content_encoder"
"""The folder of a model in which such a text tower may lie."""
ADAPTER = "ip_adapter.safetensors"
STYLE_ADAPTER = "ip_adapter_style.safetensors"

AdapterSpec = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
"""An adapter's file or its path on the hub; several, known by their files' names or by names of one's own."""


@dataclass(frozen=True)
class AdapterFile:
    """Where an adapter is."""

    file: Path
    encoder: Path | None
    """The image encoder that it was trained with, as far as is known: a folder, or a single file."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model's files on this machine."""

    spec: str
    """What was asked for; asking for it again finds the same."""
    folder: Path
    """In diffusers' layout; for a single file the folder it lies in."""
    adapters: Mapping[str, AdapterFile]
    """The first is the one that is meant when none is named."""
    adapter_spec: str | dict[str, str] | None
    """What adapter was asked for, None for the one that comes with the model."""
    style_adapter: Path | None
    """A second adapter of the model's folder, for the style blocks alone; None where another adapter was asked for."""
    image_encoder: Path | None
    """The image encoder's folder or file: the one asked for, the model's own, or the one published with the adapter."""
    encoder_specs: Mapping[str, str] = field(default_factory=dict[str, str])
    """What was asked for as `image_encoder` and `content_encoder`, where something was."""
    content_encoder: Path | None = None
    """The folder of a text tower that shares a space with the image encoder, where the model's own do not."""
    single: SingleFile | None = None
    """The file that all parts of the model are in, where it is no folder."""

    @property
    def adapter(self) -> Path | None:
        """The file of the adapter that is meant when none is named."""
        return next((adapter.file for adapter in self.adapters.values()), None)

    def has(self, part: str) -> bool:
        """Whether the model has a part, by its folder's or file's name."""
        if self.single is not None:
            return any(name == part or name.startswith(f"{part}/") for name in self.single.configs)
        return (self.folder / part).exists()

    def config(self, path: str) -> dict[str, Any]:
        """A JSON object of the model's folder, or what stands for it of a single file.  Raises WeightsError."""
        if self.single is not None:
            return dict(self.single.configs[path])
        return read_config(self.folder / path)

    @property
    def network_config(self) -> dict[str, Any]:
        """The configuration of the network that denoises.  Raises WeightsError."""
        return self.config("transformer/config.json" if self.has("transformer") else "unet/config.json")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the model, each once."""
        own = [self.single.path] if self.single is not None else sorted(self.folder.rglob("*"))
        encoders = {self.image_encoder, self.content_encoder, *(each.encoder for each in self.adapters.values())}
        beside = (sorted(path.rglob("*")) if path.is_dir() else [path] for path in encoders if path is not None)
        every = (
            *own,
            *(adapter.file for adapter in self.adapters.values()),
            *(path for each in beside for path in each),
        )
        return tuple(dict.fromkeys(path for path in every if path.is_file() and not path.name.startswith(".")))


def resolve_model(
    spec: str | Path = "emoji",
    adapter: AdapterSpec | None = None,
    image_encoder: str | Path | None = None,
    content_encoder: str | Path | None = None,
) -> ResolvedModel:
    """A built-in model's name, a folder, a single file, a hub id (fetched when it is not here yet), or a tree's name.

    `adapter` is a file, `owner/name/path/in/it.safetensors` on the hub, or a name in a model tree (`trees`); by default
    the one in the model's folder.  Encoders are folders, or `owner/name/folder` on the hub.  Raises WeightsError,
    naming what is known, when there is no such model.
    """
    place = _locate(spec)
    single = open_single_file(place) if place.is_file() else None
    folder = place.parent if single is not None else place
    if single is None and not any((folder / each / "config.json").is_file() for each in ("unet", "transformer")):
        raise WeightsError(
            f"{str(folder)!r} is no model in diffusers' layout: it has no unet/config.json or transformer/config.json"
        )
    own = {} if single is not None else {name: folder / name for name in (ADAPTER, STYLE_ADAPTER, "image_encoder")}
    here = {name: path for name, path in own.items() if path.exists()}
    named = _normalise(adapter)
    specs = named
    if adapter is None and ADAPTER not in here and str(spec) in HUB_ADAPTERS:
        specs = {"adapter": HUB_ADAPTERS[str(spec)]}
    adapter_files = {name: _adapter(each, place) for name, each in specs.items()}
    if adapter is None and not specs and ADAPTER in here:
        adapter_files["adapter"] = here[ADAPTER]
    given = None if image_encoder is None else _encoder(str(image_encoder), place)
    adapters = {
        name: AdapterFile(file, given or _encoder_of(file, here.get("image_encoder"), specs.get(name, ""), place))
        for name, file in adapter_files.items()
    }
    first = next((each.encoder for each in adapters.values()), None)
    names = {name: str(each) for name, each in named.items()}
    return ResolvedModel(
        spec=str(spec),
        folder=folder,
        adapters=adapters,
        adapter_spec=None if adapter is None else str(adapter) if isinstance(adapter, str | Path) else names,
        style_adapter=here.get(STYLE_ADAPTER) if adapter is None else None,
        image_encoder=given or first or here.get("image_encoder"),
        content_encoder=_content_encoder(content_encoder, folder if single is None else None),
        single=single,
        encoder_specs={
            name: str(each)
            for name, each in (("image_encoder", image_encoder), ("content_encoder", content_encoder))
            if each is not None
        },
    )


MAX_COUNT, MAX_LAYERS, MAX_TIMESTEPS, MAX_ITEMS = 2**31, 1000, 100_000, 1000
"""Of what a configuration says: any whole number, how many layers are made one by one, training's steps, a list."""


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises WeightsError, also for numbers that no network has: libraries make so many layers before they look further.
    """
    if not path.exists():
        raise WeightsError(f"the model has no {path.parent.name}/{path.name} (looked in {path.parent.parent})")
    try:
        content: object = files.read_json(path, unique=True)
    except ValueError as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no JSON object")
    _check_bounds(cast("object", content), "", path)
    return cast("dict[str, Any]", content)


def _check_bounds(value: object, name: str, path: Path) -> None:
    if isinstance(value, dict):
        for key, each in cast("Mapping[str, object]", value).items():
            _check_bounds(each, key, path)
    elif isinstance(value, list):
        items = cast("list[object]", value)
        if len(items) > MAX_ITEMS:
            raise WeightsError(
                f"{path} has {len(items):,} values as {abbreviate(name)}: at most {MAX_ITEMS:,} are read"
            )
        for each in items:
            _check_bounds(each, name, path)
    elif isinstance(value, int | float):
        limit = MAX_LAYERS if "layers" in name else MAX_TIMESTEPS if "timesteps" in name else MAX_COUNT
        # Infinity stays: diffusers writes it for schedulers' bounds.
        if value != value or (abs(value) > limit and abs(value) != math.inf):
            raise WeightsError(f"{path} says {abbreviate(name)} is {abbreviate(value)}, and at most {limit:,} is read")


def _locate(spec: str | Path) -> Path:
    """The folder or the single file of a model."""
    name, path = str(spec), local_path(spec, WeightsError)
    if (BUILT_IN / name / "unet").is_dir() and "/" not in name:
        return BUILT_IN / name
    if path.exists():
        return path
    if isinstance(spec, str) and (
        inside := model_folders.find_file("checkpoints", name) or model_folders.find_file("diffusers", name)
    ):
        return inside
    hub_id = HUB.get(name, name)
    if isinstance(spec, str) and hub.is_hub_path(hub_id, 0):
        return hub.fetch_model(hub_id)
    if isinstance(spec, str) and hub.is_hub_path(hub_id, 1) and path.suffix in model_folders.SUFFIXES:
        return hub.fetch_file(hub_id)
    known = sorted({*HUB, "emoji"})
    if name == "emoji":
        raise WeightsError(f"the built-in model is not in this installation: {BUILT_IN / name} holds no unet")
    raise WeightsError(
        f"there is no model {name!r}: give {', '.join(known)}, a folder in diffusers' layout, a .safetensors "
        f"checkpoint, its name in a tree that {model_folders.VARIABLE} names, or a hub id such as owner/name"
        f"{did_you_mean(name, known) or model_folders.suggest_file('checkpoints', name)}"
    )


def _normalise(adapter: AdapterSpec | None) -> dict[str, str | Path]:
    """Adapters by name.  Raises InputError when two of a list have one name."""
    if adapter is None:
        return {}
    if isinstance(adapter, str | Path):
        return {"adapter": adapter}
    if isinstance(adapter, Mapping):
        return dict(adapter)
    named = {Path(each).stem: each for each in adapter}
    if len(named) < len(adapter):
        raise InputError("two adapters have one file name: give them as a dictionary, under names of your own")
    return named


def _adapter(spec: str | Path, near: Path) -> Path:
    path = local_path(spec, WeightsError)
    if path.is_dir():
        path = path / ADAPTER
    if path.is_file():
        return path
    name = str(spec)
    if (inside := model_folders.find_file("ipadapter", name, near)) is not None:
        return inside
    if isinstance(spec, str) and hub.is_hub_path(name, 1):
        return hub.fetch_file(name)
    raise WeightsError(f"there is no adapter file at {str(path)!r}{model_folders.suggest_file('ipadapter', name)}")


def _encoder_of(file: Path, own: Path | None, spec: str | Path, near: Path) -> Path | None:
    """The image encoder an adapter was trained with: the first that fits of those that lie near; else the first."""
    try:
        plus, width = adapter_input_dim(file)
    except WeightsError:  # said with more knowledge when the adapter is loaded
        return own
    beside = (file.parent / "image_encoder", file.parent.parent / "models/image_encoder")
    candidates = [path for path in (own, *beside) if path is not None and (path / "config.json").is_file()]
    candidates += model_folders.list_files("clip_vision", near if near.is_file() else file)
    if not Path(spec).exists() and isinstance(spec, str) and hub.is_hub_path(spec, 1) and file.name in spec:
        # Published beside the adapter, or in the folder that h94/IP-Adapter's two families share.
        repo = "/".join(spec.split("/")[:2])
        for folder in dict.fromkeys(("/".join([*spec.split("/")[2:-1], "image_encoder"]), "models/image_encoder")):
            if (config := _try_fetch(f"{repo}/{folder}/config.json")) is not None and _fits(config.parent, plus, width):
                return hub.fetch_folder(f"{repo}/{folder}")
    fitting = (path for path in candidates if _fits(path, plus, width))
    return next(fitting, candidates[0] if candidates else None)


def _try_fetch(spec: str) -> Path | None:
    try:
        return hub.fetch_file(spec)
    except WeightsError:
        return None


def _fits(encoder: Path, plus: bool, width: int) -> bool:
    """Whether an image encoder's features are as wide as an adapter reads them."""
    try:
        layout = encoder_layout(encoder)
    except WeightsError:
        return False
    return encoder_width(layout, plus=plus) == width


def is_siglip(layout: Mapping[str, Any]) -> bool:
    """Whether an image encoder is SigLIP's and no CLIP's."""
    return str(layout.get("model_type", "")).startswith("siglip")


def encoder_width(layout: Mapping[str, Any], *, plus: bool) -> int:
    """How wide the image embeddings of an encoder are, or (Plus) its hidden states."""
    # A configuration leaves out what is transformers' own default.
    wide = layout.get("hidden_size", 768)
    return int(wide if plus or is_siglip(layout) else layout.get("projection_dim", 512))


def encoder_layout(encoder: Path) -> dict[str, Any]:
    """The configuration of an image encoder's folder, or what a single file's shapes say.  Raises WeightsError."""
    if encoder.is_dir():
        config = read_config(encoder / "config.json")
        # A whole CLIP keeps its image tower's numbers one level deeper.
        inner: object = config.get("vision_config")
        return cast("dict[str, Any]", inner) if isinstance(inner, dict) and inner else config
    with open_tensors(encoder) as file:
        try:
            return vision_layout(file.shapes)
        except (KeyError, ValueError, IndexError, TypeError) as e:
            raise WeightsError(f"{encoder} is no CLIP image encoder with a projection: it lacks {e}") from e


def _encoder(spec: str, near: Path) -> Path:
    """An image encoder that was asked for."""
    path = local_path(spec, WeightsError)
    if path.is_file() or (path / "config.json").is_file():
        return path
    if (path / "image_encoder/config.json").is_file():
        return path / "image_encoder"
    if (inside := model_folders.find_file("clip_vision", spec, near)) is not None:
        return inside
    if (not path.exists() and hub.is_hub_path(spec, 0)) or hub.is_hub_path(spec, 1):
        return hub.fetch_folder(spec)
    raise WeightsError(
        f"there is no image encoder at {spec!r}: give a folder with a config.json, a single file, or its path on the "
        f"hub such as h94/IP-Adapter/models/image_encoder{model_folders.suggest_file('clip_vision', spec)}"
    )


def _content_encoder(spec: str | Path | None, folder: Path | None) -> Path | None:
    if spec is None:
        own = None if folder is None else folder / CONTENT_ENCODER
        return own if own is not None and (own / "config.json").is_file() else None
    path = local_path(spec, WeightsError)
    if (path / "config.json").is_file():
        return path
    if not path.exists() and isinstance(spec, str) and hub.is_hub_path(spec, 0):
        return hub.fetch_folder(spec)
    raise WeightsError(
        f"there is no text encoder at {str(spec)!r}: give the folder of a CLIP with its tokenizer, or a hub id such as "
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    )
