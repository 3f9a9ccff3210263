"""Where a model's files are, and which family they belong to.

A model is a folder in diffusers' layout: `model_index.json` and a folder for each part.  The family is told from the
UNet's configuration and never from a name, since a folder may be called anything.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from instantstyle.blocks import UNetConfig
from instantstyle.errors import WeightsError, nearest
from instantstyle.families import EMOJI, SD15, SDXL, Family

BUILT_IN = Path(__file__).resolve().parent.parent / "assets"
HUB: Mapping[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Short names of hub repositories."""
HUB_ADAPTERS: Mapping[str, str] = {
    "sdxl": "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors",
    "sd15": "h94/IP-Adapter/models/ip-adapter_sd15.safetensors",
}
"""The adapter that goes with each short name, where none is asked for."""
PARTS = (
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "image_encoder",
    "feature_extractor",
    "scheduler",
)
ADAPTER = "ip_adapter.safetensors"
STYLE_ADAPTER = "ip_adapter_style.safetensors"


@dataclass(frozen=True)
class Found:
    """A model's files on this machine."""

    spec: str
    """What was asked for; asking for it again finds the same."""
    folder: Path
    adapter: Path | None
    """The adapter's file."""
    adapter_spec: str | None
    """What adapter was asked for, None for the one that comes with the model."""
    style_adapter: Path | None
    """A second adapter of the model's folder, for the style blocks alone; None where another adapter was asked for."""
    image_encoder: Path | None
    """The image encoder's folder: the model's own, or the one published beside the adapter."""

    def has(self, part: str) -> bool:
        """Whether the model has a part, by its folder's or file's name."""
        return (self.folder / part).exists()

    def config(self, path: str) -> dict[str, Any]:
        """A JSON object of the model's folder.  Raises WeightsError."""
        return read_json(self.folder / path)


def find(spec: str | Path = "emoji", adapter: str | Path | None = None) -> Found:
    """A built-in model's name, a folder, or a hub id (fetched when it is not here yet), and an adapter to go with it.

    `adapter` is a file, or `owner/name/path/in/it.safetensors` on the hub; by default the one in the model's folder.
    Raises WeightsError, naming what is known, when there is no such model.
    """
    folder = _folder(spec)
    if not (folder / "unet" / "config.json").is_file():
        raise WeightsError(f"{str(folder)!r} is no model in diffusers' layout: it has no unet/config.json")
    asked = str(adapter) if adapter is not None else None
    wanted = asked if asked is not None or (folder / ADAPTER).is_file() else HUB_ADAPTERS.get(str(spec))
    file = _adapter(wanted) if wanted is not None else folder / ADAPTER
    beside = file.parent / "image_encoder"
    encoder = next((each for each in (folder / "image_encoder", beside) if (each / "config.json").is_file()), None)
    narrow = folder / STYLE_ADAPTER if asked is None and (folder / STYLE_ADAPTER).is_file() else None
    return Found(str(spec), folder, file if file.is_file() else None, asked, narrow, encoder)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a diffusers UNet configuration, with the UNet's own numbers in place of the family's.

    Raises WeightsError when the UNet is of a kind that this library does not have.
    """
    unet = unet_config(config)
    if unet.pooled_dim is None:
        family = SD15
    elif len(unet.channels) == 3 and unet.depths[0] == 0:
        family = (
            EMOJI if (unet.in_channels, unet.pooled_dim) == (EMOJI.unet.in_channels, EMOJI.unet.pooled_dim) else SDXL
        )
    else:
        raise WeightsError(
            f"this UNet is conditioned as SDXL's, but has {len(unet.channels)} resolutions with {unet.depths} "
            "transformer layers where SDXL has three, the first without: SDXL, SD1.5 and fine-tunings are supported"
        )
    return dataclasses.replace(family, unet=unet)


def unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Read a diffusers `unet/config.json`.  Raises WeightsError for what our UNet cannot do."""
    try:
        return _unet_config(config)
    except (KeyError, TypeError, ValueError) as e:
        raise WeightsError(f"the UNet's configuration is incomplete or not understood: {e!r}") from e


_MUST: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu",),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "addition_embed_type": (None, "text_time"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "reverse_transformer_layers_per_block": (None,),
}
"""What a UNet of ours must say about itself, where it says anything."""


def _unet_config(config: Mapping[str, Any]) -> UNetConfig:
    for name, allowed in _MUST.items():
        if config.get(name, allowed[0]) not in allowed:
            raise WeightsError(
                f"this UNet has {name} = {config[name]!r}, which is not supported: SDXL, SD1.5 and their "
                "fine-tunings are"
            )
    channels = tuple(cast("list[int]", config["block_out_channels"]))
    kinds = cast("list[str]", config["down_block_types"])
    if unknown := set(kinds) - {"DownBlock2D", "CrossAttnDownBlock2D"}:
        raise WeightsError(f"this UNet has blocks of kind {', '.join(sorted(unknown))}, which are not supported")
    depths = _each(config.get("transformer_layers_per_block") or 1, len(channels))
    # diffusers calls the number of heads attention_head_dim, for reasons of history.
    heads = _each(config.get("num_attention_heads") or config.get("attention_head_dim") or 8, len(channels))
    pooled = None
    size_dim = config.get("addition_time_embed_dim") or 256
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * size_dim
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        channels=channels,
        depths=tuple(depth if "Cross" in kind else 0 for depth, kind, _ in zip(depths, kinds, channels, strict=True)),
        heads=heads,
        context_dim=config["cross_attention_dim"],
        pooled_dim=pooled,
        size_dim=size_dim,
        groups=config.get("norm_num_groups", 32),
        linear=config.get("use_linear_projection", False),
        resnets=config.get("layers_per_block", 2),
    )


def _each(value: int | list[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model.  Raises WeightsError."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"the model has no {path.parent.name}/{path.name} (looked in {path.parent.parent})"
        ) from None
    except (OSError, ValueError) as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no JSON object")
    return cast("dict[str, Any]", content)


def _folder(spec: str | Path) -> Path:
    name = str(spec)
    if (BUILT_IN / name / "unet").is_dir() and "/" not in name:
        return BUILT_IN / name
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise WeightsError(
            f"{name!r} is a single file; give a folder in diffusers' layout (diffusers' `from_single_file` followed by "
            "`save_pretrained` makes one)"
        )
    hub = HUB.get(name, name)
    if isinstance(spec, Path) or hub.count("/") != 1 or hub.startswith((".", "/", "~")):
        known = sorted({*HUB, "emoji"})
        if name == "emoji":
            raise WeightsError(f"the built-in model is not in this installation: {BUILT_IN / name} holds no unet")
        raise WeightsError(
            f"there is no model {name!r}: give {', '.join(known)}, a folder in diffusers' layout, or a hub id such as "
            f"owner/name{nearest(name, known)}"
        )
    return _from_hub(hub)


def _from_hub(repo: str) -> Path:
    """A repository's parts, in half precision where it has them in both; what is here already is not fetched."""
    hub: Any = import_module("huggingface_hub")

    try:
        files = list(hub.HfApi().list_repo_files(repo))
    except Exception as e:  # offline, or whatever the hub answers: what was fetched before will do
        try:
            return Path(hub.snapshot_download(repo, local_files_only=True))
        except Exception:
            raise WeightsError(f"cannot fetch {repo!r} from the hub, and it is not on this machine: {_line(e)}") from e
    chosen = ["model_index.json"]
    for part in PARTS:
        own = [file for file in files if file.startswith(f"{part}/") and file.count("/") == 1]
        tensors = [file for file in own if file.endswith((".safetensors", ".safetensors.index.json"))]
        half = [file for file in tensors if ".fp16." in file]
        full = [file for file in tensors if not any(mark in file for mark in (".fp16.", ".non_ema.", "openvino"))]
        chosen += [file for file in own if file.endswith((".json", ".txt")) and file not in tensors]
        chosen += half or full
    try:
        return Path(hub.snapshot_download(repo, allow_patterns=chosen))
    except Exception as e:
        raise WeightsError(f"cannot fetch {repo!r} from the hub: {_line(e)}") from e


def _adapter(spec: str) -> Path:
    path = Path(spec).expanduser()
    if path.exists() or spec.count("/") < 2 or spec.startswith((".", "/", "~")):
        return _existing(path)
    hub: Any = import_module("huggingface_hub")

    owner, name, *inside = spec.split("/")
    folder = "/".join(inside[:-1])
    try:
        file = Path(hub.hf_hub_download(f"{owner}/{name}", "/".join(inside)))
        # The encoder it was trained with is published beside it.
        patterns = [f"{folder}/image_encoder/*.json", f"{folder}/image_encoder/*.safetensors"]
        hub.snapshot_download(f"{owner}/{name}", allow_patterns=patterns)
    except Exception as e:
        raise WeightsError(f"cannot fetch the adapter {spec!r} from the hub: {_line(e)}") from e
    return file


def _existing(path: Path) -> Path:
    if path.is_dir():
        path = path / ADAPTER
    if not path.is_file():
        raise WeightsError(f"there is no adapter file at {str(path)!r}")
    return path


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
