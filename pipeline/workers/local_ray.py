"""A Ray of this process alone: on loopback, with a token, in a folder that others cannot enter.

Ray's agent runs whatever it is sent, and its ports are open to every user of the machine. So each
run has a token of its own, all listeners are on loopback, and sockets, logs and token lie in a
folder of mode 0700: a socket's file has no other guard. Nothing is shared with another Ray of the
same machine, neither ports nor `/tmp/ray`.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

from packaging.version import Version

from ltrp_core.errors import RequestError

_PREFIX = "lray-"
_SHORT_PARENT = re.compile(r"/[A-Za-z0-9_./-]{0,20}")
"""Ray's sockets are about 70 characters below its folder, and a socket's path has at most 107."""

_PARENTS_OF_FOLDER = ("/tmp", "/var/tmp", "/dev/shm")
_OF_RAY = re.compile(rb"ray::|/ray/|(^|/)(raylet|gcs_server)\b")
"""In a command line: a process of Ray, and not someone who reads its log."""

_LEAST = Version("2.54")
"""Of 2.52 and 2.53 the agent's HTTP server takes jobs without the token, whatever the mode."""

_UNLOCKED_S = 60.0
"""How old a folder without a lock must be to belong to no start that goes on."""

_WHILE_IT_STARTS = {
    # By this name Ray has all of a node's listeners on loopback; an address is not taken.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Fixed ports else, which a second Ray of the machine would miss.
    "AUTOSCALER_METRIC_PORT": "0",
    "DASHBOARD_METRIC_PORT": "0",
}


@dataclass(frozen=True, slots=True)
class _Own:
    """What the Ray of this process has taken."""

    folder: Path
    lock: IO[bytes]
    environment: Mapping[str, str | None]
    """Values that were there before"""


_running: list[_Own] = []


def start_local(ray: Any, **options: Any) -> None:
    """Starts a Ray of this process alone; `options` are those of `ray.init`.

    Processes and folders that killed runs of the same user have left are ended and removed first.
    RAY_AUTH_TOKEN stays, if it is set; else the token is new.

    Raises:
        RequestError: this Ray is too old to ask all for a token, or is not on loopback alone.
        OSError, RuntimeError, ValueError: Ray does not start.
    """
    check_version(ray.__version__)
    parent = _parent()
    clear_away(parent)
    own = _take(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))
    _running.append(own)
    try:
        with _alone(ray):
            read_again(ray)
            # Not the folder itself: Ray gives its own to everyone (0777).
            ray.init(address="local", _temp_dir=str(own.folder / "r"), **options)
        _check(ray)
    except BaseException:
        stop_local(ray)
        raise


def stop_local(ray: Any) -> None:
    """Ends the Ray of this process, all its processes, and removes its folder."""
    try:
        ray.shutdown()
    finally:
        while _running:
            own = _running.pop()
            _end_processes(own.folder)
            shutil.rmtree(own.folder, ignore_errors=True)
            own.lock.close()
            _set(own.environment)


def check_version(version: str) -> None:
    """Raises RequestError if this Ray's agent runs jobs of those who have no token."""
    if Version(version) < _LEAST:
        raise RequestError(
            f"Ray {version} lets other users of this machine run code as you; install "
            f"ray>={_LEAST}, or pass --workers 0"
        )


def own_folder() -> Path | None:
    """Returns the private folder of the Ray that runs; None if it is not one of ours."""
    return _running[-1].folder if _running else None


def clear_away(parent: Path) -> None:
    """Ends processes and removes folders of one's own runs whose driver was killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
                continue
            if not (folder / "lock").exists():
                if time.time() - found.st_mtime > _UNLOCKED_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    """Returns where the folder is made: the user's choice, if sockets can be in it."""
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for parent in (chosen, *_PARENTS_OF_FOLDER):
        if _SHORT_PARENT.fullmatch(parent) and os.access(parent, os.W_OK | os.X_OK):
            return Path(parent)
    raise RequestError(
        f"Ray needs a folder with a short name to write to, not {chosen}: set RAY_TMPDIR to one, "
        "or pass --workers 0"
    )


def _take(folder: Path) -> _Own:
    """Locks the folder as long as this process lives, and sets the token."""
    lock = (folder / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    values: dict[str, str | None] = {"RAY_AUTH_MODE": "token"}
    if not os.environ.get("RAY_AUTH_TOKEN"):
        token = folder / "token"
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        values |= {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token)}
    return _Own(folder, lock, _set(values))


def _set(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Sets variables of the environment, None = none; returns what they were."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


def read_again(ray: Any) -> None:
    """Has Ray read the environment's mode and token; it keeps those that it has read once."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _alone(ray: Any) -> Iterator[None]:
    """What is set only while Ray starts; its processes inherit it."""
    parameter, constants = ray._private.parameter, ray._private.ray_constants

    class AnyPort(parameter.RayParams):  # type: ignore[misc, name-defined]
        # Of the agent: 52365 else, for the first of the machine alone. `ray.init` has no option.
        __init__ = functools.partialmethod(
            parameter.RayParams.__init__, dashboard_agent_listen_port=0
        )

    before = _set(_WHILE_IT_STARTS)
    try:
        with (
            mock.patch.object(parameter, "RayParams", AnyPort),
            mock.patch.object(constants, "ENABLE_RAY_CLUSTER", False),  # read at Ray's import
        ):
            yield
    finally:
        _set(before)


def _check(ray: Any) -> None:
    """Raises RequestError if others could use what runs now."""
    mode = ray._raylet.get_authentication_mode()
    has_token = mode == ray._raylet.AuthenticationMode.TOKEN
    address = ray.util.get_node_ip_address()
    if not has_token or address not in ("127.0.0.1", "::1"):
        why = f"listens on {address}" if has_token else "asks for no token"
        raise RequestError(
            f"Ray {ray.__version__} {why}, so that others could run code as you; "
            "install the version of constraints.txt, or pass --workers 0"
        )


def _end_processes(folder: Path) -> None:
    """Kills the Ray processes of this user that work in a folder."""
    inside = os.fsencode(folder) + b"/"
    for process in Path("/proc").glob("[0-9]*"):
        number = int(process.name)
        if number == os.getpid():
            continue
        with suppress(OSError):
            if process.stat().st_uid != os.getuid():
                continue
            line = (process / "cmdline").read_bytes()
            if _OF_RAY.search(line) and (inside in line or _has_open(process, inside)):
                os.kill(number, signal.SIGKILL)


def _has_open(process: Path, inside: bytes) -> bool:
    # The titles that Ray gives its processes leave nothing of their command lines.
    return any(_target(link).startswith(inside) for link in (process / "fd").iterdir())


def _target(link: Path) -> bytes:
    try:
        return os.fsencode(os.readlink(link))
    except OSError:
        return b""
