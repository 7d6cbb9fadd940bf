"""What a ranker is taught from masked patches: maps, parts of them, and mixes with priors."""

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from scored_caches import scored, staged, write_tars

from ltrp_core.errors import RequestError
from stages.train_ranker import TrainRankerConfig, target_lists
from stages.training.ddp import Processes
from stages.training.order import Picks, RecordOrder
from stages.training.ranking_batches import RankingSteps
from stages.training.target_lists import TargetLists

PARTITIONS = 5
FIRST = Picks(np.array([0, 3, 7]), np.array([0, 1, 0]))


@pytest.fixture(scope="module")
def records(photographs, small_mae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    shards = write_tars(folder / "tars", photographs)
    cache = scored(folder / "cache", shards, small_mae, metric="surprise", pixels=True,
                   partitions=PARTITIONS, score_dtype="float32")  # fmt: skip
    return staged(cache, shards, folder / "staged")


@pytest.fixture(scope="module")
def visible_records(photographs, small_mae, tmp_path_factory):
    """The paper's records: only the pixels of visible patches are there."""
    folder = tmp_path_factory.mktemp("visible")
    shards = write_tars(folder / "tars", photographs)
    return staged(scored(folder / "cache", shards, small_mae, pixels=True), [], folder / "staged")


def slow_map(records, sample, view):
    """The mean over the partitions that masked a patch, one patch after the other."""
    values = [[] for _ in range(36)]
    for partition in range(PARTITIONS):
        patches, score = records.lists(
            np.array([sample]), np.array([view * PARTITIONS + partition])
        )
        for patch, value in zip(patches[0].tolist(), score[0].tolist(), strict=True):
            values[patch].append(value)
    return np.array([np.mean(one) for one in values])


def slow_border(pixels, grid=6, size=8):
    """Distance of each patch's mean color to the nearest edge patch's, from uint8 (L, 3p²)."""
    colors = pixels.reshape(grid * grid, size * size, 3).astype(np.float64).mean(axis=1) / 255
    edge = [i for i in range(grid * grid)
            if 0 in divmod(i, grid) or grid - 1 in divmod(i, grid)]  # fmt: skip
    return np.array([min(np.linalg.norm(colors[i] - colors[j]) for j in edge)
                     for i in range(grid * grid)])  # fmt: skip


def test_a_list_is_distinct_patches_with_their_mean_scores_and_pixels(records):
    batch = TargetLists(records, "map", 10).batch(FIRST, 0, whole=False)
    assert batch.visible.shape == batch.score.shape == (3, 10)
    for row, (sample, view) in enumerate(zip(FIRST.sample, FIRST.record, strict=True)):
        patches = batch.visible[row].numpy()
        assert len(set(patches.tolist())) == 10
        expected = slow_map(records, int(sample), int(view))[patches]
        np.testing.assert_allclose(batch.score[row], expected, rtol=1e-6)
        whole = records.whole_views(np.array([sample]), np.array([view]))[0]
        assert np.array_equal(batch.patches[row], whole[patches])


def test_a_list_of_one_partition_has_its_scores(records):
    lists = TargetLists(records, "partition", 10)
    picks = Picks(np.array([2, 5]), np.array([3, PARTITIONS + 1]))
    batch = lists.batch(picks, 0, whole=False)
    patches, score = records.lists(picks.sample, picks.record)
    for row in range(2):
        known = dict(zip(patches[row].tolist(), score[row].tolist(), strict=True))
        found = zip(batch.visible[row].tolist(), batch.score[row].tolist(), strict=True)
        assert all(known[patch] == value for patch, value in found)


def test_lists_are_drawn_anew_in_every_epoch_and_are_functions_of_their_place(records):
    lists = TargetLists(records, "map", 10)
    first = lists.batch(FIRST, 0, whole=False)
    assert not torch.equal(first.visible, lists.batch(FIRST, 1, whole=False).visible)
    again = pickle.loads(pickle.dumps(lists)).batch(FIRST, 0, whole=False)
    assert all(torch.equal(*pair) for pair in zip(first[:3], again[:3], strict=True))
    # Neither what else is in the batch nor where the sample stands in it changes its list.
    alone = lists.batch(FIRST[1:2], 0, whole=False)
    assert torch.equal(alone.visible[0], first.visible[1])
    other_seed = TargetLists(records, "map", 10, seed=1).batch(FIRST, 0, whole=False)
    assert not torch.equal(first.visible, other_seed.visible)


def test_views_and_images_have_lists_of_their_own(records):
    picks = Picks(np.array([0, 0, 1]), np.array([0, 1, 0]))
    visible = TargetLists(records, "map", 10).batch(picks, 0, whole=False).visible
    assert len({tuple(row.tolist()) for row in visible}) == 3


@pytest.mark.parametrize(
    "weights", [{"surprise": 1.0, "border": 1.0}, {"surprise": 0.5, "center": 2.0}]
)
def test_a_mix_is_the_sum_of_ranks_within_the_view(records, weights):
    samples, views = np.array([0, 4]), np.array([1, 0])
    found = TargetLists(records, "map", 10, weights).maps(samples, views)
    for row, (sample, view) in enumerate(zip(samples, views, strict=True)):
        pixels = records.whole_views(samples[row : row + 1], views[row : row + 1])[0]
        middle = np.array([-np.hypot(i // 6 - 2.5, i % 6 - 2.5) for i in range(36)])
        known = {"surprise": slow_map(records, int(sample), int(view)),
                 "border": slow_border(pixels).round(6), "center": middle.round(9)}  # fmt: skip
        expected = sum(
            weight * (rankdata(known[name]) - 1) / 35 for name, weight in weights.items()
        )
        np.testing.assert_allclose(found[row], expected, atol=2 / 35 + 1e-6)
        assert np.abs(found[row] - expected).mean() < 1e-3


def test_whole_views_come_with_a_ranker_that_wants_them(records):
    batch = TargetLists(records, "map", 10).batch(FIRST, 0, whole=True)
    assert batch.patches.shape == (3, 36, 192)
    assert batch.visible.shape == (3, 10)


def test_shorter_lists_of_the_papers_records_are_parts_of_them(visible_records):
    whole = TargetLists(visible_records).batch(FIRST, 0, whole=False)
    some = TargetLists(visible_records, "partition", 2).batch(FIRST, 0, whole=False)
    for row in range(3):
        places = [whole.visible[row].tolist().index(p) for p in some.visible[row].tolist()]
        assert torch.equal(some.score[row], whole.score[row][places])
        assert torch.equal(some.patches[row], whole.patches[row][places])


def test_a_list_longer_than_what_was_scored_names_the_image(visible_records):
    with pytest.raises(RequestError, match=r"36 patches long, and \d+ of a view of '\w+' have"):
        TargetLists(visible_records, "map", 36).batch(FIRST, 0, whole=False)


def test_a_mix_ranks_what_was_scored_and_leaves_the_rest_out(records, monkeypatch):
    """Chance may leave a patch visible in all of a few partitions."""
    weights = {"surprise": 1.0, "border": 1.0}
    lists = TargetLists(records, "map", 10, weights)
    samples, views = np.array([0, 4]), np.array([1, 0])
    before = lists.maps(samples, views)
    of_records = type(records).lists

    def without_patch_7(self, sample, record):
        patches, score = of_records(self, sample, record)
        gone = (patches == 7) & (sample == 4)[:, None]
        return np.where(gone, 8, patches), np.where(gone, score[:, :1], score)

    monkeypatch.setattr(type(records), "lists", without_patch_7)
    after = lists.maps(samples, views)
    assert np.array_equal(before[0], after[0])
    assert np.flatnonzero(np.isnan(after[1])).tolist() == [7]
    assert np.nanmax(after[1]) <= 2.0
    drawn = lists.batch(Picks(np.array([4]), np.array([0])), 0, whole=False)
    assert 7 not in drawn.visible[0].tolist()


def test_a_step_is_the_same_whenever_it_is_asked_for(records):
    samples = np.arange(9)
    lists = target_lists(TrainRankerConfig(label_mix=("surprise=1,border=1",)), records)
    assert (lists.label, lists.length, lists.records_per_sample) == ("map", 9, 2)

    def steps():
        order = RecordOrder(len(samples), lists.records_per_sample, 1, 4, 0)
        return RankingSteps(lists, samples, order, Processes(), 1, False)

    one, other = steps(), steps()
    for place in ((3, 1), (0, 0), (3, 2)):
        other[place]  # whatever came before
    for place in ((0, 0), (3, 1)):
        ours, theirs = one[place].parts[0], other[place].parts[0]
        assert all(torch.equal(*pair) for pair in zip(ours[:3], theirs[:3], strict=True))
