"""Files that appear whole or not at all, however large they are and whatever stops their writing.

A file is written beside its place under a name that begins with a dot and ends in `.part`, and takes its own name in
one step.  A kill leaves such a part behind; `sweep` takes away those whose writers are gone.
"""

import errno
import os
import platform
import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from instantstyle.errors import OutputError


@contextmanager
def atomic_write(path: str | Path) -> Generator[Path, None, None]:
    """A name to write to; what was written gets its own name once the block is left without an error.

    Folders on the way are made.  Raises OutputError when the disk is full or refuses; what was there under the name
    before is then still there.  Any other error of the block passes through, and nothing is left of the file.
    """
    path = Path(path)
    partial = path.with_name(f".{_me()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
        allowed = partial.stat().st_mode
        yield partial
        partial.chmod(allowed)  # safetensors replaces the file by one that nobody else may read
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as refused:
        if not _of_writing(refused):
            raise
        raise OutputError(f"cannot write {str(path)!r}: {_why(refused)}; nothing half-written is left") from refused
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: bytes) -> Path:
    """Write bytes under the name of a file whose folder is there.  Raises OutputError."""
    path = Path(path)
    check_writable(path)
    with atomic_write(path) as partial:
        partial.write_bytes(content)
    return path


def remove_stale_temp_files(folder: Path) -> list[Path]:
    """Take away the parts that killed processes of this machine left in a folder; which they were."""
    gone: list[Path] = []
    for part in folder.glob(".*.part"):
        named = _PART.fullmatch(part.name)
        if named is None or named["node"] != _node() or _runs(int(named["process"])):
            continue
        with suppress(OSError):
            part.unlink()
            gone.append(part)
    return gone


def check_writable(path: str | Path) -> None:
    """Raise OutputError when a file of this name cannot be written, so that no one waits for a result in vain."""
    path = Path(path)
    try:
        if path.is_dir() or not path.name:
            raise OutputError(f"cannot write {str(path)!r}: it is a folder; give a file name such as cat.png")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
        with suppress(FileNotFoundError):
            path.lstat()
    except (OSError, ValueError) as refused:  # a name too long, or with a zero byte
        raise OutputError(f"cannot write {str(path)!r}: {_why(refused)}") from refused
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {str(path)!r}: permission denied")


_PART = re.compile(r"\.(?P<node>.*)-(?P<process>\d+)-[0-9a-f]{8}\.part")


def _me() -> str:
    return f"{_node()}-{os.getpid()}"


def _node() -> str:
    return re.sub(r"[^\w.-]", "_", platform.node())[:80]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _of_writing(error: Exception) -> bool:
    """Whether the system refused; torch and safetensors tell of it by errors of their own."""
    return (
        isinstance(error, OSError)
        or re.search(r"PytorchStreamWriter|inline_container|I/O error", str(error)) is not None
    )


def _why(refused: Exception) -> str:
    number = getattr(refused, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"there is no room left for it ({os.strerror(number).lower()})"
    if isinstance(refused, ValueError) or number is not None:
        return (getattr(refused, "strerror", None) or str(refused)).lower()
    # torch, NumPy and safetensors know only that less was written than was given.
    return f"not all of it was written, as on a full disk ({(str(refused).splitlines() or ['?'])[0][:120]})"
