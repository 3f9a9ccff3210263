# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUnusedImport=false

"""A connection to Ray: to a cluster that is there, or to one of this machine alone that is started for the purpose.

Ray starts half a dozen processes that each load Python and Ray itself, and gives up on them after limits made for idle
machines.  Those limits that are environment variables are raised here.  One is not: raylet waits 15 seconds for ports
that its helpers choose (github.com/ray-project/ray/issues/65983), so a start that fails is tried again, when the files
of Ray are in memory.  What else was tried: benchmarks/LOG.md.
"""

import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from instantstyle.errors import InputError

LOCAL = "local"
"""The address that stands for this machine's own cores."""
_OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a cluster of this machine alone; items and results are small."""
_TIMEOUTS = {
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_timeout_ms": "60000",
}
"""How long Ray's processes wait for one another here; a limit that the user has set stays as it is."""
_STARTS = 3
"""How many times a cluster of this machine is started before it is given up."""
_CONNECT_SECONDS = 20.0
"""How long the head of a cluster may take to accept a connection, however busy it is."""


@contextmanager
def ray_session(address: str, *, cores: int | None = None) -> Generator[Any, None, None]:
    """Ray's module, connected for as long as the block lasts; if it was connected before, as it was and left so.

    `address` is a cluster's, "auto" for the one that this machine is part of, or "local", for which `cores` says how
    many of this machine's there are to be.  Raises InputError when Ray is not installed or the cluster not there.
    """
    with _environment(_TIMEOUTS if address == LOCAL else {}):
        try:
            import ray
            import ray.data
            import ray.exceptions
        except ImportError as e:
            raise InputError("--ray needs Ray, which is not installed: pip install 'instantstyle[ray]'") from e
        if ray.is_initialized():
            yield ray
            return
        try:
            if address == LOCAL:
                _start_local(ray, cores)
            else:
                _check_port(address)
                ray.init(address=address, log_to_driver=False)
        except Exception as e:  # of many kinds, plain ones among them
            what = "Ray did not start here" if address == LOCAL else f"there is no Ray cluster at {address!r}"
            raise InputError(f"{what}: {last_line(e)}") from e
        try:
            yield ray
        finally:
            ray.shutdown()


def _start_local(ray: Any, cores: int | None) -> None:
    """Start a cluster of this machine alone and connect to it.  Raises what the last of several starts raised."""
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(
                address=LOCAL,
                num_cpus=cores,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
            )
            return
        except Exception:  # of many kinds, plain ones among them
            ray.shutdown()  # what has started
            if attempt == _STARTS:
                raise


def last_line(error: BaseException) -> str:
    """The last line of an error's message, which in Ray's errors holds the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


@contextmanager
def _environment(limits: Mapping[str, str]) -> Generator[None, None, None]:
    """While entered, these environment variables are set where the user has not, and Ray reports no usage."""
    added = {name: v for name, v in {"RAY_USAGE_STATS_ENABLED": "0", **limits}.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _check_port(address: str) -> None:
    """Raises OSError when nothing listens at an address that names a port; Ray would try for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
