"""What every test runs under: shapes checked while the tests run, one thread, nothing fetched."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would fetch weights fails instead

from jaxtyping import install_import_hook

install_import_hook("instantstyle", "beartype.beartype")  # before anything of the library is imported

import torch  # noqa: E402

# Bitwise laws compare runs of different batch shapes: one thread keeps the order of every sum fixed, and two threads on
# a busy machine are slower than one.
torch.set_num_threads(1)
