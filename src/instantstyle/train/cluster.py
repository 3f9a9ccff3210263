# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

"""A Ray cluster to work on: one that is there, or one of this machine alone, which a busy machine has time to start.

Ray starts half a dozen processes that each load Python and Ray itself, and gives up on them after limits made for idle
machines.  Those limits that have a name are raised here; the one that has none is gone round by choosing ports.
"""

import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from instantstyle.errors import InputError

LOCAL = "local"
"""The address that stands for this machine's own cores."""
_STORE = 128 * 2**20
"""Bytes that a cluster of this machine alone keeps for what is sent, of which there is little."""
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_timeout_ms": "60000",
}
"""How long Ray's processes wait for one another; a limit that somebody has set stays as it is."""


@contextmanager
def joined(address: str, *, cores: int | None = None) -> Generator[Any, None, None]:
    """Ray's module, connected for as long as the block lasts; if it was connected before, as it was and left so.

    `address` is a cluster's, "auto" for the one that this machine is part of, or "local", for which `cores` says how
    many of this machine's there are to be.  Raises InputError when Ray is not installed or the cluster not there.
    """
    # Nothing is told to anybody unless it is asked for.
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **_PATIENCE}.items():
        os.environ.setdefault(name, value)
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
            few: dict[str, Any] = {"object_store_memory": _STORE, "include_dashboard": False, "num_cpus": cores}
            with _ports_chosen() as metrics:
                ray.init(address=LOCAL, log_to_driver=False, _metrics_export_port=metrics, **few)
        else:
            ray.init(address=address, log_to_driver=False)
    except Exception as e:  # of many kinds, plain ones among them
        what = "Ray did not start here" if address == LOCAL else f"there is no Ray cluster at {address!r}"
        raise InputError(f"{what}: {last_line(e)}") from e
    try:
        yield ray
    finally:
        ray.shutdown()


def last_line(error: BaseException) -> str:
    """The last line of what an error says, which of Ray's holds the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


@contextmanager
def _ports_chosen() -> Generator[int, None, None]:
    """Ports of Ray's helpers are chosen here while it starts, and helpers that serve nobody are left out; the port left
    to give is that of its metrics.

    A port that a helper chooses itself its node waits for, 15 seconds and no more, and dies
    (github.com/ray-project/ray/issues/65983).  `ray start` takes all of them as options, `ray.init` only the last: the
    parameters that it makes are completed here.  Where another Ray keeps them elsewhere it starts as it likes.
    """
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    *chosen, metrics = _free_ports(len(names) + 1)
    try:
        from ray._private import parameter

        plain: Callable[..., Any] = parameter.RayParams
    except (ImportError, AttributeError):
        yield metrics
        return
    ports: dict[str, Any] = dict(zip(names, chosen, strict=True))
    parameter.RayParams = partial(plain, include_log_monitor=False, no_monitor=True, **ports)
    try:
        yield metrics
    finally:
        parameter.RayParams = plain


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
