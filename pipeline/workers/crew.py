"""The actors of one map: placed, prepared, given one item each, replaced when they die."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ltrp_core.errors import RequestError
from pipeline.workers.code_version import code_version
from pipeline.workers.outcomes import (
    ATTEMPTS,
    Failure,
    MakeWork,
    RunStoppedError,
    Slot,
    classify,
)
from pipeline.workers.slots import Plan
from pipeline.workers.tries import Try
from pipeline.workers.worker_process import WorkerProcess


@dataclass(eq=False, kw_only=True, slots=True)
class _Member:
    handle: Any
    slot: Slot
    state: Literal["placing", "preparing", "idle", "busy"] = "placing"
    since: float
    prepared: Any
    """The future of its preparation, asked for together with its place."""
    host: str = ""
    tried: Try | None = None

    @property
    def name(self) -> str:
        return f"{self.host}:{self.slot.device}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An attempt that ended: with a result, or with a failure."""

    tried: Try
    worker: str
    result: Any = None
    failure: Failure | None = None


class Crew:
    """Actors. `fit` starts what is missing, `send` gives an item, `wait` returns what ended."""

    def __init__(
        self, ray: Any, make: MakeWork, *, item_timeout_s: float, delays_s: Sequence[float]
    ) -> None:
        self._ray, self._make = ray, make
        self._item_timeout_s, self._delays_s = item_timeout_s, delays_s
        # A restart or a retry by Ray would be an attempt that nobody counts.
        self._class = ray.remote(max_restarts=0, max_task_retries=0)(WorkerProcess)
        self._members: list[_Member] = []
        self._by_future: dict[Any, _Member] = {}
        self._num_failed = 0
        self._last_failure = ""
        self._start_after = 0.0

    @property
    def idle(self) -> list[_Member]:
        """Those that can be sent an item."""
        return self._in_state("idle")

    @property
    def is_placed(self) -> bool:
        """Some actor runs somewhere."""
        return any(member.state != "placing" for member in self._members)

    @property
    def is_ready(self) -> bool:
        """Some actor has made its work."""
        return bool(self._in_state("idle", "busy"))

    def fit(self, plan: Plan, num_items: int) -> None:
        """Starts the actors that are missing, and gives up those that wait for a lost place.

        Raises:
            RunStoppedError: none can be prepared.
        """
        failing = self._num_failed >= ATTEMPTS and not self.is_ready
        if failing and not self._in_state("preparing"):
            raise RunStoppedError(
                f"no worker could be made ready, {self._num_failed} failed in a row; the last: "
                f"{self._last_failure}"
            )
        may_start = not failing and time.monotonic() >= self._start_after
        wanted = {slot.device: (slot, count) for slot, count in plan.at_most(num_items)}
        for slot, count in wanted.values():
            same = [member for member in self._members if member.slot.device == slot.device]
            for member in [m for m in same if m.state == "placing"]:
                if member.slot != slot or len(same) > count:
                    same.remove(member)
                    self._remove(member)
            for _ in range(count - len(same) if may_start else 0):
                self._start(slot)

    def send(self, member: _Member, tried: Try) -> None:
        """Gives an idle actor an item."""
        member.tried = tried
        self._await(member, "busy", member.handle.work.remote(tried.item))

    def wait(self, timeout_s: float) -> list[Ended]:
        """Returns the attempts that ended; waits up to `timeout_s` for the first.

        Raises:
            RequestError: an actor says that the work cannot be made, or runs other code.
        """
        if not self._by_future:
            time.sleep(timeout_s)
            return []
        ray = self._ray
        ready, rest = ray.wait(list(self._by_future), num_returns=1, timeout=timeout_s)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        ended = [self._ended(self._by_future.pop(future), self._value(future)) for future in ready]
        ended += [self._ended(member, self._too_late()) for member in self._late()]
        return [attempt for attempt in ended if attempt is not None]

    def kill(self) -> None:
        """Ends all actors, whatever they are at."""
        for member in list(self._members):
            self._remove(member)

    def _in_state(self, *states: str) -> list[_Member]:
        return [member for member in self._members if member.state in states]

    def _start(self, slot: Slot) -> None:
        gpus = 1 if slot.device == "cuda" else 0
        handle = self._class.options(num_cpus=slot.cpus, num_gpus=gpus).remote()
        placed = handle.place.remote()
        prepared = handle.prepare.remote(self._make, slot)
        member = _Member(handle=handle, slot=slot, since=time.monotonic(), prepared=prepared)
        self._members.append(member)
        self._by_future[placed] = member

    def _await(self, member: _Member, state: Literal["preparing", "busy"], future: Any) -> None:
        member.state, member.since = state, time.monotonic()
        self._by_future[future] = member

    def _ended(self, member: _Member, value: Any) -> Ended | None:
        """Takes the next step of an actor, given what the last one came to."""
        failure = value if isinstance(value, Failure) else None
        if member.tried is not None:
            tried, member.tried = member.tried, None
            if failure is not None and failure.ends_worker:
                self._remove(member)
            else:
                member.state = "idle"
            result = value if failure is None else None
            return Ended(tried=tried, worker=member.name, result=result, failure=failure)
        if failure is not None:
            self._remove(member)
            self._not_prepared(failure)
        elif member.state == "placing":
            member.host, theirs = value
            _check_version(member.host, theirs)
            self._await(member, "preparing", member.prepared)
        else:
            member.state = "idle"
            self._num_failed = 0
        return None

    def _not_prepared(self, failure: Failure) -> None:
        if failure.kind == "request":
            raise RequestError(failure.reason)
        if failure.kind == "stop":
            raise RunStoppedError(failure.reason)
        # A lost machine says nothing about the work; its successor may still be starting.
        self._num_failed += failure.kind != "machine"
        self._last_failure = failure.reason
        delay = self._delays_s[min(max(self._num_failed, 1), len(self._delays_s)) - 1]
        self._start_after = time.monotonic() + delay

    def _late(self) -> list[_Member]:
        before = time.monotonic() - self._item_timeout_s
        return [m for m in self._in_state("preparing", "busy") if m.since < before]

    def _too_late(self) -> Failure:
        return Failure(f"took longer than {self._item_timeout_s:g} s", "worker")

    def _value(self, future: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(future)
        except errors.TaskCancelledError:
            return Failure("worker was interrupted", "worker")
        except errors.RayTaskError as error:
            # Raised by Ray in the worker's name: it cannot unpickle the item or pickle the result.
            return classify(error.cause) if error.cause else Failure(_last_line(error), "item")
        except errors.RayError as error:
            return _death(error)

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        self._by_future = {f: m for f, m in self._by_future.items() if m is not member}
        with suppress(Exception):  # it is dead already, or Ray itself is
            self._ray.kill(member.handle)


def _check_version(host: str, theirs: str) -> None:
    """Raises RequestError: other code would make other numbers, or fail where none expects it."""
    if theirs != code_version():
        raise RequestError(
            f"ltrp-pipeline is {code_version()} here and {theirs} on {host}; install the same on "
            "all machines, or let `ltrp-pipeline submit` ship it"
        )


def _death(error: Exception) -> Failure:
    text = str(error)
    name = type(error).__name__
    if name == "OutOfMemoryError":
        return Failure(
            "worker was killed for memory; give workers fewer slots or a smaller --batch-size",
            "worker",
        )
    if "creation task" in text:
        return Failure(f"worker could not start: {_last_line(error)}", "worker")
    if name in ("ActorUnavailableError", "NodeDiedError") or "node has died" in text:
        return Failure("worker died: its machine cannot be reached any more", "machine")
    code = re.search(r"exit code (\d+)", text)
    how = f"its process ended with status {code[1]}" if code else "its process ended, by a crash "
    return Failure(f"worker died: {how}{'' if code else 'or killed by the system'}", "worker")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
