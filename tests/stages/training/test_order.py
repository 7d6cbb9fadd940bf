"""Which records a step shows: a function of (seed, epoch), nothing twice before all was once."""

import itertools
from collections import Counter

import numpy as np
import pytest

from stages.training.order import BLOCK, WINDOW, RecordOrder

SIZES = [
    # samples, records of each, seen an epoch, batch
    (1, 1, 1, 256),
    (1, 7, 3, 2),
    (5, 4, 4, 3),
    (BLOCK - 1, 6, 1, 10),
    (BLOCK, 1, 1, BLOCK),
    (BLOCK + 1, 5, 2, 64),
    (1000, 12, 5, 333),
    (WINDOW * BLOCK + 3, 2, 1, 4096),
]
sizes = pytest.mark.parametrize(("samples", "records", "seen", "batch"), SIZES)


def order_of(samples, records, seen, batch, seed=0):
    return RecordOrder(samples, records, seen, batch, seed)


def epoch_of(order, epoch):
    """(record, sample) of a whole epoch, in order."""
    steps = [order.step(epoch, step) for step in range(order.steps_per_epoch)]
    return [
        pair
        for step in steps
        for pair in zip(step.sample.tolist(), step.record.tolist(), strict=True)
    ]


@sizes
def test_an_epoch_shows_every_image_as_often_as_asked(samples, records, seen, batch):
    order = order_of(samples, records, seen, batch)
    for epoch in range(3):
        shown = epoch_of(order, epoch)
        assert len(shown) == order.num_records == samples * seen
        assert set(Counter(sample for sample, _ in shown).values()) == {seen}
        assert {sample for sample, _ in shown} == set(range(samples))


@pytest.mark.parametrize("records", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 30])
def test_no_record_is_shown_again_before_all_were_shown(records):
    for seen in range(1, records + 1):
        order = order_of(20, records, seen, 7)
        counts = {sample: Counter() for sample in range(20)}
        for epoch in range(3 * records):
            shown = epoch_of(order, epoch)
            assert len(set(shown)) == len(shown)
            for sample, record in shown:
                counts[sample][record] += 1
            for of_sample in counts.values():
                times = [of_sample[record] for record in range(records)]
                assert max(times) - min(times) <= 1


@pytest.mark.parametrize(("records", "seen"), [(6, 1), (6, 2), (6, 6), (5, 2), (7, 3), (10, 4)])
def test_after_as_many_epochs_as_records_each_was_shown_equally_often(records, seen):
    order = order_of(50, records, seen, 16)
    counts = Counter(itertools.chain(*(epoch_of(order, epoch) for epoch in range(records))))
    assert len(counts) == 50 * records
    assert set(counts.values()) == {seen}


@sizes
def test_any_step_can_be_asked_for_first(samples, records, seen, batch):
    order = order_of(samples, records, seen, batch)
    places = [(epoch, step) for epoch in (0, 1, 5) for step in range(order.steps_per_epoch)]
    expected = {place: order.step(*place) for place in places}
    np.random.default_rng(0).shuffle(places)
    for place in places[:50]:
        for asked in (order, order_of(samples, records, seen, batch)):
            found = asked.step(*place)
            assert np.array_equal(found.sample, expected[place].sample)
            assert np.array_equal(found.record, expected[place].record)


@sizes
def test_all_steps_but_the_last_are_full(samples, records, seen, batch):
    order = order_of(samples, records, seen, batch)
    lengths = [len(order.step(0, step)) for step in range(order.steps_per_epoch)]
    assert set(lengths[:-1]) <= {batch}
    assert 1 <= lengths[-1] <= batch
    assert sum(lengths) == order.num_records


def test_the_batch_size_does_not_change_the_order():
    assert epoch_of(order_of(700, 3, 2, 1), 4) == epoch_of(order_of(700, 3, 2, 999), 4)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        [sample for sample, _ in epoch_of(order_of(700, 4, 1, 64, seed), epoch)]
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(map(tuple, orders))) == 9
    records = {seed: [r for _, r in sorted(epoch_of(order_of(700, 4, 1, 64, seed), 0))]
               for seed in range(3)}  # fmt: skip
    assert len(set(map(tuple, records.values()))) == 3


def test_images_show_their_records_in_orders_of_their_own_and_all_equally_often():
    order = order_of(2000, 10, 1, 500)
    epochs = [[record for _, record in sorted(epoch_of(order, epoch))] for epoch in range(10)]
    assert len(set(zip(*epochs, strict=True))) >= 35  # of 4 * 10 orders there are
    for shown in epochs:
        assert max(Counter(shown).values()) < 260  # 200 expected
        assert len(Counter(shown)) == 10


@pytest.mark.parametrize("samples", [2 * WINDOW * BLOCK, (WINDOW + 1) * BLOCK, 40_000])
def test_every_step_mixes_shards(samples):
    """Also the last ones of an epoch whose blocks do not fill the last window."""
    order = order_of(samples, 4, 1, 256)
    for step in range(order.steps_per_epoch):
        found = order.step(0, step)
        if len(found) == 256:
            assert len(set((found.sample // 1000).tolist())) >= 10
            assert np.bincount(found.sample // BLOCK).max() <= 40


def test_what_is_near_in_time_is_near_on_the_disk():
    order = order_of(10 * WINDOW * BLOCK, 1, 1, 256)
    blocks = {
        block for step in range(WINDOW) for block in (order.step(3, step).sample // BLOCK).tolist()
    }
    assert len(blocks) == WINDOW


def test_part_of_a_step_is_taken_like_a_list():
    picks = order_of(100, 3, 1, 50).step(0, 0)
    part = picks[1::3]
    assert len(part) == 17
    assert np.array_equal(part.sample, picks.sample[1::3])
    assert np.array_equal(part.record, picks.record[1::3])
