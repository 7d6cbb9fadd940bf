"""A classifier shown the same images again and again: whole, and with what each source keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltrp_core.classifiers import NOT_FILLED, FrozenClassifier
from ltrp_core.errors import RequestError
from ltrp_core.selectors import Selector
from ltrp_core.views import normalize
from stages.evaluation.image_rows import FULL_IMAGE, NOTHING_KEPT, image_measures
from stages.evaluation.rows import Values
from stages.protocols import Arrays
from stages.records import kept_name
from stages.selectors import check_choices
from stages.types import SelectRun

Name = tuple[str, str, float]
"""Filling, source, keep ratio"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptImages:
    """What sees what."""

    classifier: FrozenClassifier
    fillings: Sequence[str]
    keeps: Mapping[float, int]
    """Keep ratio -> k"""
    selections: Mapping[str, SelectRun]
    """By label, the first one first; of views of one size"""
    baselines: Mapping[str, Selector]
    """By the source's name"""
    against: str = ""
    """The selection or baseline that all others are compared with, if one was chosen"""

    @property
    def first(self) -> SelectRun:
        """The first selection's run."""
        return next(iter(self.selections.values()))

    @property
    def sources(self) -> list[str]:
        """In the order of the tables."""
        return [FULL_IMAGE, *self.selections, *self.baselines, NOTHING_KEPT]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is compared image by image: selections with baselines, the first with the others.

        Or all with the one that was chosen.
        """
        if self.against:
            every = (*self.selections, *self.baselines)
            return [(name, self.against) for name in every if name != self.against]
        first, *others = self.selections
        pairs = [(label, name) for label in self.selections for name in self.baselines]
        return pairs + [(first, other) for other in others]

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays of selections that are looked at."""
        return ["key", *map(kept_name, self.keeps)]

    def measure(
        self, stored: Mapping[str, Arrays], images: Tensor, classes: Tensor
    ) -> Iterator[tuple[Name, Values]]:
        """Yields the `image_rows.MEASURES` (B, 4) of B images for every filling and source.

        Args:
            stored: the arrays of every selection, by label.
            images: uint8 (B, 3, S, S).
            classes: int64 (B,), the true ones.

        Raises:
            RequestError: logits that are not finite.
        """
        keys = [str(key) for key in next(iter(stored.values()))["key"]]
        full = self.classifier.logits(images)
        self._check_finite(keys, full)
        chosen = self._kept(stored, images, keys)
        for filling in self.fillings:
            yield (filling, FULL_IMAGE, 1.0), image_measures(full, classes)
            seen = self.classifier.seeing(images, filling, self.first.patch_size)
            for (source, ratio), kept in chosen.items():
                if source == NOTHING_KEPT and filling == NOT_FILLED:
                    continue  # without a patch some transformers have nothing to pool
                logits = seen(kept)
                self._check_finite(keys, logits)
                yield (filling, source, ratio), image_measures(logits, classes, full)

    def _kept(
        self, stored: Mapping[str, Arrays], images: Tensor, keys: Sequence[str]
    ) -> dict[tuple[str, float], Tensor]:
        """Returns the patches (B, k) that every source keeps, by source and keep ratio."""
        chosen: dict[tuple[str, float], Tensor] = {
            (NOTHING_KEPT, 0.0): torch.empty(len(keys), 0, dtype=torch.int64)
        }
        for label, own in stored.items():
            for ratio in self.keeps:
                if kept_name(ratio) in own:
                    kept = torch.from_numpy(own[kept_name(ratio)].astype(np.int64))
                    chosen[label, ratio] = kept
        keeps = list(self.keeps.values())
        for name, selector in self.baselines.items():
            choices = selector.select(normalize(images), keys, keeps)
            check_choices(selector, [kept.numpy() for kept in choices], len(keys), keeps)
            for ratio, kept in zip(self.keeps, choices, strict=True):
                chosen[name, ratio] = kept
        return chosen

    def _check_finite(self, keys: Sequence[str], logits: Tensor) -> None:
        is_finite = logits.isfinite().all(dim=1)
        if not is_finite.all():
            key = keys[int(is_finite.int().argmin())]
            raise RequestError(
                f"{self.classifier.name} gives logits of {key!r} that are not finite; use other "
                "weights"
            )
