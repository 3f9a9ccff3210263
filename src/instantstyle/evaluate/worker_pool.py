"""Worker processes for long jobs, by the standard library's process pool, which end with the process that began them.

Spawned and not forked, since torch's threads do not survive a fork.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_workers(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Generator[tuple[_Item, _Result]]:
    """Each item with its result, as they complete; items are begun in their order.  One worker is this process.

    `function` and items are pickled.  However the iteration ends, no worker outlives it or this process: workers get
    SIGTERM, which raises SystemExit in them, so that files being written are cleaned up.  Raises what `function`
    raises, and BrokenProcessPool when a worker dies.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    context = multiprocessing.get_context("spawn")
    # Nothing is ever written into this pipe: workers see its end when this process closes it or is gone.
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _initialize, (reader,))
    try:
        futures = {pool.submit(_call, function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        writer.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()
        reader.close()


def _initialize(reader: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    Thread(target=_end_with_parent, args=(reader,), daemon=True).start()


def _end_with_parent(reader: Connection) -> None:
    with suppress(EOFError, OSError):
        reader.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _call(function: Callable[[_Item], _Result], item: _Item) -> _Result:
    """The pool would send SystemExit to the parent as a result and keep the worker."""
    try:
        return function(item)
    except (SystemExit, KeyboardInterrupt):
        os._exit(1)
