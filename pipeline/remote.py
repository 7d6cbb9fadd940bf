"""Servers that do not answer as they should: what helps is tried again, the rest is one line."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from pipeline.url_secrets import without_secrets

T = TypeVar("T")

PACKAGES = frozenset(
    (
        "aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "http", "httpx",
        "huggingface_hub", "obstore", "requests", "s3fs", "urllib3",
    )
)  # fmt: skip
"""Packages that talk to servers; some of their errors are plain Exceptions."""
DELAYS_S = (0.5, 2.0)
"""Before the second try and before the third."""

_REFUSED_CODES = (
    "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired",
    "InvalidToken", "AccessDenied", "RequestTimeTooSkewed", "NoCredentials", "CredentialRetrieval",
    "PartialCredentials", "UnauthorizedSSO", "TokenRetrieval", "Unauthorized", "Forbidden",
    "Access Denied", "Anonymous caller", "Invalid Credentials",
)  # fmt: skip
_REFUSED_STATUS = frozenset({400, 401, 403})
"""S3 answers 400 without a reason where a HEAD request's token has expired."""
_WORTH_ANOTHER_TRY = frozenset({408, 429})
_OF_THIS_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE})
_CREDENTIALS = (
    "most likely the credentials are missing, wrong or expired: renew them (AWS_ACCESS_KEY_ID, "
    "AWS_SESSION_TOKEN, ... in the environment, ~/.aws/credentials, or a new signed address)"
)


class RemoteError(OSError):
    """A server did not do what was asked; the message is one line, without secrets."""

    is_lasting: bool = False
    """Whether the same request fails again: it was refused."""


def is_remote(error: BaseException) -> bool:
    """Returns whether an error is one of the packages that talk to servers."""
    return isinstance(error, RemoteError) or type(error).__module__.partition(".")[0] in PACKAGES


def remote_error(where: str, error: BaseException) -> RemoteError:
    """Returns the error that says in one line what a server did, and the likely cause.

    Args:
        where: what was asked for; its secrets are masked.
    """
    status = _status(error)
    texts = [f"{type(cause).__name__} {_code(cause)} {cause}" for cause in _causes(error)]
    refused = status in _REFUSED_STATUS or any(
        code in text for code in _REFUSED_CODES for text in texts
    )
    refused |= getattr(error, "errno", None) == errno.EINVAL and "Bad Request" in str(error)
    if status is not None:
        said = f"the server answered {status}"
        reason = next((str(c.message) for c in _causes(error) if hasattr(c, "message")), "")
        code = next((found for cause in _causes(error) if (found := _code(cause))), "")
        said += "".join(
            f" ({text})" for text in (code or reason,) if isinstance(text, str) and text
        )
    else:
        said = " ".join(str(error).split()) or type(error).__name__
    # Some libraries say the whole address again.
    line = f"{where}: {said}" + (f"; {_CREDENTIALS}" if refused else "")
    answer = RemoteError(without_secrets(line))
    answer.is_lasting = refused or (
        status is not None and status < 500 and status not in _WORTH_ANOTHER_TRY
    )
    return answer


def ask(where: str, request: Callable[[], T]) -> T:
    """Returns what `request` does; fails it because a server is in trouble, it is tried again.

    Raises:
        FileNotFoundError, FileExistsError: as `request`.
        RemoteError: it was refused, or failed three times.
    """
    for delay_s in (*DELAYS_S, None):
        try:
            return request()
        except Exception as error:
            failure = _failure(where, error)
            if failure.is_lasting or delay_s is None:
                raise failure from error
            time.sleep(delay_s)
    raise AssertionError("the last try returns or raises")


def explained(method: Callable[..., T]) -> Callable[..., T]:
    """Returns a method of a place, of a name, whose errors say in one line what the store did.

    It is not tried again: the packages of object stores do that.
    """

    @functools.wraps(method)
    def asked(place: Any, name: Any, *args: Any, **kwargs: Any) -> T:
        try:
            return method(place, name, *args, **kwargs)
        except Exception as error:
            where = f"{place.url}/{name}" if isinstance(name, str) and name else str(place.url)
            raise _failure(where, error) from error

    return asked


def _failure(where: str, error: Exception) -> RemoteError:
    """Returns what to raise for an error; raises it if it is no server's or says all."""
    if isinstance(error, RemoteError):
        raise error
    status = _status(error)
    if isinstance(error, FileNotFoundError) and (status is None or status in (404, 410)):
        raise error
    if isinstance(error, FileExistsError) or not (is_remote(error) or isinstance(error, OSError)):
        raise error
    if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
        raise error
    return remote_error(where, error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error, or what it was raised from, carries."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(cause, "status", None) or getattr(response, "status_code", None)
        if isinstance(found, int):
            return found
    return None


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


class RetriedFile:
    """A file of a server, read in order; a read that fails for the server's trouble is repeated."""

    def __init__(self, where: str, file: Any) -> None:
        self._where, self._file = where, file

    def read(self, size: int = -1) -> bytes:
        position = self._file.tell()

        def again() -> bytes:
            self._file.seek(position)
            data: bytes = self._file.read(size)
            return data

        return ask(self._where, again)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RetriedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_remote(url: str, block_bytes: int) -> BinaryIO:
    """Opens a file of a server for reading in order.

    Raises:
        FileNotFoundError: there is none.
        RemoteError: as `ask`; reading, too.
    """
    from fsspec.core import url_to_fs

    fs, name = url_to_fs(url)
    # Members are read in order, so the next block is asked for and nothing twice.
    file = ask(url, lambda: fs.open(name, "rb", block_size=block_bytes, cache_type="readahead"))
    return RetriedFile(url, file)  # type: ignore[return-value]
