"""A cluster whose machines come and go: a head without slots and raylets of one slot each."""

import os
import time

import pytest

from ltrp_core.errors import RequestError
from pipeline.workers import open_pool
from pipeline.workers.ray_start import import_ray, machines

pytestmark = [pytest.mark.ray, pytest.mark.faults]


class Slowly:
    """Returns the process that did it, after a while."""

    def __init__(self, slot):
        self.slot = slot

    def __call__(self, item):
        time.sleep(0.3)
        return os.getpid()


@pytest.fixture(scope="module")
def cluster():
    ray = import_ray()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_machine(cluster):
    return cluster.add_node(num_cpus=1, object_store_memory=80 << 20)


def test_machines_may_leave_and_join(cluster):
    first, _ = add_machine(cluster), add_machine(cluster)
    found, workers = {}, set()
    with open_pool("auto", delays_s=(0.1, 0.2)) as pool:
        for outcome in pool.map(Slowly, range(60)):
            found[outcome.item] = outcome
            if len(found) == 10:
                assert len({done.result for done in found.values()}) == 2
                cluster.remove_node(first, allow_graceful=False)
            if len(found) == 20:
                workers = {done.result for done in found.values()}
                add_machine(cluster)
    assert sorted(found) == list(range(60))
    assert {outcome.error for outcome in found.values()} == {None}
    assert 1 <= sum(outcome.attempts - 1 for outcome in found.values()) <= 2
    assert {outcome.result for outcome in found.values()} - workers
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    end = time.monotonic() + 30
    while machines() and time.monotonic() < end:
        time.sleep(0.1)


def test_without_any_machine_it_is_waited_for_one_and_said_once(cluster):
    said = []

    def on_note(text):
        said.append(text)
        add_machine(cluster)

    with open_pool("3", on_note=on_note) as pool:
        assert {outcome.error for outcome in pool.map(Slowly, range(3))} == {None}
        assert pool.notes == said
    assert said == ["no machine with a free slot is left in the cluster; waited for one to join"]


def test_a_gpu_that_is_not_there_is_refused(cluster):
    with open_pool("gpu=1") as pool, pytest.raises(RequestError, match="Ray has no GPU here"):
        list(pool.map(Slowly, [1]))
