# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

"""A map over a Ray cluster: every worker opens what it computes with once, and results come as they are done.

Items and results are pickled.  A worker that dies is replaced and its item computed again, so an item must be safe to
compute twice.
"""

import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from instantstyle.errors import InputError, InstantStyleError
from instantstyle.train.data.ray_cluster import last_line, ray_session

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Worker(Generic[Item, Result]):
    """A Ray actor.  Its errors are results: Ray would retry, and raise them as errors of its own."""

    def __init__(self, open_function: Callable[[], Callable[[Item], Result]], cwd: Path) -> None:
        self._open, self._cwd = open_function, cwd
        self._function: Callable[[Item], Result] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(self._compute(pickle.loads(row["item"])))}

    def _compute(self, item: Item) -> Result | InstantStyleError:
        try:
            if self._function is None:
                os.chdir(self._cwd)  # relative paths are as they were given
                self._function = self._open()
            return self._function(item)
        except InstantStyleError as e:
            return e
        except Exception as e:
            if not self._cwd.is_dir():
                return InputError(f"{platform.node()} does not see the folder {self._cwd}: all machines are to see it")
            return InstantStyleError(f"a worker on {platform.node()} failed: {type(e).__name__}: {last_line(e)}")


def ray_map(
    address: str, items: Sequence[Item], open_function: Callable[[], Callable[[Item], Result]]
) -> Iterator[Result]:
    """The results of all items, as they are done; every worker calls `open_function` once for what it maps with.

    `address` is a cluster's, "auto" for the one that this machine is part of, or "local".  There are as many workers as
    GPUs, else as cores, and never more than items.  Raises InputError when Ray is not installed or the cluster not
    there, and a worker's errors of this library as they are.
    """
    with ray_session(address) as ray:
        try:
            context: Any = ray.data.DataContext.get_current()
            context.enable_progress_bars = sys.stderr.isatty() and context.enable_progress_bars
            yield from _results(ray, items, open_function)
        except ray.exceptions.RayError as e:
            raise InstantStyleError(f"Ray failed: {last_line(e)}") from e


def _results(
    ray: Any, items: Sequence[Item], open_function: Callable[[], Callable[[Item], Result]]
) -> Iterator[Result]:
    resources: Any = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    workers = max(1, min(gpus or int(resources.get("CPU", 1)), len(items)))
    # Pickled: Ray's tables would convert lists and tuples.
    pickled = [{"item": pickle.dumps(item)} for item in items]
    data: Any = ray.data.from_items(pickled, override_num_blocks=len(items))
    mapped = data.map(
        _Worker,
        fn_constructor_args=(open_function, Path.cwd()),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
    )
    for row in mapped.iter_rows():
        result: Result | InstantStyleError = pickle.loads(row["result"])
        if isinstance(result, InstantStyleError):
            raise result
        yield result
