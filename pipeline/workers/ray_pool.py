"""The pool on Ray: actors of one item each, on the machines there are, as they come and go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.workers.crew import Crew
from pipeline.workers.outcomes import DELAYS_S, MakeWork, Outcome, RunStoppedError
from pipeline.workers.ray_start import import_ray, is_cluster, machines, start_ray, stop_ray
from pipeline.workers.slots import Plan, WorkersRequest, capped_note, plan_workers
from pipeline.workers.tries import Tries

_LOOK_AGAIN_S = 3.0
"""Between looks at which machines there are."""

_WAIT_S = 0.5
"""Longest wait for Ray: then signals, time limits and machines are looked at."""

_SAY_AFTER_S = 30.0
"""Until a user is told that no worker was given a place."""


class RayPool:
    """Ray Core actors in a loop of our own: attempts are counted, poison is given up, all is said.

    Ray is at-least-once and an actor can die at any moment: exactly-once comes from the commit of
    a unit, not from here.

    Attributes:
        start_up_s: seconds from the start of the last map until its first actor had made its work,
            the start of Ray included if it was then.
        notes: what the user should know of the last map.
    """

    def __init__(
        self,
        request: WorkersRequest,
        *,
        address: str | None = None,
        item_timeout_s: float = 3600.0,
        after_start: Callable[[], None] = lambda: None,
        on_note: Callable[[str], None] = lambda text: None,
        delays_s: Sequence[float] = DELAYS_S,
    ) -> None:
        self.request, self.address, self.item_timeout_s = request, address, item_timeout_s
        self.after_start, self.on_note, self.delays_s = after_start, on_note, delays_s
        self.start_up_s = 0.0
        self.notes: list[str] = []
        self._ray = import_ray()
        self._is_started = self._started_here = self._gpu_only = False
        self._crews: list[Crew] = []

    def slots(self) -> Collection[str]:
        """Returns `cpu`, `cuda` or both, as the machines are now; starts Ray."""
        self._start()
        return {slot.device for slot, count in self._plan().at_most(sys.maxsize) if count}

    def map(
        self, make: MakeWork, items: Sequence[Any], *, gpu_only: bool = False
    ) -> Iterator[Outcome]:
        """Yields outcomes as they come. Ray starts with the first item: no work, no Ray.

        Raises:
            RequestError: the work cannot be made, there is no GPU where one was asked for, CPUs
                were asked for beside GPUs that alone can do the work, or Ray does not start.
            RunStoppedError: no worker can be prepared, or the Ray of this process has died.
        """
        self.start_up_s, self.notes = 0.0, []
        if not items:
            return
        self._gpu_only = gpu_only
        started = time.monotonic()
        self._start()
        crew = Crew(self._ray, make, item_timeout_s=self.item_timeout_s, delays_s=self.delays_s)
        self._crews.append(crew)
        try:
            yield from self._run(crew, Tries(items, self.delays_s), started)
        finally:
            crew.kill()
            self._crews.remove(crew)

    def close(self) -> None:
        """Ends all actors, and Ray if it was started here; a cluster goes on."""
        for crew in self._crews:
            crew.kill()
        if self._started_here:
            stop_ray()

    def _start(self) -> None:
        if self._is_started:
            return
        if not self._ray.is_initialized():
            self._started_here = True
            start_ray(self.address)
        self.after_start()
        self._is_started = True

    def _run(self, crew: Crew, tries: Tries, started: float) -> Iterator[Outcome]:
        plan = self._first_plan()
        looked = waiting_since = time.monotonic()
        while tries.num_open:
            now = time.monotonic()
            if now - looked > _LOOK_AGAIN_S:
                plan, looked = self._plan(), now
            crew.fit(plan, tries.num_open)
            for member in crew.idle:
                if (tried := tries.take(now)) is None:
                    break
                crew.send(member, tried)
            outcomes = self._step(crew, tries, now)
            if not self.start_up_s and crew.is_ready:
                self.start_up_s = time.monotonic() - started
            waiting_since = now if crew.is_placed else waiting_since
            self._say_waiting(plan, now - waiting_since)
            for outcome in outcomes:
                if outcome.stop:
                    crew.kill()
                yield outcome
                if outcome.stop:
                    return

    def _step(self, crew: Crew, tries: Tries, now: float) -> list[Outcome]:
        """Waits for attempts to end; returns the outcomes, a stop last."""
        wait_s = min(_WAIT_S, tries.due_in_s(now)) if crew.idle else _WAIT_S
        outcomes = []
        for ended in crew.wait(wait_s):
            if ended.failure is None:
                outcomes.append(tries.done(ended.tried, ended.result, ended.worker))
                continue
            outcome = tries.failed(ended.tried, ended.failure, ended.worker, time.monotonic())
            if outcome is not None:
                outcomes.append(outcome)
        return sorted(outcomes, key=lambda outcome: outcome.stop)

    def _plan(self) -> Plan:
        found = machines()
        if not found and self._started_here and not is_cluster(self.address):
            # On a cluster another may join; here Ray's own processes have been killed.
            raise RunStoppedError("Ray has died on this machine; run the same command again")
        return plan_workers(self.request, found, gpu_only=self._gpu_only)

    def _first_plan(self) -> Plan:
        plan = self._plan()
        if self._gpu_only and (self.request.cpu or not plan.gpu):
            raise RequestError(
                f"--workers {self.request.text}: --precision asks for what only GPUs compute, and "
                f"{'some workers would be on CPUs' if plan.gpu else 'Ray has no GPU here'}; pass "
                "--precision float32 with a new --out, or GPUs alone"
            )
        if self.request.gpu and not plan.gpu:
            raise RequestError(
                f"--workers {self.request.text}: Ray has no GPU here; pass cpu=N, a number or auto"
            )
        note = capped_note(self.request, plan)
        if note is not None and plan.total:
            self._say(note)
        return plan

    def _say_waiting(self, plan: Plan, waiting_s: float) -> None:
        if not plan.total and waiting_s > _LOOK_AGAIN_S:
            self._say("no machine with a free slot is left in the cluster; waited for one to join")
        elif waiting_s > _SAY_AFTER_S:
            self._say("other work held the slots of the cluster; waited for one")

    def _say(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.on_note(text)
