"""Files appear whole or not at all: whoever writes them, and whether the disk, an error or a kill ends the writing."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from instantstyle.errors import OutputError, PictureError
from instantstyle.utils.atomic_files import atomic_write, remove_stale_temp_files, write_atomic

LARGE = torch.zeros(20_000)


def _numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, LARGE.numpy())


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, large=LARGE.numpy())


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(bytes(80_000)),
    "torch": lambda path: torch.save({"large": LARGE}, path),
    "safetensors": lambda path: save_file({"large": LARGE}, path),
    "numpy": _numpy,
    "archive": _archive,
}


@contextmanager
def full() -> Generator[None]:
    """While entered, the system refuses a file's growth beyond 5,000 bytes, as a full disk would.

    No fixture: pytest's own report may go to a file while a fixture stands.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_what_was_there(writer: str, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_bytes(b"before")
    with (
        full(),
        pytest.raises(OutputError, match=r"cannot write .*(no room|not all of it).*nothing half-written"),
        atomic_write(file) as partial,
    ):
        WRITERS[writer](partial)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"kept": b"before"}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_readable_by_those_the_mask_allows(writer: str, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "on/the/way") as partial:
            WRITERS[writer](partial)
    finally:
        os.umask(mask)
    (file,) = (tmp_path / "on/the").iterdir()
    assert file.name == "way"
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.stat().st_size >= 80_000


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), PictureError("no picture"), KeyboardInterrupt()])
def test_an_error_that_is_not_of_writing_passes_through(error: BaseException, tmp_path: Path) -> None:
    def writes(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "file") as partial:
        writes(partial)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_nobody_reads_half(tmp_path: Path) -> None:
    file = write_atomic(tmp_path / "file", b"old")
    with atomic_write(file) as partial:
        partial.write_bytes(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    with pytest.raises(OutputError, match="there is no folder"):
        write_atomic(tmp_path / "nowhere/file", b"new")


def _hangs(file: Path) -> None:
    with atomic_write(file) as partial:
        partial.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")  # of what forking may do, which newer Pythons say
def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_hangs, args=(tmp_path / "file",))
    child.start()
    child.join()
    (left,) = tmp_path.iterdir()
    (tmp_path / ".mine.part").touch()
    elsewhere = tmp_path / left.name.replace(".", ".another-", 1)
    elsewhere.touch()
    with atomic_write(tmp_path / "file") as partial:
        partial.write_bytes(b"whole")
        assert remove_stale_temp_files(tmp_path) == [left]
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".mine.part", elsewhere.name}
