"""Batches: the same step whatever the ranks, the parts and the processes that made it."""

import pickle

import numpy as np
import pytest
import torch
from scored_caches import scored, staged, truth, write_tars

from pipeline.store.errors import DamagedUnitError
from stages.training.ddp import Processes
from stages.training.loading import Loader
from stages.training.order import RecordOrder
from stages.training.ranking_batches import RankingSteps
from stages.training.target_lists import HELD_OUT, TargetLists

SAMPLES = np.array([0, 1, 3, 4, 6, 7, 8, 10, 11])
"""Of the twelve photographs; the others stand for those that are held out."""


@pytest.fixture(scope="module")
def cache(photographs, small_mae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    shards = write_tars(folder / "tars", photographs)
    return scored(folder / "cache", shards, small_mae, pixels=True), shards


@pytest.fixture(scope="module")
def records(cache, tmp_path_factory):
    return staged(*cache, tmp_path_factory.mktemp("batches") / "staged")


def steps_of(records, *, batch=4, seen=2, seed=0, ranks=None, accumulate=1, whole=False):
    order = RecordOrder(len(SAMPLES), 6, seen, batch, seed)
    return RankingSteps(
        TargetLists(records), SAMPLES, order, ranks or Processes(), accumulate, whole
    )


def joined(batch):
    """All parts of a step as three tensors."""
    return [torch.cat(values) for values in zip(*(part[:3] for part in batch.parts), strict=True)]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("whole", [False, True])
def test_every_record_of_a_step_is_one_of_the_cache_its_list_shuffled(cache, records, whole):
    steps = steps_of(records, whole=whole)
    expected = truth(cache[0])
    in_order = 0
    for step in range(steps.order.steps_per_epoch):
        picks = steps.order.step(1, step)
        batch = steps[1, step]
        assert batch.count == len(picks)
        patches, visible, score = joined(batch)
        assert (patches.dtype, visible.dtype, score.dtype) == (
            torch.uint8, torch.int64, torch.float32)  # fmt: skip
        for place, (sample, record) in enumerate(
            zip(picks.sample.tolist(), picks.record.tolist(), strict=True)
        ):
            of_cache = expected[records.keys[SAMPLES[sample]], record]
            order = visible[place].argsort()
            in_order += torch.equal(order, torch.arange(len(order)))
            assert np.array_equal(visible[place][order], of_cache[0])
            assert np.array_equal(score[place][order], of_cache[1])
            seen = patches[place][visible[place]] if whole else patches[place]
            assert np.array_equal(seen[order], of_cache[2])
    assert in_order < steps.order.num_records / 2  # of three patches: a sixth is expected


@pytest.mark.parametrize("size", [2, 3, 5, 9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_ranks_together_compute_the_step_of_one(records, size, accumulate):
    alone = steps_of(records)
    together = [
        steps_of(records, ranks=Processes(rank, size), accumulate=accumulate)
        for rank in range(size)
    ]
    for step in range(alone.order.steps_per_epoch):
        expected = joined(alone[0, step])
        counting = []
        for rank, steps in enumerate(together):
            assert steps.order.steps_per_epoch == alone.order.steps_per_epoch
            batch = steps[0, step]
            assert batch.count == len(expected[0])
            assert len(batch.parts) >= 1
            counts = {not part.is_padding for part in batch.parts}
            assert counts == {rank < batch.count}
            if counts == {True}:
                counting.append((slice(rank, None, size), joined(batch)))
            else:
                # Enough for a forward and a backward pass.
                assert len(batch.parts[0].patches) == 1
        lengths = [len(values[0]) for _, values in counting]
        assert max(lengths) - min(lengths) <= 1
        again = [torch.zeros_like(values) for values in expected]
        for places, values in counting:
            for target, part in zip(again, values, strict=True):
                target[places] = part
        assert_equal(again, expected)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 50])
def test_the_parts_of_a_step_join_to_the_step(records, accumulate):
    whole, parts = steps_of(records), steps_of(records, accumulate=accumulate)
    for step in range(whole.order.steps_per_epoch):
        batch = parts[2, step]
        assert len(batch.parts) <= accumulate
        assert all(len(part.patches) for part in batch.parts)
        assert_equal(joined(batch), joined(whole[2, step]))


def test_a_step_is_the_same_whenever_and_by_whomever_it_is_made(records):
    first = steps_of(records)
    places = [(epoch, step) for epoch in range(3) for step in range(first.order.steps_per_epoch)]
    expected = {place: joined(first[place]) for place in places}
    for place in reversed(places):
        assert_equal(joined(pickle.loads(pickle.dumps(steps_of(records)))[place]), expected[place])


def test_equal_scores_stand_in_another_order_each_time_they_are_seen(records):
    steps = steps_of(records, seen=1, batch=9)
    orders = set()
    for epoch in range(0, 36, 6):  # the same record of each image every sixth epoch
        picks = steps.order.step(epoch, 0)
        place = int(np.flatnonzero(picks.sample == 0)[0])
        orders.add(tuple(joined(steps[epoch, 0])[1][place].tolist()))
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert len(orders) >= 3


@pytest.mark.parametrize("processes", [0, 2])
def test_processes_that_read_ahead_change_nothing(records, processes):
    steps = steps_of(records)
    per_epoch = steps.order.steps_per_epoch
    loader = Loader(steps, 3, processes=processes, pin=False)
    for epoch in range(3):
        made = list(loader(epoch, 0))
        assert len(made) == per_epoch
        for step, batch in enumerate(made):
            assert batch.count == len(steps.order.step(epoch, step))
            assert_equal(joined(batch), joined(steps[epoch, step]))


def test_a_loader_starts_at_any_step_and_goes_on(records):
    steps = steps_of(records)
    per_epoch = steps.order.steps_per_epoch
    loader = Loader(steps, 4, processes=0, pin=False)
    for epoch, first in ((1, 3), (2, 0), (0, 2), (0, 2), (3, per_epoch - 1)):
        made = list(loader(epoch, first))
        assert len(made) == per_epoch - first
        for step, batch in enumerate(made, first):
            assert_equal(joined(batch), joined(steps[epoch, step]))


def test_a_loader_draws_no_random_number_of_the_process(records):
    before = torch.random.get_rng_state()
    list(Loader(steps_of(records), 1, processes=0, pin=False)(0, 0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("processes", [0, 1])
def test_damage_that_a_process_meets_arrives_as_one_line(
    photographs, small_mae, processes, tmp_path
):
    shards = write_tars(tmp_path / "tars", photographs)
    cache = scored(tmp_path / "c", shards, small_mae, pixels=True)
    steps = steps_of(staged(cache, [], tmp_path / "s"))
    path = tmp_path / "c" / "units" / cache.units[1] / "records.zarr/pixels/c/0"
    path.rename(tmp_path / "away")
    with pytest.raises(DamagedUnitError) as raised:
        list(Loader(steps, 1, processes=processes, pin=False)(0, 0))
    assert "\n" not in str(raised.value)
    assert cache.units[1] in str(raised.value)


def test_what_is_sent_to_a_process_is_small(records):
    steps = steps_of(records)
    steps[0, 0]
    assert len(pickle.dumps(steps)) < 3000


def test_a_batch_for_validation_is_in_the_order_of_the_cache(cache, records):
    picks = steps_of(records).order.step(0, 0)
    batch = TargetLists(records).batch(picks, HELD_OUT, whole=False)
    expected = truth(cache[0])
    for place, (row, record) in enumerate(
        zip(picks.sample.tolist(), picks.record.tolist(), strict=True)
    ):
        of_cache = expected[records.keys[row], record]
        assert np.array_equal(batch.visible[place], of_cache[0])
        assert np.array_equal(batch.score[place], of_cache[1])
        assert np.array_equal(batch.patches[place], of_cache[2])
