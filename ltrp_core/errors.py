"""Errors that a user can act on: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """What was asked for cannot be done; the message says why and what to do instead.

    The command line prints it in one line and exits with status 2.
    """


class DamagedFileError(RequestError):
    """A file does not read as what it should be; the message names it."""


class CheckpointError(RequestError):
    """A weights file is unreadable, unsafe, incomplete or of another model."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """Returns the error for a `name` that is none of the `known` ones, nearest matches first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return RequestError(f"unknown {kind} {name!r}; {hint}")
