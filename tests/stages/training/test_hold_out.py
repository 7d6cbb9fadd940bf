"""What is held out is never trained on, and the measures are those of the ranker's own outputs."""

import dataclasses
import itertools
import math
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scored_caches import scored, staged, write_images, write_tars

from ltrp_core.errors import RequestError
from ltrp_core.rankers import create_ranker
from stages.train_ranker import RankerStep
from stages.training.ddp import Processes
from stages.training.hold_out import HoldOut, split_samples
from stages.training.order import RecordOrder
from stages.training.ranking_batches import RankingSteps
from stages.training.target_lists import TargetLists

COVER = {"views": 1, "crop": "eval", "sampler": "cover", "partitions": 24}


class Watched:
    """Records that write down which rows are read."""

    def __init__(self, records):
        self.records, self.run, self.rows = records, records.run, set()

    def lists(self, sample, record):
        self.rows |= set(sample.tolist())
        return self.records.lists(sample, record)

    def visible_patches(self, sample, record):
        self.rows |= set(sample.tolist())
        return self.records.visible_patches(sample, record)


def hold_out(records, maps, *rest, **chosen):
    """What is held out of records as they are, with the label of the paper."""
    of_maps = None if maps is None else TargetLists(maps)
    return HoldOut.make(TargetLists(records), of_maps, *rest, **chosen)


def options(records=5000, maps=500):
    return {"most_records": records, "most_maps": maps}


@pytest.fixture(scope="module")
def made(photographs, small_mae, tmp_path_factory):
    """Staged records: of iid and of cover partitions of the same images, with and without them."""
    folder = tmp_path_factory.mktemp("hold-out")
    shards = write_tars(folder / "tars", photographs)
    caches = {
        "records": ({"pixels": True, "partitions": 8}, False),
        "images": ({"partitions": 8}, True),
        "cover": ({**COVER, "pixels": True}, False),
        "cover images": (COVER, True),
        "part of a cover": ({**COVER, "partitions": 11, "pixels": True}, False),
    }
    return {
        name: staged(scored(folder / name, shards, small_mae, **values),
                     shards if images else [], folder / f"{name} staged")
        for name, (values, images) in caches.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    ranker = create_ranker("vit_tiny", head="token", grid=6, patch_size=8)
    dense = create_ranker("vit_tiny", head="token", input="dense", grid=6, patch_size=8)
    dense.load_state_dict(ranker.state_dict())
    return {"sparse": RankerStep(ranker).eval(), "dense": RankerStep(dense).eval()}


def fake(units, sizes, keys=None):
    """Records of which only the names of units and images are looked at."""
    starts = np.cumsum([0, *sizes])
    keys = keys or [
        f"{unit}/{row}" for unit, n in zip(units, sizes, strict=True) for row in range(n)
    ]
    return SimpleNamespace(units=units, starts=starts, keys=keys)


def held_keys(records, split):
    return {records.keys[row] for row in split.held_out.tolist()}


@pytest.mark.parametrize("by", ["auto", "unit", "image"])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_every_image_is_trained_on_or_held_out(by, share):
    sizes = [7, 0, 13, 1, 20, 5, 5, 9, 30, 4]
    records = fake([f"u{i}" for i in range(10)], sizes)
    split = split_samples(records, share, by, 0)
    both = np.concatenate([split.train, split.held_out])
    assert np.array_equal(np.sort(both), np.arange(sum(sizes)))
    assert len(split.held_out) > 0
    assert np.all(np.diff(split.train) > 0)
    assert np.all(np.diff(split.held_out) > 0)
    if by == "unit" or (by == "auto" and share * 9 >= 1):
        unit_of = np.repeat(np.arange(10), sizes)
        assert not set(unit_of[split.train]) & set(unit_of[split.held_out])
        assert len(set(unit_of[split.held_out])) == max(1, round(share * 9))
    else:
        assert len(split.held_out) == max(1, round(share * sum(sizes)))


def test_a_unit_without_an_image_is_never_what_is_held_out():
    for seed in range(20):
        records = fake(["a", "b", "c", "d"], [0, 5, 0, 5])
        assert len(split_samples(records, 0.3, "unit", seed).held_out) == 5


def test_nothing_is_held_out_if_asked():
    split = split_samples(fake(["a"], [5]), 0, "auto", 0)
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert len(split.held_out) == 0


@pytest.mark.parametrize(("units", "by"), [([1], "auto"), ([5], "unit"), ([0, 3], "unit")])
def test_too_few_images_to_hold_some_out_are_refused(units, by):
    records = fake([str(n) for n in range(len(units))], units)
    with pytest.raises(RequestError, match=r"too few to hold some out.*--holdout 0"):
        split_samples(records, 0.1, by, 0)


@pytest.mark.parametrize("by", ["unit", "image"])
def test_who_is_held_out_depends_on_names_and_seed_not_on_places(by):
    names = [f"u{i}" for i in range(20)]
    records = fake(names, [3] * 20)
    backwards = fake(names[::-1], [3] * 20)
    splits = {}
    for seed in range(5):
        one, other = (split_samples(each, 0.2, by, seed) for each in (records, backwards))
        assert held_keys(records, one) == held_keys(backwards, other)
        splits[seed] = frozenset(held_keys(records, one))
    assert len(set(splits.values())) == 5


@pytest.mark.parametrize("by", ["unit", "image"])
def test_more_units_leave_those_held_out_first_among_the_old(by):
    """Of the old images more or fewer are held out then, but never others in their stead."""
    few = fake([f"u{i}" for i in range(20)], [3] * 20)
    for more_units in (21, 25, 40, 60):
        many = fake([f"u{i}" for i in range(more_units)], [3] * more_units)
        for seed in range(5):
            before = held_keys(few, split_samples(few, 0.2, by, seed))
            after = held_keys(many, split_samples(many, 0.2, by, seed)) & set(few.keys)
            assert before <= after or after <= before


@pytest.mark.parametrize("by", ["unit", "image"])
def test_nothing_held_out_is_ever_trained_on(made, by):
    records = made["records"]
    split = split_samples(records, 0.3, by, 0)
    held = hold_out(records, made["cover"], split, Processes(), **options())
    order = RecordOrder(len(split.train), 16, 5, 7, 0)
    watched = Watched(records)
    steps = RankingSteps(TargetLists(watched), split.train, order, Processes(), 1, False)
    for place in itertools.product(range(3), range(order.steps_per_epoch)):
        steps[place]
    trained = {records.keys[row] for row in watched.rows}
    measured = {records.keys[row] for row in held.picks.sample.tolist()}
    of_maps = {made["cover"].keys[row] for row in held.map_views.sample.tolist()}
    assert measured == of_maps == held_keys(records, split)
    assert not trained & measured
    assert len(trained) + len(measured) == 12


def test_records_that_are_measured_are_spread_over_images_first(made):
    records = made["records"]
    split = split_samples(records, 0.5, "image", 0)
    for limit, each in ((6, {1}), (9, {1, 2}), (12, {2}), (3, {1}), (10**6, {16})):
        held = hold_out(records, None, split, Processes(), **options(limit))
        count = Counter(held.picks.sample.tolist())
        assert set(count.values()) == each
        assert held.num_records == min(limit, 6 * 16)
        assert set(count) <= set(split.held_out.tolist())
        pairs = zip(held.picks.sample.tolist(), held.picks.record.tolist(), strict=True)
        assert len(set(pairs)) == held.num_records
    few = hold_out(records, made["cover"], split, Processes(), **options(3, 3))
    # Not the first ones, which may all be of one class.
    assert few.picks.sample.tolist() == split.held_out[[0, 2, 4]].tolist()
    assert few.num_maps == 3


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_measures_are_those_of_the_rankers_outputs(made, models, kind):
    model, records, maps = models[kind], made["images"], made["cover images"]
    split = split_samples(records, 0.4, "image", 0)
    held = hold_out(records, maps, split, Processes(), **options(records=30))
    measures = held.measure(model)
    assert set(measures) == {"tau", "rho", "ndcg5", "top1", "cover_tau"}
    assert held.judged_by == "cover_tau"
    by_hand = {name: [] for name in measures}
    for row, record in zip(held.picks.sample.tolist(), held.picks.record.tolist(), strict=True):
        visible, score = records.lists(np.array([row]), np.array([record]))
        pixels = records.whole_views(np.array([row]), np.array([record // 8]))
        ours = outputs(model, pixels, visible, kind)
        target = score[0].astype(np.float64)
        by_hand["tau"].append(stats.kendalltau(ours, target).statistic)
        by_hand["rho"].append(stats.spearmanr(ours, target).statistic)
        by_hand["top1"].append(float(target[ours.argmax()] == target.max()))
        by_hand["ndcg5"].append(ndcg_by_hand(ours, target))
    for key in held_keys(records, split):
        row = maps.keys.index(key)
        total, count = np.zeros(36), np.zeros(36)
        visible, score = maps.lists(np.full(24, row), np.arange(24))
        for patches, values in zip(visible, score, strict=True):
            total[patches] += values
            count[patches] += 1
        pixels = maps.whole_views(np.array([row]), np.array([0]))
        ours = outputs(model, pixels, np.arange(36)[None], kind)
        by_hand["cover_tau"].append(stats.kendalltau(ours, total / count).statistic)
    for name, values in by_hand.items():
        assert measures[name] == pytest.approx(np.nanmean(values), abs=2e-3), name


def outputs(model, whole, visible, kind):
    """Scores of one list; of a sparse ranker given the patches, else the whole view."""
    patches = whole if kind == "dense" else whole[:, visible[0]]
    with torch.no_grad():
        scores = model(torch.from_numpy(patches), torch.from_numpy(visible))
    return scores[0].numpy().astype(np.float64)


def ndcg_by_hand(scores, targets):
    gains = (targets - targets.min()) / (targets.max() - targets.min())
    gain = sum(gains[i] / math.log2(k + 2) for k, i in enumerate(np.argsort(-scores)[:5]))
    return gain / sum(g / math.log2(k + 2) for k, g in enumerate(np.sort(gains)[::-1][:5]))


def test_measuring_leaves_the_model_in_the_mode_it_was_in(made, models):
    split = split_samples(made["records"], 0.3, "image", 0)
    held = hold_out(made["records"], None, split, Processes(), **options(5))
    assert held.judged_by == "tau"
    model = models["sparse"].train()
    before = [value.clone() for value in model.state_dict().values()]
    first = held.measure(model)
    assert model.training
    assert held.measure(model.eval()) == first
    assert all(map(torch.equal, before, model.state_dict().values()))


class ThreadRank:
    """One of several threads that add up what they found, as ranks do."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self.shared = rank, size, shared

    def all_reduce_sum(self, values):
        self.shared["found"][self.rank] = values
        self.shared["barrier"].wait(60)
        return torch.stack(self.shared["found"]).sum(dim=0)


@pytest.mark.parametrize(("size", "limit"), [(2, 5000), (3, 2), (2, 1)])
def test_ranks_together_measure_what_one_does(made, models, size, limit):
    """Also where there are fewer records or maps than ranks."""
    records, maps, model = made["records"], made["cover"], models["sparse"]
    split = split_samples(records, 0.3, "image", 0)
    alone = hold_out(records, maps, split, Processes(), **options(limit, limit)).measure(model)
    shared = {"found": [None] * size, "barrier": threading.Barrier(size)}
    measured = [None] * size

    def work(rank):
        ranks = ThreadRank(rank, size, shared)
        made_here = hold_out(records, maps, split, ranks, **options(limit, limit))
        measured[rank] = made_here.measure(model)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in measured:
        assert found == pytest.approx(alone, abs=1e-9, nan_ok=True)


def test_a_perfect_ranker_measures_one(made):
    records = made["cover"]
    split = split_samples(records, 0.3, "image", 0)
    held = hold_out(records, None, split, Processes(), **options())
    known = {}
    for row in split.held_out.tolist():
        for record in range(24):
            _, score = records.lists(np.array([row]), np.array([record]))
            patches = records.visible_patches(np.array([row]), np.array([record]))
            known[patches.tobytes()] = score

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ranker = torch.nn.Linear(1, 1)
            self.ranker.sparse_input = True

        def forward(self, patches, visible):
            if visible.shape[1] == 36:
                return torch.rand(visible.shape)
            return torch.cat([torch.from_numpy(known[one.numpy().tobytes()]) for one in patches])

    measures = held.measure(Knows())
    for name in ("tau", "rho", "ndcg5", "top1"):
        assert measures[name] == pytest.approx(1)
    assert abs(measures["cover_tau"]) < 0.5


def test_maps_of_the_records_themselves_are_taken_where_they_cover(made):
    for name in ("cover", "cover images"):
        split = split_samples(made[name], 0.3, "image", 0)
        held = hold_out(made[name], None, split, Processes(), **options())
        assert held.num_maps == len(split.held_out)
        assert np.isfinite(held.maps).all()
        assert held.judged_by == "cover_tau"
        assert {"tau", "rho", "top1", "ndcg5", "patches", "views"} <= set(held.ceiling)
    for name in ("records", "images", "part of a cover"):
        split = split_samples(made[name], 0.3, "image", 0)
        held = hold_out(made[name], None, split, Processes(), **options())
        assert held.num_maps == 0
        assert held.judged_by == "tau"


@pytest.mark.parametrize("name", ["records", "cover"])
def test_nothing_held_out_is_nothing_measured(made, models, name):
    split = split_samples(made[name], 0, "auto", 0)
    held = hold_out(made[name], None, split, Processes(), **options())
    assert (held.num_records, held.num_maps, held.judged_by) == (0, 0, "")
    assert held.ceiling == {}
    assert all(math.isnan(value) for value in held.measure(models["sparse"]).values())


def test_the_ceiling_of_the_maps_stands_beside_that_of_the_partitions(made):
    split = split_samples(made["images"], 0.3, "image", 0)
    held = hold_out(made["images"], made["cover"], split, Processes(), **options())
    assert held.ceiling["cover_patches"] == 36
    assert held.ceiling["cover_views"] == len(split.held_out)
    assert -1 <= held.ceiling["cover_tau"] <= 1
    # Eight partitions of three patches: no eight patches of a view were scored in both halves.
    assert "tau" not in held.ceiling
    assert any("how repeatable the labels are is unknown" in note for note in held.notes)


@pytest.mark.parametrize("name", ["records", "part of a cover"])
def test_maps_that_do_not_cover_their_views_are_refused(made, name):
    split = split_samples(made["images"], 0.3, "image", 0)
    with pytest.raises(RequestError, match=r"score maps (leaves patches of|has no whole)"):
        hold_out(made["images"], made[name], split, Processes(), **options())


def test_maps_of_another_autoencoder_are_refused(made):
    split = split_samples(made["images"], 0.3, "image", 0)
    other = made["cover"]
    changed = SimpleNamespace(
        run=dataclasses.replace(other.run, mae_sha256="0" * 64), keys=other.keys, lists=other.lists
    )
    with pytest.raises(RequestError, match="the same weights"):
        hold_out(made["images"], changed, split, Processes(), **options())


def test_maps_of_other_images_are_refused(made, photographs, small_mae, tmp_path):
    others = {f"other-{name}": photographs[name] for name in sorted(photographs)[:2]}
    shards = write_images(tmp_path / "photos", others)
    maps = staged(scored(tmp_path / "c", shards, small_mae, **COVER), shards, tmp_path / "s")
    split = split_samples(made["images"], 0.3, "image", 0)
    with pytest.raises(RequestError, match="none of the 4 held-out images"):
        hold_out(made["images"], maps, split, Processes(), **options())
    nobody = split_samples(made["images"], 0, "image", 0)
    with pytest.raises(RequestError, match="hold out some with --holdout"):
        hold_out(made["images"], made["cover"], nobody, Processes(), **options())
