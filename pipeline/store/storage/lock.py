"""One driver at a time writes to a cache."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltrp_core.errors import DamagedFileError
from ltrp_core.parsing import parse_json_object
from pipeline.store.errors import LockedError

if TYPE_CHECKING:
    from pipeline.store.storage.base import Storage

LOCK = ".lock"
LEASE_S = 60.0
"""In an object store: a holder that has not renewed its lock for so long is dead."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; the kernel drops it when the holder dies."""
    path = folder / LOCK
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _locked(str(folder), file.read().strip()) from error
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield


def folder_holder(folder: Path) -> str:
    """Returns who holds the lock of a folder, without taking it from anybody; empty: nobody."""
    try:
        with (folder / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "a process that has just begun"
    except OSError:
        pass
    return ""


def live_holder(storage: Storage) -> str:
    """Returns who has renewed the lock in an object store lately, as JSON; empty: nobody."""
    holder = lease_holder(storage)
    if is_expired(holder):
        return ""
    return json.dumps({name: holder.get(name) for name in ("host", "pid")})


class Lease:
    """A lock object that its holder renews; one that is not renewed is taken over."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.token = uuid.uuid4().hex

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock while the body runs."""
        self._acquire()
        ended = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            ended.set()
            renewal.join()
            if self._present().get("token") == self.token:
                self.storage.remove(LOCK)

    def _acquire(self) -> None:
        if self.storage.create(LOCK, self._content()):
            return
        present = self._present()
        if not _is_dead(present):
            raise _locked(self.storage.url, json.dumps(present))
        # Take over, and see after a moment whether somebody else did the same.
        self.storage.replace(LOCK, self._content())
        time.sleep(1.0)
        present = self._present()
        if present.get("token") != self.token:
            raise _locked(self.storage.url, json.dumps(present))

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(LEASE_S / 4):
            try:
                if self._present().get("token") == self.token:
                    self.storage.replace(LOCK, self._content())
            except OSError:
                continue  # the store is away for a while; units are safe without the lock

    def _content(self) -> bytes:
        return json.dumps({**_holder(), "token": self.token, "renewed": time.time()}).encode()

    def _present(self) -> dict[str, Any]:
        return lease_holder(self.storage)


def lease_holder(storage: Storage) -> dict[str, Any]:
    """Returns what the lock in an object store says; nothing if there is none, or it is damaged."""
    for content in storage.read_many([LOCK]).values():
        with suppress(DamagedFileError):
            return parse_json_object(content, LOCK)
    return {}


def is_expired(holder: dict[str, Any]) -> bool:
    """Whether a holder has not renewed its lock for so long that it is dead."""
    renewed = holder.get("renewed")
    return not isinstance(renewed, int | float) or time.time() - renewed > LEASE_S


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return is_expired(holder)


def _holder() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _locked(url: str, holder: str) -> LockedError:
    return LockedError(
        f"{url} is being written by another process ({holder}); "
        "wait for it to end, or give another --out"
    )
