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
from instantstyle.train.data.ray_cluster import last_line, ray_session

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Worker(Generic[Item, Answer]):
    """What a Ray worker holds.  What goes wrong in it is an answer too: Ray would try again, and tell it as its own."""

    def __init__(self, open_work: Callable[[], Callable[[Item], Answer]], home: Path) -> None:
        self._open, self._home = open_work, home
        self._do: Callable[[Item], Answer] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"answer": pickle.dumps(self._answer(pickle.loads(row["item"])))}

    def _answer(self, item: Item) -> Answer | InstantStyleError:
        try:
            if self._do is None:
                os.chdir(self._home)  # paths are as they were given
                self._do = self._open()
            return self._do(item)
        except InstantStyleError as e:
            return e
        except Exception as e:
            if not self._home.is_dir():
                return InputError(f"{platform.node()} does not see the folder {self._home}: all machines are to see it")
            return InstantStyleError(f"a worker on {platform.node()} failed: {type(e).__name__}: {last_line(e)}")


def ray_map(address: str, items: Sequence[Item], open_work: Callable[[], Callable[[Item], Answer]]) -> Iterator[Answer]:
    """The answers to all items, in the order that they are found; `open_work` is called once by every worker.

    `address` is a cluster's, "auto" for the one that this machine is part of, or "local".  There are as many workers as
    GPUs, else as cores, and never more than items.  Raises InputError when Ray is not installed or the cluster not
    there, and of a worker's own errors those of this library as they are.
    """
    with ray_session(address) as ray:
        try:
            context: Any = ray.data.DataContext.get_current()
            context.enable_progress_bars = sys.stderr.isatty() and context.enable_progress_bars
            yield from _answers(ray, items, open_work)
        except ray.exceptions.RayError as e:
            raise InstantStyleError(f"Ray failed: {last_line(e)}") from e


def _answers(ray: Any, items: Sequence[Item], open_work: Callable[[], Callable[[Item], Answer]]) -> Iterator[Answer]:
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
        answer: Answer | InstantStyleError = pickle.loads(row["answer"])
        if isinstance(answer, InstantStyleError):
            raise answer
        yield answer
