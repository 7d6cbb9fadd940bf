"""What is not trained on: who is held out, how well a ranker orders it, and the ceiling of that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.ranking_metrics import kendall_tau_b, ndcg, spearman_rho, top1_agreement
from ltrp_core.repeatability import label_repeatability
from stages.protocols import Records
from stages.score_maps import check_whole
from stages.training.ddp import Processes
from stages.training.order import Picks
from stages.training.target_lists import HELD_OUT, TargetLists, view_lists

_AT_A_TIME = 64
_SAME_IN_MAPS = ("image_size", "patch_size", "mae_sha256", "metric")
"""What a cache of score maps and one that is trained on must have in common."""


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of samples, ascending."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)


def split_samples(records: Records, share: float, by: str, seed: int) -> Split:
    """Returns what is trained on and what is held out, by the hash of seed and name.

    The first by hash are held out, so it does not matter in which order they come; among more of
    them, those held out before are still the first of the old ones.

    Args:
        share: of units or images that is held out.
        by: `unit`, `image`, or `auto`: whole units where `share` of them is at least one. Units
            without a usable image do not count.

    Raises:
        RequestError: nothing is left to train on.
    """
    starts, total = records.starts, int(records.starts[-1])
    filled = np.flatnonzero(np.diff(starts))
    units = len(filled)
    if share == 0:
        return Split(np.arange(total), np.arange(0))
    if by == "unit" or (by == "auto" and share * units >= 1):
        names = [records.units[unit] for unit in filled.tolist()]
        chosen = filled[_by_hash(names, max(1, round(share * units)), seed)]
        parts = [np.arange(starts[unit], starts[unit + 1]) for unit in chosen]
        note = f"held out {len(chosen)} of {units} units"
    else:
        parts = [np.array(_by_hash(records.keys, max(1, round(share * total)), seed))]
        note = f"held out images, not units: {share:g} of {units} unit(s) is less than one"
    held_out = np.sort(np.concatenate([np.arange(0), *parts]))
    train = np.setdiff1d(np.arange(total), held_out, assume_unique=True)
    if not len(train):
        raise RequestError(
            f"{total} scored images in {units} unit(s) are too few to hold some out; score more "
            "images, or pass --holdout 0"
        )
    return Split(train, held_out, [f"{note}: {len(held_out)} of {total} images"])


def split_by_hash(
    names: Sequence[str], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the numbers of what is trained on and of what is held out, by the hash of its name.

    Raises:
        RequestError: nothing is left to train on.
    """
    count = max(1, round(share * len(names))) if share else 0
    if count >= len(names):
        raise RequestError(
            f"{len(names)} image(s) are too few to hold some out; pass more, or --holdout 0"
        )
    held_out = np.array(_by_hash(names, count, seed), dtype=np.int64)
    return np.setdiff1d(np.arange(len(names)), held_out, assume_unique=True), held_out


def _by_hash(names: Sequence[str], count: int, seed: int) -> list[int]:
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)[:count]


@dataclass(slots=True)
class HoldOut:
    """Held-out records and score maps, and how a ranker does on them."""

    lists: TargetLists
    picks: Picks
    maps_of: Records | None
    map_views: Picks
    """`record` is the number of the view"""
    maps: NDArray[np.float32]
    """(M, L) the teacher's"""
    ranks: Processes
    ceiling: dict[str, float]
    notes: list[str]

    @classmethod
    def make(
        cls,
        lists: TargetLists,
        maps: TargetLists | None,
        split: Split,
        ranks: Processes,
        *,
        most_records: int,
        most_maps: int,
    ) -> HoldOut:
        """Chooses what is measured: some records, and whole maps where every patch has a score.

        Args:
            lists: what is trained on and held out.
            maps: of a cache of score maps, whose label is made like that of `lists`.

        Raises:
            RequestError: `maps` leave patches unscored, are of another grid or autoencoder, or hold
                no image that is held out.
        """
        records = lists.records
        ceiling: dict[str, float] = {}
        notes: list[str] = []
        picks = _some_records(lists, split.held_out, most_records)
        for_maps = _spread(split.held_out, most_maps)
        ceiling |= _repeatability(records, for_maps, notes)
        source, views, chosen = (
            None,
            Picks(np.arange(0), np.arange(0)),
            np.zeros((0, 0), np.float32),
        )
        if maps is not None:
            source = maps.records
            rows = _rows_of(source, records, split.held_out)
            views, chosen = _score_maps(maps, _spread(rows, most_maps), records)
            found = _repeatability(source, views.sample, notes)
            ceiling = {f"cover_{name}": value for name, value in found.items()} | ceiling
        elif len(for_maps) and records.has_whole_views and _may_be_whole(records):
            first = Picks(for_maps, np.zeros(len(for_maps), np.int64))
            own = lists.maps(first.sample, first.record)
            if np.isfinite(own).all():
                source, views, chosen = records, first, own
        return cls(lists, picks, source, views, chosen, ranks, ceiling, notes)

    @property
    def num_records(self) -> int:
        """Held-out records that are ranked."""
        return len(self.picks)

    @property
    def num_maps(self) -> int:
        """Held-out views whose whole maps are compared."""
        return len(self.maps)

    @property
    def judged_by(self) -> str:
        """The measure that says which epoch is the best: empty if nothing is held out."""
        if not self.num_records:
            return ""
        return "cover_tau" if self.num_maps else "tau"

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Returns how well a ranker orders what is held out, means over lists.

        Kendall tau-b, Spearman's rho, NDCG@5 and how often the best patch is the teacher's best,
        on partitions; and tau over whole maps, which the ranker sees all patches of.
        """
        was_training = model.training
        model.eval()
        totals = self._partition_measures(model) | self._map_measures(model)
        model.train(was_training)
        names = sorted(totals)
        table = torch.stack([totals[name] for name in names])
        table = self.ranks.all_reduce_sum(table.to(next(model.parameters()).device)).cpu()
        return {
            name: float(total / count) if count else float("nan")
            for name, (total, count) in zip(names, table.tolist(), strict=True)
        }

    def _partition_measures(self, model: nn.Module) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        whole = not model.ranker.sparse_input  # type: ignore[union-attr]
        totals: dict[str, Tensor] = {}
        for picks in self._mine(self.picks):
            batch = self.lists.batch(picks, HELD_OUT, whole=whole)
            scores = model(batch.patches.to(device), batch.visible.to(device)).float().cpu()
            for name, values in {
                "tau": kendall_tau_b(scores, batch.score),
                "rho": spearman_rho(scores, batch.score),
                "ndcg5": ndcg(scores, batch.score, top=5),
                "top1": top1_agreement(scores, batch.score),
            }.items():
                _add(totals, name, values)
        for name in ("tau", "rho", "ndcg5", "top1"):
            _add(totals, name, torch.zeros(0))
        return totals

    def _map_measures(self, model: nn.Module) -> dict[str, Tensor]:
        if self.maps_of is None or not self.num_maps:
            return {}
        device = next(model.parameters()).device
        length = self.maps.shape[1]
        totals: dict[str, Tensor] = {}
        numbers = Picks(np.arange(self.num_maps), np.arange(self.num_maps))
        for part in self._mine(numbers):
            views = Picks(self.map_views.sample[part.sample], self.map_views.record[part.sample])
            patches = torch.from_numpy(self.maps_of.whole_views(views.sample, views.record))
            every = torch.arange(length).expand(len(patches), -1)
            scores = model(patches.to(device), every.to(device)).float().cpu()
            target = torch.from_numpy(self.maps[part.sample])
            _add(totals, "cover_tau", kendall_tau_b(scores, target))
        _add(totals, "cover_tau", torch.zeros(0))
        return totals

    def _mine(self, picks: Picks) -> list[Picks]:
        mine = picks[self.ranks.rank :: self.ranks.size]
        return [mine[start : start + _AT_A_TIME] for start in range(0, len(mine), _AT_A_TIME)]


def _add(totals: dict[str, Tensor], name: str, values: Tensor) -> None:
    known = values[values.isfinite()].double()
    amount = torch.stack([known.sum(), torch.tensor(float(len(known)), dtype=torch.float64)])
    totals[name] = totals.get(name, torch.zeros(2, dtype=torch.float64)) + amount


def _some_records(lists: TargetLists, samples: NDArray[np.int64], limit: int) -> Picks:
    """Returns up to `limit` records: one of each sample, then a second one, and so on."""
    per_sample = lists.records_per_sample
    count = min(limit, len(samples) * per_sample)
    samples = _spread(samples, limit)
    record, place = np.divmod(np.arange(count), max(len(samples), 1))
    return Picks(samples[place], record)


def _spread(samples: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Returns at most `limit` of the samples, evenly spread: neighbors are often of one class."""
    if len(samples) <= limit:
        return samples
    return samples[np.arange(limit) * len(samples) // limit]


def _rows_of(maps: Records, records: Records, held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows of `maps` whose images are held out."""
    keys = {records.keys[row] for row in held_out.tolist()}
    rows = np.array([row for row, key in enumerate(maps.keys) if key in keys], np.int64)
    if not len(rows):
        raise RequestError(
            f"the cache of score maps holds none of the {len(keys)} held-out images; score the "
            "shards that are trained on, and hold out some with --holdout"
        )
    return rows


def _may_be_whole(records: Records) -> bool:
    """Returns whether the partitions of a view are enough to score each of its patches."""
    return records.run.partitions >= records.run.partitions_per_round


def _score_maps(
    source: TargetLists, rows: NDArray[np.int64], records: Records
) -> tuple[Picks, NDArray[np.float32]]:
    run = source.run
    if any(getattr(run, name) != getattr(records.run, name) for name in _SAME_IN_MAPS):
        raise RequestError(
            "the cache of score maps must be of the same grid and metric, by the same weights; "
            "score it as the other, with --crop eval, and every patch: --sampler cover"
        )
    views = Picks(rows, np.zeros(len(rows), np.int64))
    maps = source.maps(views.sample, views.record)
    keys = [source.records.keys[row] for row in rows.tolist()]
    check_whole(maps, keys, "the cache of score maps", run)
    return views, maps


def _repeatability(
    records: Records, samples: NDArray[np.int64], notes: list[str]
) -> dict[str, float]:
    """Returns how well two independent draws of the teacher agree on the same views."""
    if not len(samples):
        return {}
    run = records.run
    patches, score = view_lists(records, samples, np.zeros(len(samples), np.int64))
    try:
        found = label_repeatability(patches, score, run.length, groups=run.disjoint_by)
    except RequestError as error:
        notes.append(f"how repeatable the labels are is unknown: {error}")
        return {}
    if not found.num_views:
        notes.append("how repeatable the labels are is unknown: too few patches were scored twice")
        return {}
    measures: Mapping[str, Any] = {
        "tau": found.tau,
        "rho": found.rho,
        "top1": found.top1,
        "ndcg5": found.ndcg5,
        "patches": found.num_patches,
        "views": found.num_views,
    }
    return dict(measures)
