"""MkDocs hook: on the site, links that leave docs/ become the names of the files they lead to.

On GitHub such links (`../benchmarks/RESULTS.md`) work as they are; the site has only the files of
docs/. A link to a file that does not exist is left alone, so that the strict build names it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Returns the page's text with its links to files outside the site as plain text."""
    docs = Path(config["docs_dir"])
    return without_outer_links(markdown, Path(page.file.src_uri), docs)


def without_outer_links(markdown: str, page: Path, docs: Path) -> str:
    """Replaces links of `page`, relative to `docs`, that lead to folders or out of `docs`."""

    def name(match: re.Match[str]) -> str:
        target = match["target"].partition("#")[0]
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(docs.name, page.parent.as_posix(), target))
        file = docs.parent / path
        is_inside = path.startswith(f"{docs.name}/") and not file.is_dir()
        if is_inside or not file.exists():
            return match[0]
        text = match["text"]
        return f"`{path}`" if text.strip("`").rstrip("/") in path else f"{text} (`{path}`)"

    return _LINK.sub(name, markdown)
