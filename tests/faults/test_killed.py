"""Processes that die, at chosen points and at any time."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from command_line import run
from faults.conftest import COUNT
from faults.driver import (
    drive,
    events,
    fingerprint,
    finish,
    start,
    take_away,
    units,
    wait_for_units,
    write_shards,
)

from pipeline.faults import POINTS
from pipeline.store import open_cache
from pipeline.store.storage.lock import folder_lock
from pipeline.store.verify import problems

QUICK = ("after_attempt_write", "before_rename", "before_manifest")


def again(many, small_mae, cache):
    """Runs the same command to its end, in this process."""
    return run("score", "--shards", many, "--mae", small_mae, "--out", cache)[1]


@pytest.mark.parametrize(
    "point", [p if p in QUICK else pytest.param(p, marks=pytest.mark.faults) for p in POINTS]
)
def test_a_driver_that_dies_at_a_point_is_carried_on_by_the_next(
    point, many, small_mae, reference, tmp_path
):
    cache = tmp_path / "cache"
    nth = 1 if point == "before_manifest" else 3
    drive(many, small_mae, cache, fault={"point": point, "nth": nth}, expect=1)
    for unit in units(cache):
        assert unit in open_cache(cache).units
    assert "0 failed" in again(many, small_mae, cache)
    assert fingerprint(cache) == reference


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.parametrize("point", [point for point in POINTS if point != "before_manifest"])
def test_a_worker_that_dies_at_a_point_is_replaced(point, many, small_mae, reference, tmp_path):
    cache = tmp_path / "cache"
    fault = {"point": point, "unit": "part-03", "once": str(tmp_path / "once")}
    err = drive(many, small_mae, cache, "--workers", 2, fault=fault)
    assert "1 attempt(s) failed and were made again" in err
    assert fingerprint(cache) == reference
    (attempts,) = [e["attempts"] for e in events(cache) if e.get("shard") == "part-03.tar"]
    assert attempts == 2


@pytest.mark.faults
@pytest.mark.ray
def test_poison_gets_three_attempts_and_the_others_are_done(many, small_mae, reference, tmp_path):
    cache = tmp_path / "cache"
    fault = {"point": "mid_forward", "unit": "part-03"}
    err = drive(many, small_mae, cache, "--workers", 2, fault=fault, expect=1)
    assert f"{COUNT - 1} done, 0 already there, 1 failed" in err
    assert "failed part-03.tar" in err
    assert "3 attempts" in err
    assert f"1 done, {COUNT - 1} already there, 0 failed" in again(many, small_mae, cache)
    assert fingerprint(cache) == reference


class Reader(threading.Thread):
    """Opens and reads whatever units are visible, all the time."""

    def __init__(self, cache):
        super().__init__(daemon=True)
        self.cache, self.ended, self.pause = cache, threading.Event(), threading.Lock()
        self.read, self.torn = 0, []

    def run(self):
        while not self.ended.is_set():
            if not (self.cache / "run.json").exists():
                time.sleep(0.01)
                continue
            with self.pause:
                try:
                    cache = open_cache(self.cache)
                    for unit in cache.rows:  # deleted ones are not made anew yet
                        self.read += len(cache.read(unit)["score"]) == 4
                except Exception as error:
                    self.torn.append(error)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_killed_drivers_leave_the_cache_of_an_undisturbed_one(
    times, many, small_mae, reference, tmp_path
):
    cache, chance, killed = tmp_path / "cache", random.Random(times), 0
    reader = Reader(cache)
    reader.start()
    for _ in range(times):
        before = len(units(cache))
        process = start(many, small_mae, cache)
        wait_for_units(cache, before + 1, process)
        time.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if len(units(cache)) == COUNT:
            with reader.pause:
                take_away(cache, units(cache)[1:])
    again(many, small_mae, cache)
    reader.ended.set()
    reader.join()
    assert killed >= times // 2
    assert reader.torn == []
    assert reader.read > 0
    assert fingerprint(cache) == reference
    assert list(problems(open_cache(cache), deep=True)) == []


def worker_pids(parent):
    """Ray workers below a driver that run our actor."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            process = Path("/proc", entry)
            title = (process / "cmdline").read_text(errors="replace")
            environment = (process / "environ").read_text(errors="replace")
        except OSError:
            continue
        # Ray's own agents are named like workers; without them the whole node ends.
        is_worker = "ray::" in title and "IDLE" not in title and "Agent" not in title
        if is_worker and f"LTRP_TEST={parent}" in environment:
            found.append(int(entry))
    return found


@pytest.mark.faults
@pytest.mark.ray
def test_killed_workers_leave_the_cache_of_an_undisturbed_one(
    photographs, make_tar, small_mae, tmp_path
):
    shards = write_shards(tmp_path / "shards", photographs, make_tar, 60, images=12)
    drive(shards, small_mae, tmp_path / "whole", "--views", 4)
    cache, chance, killed = tmp_path / "cache", random.Random(0), 0
    mark = str(os.getpid())
    while killed < 20:
        process = start(shards, small_mae, cache, "--views", 4, "--workers", 2,
                        env={"LTRP_TEST": mark})  # fmt: skip
        wait_for_units(cache, len(units(cache)) + 1, process)
        while process.poll() is None and killed < 20:
            time.sleep(chance.uniform(0.05, 1.0))
            victims = worker_pids(mark)
            if victims:
                os.kill(chance.choice(victims), signal.SIGKILL)
                killed += 1
        finish(process, timeout=300)
        if killed < 20:
            take_away(cache, units(cache)[5:])
    run("score", "--shards", shards, "--mae", small_mae, "--out", cache, "--views", 4)
    assert fingerprint(cache) == fingerprint(tmp_path / "whole")


@pytest.mark.faults
@pytest.mark.ray
def test_a_rerun_beside_the_workers_of_a_killed_driver_harms_nothing(
    many, small_mae, reference, tmp_path
):
    cache = tmp_path / "cache"
    for _ in range(3):
        process = start(many, small_mae, cache, "--workers", 2, "--views", 1)
        wait_for_units(cache, 2, process)
        process.kill()
        process.communicate()
    again(many, small_mae, cache)
    time.sleep(5)
    assert fingerprint(cache) == reference
    assert list(problems(open_cache(cache), deep=True)) == []


def test_two_drivers_on_one_cache(many, small_mae, tmp_path):
    cache = tmp_path / "cache"
    run("score", "--shards", many / "part-00.tar", "--mae", small_mae, "--out", cache)
    with folder_lock(cache):
        _, err = run("score", "--shards", many, "--mae", small_mae, "--out", cache, expect=2)
    assert f'"pid": {os.getpid()}' in err
    again(many, small_mae, cache)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_driver_at_once(number, many, small_mae, reference, tmp_path):
    cache = tmp_path / "cache"
    process = start(many, small_mae, cache, fault={"point": "mid_forward", "nth": 4,
                                                   "action": "hang"})  # fmt: skip
    wait_for_units(cache, 3, process)
    time.sleep(0.5)
    process.send_signal(number)
    process.send_signal(number)
    finish(process, expect=130, timeout=10)
    again(many, small_mae, cache)
    assert fingerprint(cache) == reference
