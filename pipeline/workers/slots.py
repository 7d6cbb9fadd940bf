"""`--workers`: what it asks for, and what of it the machines can give."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ltrp_core.errors import RequestError
from pipeline.workers.outcomes import Slot

_MOST_CPUS_A_GPU = 16
"""Threads that decode and prepare for one GPU; more of them only wait."""

_PART = re.compile(r"\s*(gpu|cpu)=([0-9]+)\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersRequest:
    """A parsed `--workers`; all None is `auto`."""

    text: str
    total: int | None = None
    gpu: int | None = None
    cpu: int | None = None

    @property
    def in_process(self) -> bool:
        """No Ray."""
        return self.total == 0


def parse_workers(text: str) -> WorkersRequest:
    """Reads `0`, `auto`, `N` or `gpu=2,cpu=8` (either part).

    Raises:
        RequestError: it is none of them.
    """
    if text == "auto":
        return WorkersRequest(text=text)
    if text.isascii() and text.isdigit():
        return WorkersRequest(text=text, total=int(text))
    parts = [_PART.fullmatch(part) for part in text.split(",")]
    counts = {part[1]: int(part[2]) for part in parts if part is not None}
    if len(counts) < len(parts) or not any(counts.values()):
        raise RequestError(
            f"--workers {text!r}: pass a number or auto, or how many of each kind: gpu=2,cpu=8"
        )
    return WorkersRequest(text=text, gpu=counts.get("gpu", 0), cpu=counts.get("cpu", 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What one living machine of the cluster lends."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How many workers of each kind, and how many CPUs each of them holds."""

    gpu: int = 0
    cpu: int = 0
    gpu_cpus: int = 1
    cpu_cpus: int = 1

    @property
    def total(self) -> int:
        """Workers of both kinds."""
        return self.gpu + self.cpu

    def at_most(self, count: int) -> Iterator[tuple[Slot, int]]:
        """Yields (slot, how many), GPUs first, `count` in all."""
        gpu = min(self.gpu, count)
        yield Slot("cuda", self.gpu_cpus), gpu
        yield Slot("cpu", self.cpu_cpus), min(self.cpu, count - gpu)


def plan_workers(
    request: WorkersRequest, machines: Sequence[Machine], *, gpu_only: bool = False
) -> Plan:
    """Returns what can be had now of what was asked; never more, for that would wait for ever.

    Where there are GPUs, `auto` and `N` mean workers on GPUs: a CPU takes so much longer that it
    would hold up the end of the run.

    Args:
        gpu_only: whether the work cannot be done on a CPU.
    """
    gpus, cpus = _gpu_slots(machines, 1), sum(machine.cpus for machine in machines)
    if request.gpu is not None and request.cpu is not None:
        gpu = min(request.gpu, gpus)
        cpu = min(request.cpu, cpus - gpu)
    else:
        most = cpus if request.total is None else request.total
        gpu = min(gpus, most)
        cpu = 0 if gpus else min(cpus, most)
    if gpu_only:
        cpu = 0
    gpu_cpus = _cpus_a_gpu(machines, gpu, cpu)
    left = _without_gpu_workers(machines, gpu, gpu_cpus)
    cpu_cpus = 1 if request.text == "auto" else _cpus_a_worker(left, cpu)
    return Plan(gpu=gpu, cpu=cpu, gpu_cpus=gpu_cpus, cpu_cpus=cpu_cpus)


def capped_note(request: WorkersRequest, plan: Plan) -> str | None:
    """Returns a sentence if there are fewer workers than asked."""
    if request.total is not None and plan.total < request.total:
        why = "one per GPU (gpu=1,cpu=2 adds some on CPUs)" if plan.gpu else "one per CPU slot"
        return f"{plan.total} worker(s), not {request.total}: {why}"
    if (request.gpu or 0) > plan.gpu or (request.cpu or 0) > plan.cpu:
        return f"--workers gpu={plan.gpu},cpu={plan.cpu}, not {request.text}: no more slots"
    return None


def _gpu_slots(machines: Sequence[Machine], cpus: int) -> int:
    """Workers of one GPU and `cpus` CPUs each that fit."""
    return sum(min(machine.gpus, machine.cpus // cpus) for machine in machines)


def _cpus_a_gpu(machines: Sequence[Machine], gpu: int, cpu: int) -> int:
    """An even part of the machine's CPUs, on the machine that has fewest; CPU workers get theirs"""
    parts = [machine.cpus // machine.gpus for machine in machines if machine.gpus and machine.cpus]
    total = sum(machine.cpus for machine in machines)
    cpus = max(min([_MOST_CPUS_A_GPU, *parts]), 1)
    while cpus > 1 and (_gpu_slots(machines, cpus) < gpu or total - gpu * cpus < cpu):
        cpus -= 1
    return cpus


def _without_gpu_workers(machines: Sequence[Machine], gpu: int, cpus: int) -> list[int]:
    """Returns the CPUs left on each machine; GPU workers fill one machine after the other."""
    left = []
    for machine in machines:
        here = min(gpu, machine.gpus, machine.cpus // cpus)
        gpu -= here
        left.append(machine.cpus - here * cpus)
    return [count for count in left if count]


def _cpus_a_worker(left: Sequence[int], workers: int) -> int:
    """The CPUs that fewer workers than CPUs share, as long as each machine has room for one."""
    if not left or not workers:
        return 1
    cpus = max(min(sum(left) // workers, *left), 1)
    while cpus > 1 and sum(count // cpus for count in left) < workers:
        cpus -= 1
    return cpus
