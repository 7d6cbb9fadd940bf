"""Credentials in addresses: refused where they would be written down, masked where text is shown.

What an address holds is in messages of other people's libraries too, so the mask works on any text.
"""

from __future__ import annotations

import re

from ltrp_core.errors import RequestError

_CONTAINERS = frozenset({"abfs", "abfss", "az", "wasb", "wasbs"})
"""Azure's addresses have the container's name where others have the user's."""
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/?#\s\"'<>]*)@")
_HARMLESS = (
    # Which object or which part of it, and in what form.
    "alt|delimiter|download|encoding-type|expand|filename|format|generation|inline|limit|list-type"
    "|marker|max-keys|offset|page|part|partNumber|path|prefix|recursive|ref|response-[a-z-]+"
    "|revision|rev|start-after|uploads|v|version|versionId|versions|x-id"
    # What a shared access signature allows, which is no secret without `sig`.
    "|sv|sr|sp|se|st|spr|ss|srt|skt|ske|sks|skv"
)
_VALUE = r"[^&#\s\"'<>\\)]+"
_QUERY = re.compile(rf"([?&](?!(?:{_HARMLESS})=)[^=&#\s\"'<>?]+=){_VALUE}", re.IGNORECASE)
_SECRET_NAMES = (
    r"X-Amz-[A-Za-z-]+|X-Goog-[A-Za-z-]+|Signature|AWSAccessKeyId|sig|(?:access_|id_|auth_)?token"
    r"|api[_-]?key|key|auth|password|passwd|pwd|secret|client_secret|code"
)
_SIGNED = re.compile(rf"[?&](?:{_SECRET_NAMES})=", re.IGNORECASE)
_HEADERS = re.compile(
    r"(\b(?:Authorization|X-Amz-Security-Token|X-Amz-Signature)['\"]?\s*[:=]\s*['\"]?"
    r"(?:(?:Bearer|Basic)\s+)?)[^\s,'\"]+",
    re.IGNORECASE,
)
"""Request headers, as errors of HTTP libraries print them."""


def check_url(where: str, url: str, *, may_be_signed: bool = False) -> None:
    """Raises RequestError if `url` holds credentials or is signed; the message does not repeat it.

    Args:
        where: the option it was given to, for the message.
        may_be_signed: of a shard that is only read: its name goes without the query.
    """
    found = _USER.search(url)
    signed = not may_be_signed and _SIGNED.search(url)
    kind = "a password" if found and _is_secret(found) else "a signature" if signed else None
    if kind is None:
        return
    raise RequestError(
        f"{where} {without_secrets(url).split('?')[0]}: {kind} in an address would be written into "
        "logs; leave it out: credentials come from the environment (AWS_ACCESS_KEY_ID, ...) or the "
        "usual files (~/.aws/credentials)"
    )


def without_secrets(text: str) -> str:
    """Returns `text` with `***` for the credentials of the addresses in it.

    Of a query every value goes whose name is not known to be harmless; of `user:password@host` and
    `token@host` what stands before the `@`; of a header that authorizes, its value.
    """
    text = _USER.sub(lambda f: f"{f['scheme']}://***@" if _is_secret(f) else f[0], text)
    return _HEADERS.sub(r"\1***", _QUERY.sub(r"\1***", text))


def _is_secret(found: re.Match[str]) -> bool:
    return bool(found["user"]) and (
        ":" in found["user"] or found["scheme"].lower() not in _CONTAINERS
    )
