"""Ray on machines as they are found: a HOME that cannot be written, a long TMPDIR."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltrp_core.errors import RequestError
from pipeline.workers import open_pool, ray_start

pytestmark = pytest.mark.ray

PROGRAM = """
import os, signal, sys
from pipeline.workers import open_pool

class Echo:
    def __init__(self, slot):
        self.slot = slot
    def __call__(self, item):
        return item, self.slot.cpus, os.nice(0)

def on_sigterm(number, frame):
    sys.exit("ended by our handler")

with open_pool("1", after_start=lambda: signal.signal(signal.SIGTERM, on_sigterm)) as pool:
    (outcome,) = pool.map(Echo, [7])
    assert outcome.result == (7, len(os.sched_getaffinity(0)), os.nice(0)), outcome
    assert 0.5 < pool.start_up_s < 120
import ray
assert not ray.is_initialized()
with open_pool("1", after_start=lambda: signal.signal(signal.SIGTERM, on_sigterm)) as pool:
    for outcome in pool.map(Echo, range(10**6)):
        os.kill(os.getpid(), signal.SIGTERM)
"""

WITHOUT_RAYLET = """
import os, signal
from pathlib import Path
from pipeline.workers import RunStoppedError, open_pool

def raylets():
    for status in Path("/proc").glob("[0-9]*/stat"):
        name, fields = status.read_text().split("(", 1)[1].rsplit(")", 1)
        if name == "raylet" and int(fields.split()[1]) == os.getpid():
            yield int(status.parent.name)

with open_pool("1") as pool:
    try:
        for outcome in pool.map(lambda slot: abs, range(10**9)):
            if outcome.item == 0:
                (raylet,) = raylets()
                os.kill(raylet, signal.SIGKILL)
    except RunStoppedError as error:
        print(error)
"""


@pytest.mark.faults
def test_a_ray_of_our_own_that_dies_ends_the_run():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAYLET],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Ray has died on this machine; run the same command again\n" in done.stdout


def test_a_poor_environment_is_enough_and_sigterm_is_ours(tmp_path):
    folder = tmp_path / "a folder" / ("long" * 30)
    folder.mkdir(parents=True)
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"HOME": "/proc/nowhere", "TMPDIR": str(folder), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "ended by our handler\n")


def test_without_items_ray_is_not_started():
    with open_pool("2") as pool:
        assert list(pool.map(print, [])) == []
        assert not ray_start.import_ray().is_initialized()
        assert pool.start_up_s == 0.0


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(ray_start, "_ANSWER_S", 0.1)
    with (
        open_pool("2", ray_address="localhost:1") as pool,
        pytest.raises(RequestError, match=r"--ray-address localhost:1: no Ray cluster.*refused"),
    ):
        list(pool.map(print, [1]))
