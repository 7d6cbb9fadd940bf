"""`--workers`: its grammar, and how many workers of which size fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltrp_core.errors import RequestError
from pipeline.workers import Slot, open_pool
from pipeline.workers.slots import Machine, capped_note, parse_workers, plan_workers


def planned(text, *machines):
    """(slot, count) of the workers that there are, and the note."""
    request = parse_workers(text)
    plan = plan_workers(request, [Machine(cpus=cpus, gpus=gpus) for cpus, gpus in machines])
    shapes = [(slot, count) for slot, count in plan.at_most(plan.total) if count]
    return shapes, capped_note(request, plan)


def gpu(cpus):
    return Slot("cuda", cpus)


def cpu(cpus):
    return Slot("cpu", cpus)


@pytest.mark.parametrize(
    "text", ["many", "", "-1", "1.5", "gpu=x", "gpu=0", "tpu=1", "gpu=1,gpu=2"]
)
def test_other_words_are_refused_with_the_ones_there_are(text):
    with pytest.raises(RequestError, match=r"pass a number or auto, or .* gpu=2,cpu=8"):
        open_pool(text).__enter__()


@pytest.mark.parametrize(
    ("text", "machines", "shapes"),
    [
        ("auto", [(4, 0)], [(cpu(1), 4)]),
        ("auto", [(16, 2)], [(gpu(8), 2)]),
        ("auto", [(128, 1)], [(gpu(16), 1)]),
        ("auto", [(16, 2), (8, 2), (64, 0)], [(gpu(4), 4)]),
        ("auto", [(2, 8)], [(gpu(1), 2)]),
        ("auto", [], []),
        ("3", [(8, 0)], [(cpu(2), 3)]),
        ("1", [(8, 0), (4, 0)], [(cpu(4), 1)]),
        ("4", [(3, 0), (3, 0), (3, 0)], [(cpu(1), 4)]),
        ("2", [(32, 4)], [(gpu(8), 2)]),
        ("gpu=2,cpu=8", [(16, 2)], [(gpu(4), 2), (cpu(1), 8)]),
        ("gpu=1,cpu=2", [(16, 1), (8, 0)], [(gpu(16), 1), (cpu(4), 2)]),
        ("cpu=2", [(8, 1)], [(cpu(4), 2)]),
    ],
)
def test_workers_share_the_cpus_there_are(text, machines, shapes):
    assert planned(text, *machines) == (shapes, None)


@pytest.mark.parametrize(
    ("text", "machines", "shapes", "note"),
    [
        ("500", [(2, 0)], [(cpu(1), 2)], "2 worker(s), not 500: one per CPU slot"),
        ("4", [(8, 1)], [(gpu(8), 1)], "1 worker(s), not 4: one per GPU (gpu=1,cpu=2 adds"),
        ("gpu=4,cpu=9", [(8, 2)], [(gpu(1), 2), (cpu(1), 6)], "gpu=2,cpu=6, not gpu=4,cpu=9"),
    ],
)
def test_more_than_there_is_is_capped_and_said(text, machines, shapes, note):
    found, said = planned(text, *machines)
    assert found == shapes
    assert note in said


@pytest.mark.parametrize("text", ["auto", "2", "gpu=1", "gpu=1,cpu=2", "cpu=2"])
def test_work_for_gpus_alone_has_no_workers_on_cpus(text):
    request = parse_workers(text)
    for machines in ([], [Machine(cpus=8, gpus=0)], [Machine(cpus=8, gpus=1)]):
        plan = plan_workers(request, machines, gpu_only=True)
        assert plan.cpu == 0
        assert plan.gpu == (text != "cpu=2" and sum(machine.gpus for machine in machines))


@given(
    text=st.sampled_from(["auto", "1", "3", "7", "100", "gpu=2", "cpu=5", "gpu=3,cpu=4"]),
    machines=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)), max_size=5),
)
def test_a_plan_never_needs_more_than_there_is(text, machines):
    shapes, _ = planned(text, *machines)
    assert sum(slot.cpus * count for slot, count in shapes) <= sum(cpus for cpus, _ in machines)
    for slot, count in shapes:
        gpus = {"cuda": 1, "cpu": 0}[slot.device]
        room = sum(min(have // slot.cpus, lent if gpus else have) for have, lent in machines)
        assert count <= room
