"""Reads JSON that may be damaged: whatever is wrong with it is one error that names the file."""

from __future__ import annotations

import json
import re
from typing import Any

from ltrp_core.errors import DamagedFileError, RequestError

_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_LEAST, _MOST = -(2**63), 2**64 - 1


def parse_json(
    data: bytes | str, where: str, *, error: type[RequestError] = DamagedFileError, remedy: str = ""
) -> Any:
    """Returns what JSON text says.

    Args:
        where: the file, for the message.
        error: raised instead of DamagedFileError.
        remedy: what to do then.

    Raises:
        DamagedFileError: it is no JSON, nested too deeply, or holds a whole number of more than 64
            bits: arrays and databases have no room for one, and say so far from here.
    """
    plain = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    # Asked of every number only where there is a long one: annotations hold tens of millions.
    parse_int = _checked if _LONG_NUMBER.search(plain) else None
    try:
        return json.loads(data, parse_int=parse_int)
    except (ValueError, OverflowError, RecursionError) as failure:
        too_deep = isinstance(failure, RecursionError)
        reason = "nested too deeply" if too_deep else " ".join(str(failure).split())
        what = f"{where} is not JSON ({reason})"
        raise error(what + (f"; {remedy}" if remedy else "")) from failure


def parse_json_object(
    data: bytes | str, where: str, *, error: type[RequestError] = DamagedFileError, remedy: str = ""
) -> dict[str, Any]:
    """Returns what `parse_json` does, which must be an object.

    Raises:
        DamagedFileError: as `parse_json`, or it is something else than an object.
    """
    found = parse_json(data, where, error=error, remedy=remedy)
    if not isinstance(found, dict):
        what = f"{where} holds a JSON {type(found).__name__}, not an object"
        raise error(what + (f"; {remedy}" if remedy else ""))
    return found


def _checked(text: str) -> int:
    # Most of all not int(text): of a million digits it takes seconds, or is refused by Python.
    if len(text) > 20 or not _LEAST <= int(text) <= _MOST:
        raise ValueError(f"a whole number of {len(text.lstrip('-'))} digits")
    return int(text)
