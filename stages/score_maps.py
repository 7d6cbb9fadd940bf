"""Whole maps of scores, one per image, read from a cache: the one reader of them.

A cache of `score --sampler cover` holds every patch's score in some partition, a cache of `select`
the map that it went by. What all who read maps ask is checked here once: that a key is there once,
that the views are one per image, and that no patch was left unscored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.partitions import num_visible
from ltrp_core.plateaus import map_with_noise
from ltrp_core.repeatability import mean_map
from stages.protocols import Arrays, CacheReader
from stages.recent_units import RecentUnits, places_of
from stages.types import ScoreRun, SelectRun

PLACE = ("key", "size", "crop", "flip")
"""Arrays that say of which view of which image a map is."""
_REMEDY = "score with --sampler cover"


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
            cache: of `score --sampler cover`, one view per image, or of `select`.
            name: what messages call it, such as `the teacher's cache`.

        Raises:
            RequestError: it has no whole maps of one view per image, or a key twice.
        """
        self.cache, self.name = cache, name
        self.run = _checked(cache, name)
        self.places = places_of(cache, name)
        self._recent = RecentUnits(self.unit)

    @property
    def partitions_per_round(self) -> int | None:
        """Partitions that score every patch once; None of selections."""
        if not isinstance(self.run, ScoreRun):
            return None
        length = self.run.length
        return -(-length // num_visible(length, self.run.mask_ratio))

    def unit(self, unit: str, *, with_noise: bool = False) -> Arrays:
        """Returns `PLACE` and `map` float64 (N, L) of a unit, nan where a patch was never scored.

        Args:
            unit: its name.
            with_noise: of a teacher also `error` (N, L), the standard error of each score, and the
                `visible` and `score` (N, P, n) that it comes from.
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
        lists = (len(arrays["key"]), -1, arrays["visible"].shape[-1])
        visible = arrays.pop("visible").reshape(lists).astype(np.int64)
        score = arrays.pop("score").reshape(lists)
        if not with_noise:
            arrays["map"], _ = mean_map(visible, score, self.run.length)
            return arrays
        empty = np.zeros((0, self.run.length))
        noisy = map_with_noise(visible, score, self.run.length) if len(visible) else (empty, empty)
        arrays["map"], arrays["error"] = noisy
        arrays["visible"], arrays["score"] = visible, score
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
        check_whole(scores[None], [key], self.name)


def teacher_maps(
    teacher: CacheReader, grid: int, crop: str, *, name: str = "the teacher's cache"
) -> ScoreMaps:
    """Returns the maps of a teacher for selections that were made from its views.

    Args:
        teacher: a cache of `score --sampler cover`.
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
            f"--crop {crop} --sampler cover"
        )
    return ScoreMaps(teacher, name)


def covers(run: ScoreRun) -> bool:
    """Returns whether the partitions of a view score each of its patches at least once."""
    groups = -(-run.length // num_visible(run.length, run.mask_ratio))
    return run.sampler == "cover" and run.partitions >= groups


def check_whole(maps: NDArray[Any], keys: Sequence[str], name: str) -> None:
    """Checks that maps (N, L) have a score of every patch.

    Raises:
        RequestError: some have none; names the first such image of `keys`.
    """
    whole = np.isfinite(maps).all(axis=-1)
    if not whole.all():
        raise RequestError(
            f"{name} leaves patches of {keys[int(np.argmin(whole))]!r} unscored; {_REMEDY} and "
            "more --partitions"
        )


def _checked(cache: CacheReader, name: str) -> ScoreRun | SelectRun:
    stage = cache.run.get("stage")
    if stage == "select":
        return SelectRun.of(cache.run, name)
    if stage != "score":
        raise RequestError(f"{name} is of {str(stage)!r}, not of score or select")
    run = ScoreRun.of(cache.run, name)
    if run.sampler != "cover":
        raise RequestError(f"{name} has no whole score maps; make it with score --sampler cover")
    if run.crop == "train" and run.views > 1:
        raise RequestError(
            f"{name} has {run.views} random views of every image, and a map is of one; score with "
            "--crop eval or --views 1"
        )
    return run
