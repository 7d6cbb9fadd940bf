"""Tells a limit on the address space from a broken installation: imports fail by it first."""

from __future__ import annotations

import resource

_SIGNS = (
    "failed to map segment",
    "cannot allocate memory",
    "cannot apply additional memory protection",
    "unable to allocate",
    "can't start new thread",
    "cannot create thread",
    "resource temporarily unavailable",
)
"""What the loader, malloc and thread creation say, in lower case."""


def lack_of_address_space(error: BaseException) -> str | None:
    """Returns one line that names `ulimit -v` where it is set and is the likely cause."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or not _is_lack(error):
        return None
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{text}; most likely the limit on this process's address space is too low (ulimit -v is "
        f"{limit >> 10} kB; torch and Ray reserve far more than they use): ulimit -v unlimited, or "
        "a scheduler's limit on resident memory instead"
    )


def _is_lack(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        is_import = isinstance(cause, ImportError) and not isinstance(cause, ModuleNotFoundError)
        if is_import or isinstance(cause, MemoryError) or any(sign in text for sign in _SIGNS):
            return True
        cause = cause.__cause__
    return False
