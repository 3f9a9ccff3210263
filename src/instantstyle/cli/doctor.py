"""`instantstyle doctor`: what a bug report needs, versions, device, dtype, threads, and the model's files by hash."""

import hashlib
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

PACKAGES = ("instantstyle", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "pydantic")


def doctor(
    model: Annotated[str, typer.Option(help="The model to look at.")] = "emoji",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a bug report needs: versions, device, dtype, threads, model files with their hashes."""
    from instantstyle.cli.output import print_note, print_result, to_json
    from instantstyle.cli.progress import hush
    from instantstyle.errors import InstantStyleError

    hush()
    report: dict[str, Any] = {
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        **_machine(),
    }
    failure: str | None = None
    try:
        report["model"] = _model(model)
    except InstantStyleError as missing:
        failure = str(missing)
        report["model"] = {"spec": model, "error": failure}
    print_result(to_json(report) if as_json else "\n".join(_lines(report)))
    if failure is not None:
        print_note(f"error: {failure}")
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    if package == "instantstyle":
        from instantstyle.request import package_version

        return package_version()
    if package == "torch":  # its own word names the build, such as +cpu or +cu130, which its metadata leaves out
        import torch

        return torch.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import torch

    from instantstyle.utils.device import bf16_is_fast, limit_threads, pick_device, pick_dtype
    from instantstyle.utils.threads import wait_policy

    device = pick_device("auto")
    limit_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "dtype": str(pick_dtype("auto", device)).removeprefix("torch."),
        "bf16_in_hardware": bf16_is_fast(device),
        "threads": torch.get_num_threads(),
        "waiting_threads": wait_policy(),
        "cuda": torch.version.cuda,
    }


def _model(spec: str) -> dict[str, Any]:
    """The model's folder, family and files.  Raises WeightsError when there is no such model."""
    from instantstyle.weights.resolve import resolve_model
    from instantstyle.weights.unet_config import family_of

    source = resolve_model(spec)
    family = family_of(source.network_config)
    return {
        "spec": spec,
        "family": family.name,
        "folder": str(source.folder),
        "files": [_file(path, source.folder) for path in source.files],
    }


def _file(path: Path, folder: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest}


def _lines(report: dict[str, Any]) -> list[str]:
    """The report for people, a fact a line."""
    plain = {name: value for name, value in report.items() if not isinstance(value, dict) and value is not None}
    facts = {**plain, **{name: version or "not installed" for name, version in report["versions"].items()}}
    lines = [f"{name:<16} {value}" for name, value in facts.items()]
    model = report["model"]
    if "error" in model:
        return lines
    lines.append(f"{'model':<16} {model['spec']}, family {model['family']}, in {model['folder']}")
    lines += [f"  {file['sha256'][:16]}  {file['bytes']:>13,}  {file['name']}" for file in model["files"]]
    return lines
