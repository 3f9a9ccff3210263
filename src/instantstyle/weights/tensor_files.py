"""Reading tensors from a weight file, one at a time and by name, without running what is in it.

Which format a file has is told by its first bytes, not by its name.  This module does not know what tensors mean.
"""

import argparse
import math
import pickle
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from instantstyle.errors import WeightsError
from instantstyle.utils.files import local_path

MAX_ENTRIES, MAX_DEPTH = 100_000, 16
"""Of the dictionaries in a pickle; the largest networks have a few thousand tensors, two dictionaries deep."""
_BYTES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool)
"""Types of one byte a number that are read; of the floating ones, those in which weights are published."""


Shapes = Mapping[str, tuple[int, ...]]
"""Tensors' shapes by name."""


@runtime_checkable
class TensorFile(Protocol):
    """An open weight file."""

    @property
    def shapes(self) -> Shapes:
        """Every tensor's name and shape, in the file's order."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What a .safetensors file says about itself; a pickle says nothing."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor as stored, on the CPU.  Raises WeightsError when it holds NaN or infinity."""
        ...


_NO_WEIGHTS: Mapping[bytes, str] = {
    b"gguf": "a quantised GGUF file, which is not supported: ask for it as .safetensors",
    b"version h": "a pointer of Git LFS and not the weights: fetch the file itself (git lfs pull)",
    b"<!doctype": "a web page and not the weights: download the file itself",
    b"<html": "a web page and not the weights: download the file itself",
}
"""What people have in place of weights, by its first bytes in lower case."""


@contextmanager
def open_tensors(path: str | Path, *, inside: str | None = None) -> Generator[TensorFile, None, None]:
    """Open a .safetensors file (tensors are read when asked for) or a torch pickle of nothing but tensors.

    Nested dictionaries of a pickle are flattened, their keys joined by dots.  `inside`: the entry of a training
    checkpoint that is the model, where the pickle has it; beside it there may be arguments and plain numbers, which
    are passed over.  Raises WeightsError when the file is missing, empty, truncated, no weight file, or wants to run
    code.
    """
    path = local_path(path, WeightsError)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device has no end
            kind = "folder" if path.is_dir() else "pipe or a device"
            raise WeightsError(f"cannot read the weight file {path}: it is a {kind}")
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise WeightsError(f"there is no weight file at {path}") from None
    except OSError as e:
        raise WeightsError(f"cannot read the weight file {path}: {e.strerror or e}") from e
    if not head:
        raise WeightsError(f"the weight file {path} is empty")
    if (
        kind := next((kind for start, kind in _NO_WEIGHTS.items() if head.lower().startswith(start)), None)
    ) is not None:
        raise WeightsError(f"the file {path} is {kind}")
    if head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        yield _PickleFile(path, inside)
        return
    try:  # opening checks the head against the file's length: reading cannot fail afterwards
        opened = cast("Any", safe_open(path, framework="pt"))
    except (SafetensorError, OSError, MemoryError) as e:
        raise WeightsError(f"the weight file {path} is truncated, damaged, or no weight file at all: {e}") from e
    with opened as handle:
        yield _SafetensorsFile(path, handle)


class RenamedTensors:
    """An open file whose tensors go by other names; those without one are left out."""

    def __init__(self, file: TensorFile, names: Mapping[str, str]) -> None:
        """`names`: the stored name by the new one."""
        self.file, self.names, self.metadata = file, names, file.metadata
        self.shapes = {new: file.shapes[stored] for new, stored in names.items()}

    def read(self, name: str) -> Tensor:
        return self.file.read(self.names[name])


class _SafetensorsFile:
    def __init__(self, path: Path, handle: Any) -> None:
        self.path, self.handle = path, handle
        self.shapes = {name: tuple(cast("list[int]", handle.get_slice(name).get_shape())) for name in handle.keys()}  # noqa: SIM118
        self.metadata = cast("dict[str, str]", handle.metadata() or {})

    def read(self, name: str) -> Tensor:
        try:
            tensor = self.handle.get_tensor(name)
        except (SafetensorError, RuntimeError) as e:  # of a type that torch does not have
            raise WeightsError(f"{name} in {self.path} cannot be read: {e}") from e
        return require_finite(tensor, name, self.path)


class _PickleFile:
    def __init__(self, path: Path, inside: str | None) -> None:
        self.path, self.metadata = path, dict[str, str]()
        zipped, stored = is_zipfile(path), math.inf
        try:
            if zipped:
                stored = _stored_bytes(path)
            with warnings.catch_warnings(), torch.serialization.safe_globals([] if inside is None else _beside()):
                warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol: it is read or it is not
                content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except WeightsError:
            raise
        except pickle.UnpicklingError as e:
            if "GLOBAL" in str(e):
                raise WeightsError(
                    f"the weight file {path} holds something other than tensors, which could run code, and is not "
                    "loaded: ask for it as .safetensors"
                ) from e
            raise WeightsError(f"the weight file {path} is truncated, damaged, or no weight file of torch") from e
        except Exception as e:  # a damaged pickle may fail in any way: each opcode assumes those before it
            raise WeightsError(f"the weight file {path} is truncated or damaged ({type(e).__name__})") from e
        if inside is not None and isinstance(content, Mapping):
            held = cast("Mapping[object, object]", content)
            content = held.get(inside, held)
        self.tensors = _flat(content, path)
        storages = (tensor.untyped_storage() for tensor in self.tensors.values())
        if sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) > stored:
            raise WeightsError(f"the weight file {path} is truncated or damaged: it holds fewer numbers than it says")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return require_finite(self.tensors[name], name, self.path)


def _beside() -> list[Any]:
    """What training scripts keep beside their model, none of which can run code: arguments, numbers of NumPy's."""
    scalar: Any = cast("Any", np.float64(0)).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2 and since
    return [argparse.Namespace, np.dtype, *kinds, *((scalar, f"{module}.scalar") for module in modules)]


def first_row(file: TensorFile, name: str) -> Tensor:
    """The first row of a tensor as stored, without reading the rest where the format allows it."""
    if isinstance(file, RenamedTensors):
        return first_row(file.file, file.names[name])
    if isinstance(file, _SafetensorsFile):
        return file.handle.get_slice(name)[:1]
    return file.read(name)[:1]


def _stored_bytes(path: Path) -> int:
    """How many bytes of tensors a zip of torch's holds.

    Raises WeightsError unless its entries are stored as torch stores them, so that none inflates beyond the file.
    """
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, BadZipFile) as e:
        raise WeightsError(f"the weight file {path} is truncated or damaged: {e}") from e
    packed = any(entry.compress_type != ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError(
            f"the weight file {path} is a zip whose entries are compressed or lie over each other, which torch does "
            "not write: ask for it as .safetensors"
        )
    return sum(entry.file_size for entry in entries if "/data/" in entry.filename)


def _flat(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of nested dictionaries, their keys joined by dots.

    Raises WeightsError for anything else, and for dictionaries that hold themselves or each other without end.
    """
    tensors: dict[str, Tensor] = {}
    ahead: list[tuple[tuple[str, ...], object]] = [((), content)]
    count = 0
    while ahead:
        keys, inner = ahead.pop()
        name, count = ".".join(keys), count + 1
        if count > MAX_ENTRIES or len(keys) > MAX_DEPTH:
            raise WeightsError(
                f"the weight file {path} holds dictionaries more than {MAX_DEPTH} deep, or more than {MAX_ENTRIES:,} "
                "entries: it is no file of a network's weights"
            )
        if isinstance(inner, Tensor):
            if name in tensors:
                raise WeightsError(f"the weight file {path} holds two tensors named {name}")
            tensors[name] = _stored(inner, name, path)
        elif isinstance(inner, Mapping):
            items = list(cast("Mapping[object, object]", inner).items())
            ahead += [((*keys, str(key)), each) for key, each in reversed(items)]
        else:
            where = f"{name!r} in it" if name else "it"
            raise WeightsError(f"the weight file {path} is no dictionary of tensors: {where} is {type(inner).__name__}")
    return tensors


def _stored(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor itself.  Raises WeightsError unless every number of it is stored: a pickle may repeat a few."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{name} in {path} is sparse, quantized, or a few numbers repeated, and no plain tensor: ask for the file "
            "as .safetensors"
        )
    return tensor


def require_finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor itself.  Raises WeightsError when it is not of floating point, or holds NaN or infinity.

    A number alone may be an integer, as the alphas of LoRA files are.
    """
    if tensor.ndim and not tensor.is_floating_point():
        raise WeightsError(f"{name} in {path} holds {str(tensor.dtype).removeprefix('torch.')}, no floating point")
    if tensor.is_complex() or (tensor.element_size() == 1 and tensor.dtype not in _BYTES):
        raise WeightsError(f"{name} in {path} holds {str(tensor.dtype).removeprefix('torch.')}, which is not supported")
    # Both ends are finite only if all between are, NaN spreads to them, and nothing as large as the tensor is made.
    ends = torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float()) if tensor.numel() else ()
    if not all(bool(end.isfinite()) for end in ends):
        raise WeightsError(f"{name} in {path} holds NaN or infinity: the file is damaged, or its training diverged")
    return tensor
