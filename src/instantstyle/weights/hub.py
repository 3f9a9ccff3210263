"""Fetching from the Hugging Face hub, and only what is needed; what is here already is not fetched again.

huggingface_hub keeps the cache, and goes on within a file when the connection breaks; `HF_HOME`, `HF_HUB_OFFLINE` and
`HF_ENDPOINT` are its own words, and hold here.  Importing it late lets them be set until a name is looked up there.
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from instantstyle.errors import WeightsError

_T = TypeVar("_T")

MODEL_PARTS = (
    "unet",
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "image_encoder",
    "feature_extractor",
    "scheduler",
)
_HALF = re.compile(r"\.fp16[.-]")
_OTHER = re.compile(r"\.(non_ema|fp32|bf16)[.-]|openvino|onnx|flax")
"""Weights in forms that are not wanted beside the plain ones."""


def is_hub_path(spec: str, depth: int) -> bool:
    """Whether a text could be `owner/name` with `depth` more names behind it, or more than that (if depth is not 0)."""
    parts = spec.split("/")
    plausible = all(re.fullmatch(r"[\w.-]+", part) for part in parts) and not spec.startswith((".", "~"))
    return plausible and (len(parts) == 2 if depth == 0 else len(parts) >= 2 + depth)


def fetch_model(repo: str) -> Path:
    """A repository in diffusers' layout, in half precision where it has both.  Raises WeightsError."""
    return fetch_chosen(repo, _model_files)


def fetch_folder(spec: str) -> Path:
    """One folder of a repository, `owner/name/in/it`, or the whole of `owner/name`: a network and its tokenizer."""
    owner, name, *inside = spec.split("/")
    prefix = "".join(f"{part}/" for part in inside)
    folder = fetch_chosen(f"{owner}/{name}", lambda files: _part_files(prefix, files))
    return folder.joinpath(*inside)


def fetch_file(spec: str) -> Path:
    """One file of a repository, `owner/name/path/in/it`.  Raises WeightsError."""
    owner, name, *inside = spec.split("/")
    hub: Any = import_module("huggingface_hub")
    return Path(_tried(spec, lambda: hub.hf_hub_download(f"{owner}/{name}", "/".join(inside))))


def fetch_chosen(repo: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Path:
    """The snapshot of a repository with the files chosen of its list, or as much of it as an earlier fetch left here.

    Raises WeightsError when the hub does not answer and nothing is here, or when the fetch breaks off.
    """
    hub: Any = import_module("huggingface_hub")
    try:
        files = list(hub.HfApi().list_repo_files(repo))
    except Exception as e:  # offline, or whatever the hub answers: what was fetched before will do
        if (here := _snapshot(repo)) is not None:
            return here
        raise WeightsError(f"cannot fetch {repo!r} from the hub, and it is not on this machine: {_line(e)}") from e
    return Path(_tried(repo, lambda: hub.snapshot_download(repo, allow_patterns=list(choose(files)))))


def _snapshot(repo: str) -> Path | None:
    """What an earlier fetch left of a repository.

    huggingface_hub's own look at its cache wants the whole repository there, and we never fetch that.
    """
    cache = Path(import_module("huggingface_hub.constants").HF_HUB_CACHE)
    kept = cache / f"models--{repo.replace('/', '--')}"
    reference = kept / "refs" / "main"
    snapshot = kept / "snapshots" / reference.read_text().strip() if reference.is_file() else kept / "none"
    return snapshot if snapshot.is_dir() else None


def _model_files(files: Sequence[str]) -> list[str]:
    return ["model_index.json", *(file for part in MODEL_PARTS for file in _part_files(f"{part}/", files))]


def _part_files(prefix: str, files: Sequence[str]) -> list[str]:
    """Of one folder's own files its configuration, its vocabulary, and its weights in one form."""
    own = [file for file in files if file.startswith(prefix) and "/" not in file[len(prefix) :]]
    tensors = [file for file in own if re.search(r"\.safetensors(\.index(\.\w+)?\.json)?$", file)]
    tensors = tensors or [file for file in own if file.endswith(".bin")]
    plain = [file for file in tensors if not _OTHER.search(file) and not Path(file).name.startswith("open_clip")]
    half = [file for file in plain if _HALF.search(file)]
    full = [file for file in plain if not _HALF.search(file)]
    return [file for file in own if file.endswith((".json", ".txt")) and file not in tensors] + (half or full)


def _tried(what: str, fetch: Callable[[], _T]) -> _T:
    try:
        return fetch()
    except Exception as e:
        raise WeightsError(
            f"cannot fetch {what!r} from the hub: {_line(e)}; files that have come whole are kept, and asking "
            "again fetches the rest"
        ) from e


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
