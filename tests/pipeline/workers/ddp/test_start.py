"""Processes through Ray Train: that they train together, and every way to lose one of them."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ltrp_core.errors import CheckpointError, RequestError
from pipeline.workers import RunStoppedError
from pipeline.workers.ddp.start import train_on_processes
from pipeline.workers.ray_start import import_ray

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]
STEPS = 6


def summed(number):
    """Returns the sum of what the ranks have; waits for all of them."""
    import torch

    value = torch.tensor([float(number)])
    torch.distributed.all_reduce(value)
    return value.item()


def open_to_others():
    """Returns the addresses, but loopback's, at which this process listens (Linux's hex)."""
    held = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            held.add(os.readlink(f"/proc/self/fd/{fd}"))
    lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    rows = [line.split() for line in lines.splitlines() if ": " in line]
    found = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held]
    return [at for at in found if not at.partition(":")[0].endswith(("0100007F", "01000000"))]


def tell_all(rank):
    import torch

    facts = {
        "ranks": (rank.rank, rank.local_rank, rank.world_size, rank.attempt),
        "where": (rank.node, rank.device, os.getcwd(), os.nice(0), torch.get_num_threads()),
        "sum": summed(rank.rank + 1),
        "open": open_to_others(),
    }
    rank.report(facts)
    rank.report({"cannot be sent": threading.Lock()})
    print(f"printed by rank {rank.rank}")
    print("an end without a line", end="", file=sys.stderr)


def steps(folder, deed, rank):
    """Counts to STEPS, from the step in a file; rank 1 does a deed in the middle, once."""
    saved = folder / "step"
    rank.report({"pid": os.getpid(), "rank": rank.rank, "attempt": rank.attempt})
    for step in range(int(saved.read_text()) if saved.exists() else 0, STEPS):
        total = summed(step)
        if rank.rank == 0:
            saved.write_text(str(step + 1))
            with (folder / "sums").open("a") as file:
                file.write(f"{rank.attempt} {step} {total}\n")
        if step == 3 and rank.attempt == 0 and rank.rank == 1:
            (folder / "when").write_text(str(time.time()))
            deed()
    if rank.rank == 0:
        (folder / "attempt").write_text(f"{rank.attempt} {time.time()}")


def send(number):
    os.kill(os.getpid(), number)


def refuse():
    raise CheckpointError("weights.pt is cut")


def fail():
    return {}["a bug"]


def train(work, **options):
    """Returns what came out of a run: (reports, notes)."""
    reports, notes = [], []
    options = {"workers": 2, "ray_address": None, "name": "test-1234", "device": "cpu"} | options
    train_on_processes(work, on_report=reports.append, on_note=notes.append, **options)
    return reports, notes


def assert_gone(pids):
    """Processes end soon after they were killed."""
    end = time.monotonic() + 10
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def recovered(folder, found):
    """Checks that all steps were done, the last of them in the second attempt."""
    reports, notes = found
    assert (folder / "attempt").read_text().startswith("1 ")
    lines = [line.split() for line in (folder / "sums").read_text().splitlines()]
    assert [(int(step), float(total)) for _, step, total in lines] == [
        (step, 2.0 * step) for step in range(STEPS)
    ]
    assert {line[0] for line in lines} == {"0", "1"}
    assert len(notes) == 1
    assert_gone([facts["pid"] for facts in reports])
    return notes[0]


def seconds_to_recover(folder):
    return float((folder / "attempt").read_text().split()[1]) - float((folder / "when").read_text())


def test_ranks_work_together_and_report_to_the_driver(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports, notes = train(tell_all, scratch=tmp_path)
    assert sorted(facts["ranks"] for facts in reports) == [(0, 0, 2, 0), (1, 1, 2, 0)]
    assert {facts["sum"] for facts in reports} == {3.0}
    assert [facts["open"] for facts in reports] == [[], []]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    here = (os.uname().nodename, "cpu", str(tmp_path), os.nice(0), share)
    assert {facts["where"] for facts in reports} == {here}
    assert notes == []
    assert list(tmp_path.iterdir()) == []
    out, err = capsys.readouterr()
    assert "printed by rank 0\n" in out
    assert "printed by rank 1" not in out
    assert "an end without a line\n" in err


def test_a_request_error_of_a_rank_comes_out_as_it_was_and_is_not_tried_again(tmp_path):
    pids = []
    with pytest.raises(CheckpointError, match=r"^weights\.pt is cut$"):
        train_on_processes(
            functools.partial(steps, tmp_path, refuse),
            workers=2,
            ray_address=None,
            name="test",
            device="cpu",
            on_report=lambda facts: pids.append(facts["pid"]),
        )
    assert len(pids) == 2
    assert not (tmp_path / "attempt").exists()
    assert_gone(pids)


def test_more_ranks_than_slots_are_refused_and_said():
    with pytest.raises(RequestError, match=r"--workers 500 takes a CPU each, and Ray has \d+ CPU"):
        train(tell_all, workers=500)


def test_a_cluster_that_is_not_there_is_refused():
    with pytest.raises(RequestError, match="--ray-address nowhere: no Ray cluster there"):
        train(tell_all, ray_address="nowhere")


@pytest.mark.faults
def test_a_killed_rank_costs_an_attempt_and_its_neighbors_do_not_hang(tmp_path):
    found = train(functools.partial(steps, tmp_path, functools.partial(send, signal.SIGKILL)))
    note = recovered(tmp_path, found)
    assert "lost rank 1 on " in note
    assert "its process ended, by a crash or killed by the system" in note
    assert seconds_to_recover(tmp_path) < 60  # the limit of a collective is 300


@pytest.mark.faults
def test_a_rank_that_stands_still_is_replaced_after_the_limit(tmp_path):
    work = functools.partial(steps, tmp_path, functools.partial(send, signal.SIGSTOP))
    note = recovered(tmp_path, train(work, collective_timeout_s=5.0))
    assert "lost rank 1 on " in note
    assert "stands still" in note
    assert seconds_to_recover(tmp_path) < 90


@pytest.mark.faults
def test_ranks_that_are_lost_too_often_end_the_run(tmp_path):
    work = functools.partial(steps, tmp_path, functools.partial(send, signal.SIGKILL))
    with pytest.raises(RunStoppedError, match=r"lost more than 0 time\(s\), the last: rank 1 on"):
        train(work, max_failures=0)


@pytest.mark.faults
def test_a_bug_comes_out_with_its_traceback_and_is_not_tried_again(tmp_path):
    with pytest.raises(RunStoppedError, match="KeyError: 'a bug'") as caught:
        train(functools.partial(steps, tmp_path, fail))
    assert "in fail\n" in str(caught.value)
    assert not (tmp_path / "attempt").exists()


WAITING = """
import os, sys, time
from pathlib import Path
from pipeline.console.signals import interrupt_on_signals
from pipeline.workers.ddp.start import train_on_processes

folder = Path(sys.argv[1])

def work(rank):
    (folder / f"rank{rank.rank}").write_text(str(os.getpid()))
    if rank.rank == 1:
        import torch
        torch.distributed.all_reduce(torch.ones(1))
    time.sleep(600)

try:
    train_on_processes(
        work, workers=2, ray_address=None, name="test", device="cpu", scratch=folder,
        after_start=interrupt_on_signals,
    )
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupt_ends_all_processes(number, tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    ranks = [tmp_path / "rank0", tmp_path / "rank1"]
    end = time.monotonic() + 120
    while not all(rank.exists() and rank.read_text() for rank in ranks):
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1.0)  # rank 1 is in its collective
    started = time.monotonic()
    driver.send_signal(number)
    status = driver.wait(60)
    assert time.monotonic() - started < 10
    assert_gone([int(rank.read_text()) for rank in ranks])
    if number != signal.SIGKILL:
        assert status == 130
        assert sorted(tmp_path.iterdir()) == ranks


def wait_and_sum(folder, rank):
    """Sums until a file says that it is enough."""
    rank.report({"attempt": rank.attempt})
    while not summed((folder / "enough").exists()):
        time.sleep(0.05)


@pytest.mark.faults
def test_a_lost_machine_is_replaced_by_another(tmp_path, monkeypatch):
    ray = import_ray()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    machine = {"include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **machine})
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    notes = []

    def change(facts):
        if facts["attempt"] == 1:
            (tmp_path / "enough").touch()
        elif cluster.worker_nodes and second in cluster.worker_nodes:
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    try:
        train_on_processes(
            functools.partial(wait_and_sum, tmp_path),
            workers=2,
            ray_address=cluster.address,
            name="test",
            device="cpu",
            collective_timeout_s=60.0,
            on_report=change,
            on_note=notes.append,
        )
        assert "lost rank" in notes[0]
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
