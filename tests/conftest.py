"""What every test runs under: shapes checked while the tests run, one thread, nothing fetched."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would fetch weights fails instead

from jaxtyping import install_import_hook

install_import_hook("instantstyle", "beartype.beartype")  # before anything of the library is imported

import pytest  # noqa: E402
import torch  # noqa: E402

# Bitwise laws compare runs of different batch shapes: one thread keeps the order of every sum fixed, and when
# cores are shared two threads are slower than one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A script that is in no package, as a module, by its path from the repository's root."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path, Path(__file__).resolve().parent.parent / path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
