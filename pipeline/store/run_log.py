"""log/*.jsonl: who did what when, and how fast. One file a driver, one JSON line an event.

Everything that differs between two runs of one thing is here and not in the receipts.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ltrp_core.errors import DamagedFileError
from ltrp_core.parsing import parse_json_object
from pipeline.store.storage import Storage
from pipeline.url_secrets import without_secrets

LOG = "log"
_SEND_EVERY_S = 20.0
_LINES_A_PART = 2000
"""An object cannot be appended to: it is written again, so it must stay small."""


class RunLog:
    """Writes the events of one driver; the storage's lock must be held.

    A log that cannot be written ends no run: events wait for the next try, and `problem` says why.

    Args:
        run_id: of the run; every event carries it, so that the logs of many can be searched as one.
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.storage, self.run_id = storage, run_id
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._name = f"{stamp}-{socket.gethostname()}-{os.getpid()}"
        self._part = 0
        self._lines: list[str] = []
        self._sent = time.monotonic()
        self.problem: str | None = None

    def write(self, event: str, **facts: Any) -> None:
        """Adds one event, of now unless `facts` say when."""
        line = {"event": event, "time": round(time.time(), 3), "run_id": self.run_id, **facts}
        self._lines.append(without_secrets(json.dumps(line)))
        due = time.monotonic() - self._sent > _SEND_EVERY_S or len(self._lines) >= _LINES_A_PART
        if due or self.storage.appends:
            self.flush()

    def flush(self) -> None:
        """Makes the events visible to others."""
        try:
            self._send()
            self.problem = None
        except OSError as error:
            self.problem = f"the log could not be written: {error.strerror or error}"
        self._sent = time.monotonic()

    def _send(self) -> None:
        text = "".join(f"{line}\n" for line in self._lines)
        self.storage.log(f"{LOG}/{self._name}", self._part, text)
        if self.storage.appends:
            self._lines = []
        elif len(self._lines) >= _LINES_A_PART:
            self._part, self._lines = self._part + 1, []


def read_log(storage: Storage) -> Iterator[dict[str, Any]]:
    """Yields all events of all drivers, oldest driver first.

    A torn last line is left out, and a damaged one: a log tells how a run went, not what it gave.
    """
    names = [f"{LOG}/{name}" for name in storage.names(LOG) if name.endswith(".jsonl")]
    for name in sorted(names):
        for line in storage.lines(name):
            with suppress(DamagedFileError):
                event = parse_json_object(line.decode("utf-8", "replace"), name)
                if _is_whole(event):
                    yield event


def _is_whole(event: Mapping[str, Any]) -> bool:
    """Whether an event has what its readers ask of it."""
    facts = _FACTS.get(str(event.get("event")), {})
    if "event" not in event or not all(isinstance(event.get(n), kind) for n, kind in facts.items()):
        return False
    seconds = event.get("seconds", {"total": 0.0})
    return (
        isinstance(seconds, dict)
        and "total" in seconds
        and all(isinstance(value, int | float) for value in seconds.values())
    )


_FACTS: Mapping[str, Mapping[str, Any]] = {
    "start": {"time": int | float, "shards": list},
    "done": {"time": int | float, "unit": str, "worker": str, "n_ok": int, "seconds": dict},
    "unchanged": {"unit": str, "stamp": str, "size": int},
    "failed": {"unit": str, "worker": str, "attempts": int, "reason": str},
}


def cpus_of_units(events: Iterable[Mapping[str, Any]], units: Collection[str]) -> dict[str, int]:
    """Returns how many units were made on each kind of CPU, by `unit_work.cpu_kind`.

    Those of GPUs, and of logs from before it was written down, are not counted.
    """
    newest = {event["unit"]: event.get("cpu") for event in events if event["event"] == "done"}
    kinds = Counter(str(cpu) for unit, cpu in newest.items() if cpu and unit in units)
    return dict(sorted(kinds.items()))


def note_on_cpus(cpus: Mapping[str, int]) -> str:
    """Returns what must be known of a cache that CPUs of several kinds have made; else nothing."""
    if len(cpus) < 2:
        return ""
    made = ", ".join(f"{kind}: {count} unit(s)" for kind, count in cpus.items())
    return f"made on CPUs of {len(cpus)} kinds ({made}): equal to the byte only among one kind"


def images_per_second(storage: Storage) -> float | None:
    """Returns the images that one worker did a second, over all units; None if the log is gone."""
    done = [event for event in read_log(storage) if event["event"] == "done"]
    seconds = sum(event["seconds"]["total"] for event in done)
    return round(sum(event["n_ok"] for event in done) / seconds, 2) if seconds else None
