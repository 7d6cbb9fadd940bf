"""Shares on the command line: `1%` or `0.01`."""

from __future__ import annotations

from ltrp_core.errors import RequestError


def parse_share(option: str, text: str) -> float:
    """Returns a share from 0 to 1.

    Raises:
        RequestError: `text` is no share; names the option.
    """
    try:
        number = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise RequestError(f"{option} {text!r}: pass a share such as 1% or 0.01")
    return number
