# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

"""Work spread over a Ray cluster: each worker opens what it works with once, and answers come as they are done.

It knows nothing of the work but that its items and answers can be sent.  A worker that dies is replaced and its item
done again, so doing an item twice must do no harm.
"""

import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from instantstyle.errors import InputError, InstantStyleError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
LOCAL = "local"
"""The address that stands for this machine's own cores."""
_STORE = 128 * 2**20
"""Bytes that a cluster of this machine alone keeps for what is sent, of which there is little."""


class _Worker(Generic[Item, Answer]):
    """What a Ray worker holds."""

    def __init__(self, open_work: Callable[[], Callable[[Item], Answer]], home: Path) -> None:
        try:
            os.chdir(home)  # paths are as they were given
        except OSError as e:
            raise InputError(f"{platform.node()} does not see the folder {home}: all machines are to see it") from e
        self._do = open_work()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"answer": pickle.dumps(self._do(pickle.loads(row["item"])))}


def spread(address: str, items: Sequence[Item], open_work: Callable[[], Callable[[Item], Answer]]) -> Iterator[Answer]:
    """The answers to all items, in the order that they are found; `open_work` is called once by every worker.

    `address` is a cluster's, "auto" for the one that this machine is part of, or "local".  There are as many workers as
    GPUs, else as cores, and never more than items.  Raises InputError when Ray is not installed or the cluster not
    there, and of a worker's own errors those of this library as they are.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unless it is asked for
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine takes its time
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as e:
        raise InputError("--ray needs Ray, which is not installed: pip install 'instantstyle[ray]'") from e
    ours = not ray.is_initialized()
    if ours:
        small: dict[str, Any] = {"object_store_memory": _STORE, "include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=address, log_to_driver=False, **small)
        except Exception as e:  # of many kinds, plain ones among them
            what = "Ray did not start here" if address == LOCAL else f"there is no Ray cluster at {address!r}"
            raise InputError(f"{what}: {_line(e)}") from e
    try:
        context: Any = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr.isatty() and context.enable_progress_bars
        yield from _answers(items, open_work)
    except ray.exceptions.RayError as e:
        causes = [c for c in (e, e.__cause__, getattr(e, "cause", None)) if c is not None]
        known = next((c for c in causes if isinstance(c, InstantStyleError)), None)
        raise known or InstantStyleError(f"a Ray worker failed: {_line(e)}") from e
    finally:
        if ours:
            ray.shutdown()


def _answers(items: Sequence[Item], open_work: Callable[[], Callable[[Item], Answer]]) -> Iterator[Answer]:
    import ray
    import ray.data

    resources: Any = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    workers = max(1, min(gpus or int(resources.get("CPU", 1)), len(items)))
    # As bytes, which the cluster's tables leave as they are; lists and tuples they would take apart.
    sent = [{"item": pickle.dumps(item)} for item in items]
    data: Any = ray.data.from_items(sent, override_num_blocks=len(items))
    made = data.map(
        _Worker,
        fn_constructor_args=(open_work, Path.cwd()),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
    )
    for row in made.iter_rows():
        yield pickle.loads(row["answer"])


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
