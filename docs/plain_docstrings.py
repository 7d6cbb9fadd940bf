"""griffe extension: docstrings are text, and not Markdown; only their code spans are taken as such.

Without it `(B, 3, g*p, g*p)` loses its signs, and `{9, 19}[x]` becomes a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SPANS = re.compile(r"(`+)(?:.|\n)+?\1")
# Not the `*` that begins a line: that is the one of `*args:`.
_MARKUP = re.compile(r"^\s*\*+|[\[\]<*]", re.MULTILINE)


def escaped(text: str) -> str:
    """Returns the text with what Markdown would take as markup escaped, outside of code spans."""
    parts, end = [], 0
    for span in _SPANS.finditer(text):
        parts += [_MARKUP.sub(_escape, text[end : span.start()]), span[0]]
        end = span.end()
    return "".join([*parts, _MARKUP.sub(_escape, text[end:])])


def _escape(match: re.Match[str]) -> str:
    if match[0] in "[]*":
        return "\\" + match[0]
    return "&lt;" if match[0] == "<" else match[0]


class PlainDocstrings(griffe.Extension):
    """Escapes every docstring when it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
