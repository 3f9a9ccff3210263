"""Files that appear whole or not at all, however large they are and whatever stops their writing."""

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from instantstyle.errors import OutputError


@contextmanager
def whole(path: Path) -> Generator[Path, None, None]:
    """A name to write to; what was written gets its own name once the block is left without an error.

    Raises OutputError when the disk is full or refuses; what was there under the name before is then still there.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as refused:  # torch's writer tells of a full disk by a RuntimeError
        raise OutputError(f"cannot write {str(path)!r}: {_why(refused)}; nothing half-written is left") from refused
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _why(refused: OSError | RuntimeError) -> str:
    if isinstance(refused, OSError):
        if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"there is no room left for it ({(refused.strerror or 'disk full').lower()})"
        return (refused.strerror or str(refused)).lower()
    return (str(refused).splitlines() or ["no reason given"])[0][:200]
