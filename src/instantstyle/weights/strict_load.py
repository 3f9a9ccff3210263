"""Filling networks from files, strictly: a missing, extra or mis-shaped tensor is an error that names it."""

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from instantstyle.blocks import TransformerConfig, UNetConfig
from instantstyle.errors import WeightsError
from instantstyle.networks.unet import UNet
from instantstyle.weights.resolve import read_config
from instantstyle.weights.tensor_files import TensorFile, open_tensors, require_finite
from instantstyle.weights.transformer_config import transformer_class


def count_transformer_parameters(layout: TransformerConfig, config: Mapping[str, Any]) -> int:
    """How many numbers a transformer holds, by its configuration."""
    with torch.device("meta"), silence_progress():
        return sum(tensor.numel() for tensor in transformer_class(layout).from_config(dict(config)).parameters())


@cache
def count_parameters(config: UNetConfig) -> int:
    """How many numbers a UNet of this layout holds."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in UNet(config).parameters())


def load_unet(folder: Path, config: UNetConfig, dtype: torch.dtype, device: torch.device) -> UNet:
    """Our UNet with the weights of a diffusers `unet/` folder.  Raises WeightsError."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(path)) for path in weight_files(folder)]
        return load_unet_state(files, str(folder), config, dtype, device)


def load_unet_state(
    files: Sequence[TensorFile], where: str, config: UNetConfig, dtype: torch.dtype, device: torch.device
) -> UNet:
    """Our UNet, made of nothing and filled from open files; what is stored in its dtype stays memory-mapped."""
    with torch.device("meta"):
        unet = UNet(config)
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    check_state_dict(expected, {name: shape for file in files for name, shape in file.shapes.items()}, where)
    tensors = {name: tensor.to(device, dtype) for file in files for name, tensor in _read(file)}
    unet.load_state_dict(tensors, strict=True, assign=True)
    return unet.requires_grad_(False).eval()


def load_state(
    make: Callable[[], Any],
    tensors: Callable[[Any], Mapping[str, Tensor]],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """A network of diffusers or transformers made of nothing, and filled with the tensors that are given for it.

    Raises WeightsError when a tensor is missing, left over or of another shape.
    """
    with import_module("accelerate").init_empty_weights(include_buffers=False), silence_progress():
        net = make()
    given = tensors(net)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    check_state_dict(expected, {name: tuple(tensor.shape) for name, tensor in given.items()}, where)
    net.load_state_dict({name: tensor.to(device, dtype) for name, tensor in given.items()}, strict=True, assign=True)
    return net.to(device).requires_grad_(False).eval()


def from_pretrained_strict(
    kind: Any, folder: Path, dtype: torch.dtype, device: torch.device, *, besides: str = "", **more: object
) -> Any:
    """A network of diffusers or transformers from its folder; `besides` is a pattern of names that may be left over.

    `more` goes to the network as it is made.  Raises WeightsError.

    Their loaders know the names that old files use; what they say was missing or left over is an error here, and so
    are NaN and infinity, of which a picture would come out black.
    """
    read_config(folder / "config.json")
    with silence_progress():
        try:
            loaded: tuple[Any, Mapping[str, Any]] = kind.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, **_arguments(kind, folder, dtype), **more
            )
        except Exception as e:  # a dozen kinds, none of them documented
            raise WeightsError(
                f"cannot load {folder.name} from {folder}: {(str(e).splitlines() or [repr(e)])[0]}"
            ) from e
    net, info = loaded
    missing, extra = (sorted(map(str, info.get(key) or ())) for key in ("missing_keys", "unexpected_keys"))
    extra = [name for name in extra if not (besides and re.match(besides, name))]
    if missing or extra or info.get("mismatched_keys"):
        _refuse(missing, extra, [str(key) for key in info.get("mismatched_keys") or ()], str(folder))
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            require_finite(tensor, name, folder)
    return net.to(device).requires_grad_(False).eval()


def check_state_dict(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises WeightsError unless both have the same names with the same shapes."""
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    wrong = [
        f"{name} {list(given[name])} instead of {list(expected[name])}"
        for name in expected
        if name in given and given[name] != expected[name]
    ]
    if missing or extra or wrong:
        _refuse(missing, extra, wrong, where)


def _refuse(missing: Sequence[str], extra: Sequence[str], wrong: Sequence[str], where: str) -> None:
    named = (("missing", missing), ("not known", extra), ("of wrong shape", wrong))
    mismatches = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in named if names)
    raise WeightsError(f"the weights in {where} do not fit the configuration beside them: {mismatches}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a part, in the order of preference in which diffusers and people name them."""
    for variant in ("", ".fp16"):
        name = "diffusion_pytorch_model"
        single = folder / f"{name}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{name}.safetensors.index{variant}.json"
        if index.is_file():
            shards: object = read_config(index).get("weight_map")
            names = set(cast("Mapping[str, object]", shards).values()) if isinstance(shards, dict) else set[object]()
            if not names or not all(isinstance(each, str) and Path(each).name == each for each in names):
                raise WeightsError(f"{index} must name a file beside it for each tensor, as its weight_map")
            return [folder / shard for shard in sorted(cast("set[str]", names))]
    if (folder / "diffusion_pytorch_model.bin").is_file():
        return [folder / "diffusion_pytorch_model.bin"]
    raise WeightsError(f"there is no diffusion_pytorch_model.safetensors in {folder}")


def _read(file: TensorFile) -> Iterator[tuple[str, Tensor]]:
    for name in file.shapes:
        yield name, file.read(name)


def _arguments(kind: Any, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Each library's name for the dtype, and the half-precision files where only those were fetched."""
    names = [path.name for path in folder.glob("*.safetensors")]
    only_half = bool(names) and all(re.search(r"\.fp16[.-]", name) for name in names)
    dtype_name = "torch_dtype" if kind.__module__.startswith("diffusers") else "dtype"
    return {dtype_name: dtype} | ({"variant": "fp16"} if only_half else {})


@contextmanager
def silence_progress() -> Generator[None]:
    """Without the progress bars of libraries, which would be drawn over ours."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
    shown = [logging.is_progress_bar_enabled() for logging in both]
    levels = [logging.get_verbosity() for logging in both]
    try:
        for logging in both:
            logging.disable_progress_bar()
            logging.set_verbosity_error()
        yield
    finally:
        for logging, was_shown, level in zip(both, shown, levels, strict=True):
            logging.set_verbosity(level)
            if was_shown:
                logging.enable_progress_bar()
