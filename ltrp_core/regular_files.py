"""The one way to open a file that a user or data names: a pipe or a device would never end."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Mapping

_KINDS: Mapping[str, Callable[[int], bool]] = {
    "a named pipe": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
}


class NotRegularFileError(OSError):
    """A pipe, a device or a socket stands where a file should: it may never end."""


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Returns a file opened for reading bytes; links are followed.

    Raises:
        NotRegularFileError: it is a pipe, a device or a socket, by whatever link.
        IsADirectoryError: it is a folder.
        OSError: it is not there, not readable, or a link in a circle.
    """
    return open(path, "rb", opener=lambda *_: open_descriptor(path))


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Returns a descriptor to read a file with; raises as `open_regular`."""
    # Without O_NONBLOCK to open a pipe waits for a writer, and no signal ends that on a thread.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that nobody drives
            raise _not_regular("a socket or a device", path) from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise _not_regular(kind_of(mode), path)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def kind_of(mode: int) -> str:
    """Returns what a `st_mode` that is no regular file's stands for, in words."""
    return next((words for words, is_kind in _KINDS.items() if is_kind(mode)), "something else")


def _not_regular(kind: str, path: str | os.PathLike[str]) -> NotRegularFileError:
    text = f"{kind}, not a regular file"
    return NotRegularFileError(errno.EINVAL, text, os.fspath(path))
