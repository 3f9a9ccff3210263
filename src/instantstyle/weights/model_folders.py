"""The model folders of ComfyUI and A1111, in which a name is enough to find a file.

`INSTANTSTYLE_MODELS` names them: a ComfyUI or A1111 folder, or an `extra_model_paths.yaml`, several joined as in PATH.
A file that lies in such a tree finds its neighbours without being told.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from instantstyle.errors import WeightsError, did_you_mean
from instantstyle.utils.files import local_path, read_text

VARIABLE = "INSTANTSTYLE_MODELS"
FileKind = Literal["checkpoints", "loras", "controlnet", "clip_vision", "ipadapter", "diffusers"]
MAX_YAML_BYTES = 2**18
"""Of a list of folders; PyYAML takes a second for about this much."""
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")

COMFY: Mapping[FileKind, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "loras": ("loras",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "clip_vision": ("clip_vision",),
    "ipadapter": ("ipadapter",),
    "diffusers": ("diffusers",),
}
"""Folders below ComfyUI's `models` (its folder_paths.py; `ipadapter` is ComfyUI_IPAdapter_plus's)."""
A1111: Mapping[FileKind, tuple[str, ...]] = {
    "checkpoints": ("models/Stable-diffusion",),
    "loras": ("models/Lora", "models/LyCORIS"),
    "controlnet": ("models/ControlNet", "extensions/sd-webui-controlnet/models"),
    "clip_vision": ("extensions/sd-webui-controlnet/annotator/downloads/clip_vision",),
    "ipadapter": ("models/ControlNet", "extensions/sd-webui-controlnet/models"),
    "diffusers": (),
}
"""Folders below stable-diffusion-webui; its ControlNet extension keeps IP-Adapters among the ControlNets."""


def find_file(kind: FileKind, name: str, near: Path | None = None) -> Path | None:
    """The file (or for `diffusers` the folder) of a name, with or without its ending, or None.

    A name may begin with folders, as ComfyUI shows them.  Raises WeightsError when several files answer to it.
    """
    wanted = name.replace("\\", "/")
    paths = [path for path, called in _entries(kind, near) if wanted in called]
    different = list({path.resolve(): path for path in paths}.values())
    if len(different) > 1:
        raise WeightsError(f"the name {name!r} stands for several files: give one of {', '.join(map(str, different))}")
    return different[0] if different else None


def suggest_file(kind: FileKind, name: str) -> str:
    """` (did you mean 'x'?)` where a file of the trees has a name like it, else an empty string."""
    return did_you_mean(name, [path.name for path, _ in _entries(kind, None)])


def list_files(kind: FileKind, near: Path | None = None) -> list[Path]:
    """Every file of a kind, in the order of the trees; the tree that `near` lies in is looked through too."""
    return [path for path, _ in _entries(kind, near)]


def _entries(kind: FileKind, near: Path | None) -> Iterator[tuple[Path, set[str]]]:
    """Files with the names they answer to."""
    for folder in dict.fromkeys(_places(kind, near)):
        if kind == "diffusers":
            paths = (path.parent for path in sorted(folder.glob("*/model_index.json")))
        else:
            paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
        for path in paths:
            inside = path.relative_to(folder).as_posix()
            bare = inside.removesuffix(path.suffix) if path.is_file() else inside
            yield path, {inside, bare, path.name, Path(bare).name}


def _places(kind: FileKind, near: Path | None) -> Iterator[Path]:
    for root in _roots():
        if root.suffix.lower() in (".yaml", ".yml"):
            yield from _listed(root, kind)
        else:
            yield from _inside(root, kind)
    for parent in near.resolve().parents if near is not None else ():
        if (parent / "models/checkpoints").is_dir() or (parent / "models/Stable-diffusion").is_dir():
            yield from _inside(parent, kind)
            return


def _roots() -> list[Path]:
    given = [local_path(part, WeightsError) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for root in given:
        if not root.exists():
            raise WeightsError(f"{VARIABLE} names {str(root)!r}, and there is no such folder or file")
    return given


def _inside(root: Path, kind: FileKind) -> Iterator[Path]:
    """A tree's folders of a kind, those that are there; a ComfyUI folder may list more in a file of its own."""
    inner = root / "models" if (root / "models").is_dir() else root
    yield from (folder for name in COMFY[kind] if (folder := inner / name).is_dir())
    yield from (folder for name in A1111[kind] if (folder := root / name).is_dir())
    if (listed := root / "extra_model_paths.yaml").is_file():
        yield from _listed(listed, kind)


def _listed(path: Path, kind: FileKind) -> Iterator[Path]:
    """Folders of a kind in an `extra_model_paths.yaml`, read as ComfyUI's utils/extra_config.py reads it."""
    import yaml

    try:
        content: object = yaml.safe_load(read_text(path, MAX_YAML_BYTES))
    except RecursionError as e:
        raise WeightsError(f"cannot read {path}: it is nested too deeply") from e
    except Exception as e:  # PyYAML has errors of its own, and of dates and numbers whatever Python raises
        raise WeightsError(f"cannot read {path}: {' '.join(str(e).split())}") from e
    sections: Mapping[str, Any] = cast("Mapping[str, Any]", content) if isinstance(content, Mapping) else {}
    for section in sections.values():
        if not isinstance(section, Mapping):
            continue
        given = cast("Mapping[str, Any]", section)
        base = path.parent / local_path(os.path.expandvars(_text(given, "base_path", path)), WeightsError)
        for name in COMFY[kind]:
            for line in _text(given, name, path).splitlines():
                if line.strip() and (folder := local_path(base / line.strip(), WeightsError)).is_dir():
                    yield folder


def _text(given: Mapping[str, Any], name: str, path: Path) -> str:
    """A section's text of a name, empty where it says nothing.  Raises WeightsError when it says something else."""
    value: object = given.get(name)
    if not isinstance(value, str | None):  # aliases in a list may stand for more than there is memory
        raise WeightsError(f"{path} has a {type(value).__name__} as {name}: a path is needed, or several lines of them")
    return value or ""
