"""Credentials in addresses are refused: addresses are written into logs, receipts and job lists."""

from __future__ import annotations

import re

from ltrp_core.errors import RequestError

_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/@\s]*:[^/@\s]*@")
_SIGNED = re.compile(
    r"([?&](?:X-Amz-Signature|X-Amz-Security-Token|X-Goog-Signature|Signature|sig"
    r"|access_token|token)=)[^&\s\"']*",
    re.IGNORECASE,
)


def check_url(where: str, url: str, *, may_be_signed: bool = False) -> None:
    """Raises RequestError if `url` holds a password or is signed; the message does not repeat it.

    Args:
        where: the option it was given to, for the message.
        may_be_signed: of a shard that is only read: its name goes without the query.
    """
    signed = not may_be_signed and _SIGNED.search(url)
    kind = "a password" if _USER.search(url) else "a signature" if signed else None
    if kind is None:
        return
    shown = _USER.sub(lambda found: f"{found['scheme']}***@", url).split("?")[0]
    raise RequestError(
        f"{where} {shown}: {kind} in an address would be written into logs; leave it out: "
        "credentials come from the environment (AWS_ACCESS_KEY_ID, ...) or the usual files "
        "(~/.aws/credentials)"
    )


def without_signatures(text: str) -> str:
    """Returns `text` with `***` for the signatures of the addresses in it."""
    return _SIGNED.sub(r"\1***", text)
