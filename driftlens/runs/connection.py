"""Import Ray, start or join a cluster, and divide its resources among workers.

Ray's usage statistics are off, and a local cluster has no dashboard.  A local cluster listens only on the loopback
interface, because anyone who can reach a port of Ray may run code.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from driftlens.errors import DriftlensError

__all__ = ["START_SECONDS", "connected", "no_room", "ray_module", "share", "wait_for"]

START_SECONDS = 300
"""Seconds to wait until the cluster has room for a worker."""
_CONNECT_SECONDS = 10
_SETTINGS = b"\x04"
"""The type of HTTP/2's settings frame, behind three bytes of length."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
"""What a client of gRPC, which Ray speaks, says first: the preface and no settings.  A server answers with its own."""


def ray_module(*, alone: bool = False) -> Any:
    """Import Ray, which is an optional dependency.

    Args:
        alone: whether the cluster is this machine alone.  Ray then uses 127.0.0.1 as the machine's address, as it does
            by default on macOS and Windows, and its processes listen only there; otherwise they listen on every
            interface.

    Raises:
        DriftlensError: Ray is not installed.
    """
    # Before the import, which reads them.
    if alone:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Permanent errors arrive as exceptions; Ray's other messages concern its own recovery.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError:
        raise DriftlensError(
            "several workers need Ray, which is not installed; install it with pip install 'driftlens[cluster]'"
        ) from None
    return ray


@contextmanager
def connected(address: str | None, workers: int | None) -> Generator[Any]:
    """Connect to Ray, and stop a cluster that was started here on leaving."""
    if workers is not None and workers < 1:
        raise DriftlensError(f"{workers} workers; expected at least 1")
    ray = ray_module(alone=address is None)
    started = not ray.is_initialized()
    if started:
        settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if address is None:
            # More workers than cores are allowed if the user asks for them.
            cores = max(os.cpu_count() or 1, workers or 1)
            settings |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        else:
            _check_address(address)
            settings |= {"address": address, "namespace": f"driftlens-{secrets.token_hex(4)}"}
        try:
            ray.init(**settings)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "here" if address is None else f"at {address}"
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DriftlensError(f"cannot reach or start a Ray cluster {where}: {reason}") from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Check within seconds whether Ray listens at an address.

    Ray's own client is too slow.  If Ray does not listen there, ``GcsClient(address=...)`` of Ray 2.60 raises after 40
    seconds.  With a smaller ``RAY_gcs_rpc_server_reconnect_timeout_s``, it ends the process with exit code 1 ("The
    program will terminate"), and so does ``ray.init`` after minutes.  A separate process with a deadline would not
    help, because a busy machine may need longer than that to import Ray.  This function therefore reads the protocol's
    first frame.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", or what Ray itself calls no address
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS) as there:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                there.sendall(_HELLO)
                if there.recv(4)[3:] != _SETTINGS:
                    raise OSError("what listens there is not Ray")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DriftlensError(
            f"cannot reach a Ray cluster at {address}: {reason}; give the address that `ray start --head` printed"
        ) from None


def share(ray: Any, device: str | None, workers: int | None) -> tuple[int, dict[str, float], str | None]:
    """Return the number of workers, the resources of each, and its device."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    by_machine = [int(machine.get("CPU", 0)) for machine in machines]
    cores = sum(by_machine)
    if device is not None and ":" in device:
        raise DriftlensError(
            f"device is {device!r}, but Ray gives every worker a GPU of its own; say 'cuda' or nothing"
        )
    if gpus and device in (None, "cuda"):
        if workers is not None and workers > gpus:
            raise DriftlensError(
                f"{workers} workers but {gpus} GPUs, and each keeps a model on its own; take {gpus} or the CPU"
            )
        return workers or gpus, {"num_gpus": 1, "num_cpus": 1}, "cuda"
    if device == "cuda":
        raise DriftlensError("device is 'cuda', but the cluster has no GPU; choose 'cpu'")
    count = workers or max(1, sum(1 for own in by_machine if own))
    if count > cores:
        raise DriftlensError(f"{count} workers but the cluster has {cores} cores; take {cores} or fewer")
    # Ray gives a process as many threads as it has cores: the most with which all workers find a place.
    each = max(n for n in range(1, max(by_machine) + 1) if sum(own // n for own in by_machine) >= count)
    return count, {"num_gpus": 0, "num_cpus": each}, device or "cpu"


def wait_for(ray: Any, ready: Any) -> None:
    """Wait until a worker has started.

    Raises:
        DriftlensError: no worker could be started.
    """
    try:
        ray.get(ready, timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise no_room(ray) from None


def no_room(ray: Any) -> DriftlensError:
    """The error if no worker fits, with the free resources."""
    free = {name: value for name, value in ray.available_resources().items() if name in ("CPU", "GPU")}
    return DriftlensError(
        f"no worker could be started within {START_SECONDS} s (free in the cluster: {free or 'nothing'}); try again "
        "when others have ended, or with fewer workers"
    )
