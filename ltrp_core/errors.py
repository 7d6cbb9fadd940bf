"""Errors that a user can act on: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
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


def first_line(error: Exception) -> str:
    """Returns what `error` says in one sentence, without torch's advice to trust the file."""
    text = str(error)
    found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    line = found[1] if found else (text.strip().splitlines() or [""])[0]
    sentence = line.split(". ")[0][:200]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
