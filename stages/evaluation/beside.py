"""Selections of the same images, read side by side: by unit where they agree, else by key."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ltrp_core.errors import RequestError
from stages.protocols import Arrays, CacheReader
from stages.recent_units import RecentUnits, places_of
from stages.types import SelectRun

_OF_VIEW = ("size", "crop", "flip")


class Beside:
    """A further selection, in the order of the first one's images.

    Attributes:
        label: of the selection.
        run: typed identity.
    """

    def __init__(self, label: str, cache: CacheReader, first: SelectRun) -> None:
        """Opens the selection.

        Raises:
            RequestError: its views or patches are of other sizes than the first selection's.
        """
        self.label, self.cache = label, cache
        self.run = SelectRun.of(cache.run, label)
        ours, theirs = ((run.image_size, run.patch_size, run.crop) for run in (self.run, first))
        if ours != theirs:
            raise RequestError(
                f"selection {label!r} is of {ours[0]} px, patches of {ours[1]} px and --crop "
                f"{ours[2]}, the first one of {theirs[0]} px, {theirs[1]} px and {theirs[2]}; "
                "evaluate those of one size and crop together"
            )
        self._units = frozenset(cache.units)
        self._taken: set[str] = set()
        """Units whose images are those of a unit of the first selection"""
        self._recent = RecentUnits(cache.read)
        self._used = 0

    def rows(self, unit: str, arrays: Arrays) -> Arrays:
        """Returns the arrays of this selection for the images of a unit of the first one.

        Raises:
            RequestError: an image is missing here, or its view is another.
        """
        keys = arrays["key"].tolist()
        if not keys:
            return arrays  # as empty as this selection's: none of the shard's images is usable
        own = self._whole_unit(unit, keys) or self._by_key(keys)
        for name in _OF_VIEW:
            same = (own[name] == arrays[name]).reshape(len(keys), -1).all(axis=1)
            if not same.all():
                key = keys[int(np.argmin(same))]
                raise RequestError(
                    f"{key!r} has another {name} in selection {self.label!r} than in the first: "
                    "they are of other views; select from the same shards with the same --crop"
                )
        self._used += len(keys)
        return own

    @property
    def num_alone(self) -> int:
        """Images that the first selection does not have, after all of its units were asked for."""
        return 0 if self._taken == self._units else len(self._places) - self._used

    @cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        return places_of(self.cache, f"selection {self.label!r}")

    def _whole_unit(self, unit: str, keys: list[str]) -> Arrays | None:
        own = self._recent[unit] if unit in self._units else {}
        if not own or own["key"].tolist() != keys:
            return None
        self._taken.add(unit)
        return own

    def _by_key(self, keys: list[str]) -> Arrays:
        rows: dict[str, list[object]] = {}
        for key in keys:
            if key not in self._places:
                raise RequestError(
                    f"selection {self.label!r} does not have the image {key!r} of the first one; "
                    "select from the same shards, to the end"
                )
            unit, row = self._places[key]
            for name, values in self._recent[unit].items():
                rows.setdefault(name, []).append(values[row])
        return {name: np.array(values) for name, values in rows.items()}
