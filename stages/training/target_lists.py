"""What a ranker is taught: lists of patches of a view, and the targets of each.

A record of a cache is a partition's list, as the paper has it. Where many patches have a label (the
masked ones, or a whole map), a list is some of them, drawn anew in every epoch: a function of
(seed, key, view, epoch), so a run that goes on shows what it would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.patches import unpatchify
from ltrp_core.repeatability import mean_map
from ltrp_core.seeding import random_permutation
from ltrp_core.selectors import ScoreSelector, SelectorOptions, create_selector, prior_names
from ltrp_core.selectors.priors import normalized_ranks
from ltrp_core.views import normalize_patches
from stages.named_weights import named_weights
from stages.protocols import Records
from stages.training.order import Picks
from stages.types import ScoreRun

Label = Literal["map", "partition"]
LIST_LENGTH = 49
"""Patches of a list where more than n have a label: a quarter of 196, as in MAE's pre-training"""
HELD_OUT = -1
"""The epoch of the lists that are validated on: always the same ones"""


class RankingBatch(NamedTuple):
    """Some lists."""

    patches: Tensor
    """uint8 (b, k, 3p²), or (b, L, 3p²) for rankers with dense input"""
    visible: Tensor
    """int64 (b, k): the patches of the list"""
    score: Tensor
    """float32 (b, k): their targets"""
    is_padding: bool = False
    """Whether it is not trained on: a process that has no records keeps the others company"""

    def pin_memory(self) -> RankingBatch:
        """Called by the loader."""
        patches, visible, score = (values.pin_memory() for values in self[:3])
        return RankingBatch(patches, visible, score, self.is_padding)


@dataclass(frozen=True, slots=True)
class TargetLists:
    """The lists of some cached records; picklable and small, as they are.

    Record r of a sample is its view r with the label `map`, else partition r % P of view r // P.
    """

    records: Records
    label: Label = "partition"
    length: int = 0
    """Patches of a list; 0 = all that a record has scored"""
    mix: Mapping[str, float] = field(default_factory=dict)
    """Weights of ranks within the view: of the cache's own metric, and of priors by name"""
    seed: int = 0

    @property
    def run(self) -> ScoreRun:
        """What the cache was scored with."""
        return self.records.run

    @property
    def records_per_sample(self) -> int:
        """Records that an epoch may show of a sample: V, or V * P."""
        return self.run.views if self.label == "map" else self.run.records

    @property
    def needs_whole_views(self) -> bool:
        """Whether a list may hold patches that a partition did not show, or needs their pixels."""
        return self.label == "map" or bool(self.mix) or self.run.scored == "masked"

    def batch(self, picks: Picks, epoch: int, *, whole: bool) -> RankingBatch:
        """Returns the lists of some records in an epoch; `whole` = all patches of their views.

        Raises:
            RequestError: a record has scores of fewer patches than a list is long; names the image.
        """
        view = picks.record if self.label == "map" else picks.record // self.run.partitions
        places = views = None
        if whole or self._has_priors:
            views = self.records.whole_views(picks.sample, view)
        if self.label == "map":
            targets = self._maps(picks.sample, view, views)
            patches = self._drawn(picks, np.isfinite(targets), epoch)
            score = np.take_along_axis(targets, patches, axis=1)
        else:
            patches, score = self.records.lists(picks.sample, picks.record)
            if self.length and self.length != patches.shape[1]:
                places = self._drawn(picks, np.isfinite(score), epoch)
                patches = np.take_along_axis(patches, places, axis=1)
                score = np.take_along_axis(score, places, axis=1)
        if views is not None:
            pixels = views if whole else np.take_along_axis(views, patches[..., None], axis=1)
        elif self.needs_whole_views:
            pixels = self.records.view_patches(picks.sample, view, patches)
        else:
            pixels = self.records.visible_patches(picks.sample, picks.record)
            if places is not None:
                pixels = np.take_along_axis(pixels, places[..., None], axis=1)
        return RankingBatch(
            torch.from_numpy(pixels), torch.from_numpy(patches), torch.from_numpy(score)
        )

    def maps(self, sample: NDArray[np.int64], view: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the targets (M, L) of all patches of some views, nan where none was scored.

        The mean score over the partitions that scored a patch; with a mix, its rank among those
        of the view and the ranks of the priors, weighted and summed.
        """
        views = self.records.whole_views(sample, view) if self._has_priors else None
        return self._maps(sample, view, views)

    @property
    def _has_priors(self) -> bool:
        """Whether targets are of the pixels, too."""
        return bool(self.mix.keys() - {self.run.metric})

    def _maps(
        self,
        sample: NDArray[np.int64],
        view: NDArray[np.int64],
        views: NDArray[np.uint8] | None,
    ) -> NDArray[np.float32]:
        """Returns what `maps` does, of views (M, L, 3p²) that were read where priors need them."""
        patches, score = view_lists(self.records, sample, view)
        maps, _ = mean_map(patches, score, self.run.length)
        if self.mix:
            maps = self._mixed(maps, [self.records.keys[row] for row in sample.tolist()], views)
        return maps.astype(np.float32)

    def _mixed(
        self, maps: NDArray[np.float64], keys: Sequence[str], views: NDArray[np.uint8] | None
    ) -> NDArray[np.float64]:
        """Returns the weighted ranks, among the patches of a view that have a score; else nan."""
        terms = {self.run.metric: torch.from_numpy(maps)}
        if views is not None:
            pixels = normalize_patches(torch.from_numpy(views))
            images = unpatchify(pixels, self.run.patch_size, self.run.grid)
            terms |= {
                name: self._prior(name).scores(images, keys)
                for name in self.mix
                if name not in terms
            }
        mixed = np.full(maps.shape, np.nan)
        has_score = np.isfinite(maps)
        is_whole = has_score.all(axis=1)
        # Nearly always all of them; of an image that chance left a patch of, its own subset.
        whole = np.flatnonzero(is_whole)
        groups = [(whole, has_score.any(axis=0))] if len(whole) else []
        groups += [(np.array([row]), has_score[row]) for row in np.flatnonzero(~is_whole).tolist()]
        for rows, known in groups:
            if not known.any():
                continue
            places = np.ix_(rows, known)
            mixed[places] = sum(
                normalized_ranks(terms[name][places]).numpy() * weight
                for name, weight in self.mix.items()
            )
        return mixed

    def _prior(self, name: str) -> ScoreSelector:
        sizes = SelectorOptions(image_size=self.run.image_size, patch_size=self.run.patch_size)
        prior = create_selector(name, sizes)
        assert isinstance(prior, ScoreSelector)
        return prior

    def _drawn(self, picks: Picks, has_target: NDArray[np.bool_], epoch: int) -> NDArray[np.int64]:
        """Returns which places (b, length) of each row are in the list: some that have a target."""
        length = self.length or has_target.shape[1]
        drawn = np.empty((len(picks), length), np.int64)
        rows = zip(picks.sample.tolist(), picks.record.tolist(), has_target, strict=True)
        for row, (sample, record, known) in enumerate(rows):
            places = np.flatnonzero(known)
            key = self.records.keys[sample]
            if len(places) < length:
                raise RequestError(
                    f"a list is {length} patches long, and {len(places)} of a view of {key!r} have "
                    f"a score; pass --list-length {len(places)} or less"
                )
            order = random_permutation(
                len(places), seed=self.seed, key=key, purpose=f"list:{record}:{epoch}"
            )
            drawn[row] = places[order[:length]]
        return drawn


def view_lists(
    records: Records, sample: NDArray[np.int64], view: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the scored patches (M, P, m) of all partitions of some views, and their scores."""
    partitions = records.run.partitions
    numbers = view[:, None] * partitions + np.arange(partitions)
    patches, score = records.lists(sample.repeat(partitions), numbers.reshape(-1))
    shape = (len(sample), partitions, patches.shape[1])
    return patches.reshape(shape), score.reshape(shape)


def read_mix(given: Sequence[str], run: ScoreRun, label: Label) -> dict[str, float]:
    """Returns the weights of `--label-mix` by name.

    Raises:
        RequestError: a name that is neither the cache's metric nor a prior, one of the two missing,
            or a label that is no map.
    """
    mix = named_weights(given, [run.metric, *prior_names()], "--label-mix")
    if given and run.metric not in mix:
        raise RequestError(
            f"--label-mix does not weigh {run.metric}, what the cache holds; add {run.metric}=1"
        )
    if mix and label != "map":
        raise RequestError("--label-mix ranks whole maps; pass --label map, or leave the mix out")
    return mix
