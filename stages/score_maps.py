"""Whole maps of scores, one per image, read from a cache: the one reader of them.

A cache of `score` holds the scores of some patches a partition, whose mean over partitions is a map
where every patch was scored in one of them; a cache of `select` the map that it went by. What all
who read maps ask is checked here once: that a key is there once, that the views are one per image,
and that no patch was left unscored. That is read from the arrays: `--sampler cover` promises it of
visible patches, and enough `iid` partitions have it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.plateaus import map_with_noise
from ltrp_core.repeatability import mean_map
from stages.protocols import Arrays, CacheReader
from stages.recent_units import RecentUnits, places_of
from stages.records import scored_lists
from stages.types import ScoreRun, SelectRun

PLACE = ("key", "size", "crop", "flip")
"""Arrays that say of which view of which image a map is."""
_REMEDY = {
    "visible": "score with --sampler cover and more --partitions",
    "masked": "score with more --partitions",
}


class ScoreMaps:
    """The maps of a cache, found by key.

    Attributes:
        name: of the cache, for messages.
        run: typed identity of the cache.
        places: key -> its unit and its row there.
    """

    def __init__(self, cache: CacheReader, name: str) -> None:
        """Reads the keys of a cache; maps are read unit by unit when they are asked for.

        Args:
            cache: of `score`, one view per image and every patch scored, or of `select`.
            name: what messages call it, such as `the teacher's cache`.

        Raises:
            RequestError: it has no whole maps of one view per image, or a key twice.
        """
        self.cache, self.name = cache, name
        self.run = _checked(cache, name)
        self.places = places_of(cache, name)
        self._recent = RecentUnits(self.unit)

    def unit(self, unit: str, *, with_noise: bool = False) -> Arrays:
        """Returns `PLACE` and `map` float64 (N, L) of a unit, nan where a patch was never scored.

        Args:
            unit: its name.
            with_noise: of a teacher also `error` (N, L), the standard error of each score, and the
                `patches` and `score` (N, P, m) that it comes from.
        """
        if isinstance(self.run, SelectRun):
            arrays = self.cache.read(unit, [*PLACE, self.run.score_name])
            if self.run.score_name not in arrays:
                raise RequestError(
                    f"{self.name} has no scores: selector {self.run.selected_by!r} chooses patches "
                    "without any; take another selection"
                )
            arrays["map"] = arrays.pop(self.run.score_name).astype(np.float64)
            return arrays
        arrays = self.cache.read(unit, [*PLACE, "visible", "score"])
        patches, score = scored_lists(self.run, arrays)
        del arrays["visible"]
        lists = (len(arrays["key"]), self.run.records, patches.shape[-1])
        patches, score = patches.reshape(lists), score.reshape(lists)
        if not with_noise:
            arrays["map"], _ = mean_map(patches, score, self.run.length)
            return arrays
        empty = np.zeros((0, self.run.length))
        noisy = map_with_noise(patches, score, self.run.length) if len(patches) else (empty, empty)
        arrays["map"], arrays["error"] = noisy
        arrays["patches"], arrays["score"] = patches, score
        return arrays

    def find(self, key: str) -> tuple[Arrays, int]:
        """Returns the arrays of the unit that has a key, as `unit` does, and its row there.

        Several threads may ask.

        Raises:
            RequestError: the cache does not have the key, or has not scored all of its patches.
        """
        if key not in self.places:
            raise RequestError(
                f"{self.name} has no scores of {key!r}; score the same shards, or take the shards "
                "that were scored"
            )
        unit, row = self.places[key]
        arrays = self._recent[unit]
        self.check(key, arrays["map"][row])
        return arrays, row

    def map(self, key: str) -> NDArray[np.float32]:
        """Returns the map (L,) of an image; errors as of `find`."""
        arrays, row = self.find(key)
        scores: NDArray[np.float32] = arrays["map"][row].astype(np.float32)
        return scores

    def maps(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yields the map (L,) of each image; errors as of `find`."""
        return map(self.map, keys)

    def check(self, key: str, scores: NDArray[Any]) -> None:
        """Checks that every patch has a score.

        Raises:
            RequestError: some have none; names the image.
        """
        check_whole(scores[None], [key], self.name, self.run)


def teacher_maps(
    teacher: CacheReader, grid: int, crop: str, *, name: str = "the teacher's cache"
) -> ScoreMaps:
    """Returns the maps of a teacher for selections that were made from its views.

    Args:
        teacher: a cache of `score` that has scored every patch.
        grid: g of the selections.
        crop: what their views are; random ones (`train`) are not the teacher's.

    Raises:
        RequestError: the cache is not of such views that cover every patch, or of this grid.
    """
    if crop == "train":
        raise RequestError(
            "the selections are of random views (--crop train), which a teacher has not scored; "
            "select with --crop eval or resize, or leave the teacher out"
        )
    run = _checked(teacher, name)
    if run.crop != crop or run.grid != grid or not isinstance(run, ScoreRun):
        raise RequestError(
            f"{name} must hold evaluation views of a {grid} x {grid} grid; score with "
            f"--crop {crop}, and with --sampler cover if visible patches are scored"
        )
    return ScoreMaps(teacher, name)


def check_whole(
    maps: NDArray[Any], keys: Sequence[str], name: str, run: ScoreRun | SelectRun
) -> None:
    """Checks that maps (N, L) have a score of every patch.

    Raises:
        RequestError: some have none; names the first such image of `keys`.
    """
    whole = np.isfinite(maps).all(axis=-1)
    if not whole.all():
        raise RequestError(
            f"{name} leaves patches of {keys[int(np.argmin(whole))]!r} unscored; "
            f"{_REMEDY[run.scored if isinstance(run, ScoreRun) else 'visible']}"
        )


def _checked(cache: CacheReader, name: str) -> ScoreRun | SelectRun:
    stage = cache.run.get("stage")
    if stage == "select":
        return SelectRun.of(cache.run, name)
    if stage != "score":
        raise RequestError(f"{name} is of {str(stage)!r}, not of score or select")
    run = ScoreRun.of(cache.run, name)
    if run.partitions < run.partitions_per_round:
        raise RequestError(
            f"{name} has no whole score maps: {run.partitions} partition(s) of {run.num_scored} "
            f"scores cannot hold all {run.length} patches; {_REMEDY[run.scored]}: "
            f"{run.partitions_per_round} or more"
        )
    if run.crop == "train" and run.views > 1:
        raise RequestError(
            f"{name} has {run.views} random views of every image, and a map is of one; score with "
            "--crop eval or --views 1"
        )
    return run
