# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUnusedImport=false

"""A Ray cluster to work on: one that is there, or one of this machine alone, which a busy machine has time to start.

Ray starts half a dozen processes that each load Python and Ray itself, and gives up on them after limits made for idle
machines.  Those limits that have a name are raised here; the one that has none is gone round.
"""

import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
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
"""How long Ray's processes wait for one another here; a limit that somebody has set stays as it is."""
_USAGE = "RAY_USAGE_STATS_ENABLED"
_ANSWERS = 20.0
"""Seconds in which a cluster's head takes a connection, however busy it is."""
_HELPERS = ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN")
"""Whose ports a node waits for."""


@contextmanager
def ray_session(address: str, *, cores: int | None = None) -> Generator[Any, None, None]:
    """Ray's module, connected for as long as the block lasts; if it was connected before, as it was and left so.

    `address` is a cluster's, "auto" for the one that this machine is part of, or "local", for which `cores` says how
    many of this machine's there are to be.  Raises InputError when Ray is not installed or the cluster not there.
    """
    with _environment(_PATIENCE if address == LOCAL else {}):
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
                with _patient():
                    ray.init(address=LOCAL, log_to_driver=False, **few)
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


def last_line(error: BaseException) -> str:
    """The last line of what an error says, which of Ray's holds the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


@contextmanager
def _environment(limits: Mapping[str, str]) -> Generator[None, None, None]:
    """While entered, Ray finds these limits where nobody set others, and tells nobody that it is used."""
    ours = {name: value for name, value in {_USAGE: "0", **limits}.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _check_port(address: str) -> None:
    """Raise OSError when nobody listens at an address that names a port; Ray would try for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()


@contextmanager
def _patient() -> Generator[None, None, None]:
    """Nodes that are started meanwhile wait for none of their helpers, and leave out those that serve nobody.

    A node waits 15 seconds for the ports that its helpers choose, and then dies, however busy the machine is
    (github.com/ray-project/ray/issues/65983).  Here they are written down before it starts, as not in use; a helper
    that comes late corrects it.  Where another Ray keeps these things elsewhere, it starts as it likes.
    """
    try:
        from ray import _raylet
        from ray._private import node

        plain: Any = node.Node
        names = [getattr(_raylet, f"{what}_PORT_NAME") for what in _HELPERS]
        write: Callable[..., None] = _raylet.persist_port
    except (ImportError, AttributeError):
        yield
        return

    class Patient(plain):
        def __init__(self, ray_params: Any, **how: Any) -> None:
            ray_params.update_if_absent(runtime_env_agent_port=_free_port())
            ray_params.include_log_monitor, ray_params.no_monitor = False, True
            super().__init__(ray_params, **how)

        def start_raylet(self, *given: Any, **named: Any) -> None:
            for name in names:
                write(self._session_dir, self._node_id, name, -1)
            super().start_raylet(*given, **named)

    node.Node = Patient
    try:
        yield
    finally:
        node.Node = plain


def _free_port() -> int:
    with socket.create_server(("", 0)) as held:
        return held.getsockname()[1]
