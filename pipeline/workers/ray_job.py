"""Jobs on a cluster through Ray's Jobs API: submitted once, followed over lost connections."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.workers.ray_start import import_ray

_SILENT_S = 45.0
"""Until a stream without a word is opened anew: a cut link does not say that it is cut. Stages
without a terminal print a line every 30 s."""

_TALKERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of every upload and every end of a stream."""

_TOKEN = (
    "the cluster does not take this token; put that of its head into ~/.ray/auth_token, "
    "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
)
_RETRY_S = (1.0, 2.0, 5.0)
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended."""

    status: int
    """Exit status of its command; 130 if it was stopped"""
    message: str
    """Ray's words, where the command had none"""


class JobClient:
    """Submits to and asks one cluster.

    Args:
        address: `http://host:8265` of the dashboard; None = RAY_API_SERVER_ADDRESS, else localhost.
        patience_s: how long an unreachable cluster is asked again.
        on_note: called with each note, e.g. that the connection was lost.

    Raises:
        RequestError: Ray's job client is missing, or nothing answers.
    """

    def __init__(
        self,
        address: str | None,
        *,
        patience_s: float = 3600.0,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        # With an address, whatever it is: a cluster's token is then left to Ray to find.
        import_ray()
        try:
            from ray.job_submission import JobSubmissionClient

            for name in _TALKERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client: Any = JobSubmissionClient(address)
        except Exception as error:  # Ray's own AuthenticationError has no common base
            raise RequestError(_unreachable(address, error)) from error
        self._patience_s, self._on_note = patience_s, on_note

    def submit(self, job: str, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Starts `command` on the head, in a copy of `folder`; a second call does nothing more.

        Raises:
            RequestError: the cluster refuses.
        """
        runtime = {"working_dir": str(folder), "env_vars": dict(environment)}
        try:
            self._client.submit_job(entrypoint=command, submission_id=job, runtime_env=runtime)
        except (RuntimeError, OSError) as error:
            # The answer may have been lost, and not the question.
            with suppress(RuntimeError, OSError):
                self._client.get_job_info(job)
                return
            raise RequestError(f"the cluster takes no job: {_line(error)}") from error

    def follow(self, job: str, write: Callable[[str], None]) -> JobEnd:
        """Hands the job's log to `write`, each character once, until the job has ended.

        Raises:
            RequestError: there is no such job, or the cluster was not reached for `patience_s`.
        """
        seen = _Seen(write)
        lost = _Lost(self._on_note)
        while True:
            try:
                asyncio.run(self._tail(job, seen, lost))
                info = self._client.get_job_info(job)
            except Exception as error:  # of aiohttp, requests, urllib3, and Ray's RuntimeError
                if _is_unknown(error):
                    raise RequestError(f"the cluster knows no job {job}") from error
                if _is_refused(error):
                    raise RequestError(_TOKEN) from error
                if lost.once_more(error) > self._patience_s:
                    raise RequestError(
                        f"the cluster was not reached for {self._patience_s:.0f} s; to go on: "
                        f"ltrp-pipeline submit --attach {job}"
                    ) from error
                continue
            lost.found()
            if info.status.is_terminal():
                return _end(info)

    async def _tail(self, job: str, seen: _Seen, lost: _Lost) -> None:
        """Reads the log from its start, which is what Ray sends, until it ends or is silent."""
        chunks = self._client.tail_job_logs(job)
        seen.begin()
        try:
            while True:
                text = await asyncio.wait_for(anext(chunks), _SILENT_S)
                lost.found()
                seen.take(text)
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            await chunks.aclose()


class _Lost:
    """Says once that the connection is lost, and once that it is back."""

    def __init__(self, on_note: Callable[[str], None]) -> None:
        self._on_note = on_note
        self._since = 0.0
        self._tries = 0

    def once_more(self, error: Exception) -> float:
        """Waits a little before the next try; returns for how many seconds it has been lost."""
        if not self._tries:
            self._since = time.monotonic()
            self._on_note(f"connection lost ({_line(error)}); the job goes on, trying again")
        time.sleep(_RETRY_S[min(self._tries, len(_RETRY_S) - 1)])
        self._tries += 1
        return time.monotonic() - self._since

    def found(self) -> None:
        """The cluster has answered."""
        if self._tries:
            self._on_note(f"connected again after {time.monotonic() - self._since:.0f} s")
        self._tries = 0


class _Seen:
    """What of the log was handed on: a stream that is opened again starts from its start."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = self._read = 0

    def begin(self) -> None:
        self._read = 0

    def take(self, text: str) -> None:
        new = text[max(0, self._written - self._read) :]
        self._read += len(text)
        if new:
            self._write(new)
            self._written += len(new)


def _end(info: Any) -> JobEnd:
    name = str(getattr(info.status, "value", info.status))
    message = " ".join(str(info.message or "").split())[:500]
    if name == "SUCCEEDED":
        return JobEnd(0, "")
    if name == "STOPPED":
        return JobEnd(_INTERRUPTED, "the job was stopped")
    code = getattr(info, "driver_exit_code", None)
    # The command has said what was wrong; without a status it was never run, or was killed.
    return JobEnd(code, "") if code is not None and code > 0 else JobEnd(1, message)


def _is_unknown(error: Exception) -> bool:
    return re.search(r"\b404\b", str(error)) is not None


def _is_refused(error: Exception) -> bool:
    return type(error).__name__ == "AuthenticationError"


def _unreachable(address: str | None, error: Exception) -> str:
    if isinstance(error, ImportError) or "ray[default]" in str(error):
        return "submit needs Ray's job client: python -m pip install 'ltrp-pipeline[cluster]'"
    if _is_refused(error):
        return _TOKEN
    where = address or "RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265"
    return (
        f"--address {where}: no Ray dashboard answers ({_line(error)}); it listens on the head's "
        "localhost: ssh -L 8265:localhost:8265 HEAD"
    )


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
