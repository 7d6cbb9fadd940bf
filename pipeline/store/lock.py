"""One driver at a time writes to a folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store.errors import LockedError


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder` while the body runs.

    The kernel drops it when the holder dies, so a dead holder is taken over by trying again.

    Raises:
        LockedError: a live process holds it; the message names host and pid.
    """
    path = folder / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(
                f"{folder} is being written by another process ({file.read().strip()}); "
                "wait for it to end, or give another --out"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield
