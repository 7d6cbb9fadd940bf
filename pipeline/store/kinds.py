"""What a folder holds, and the check that it is what an option takes.

Most outputs of the stages are folders, and a wrong one often has a file of the right name in it.
"""

from __future__ import annotations

import json
from pathlib import Path

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import read_regular
from pipeline.runs.spec import STAGES
from pipeline.store.cache import Cache, open_cache
from pipeline.store.storage import is_url

CACHES = ("score", "select")
"""Commands whose output is a cache. Commands are called as they are typed: `evaluate patches`."""
UNIT_FOLDERS = (*CACHES, "reduce")
"""Those whose output is units with receipts, of arrays or of samples."""


def kind_of(path: str | Path) -> str | None:
    """Returns the command that made a local folder; None if that is not known."""
    folder = Path(path)
    try:
        document = json.loads(read_regular(folder / "run.json"))
        return str(document["identity"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        made = (spec for spec in STAGES if spec.output and (folder / spec.output).is_file())
        found = next((" ".join(spec.typed) for spec in made), None)
        return found or ("pack" if next(folder.glob("*.tar"), None) is not None else None)
    except (OSError, ValueError):
        return None


def open_cache_of(option: str, path: str | Path, *wanted: str) -> Cache:
    """Returns the cache that an option names.

    Args:
        option: as the user typed it, for messages.
        wanted: commands of which one must have made it.

    Raises:
        RequestError: it was made by another, or there is none; the message says what is there, what
            is wanted, and what makes that.
    """
    if not is_url(path):
        check_kind(option, path, *wanted, known_only=True)
    cache = open_cache(path)
    stage = str(cache.identity.get("stage"))
    if stage not in wanted:
        raise _wrong(option, path, stage, wanted)
    return cache


def check_kind(option: str, path: str | Path, *wanted: str, known_only: bool = False) -> None:
    """Checks a local folder as `open_cache_of` does.

    Args:
        known_only: accepts a folder that no command is known to have made, and a file.

    Raises:
        RequestError: another command made it.
    """
    found = kind_of(path)
    if found in wanted or (found is None and known_only):
        return
    raise _wrong(option, path, found, wanted)


def _wrong(
    option: str, path: str | Path, found: str | None, wanted: tuple[str, ...]
) -> RequestError:
    if found is not None:
        given = f"is the output of `{found}`"
    elif is_url(path) or Path(path).is_dir():
        given = "is a folder that no stage has made"
    else:
        given = "is a file" if Path(path).is_file() else "is not there"
    makers = " or ".join(f"`ltrp-pipeline {kind}`" for kind in wanted)
    return RequestError(f"{option} {path} {given}; it takes the --out folder of {makers}")
