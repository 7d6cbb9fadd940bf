"""Runs the same function on many ranks through Ray Train (TorchTrainer), torch.distributed up.

The function keeps its own checkpoints on the disk. When a rank is lost, Ray Train ends the others
and starts all again, and the function goes on from its checkpoint. An error that would come again
(wrong input, a full disk, a bug) ends the run instead.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.console.terminal import say
from pipeline.workers.code_version import code_version
from pipeline.workers.ddp.board import LEAVE_S, STANDS_STILL, Board, take_from
from pipeline.workers.ddp.process import Rank, RankRun, run_rank
from pipeline.workers.outcomes import RunStoppedError
from pipeline.workers.ray_start import import_ray, is_cluster, machines, start_ray, stop_ray
from pipeline.workers.slots import Plan, WorkersRequest, plan_workers

_POLL_S = 0.2
_LOOK_S = 0.5
"""Between Ray Train's looks at the ranks: how soon a lost one is seen, and the end."""

_STARTS = 10
"""How often ranks may fail to start, or find no place for a minute, in all."""

_SAY_AFTER_S = 60.0
"""Until a user is told that no rank runs."""

_GIVE_UP_S = 900.0
"""Until the run ends because no rank runs."""

_JOIN_S = 20.0
"""How long the machines of a cluster may take to be seen."""


def train_on_processes(
    work: Callable[[Rank], None],
    *,
    workers: int,
    ray_address: str | None,
    name: str,
    device: str = "auto",
    max_failures: int = 3,
    collective_timeout_s: float = 300.0,
    scratch: Path | None = None,
    after_start: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_report: Callable[[dict[str, Any]], None] = lambda message: None,
) -> None:
    """Runs `work` once on each of `workers` ranks, all at the same time; returns when all ended.

    What rank 0 prints is printed here. Processes start in the driver's folder where it exists.

    Args:
        work: picklable; called again from the start, on all ranks, after one was lost.
        ray_address: of a cluster; None = RAY_ADDRESS if that is set, else a Ray of this process.
        name: of the run, in Ray's logs and dashboard.
        device: `cpu`, `cuda` (a GPU per rank), or `auto`: `cuda` if Ray has any.
        max_failures: how often lost ranks are replaced.
        collective_timeout_s: how long ranks wait for one that stands still.
        scratch: where Ray Train's own files are kept while it runs; None = the system's choice.
        after_start: called once Ray runs: it puts in signal handlers of its own.
        on_note: called with each note when it is made, e.g. that a rank was lost.
        on_report: called with what `Rank.report` was given; an error of it is ignored.

    Raises:
        RequestError: Ray is missing or lends less; or `work` raised one, which comes out as it was.
        RunStoppedError: ranks were lost too often, or `work` failed in a way that would come again.
    """
    import_ray()
    environment = _environment(ray_address, collective_timeout_s)
    folder = Path(tempfile.mkdtemp(prefix="ltrp-ray-train-", dir=scratch))
    try:
        start_ray(ray_address)
        after_start()
        plan = _plan(workers, device, ray_address)
        board, fit = _on_this_machine(environment, max_failures)
        run = RankRun(
            work=work,
            board=board,
            plan=plan,
            name=name,
            scratch=folder,
            folder=os.getcwd(),
            max_failures=max_failures,
            timeout_s=max(1, round(collective_timeout_s)),
            version=code_version(),
            # NCCL was not tried with the other.
            meets_by_port=is_cluster(ray_address) or plan.gpu > 0,
        )
        _follow(fit.remote(run), board, max_failures, on_note, on_report)
    finally:
        stop_ray()
        shutil.rmtree(folder, ignore_errors=True)


def _on_this_machine(environment: dict[str, str], max_failures: int) -> tuple[Any, Any]:
    """Returns the board, and what fits: they end with the driver, not with a rank's machine."""
    here = import_ray().get_runtime_context().get_node_id()
    board = _at(here, Board, max_restarts=0, max_pending_calls=1000).remote(max_failures)
    return board, _at(here, _fit, max_retries=0, runtime_env={"env_vars": environment})


def _environment(address: str | None, collective_timeout_s: float) -> dict[str, str]:
    """Returns what Ray Train reads, for all processes of the run."""
    values = {
        "RAY_TRAIN_V2_ENABLED": "1",  # the first version was given up after Ray 2.44
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_LOOK_S),
        # A rank that stands still outside of collectives is seen by this.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(max(collective_timeout_s, 10.0)),
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": str(int(LEAVE_S)),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths are those of the command
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    if not is_cluster(address) and "lo" in (name for _, name in socket.if_nameindex()):
        # gloo would take the interface of the host's name, which others may reach.
        values["GLOO_SOCKET_IFNAME"] = "lo"
        values["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # of machines that are taken back
    return {name: os.environ.get(name, value) for name, value in values.items()}


def _at(node_id: str, function: Any, **options: Any) -> Any:
    """Makes an actor or a task of one machine, which takes no slot."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return remote(num_cpus=0, scheduling_strategy=there, **options)(function)


def _plan(workers: int, device: str, address: str | None) -> Plan:
    """Returns the slots of the ranks: of one kind, with an even share of the CPUs each.

    Raises:
        RequestError: the cluster lends less than `workers` want.
    """
    end = time.monotonic() + (_JOIN_S if is_cluster(address) else 0.0)
    while True:
        found = machines()
        cpus = sum(machine.cpus for machine in found)
        gpus = sum(machine.gpus for machine in found)
        use_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
        gpu, cpu = (workers, 0) if use_gpu else (0, workers)
        request = WorkersRequest(text=f"gpu={gpu},cpu={cpu}", gpu=gpu, cpu=cpu)
        plan = plan_workers(request, found)
        if plan.total == workers:
            return plan
        if time.monotonic() > end:
            what = "GPU" if use_gpu else "CPU"
            hint = ", --device cpu" if use_gpu and workers <= cpus else ""
            raise RequestError(
                f"--workers {workers} takes a {what} each, and Ray has {cpus} CPU(s) and {gpus} "
                f"GPU(s) on {len(found)} machine(s); pass fewer workers{hint}, or --ray-address "
                "of a larger cluster"
            )
        time.sleep(1.0)


def _fit(run: RankRun) -> str | None:
    """Runs Ray Train; returns its error.

    In a process of its own: in the driver's it would take over Ctrl-C, and from a thread that
    waits for it Ray cannot be shut down.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.workers.ddp.store import FileTorchConfig

    limits: dict[str, Any] = {"max_failures": run.max_failures}
    if "controller_failure_limit" in {known.name for known in fields(FailureConfig)}:
        limits["controller_failure_limit"] = _STARTS  # else it would try for ever
    backend = "nccl" if run.use_gpu else "gloo"
    trainer = TorchTrainer(
        run_rank,
        train_loop_config={"run": run},
        torch_config=(
            TorchConfig(backend=backend, timeout_s=run.timeout_s)
            if run.meets_by_port
            else FileTorchConfig(backend=backend, timeout_s=run.timeout_s, folder=str(run.scratch))
        ),
        scaling_config=ScalingConfig(
            num_workers=run.plan.total,
            use_gpu=run.use_gpu,
            resources_per_worker={"CPU": run.cpus, **({"GPU": 1} if run.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.scratch),
            failure_config=FailureConfig(**limits),
            callbacks=[_watch_for(run.board)],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray's own classes differ from version to version
        return f"{type(error).__name__}: {str(error).strip()[-2000:]}"
    return None


def _watch_for(board: Any) -> Any:
    """Returns a callback for Ray Train's controller that tells the board which ranks were lost."""
    from ray.train.v2.api.callback import UserCallback

    class Watch(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: Mapping[int, Exception]
        ) -> None:
            lost = {rank: _loss(error) for rank, error in worker_exceptions.items()}
            with suppress(Exception):
                board.lost.remote(lost)

    return Watch()


def _loss(error: Exception) -> str:
    """Returns in a few words why Ray Train gave up a rank; empty if it says that itself."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "WorkerHealthCheckTimeoutError" in kinds:
        return STANDS_STILL
    if kinds.isdisjoint(("WorkerHealthCheckFailedError", "RayActorError")):
        return ""
    text = f"{error} {getattr(error, 'health_check_failure', '')}"
    if "node has died" in text or "NodeDiedError" in text:
        return "its machine cannot be reached any more"
    if "running low on memory" in text:
        return "was killed for memory"
    return "its process ended, by a crash or killed by the system"


def _follow(
    ended: Any,
    board: Any,
    max_failures: int,
    on_note: Callable[[str], None],
    on_report: Callable[[dict[str, Any]], None],
) -> None:
    """Hands on what the ranks say until they end.

    Raises:
        RequestError: what a rank raised.
        RunStoppedError: see train_on_processes.
    """
    import ray

    waiting = _Waiting(on_note)
    over: list[Any] = []
    while not over:
        over, _ = ray.wait([ended], timeout=_POLL_S)
        said = take_from(board)
        for kind, value in said.messages:
            if kind == "note":
                on_note(value)
                continue
            with suppress(Exception):  # a bar that cannot be drawn is none of the run's business
                _show(kind, value, on_report)
        if said.fatal is not None:
            raise pickle.loads(said.fatal)
        for node_id, processes in said.leaving.items():
            _at(node_id, _see_off, max_retries=0).remote(processes)
        waiting.look(said.num_running)
    error = _error_of(ended)
    if error is not None:
        raise _stopped(error, said.losses, max_failures)


def _show(kind: str, value: Any, on_report: Callable[[dict[str, Any]], None]) -> None:
    if kind == "report":
        on_report(value)
    else:
        say(value, err=kind == "stderr")


class _Waiting:
    """Says that no rank runs, and gives up at last."""

    def __init__(self, on_note: Callable[[str], None]) -> None:
        self._on_note = on_note
        self._since = time.monotonic()
        self._said = False

    def look(self, num_running: int | None) -> None:
        """Takes how many ranks run; None: it is not known.

        Raises:
            RunStoppedError: it has been none for too long.
        """
        if num_running != 0:
            self._since = time.monotonic()
        waited_s = time.monotonic() - self._since
        why = "a machine is missing, other work holds the slots, or ranks do not start"
        if waited_s > _GIVE_UP_S:
            raise RunStoppedError(f"no rank ran for {waited_s:.0f} s: {why}")
        if waited_s > _SAY_AFTER_S and not self._said:
            self._said = True
            self._on_note(f"no rank runs: {why}; waiting")


def _see_off(processes: dict[int, float]) -> None:
    """Kills the processes of lost ranks after as many seconds.

    Runs on their machine. Ray only asks them to end, and one that stands still cannot hear.
    """
    started = time.monotonic()
    for process, after_s in sorted(processes.items(), key=lambda item: item[1]):
        time.sleep(max(0.0, after_s - (time.monotonic() - started)))
        with suppress(OSError):
            if b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)


def _error_of(ended: Any) -> str | None:
    import ray

    try:
        error: str | None = ray.get(ended)
    except ray.exceptions.RayError as lost:
        reason = (str(lost).strip() or type(lost).__name__).splitlines()[0]
        return f"{reason} Run the same command again"
    return error


def _stopped(error: str, losses: list[str], max_failures: int) -> RunStoppedError:
    if len(losses) > max_failures:
        return RunStoppedError(
            f"ranks were lost more than {max_failures} time(s), the last: {losses[-1]}; "
            "run the same command again to go on from the last checkpoint"
        )
    return RunStoppedError(f"Ray Train gave up: {error}")
