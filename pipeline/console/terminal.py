"""Where text leaves for a terminal: no control character of a name acts there, no secret is shown.

Keys, member names and messages of servers are other people's data: written raw, an escape sequence
in one clears the screen or sets the title, and a line break forges a line of this program's own.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from typing import Any, TextIO

from pipeline.url_secrets import without_secrets

_plain_warning = warnings.formatwarning
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: str) -> str:
    """Returns `text` as one line: what is not printable (Unicode's Cc, Cf, Cs, ...) is escaped.

    >>> print(printable("a\\x1b[2Jb\\nc"))
    a\\x1b[2Jb\\nc
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Returns the lines of `text` as they may be shown: each printable, without secrets."""
    return "\n".join(map(printable, without_secrets(text).split("\n")))


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Prints `text`, which may have several lines; names in it are for `printable` before."""
    _write(sys.stderr if err else sys.stdout, shown(text) + ("\n" if nl else ""))


def relay(text: str, *, err: bool = False) -> None:
    """Prints what another process wrote, as it comes; its colors are left out."""
    say(_COLORS.sub("", text).replace("\r\n", "\n"), err=err, nl=False)


def say_traceback() -> None:
    """Prints the traceback of the exception that is being handled."""
    say(traceback.format_exc(), err=True, nl=False)


def guard_messages() -> None:
    """Makes warnings, and what libraries log without a handler, go the same way."""
    warnings.formatwarning = _format_warning
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


def _format_warning(*args: Any, **kwargs: Any) -> str:
    return shown(_plain_warning(*args, **kwargs))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
