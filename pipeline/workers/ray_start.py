"""Imports Ray and starts or joins a cluster, on machines as they are found."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ltrp_core.errors import RequestError
from pipeline.workers.local_ray import read_again, start_local, stop_local
from pipeline.workers.slots import Machine

_STORE_BYTES = 200 << 20
_LEAST_STORE_BYTES = 80 << 20
"""Ray wants 75 MiB. Results are small, so that the object store stays empty."""

_ANSWER_S = 20.0
"""How long a cluster's port may take to open; Ray would wait minutes, then end the process."""


def import_ray() -> Any:
    """Imports Ray with what it reads then; values that are set already stay.

    Raises:
        RequestError: it is not installed.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its workers are this very command: niceness 15 would starve them beside anything else.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A container's /dev/shm has 64 MB unless told.
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RequestError(
            "--workers needs Ray: python -m pip install ray, or pass --workers 0"
        ) from error
    return ray


def start_ray(address: str | None) -> None:
    """Joins the cluster at `address`, or at RAY_ADDRESS, or starts a Ray on this machine.

    Raises:
        RequestError: there is no such cluster, or Ray does not start.
    """
    ray = import_ray()
    cluster = _resolved(address)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        with _sigterm_stays(ray):
            if cluster is None:
                start_local(ray, **_local_options(), **quiet)
                return
            _reach(cluster)
            read_again(ray)
            ray.init(address=cluster, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = " ".join(str(error).split())
        if cluster is None:
            raise RequestError(f"Ray does not start: {reason}; or pass --workers 0") from error
        raise RequestError(f"--ray-address {cluster}: no Ray cluster there: {reason}") from error


@contextmanager
def _sigterm_stays(ray: Any) -> Iterator[None]:
    """Keeps Ray from handling SIGTERM: its handlers end the process, with status 1, 15 or a trace.

    What is set after its start comes too late: the start takes seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, connect = signal.getsignal(signal.SIGTERM), ray._private.worker.connect

    came: list[int] = []

    def whole(*arguments: Any, **options: Any) -> None:
        # A process that ends half connected is aborted, and Ray's C++ puts in a handler here.
        signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
        try:
            connect(*arguments, **options)
        finally:
            signal.signal(signal.SIGTERM, handler)
        if came:
            signal.alarm(0)  # by which Ray's handler would abort in three seconds
            signal.raise_signal(signal.SIGTERM)

    with (
        mock.patch.object(ray._private.utils, "set_sigterm_handler"),
        mock.patch.object(ray._private.worker, "connect", whole),
    ):
        yield


def stop_ray() -> None:
    """Leaves the cluster, or ends the Ray of this process and removes what it has written."""
    stop_local(import_ray())


def is_cluster(address: str | None) -> bool:
    """Whether machines other than this one may lend slots."""
    return _resolved(address) is not None


def machines() -> list[Machine]:
    """Returns the machines of the cluster that are alive now and lend something."""
    import ray

    found = (node["Resources"] for node in ray.nodes() if node["Alive"])
    lent = (Machine(cpus=int(r.get("CPU", 0)), gpus=int(r.get("GPU", 0))) for r in found)
    return [machine for machine in lent if machine.cpus]


def _resolved(address: str | None) -> str | None:
    return address or os.environ.get("RAY_ADDRESS") or None


def _reach(cluster: str) -> None:
    """Raises OSError if nothing listens at host:port; other forms of address are left to Ray."""
    host, _, port = cluster.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    end = time.monotonic() + _ANSWER_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(min(1.0, _ANSWER_S))


def _local_options() -> dict[str, Any]:
    options: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": _store_bytes(Path("/dev/shm")),
    }
    allowed = len(os.sched_getaffinity(0))
    if allowed < (os.cpu_count() or 1):
        options["num_cpus"] = allowed  # Ray sees the limits of containers, not those of taskset
    return options


def _store_bytes(shared_memory: Path) -> int:
    enough = shared_memory.is_dir() and shutil.disk_usage(shared_memory).free > _STORE_BYTES
    return _STORE_BYTES if enough else _LEAST_STORE_BYTES
