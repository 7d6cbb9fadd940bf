"""Selectors without learning: `random`, `center` and `patch-variance` (Sec. 4.1; ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltrp_core.selectors.base import (
    PlainSelector,
    SelectorSpec,
)
from ltrp_core.selectors.references import center_scores, patch_variance, random_scores


class RandomSelector(PlainSelector):
    """Patches in random order: the first draw of the `random` reference."""

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns scores that depend on key and seed alone."""
        draws = [random_scores(key, self.grid**2, draw=0, seed=self.seed) for key in keys]
        return torch.stack(draws).to(images.device)


class CenterSelector(PlainSelector):
    """The patches nearest to the middle."""

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns minus the distance to the middle."""
        return center_scores(self.grid).expand(len(keys), -1).to(images.device)


class VarianceSelector(PlainSelector):
    """The patches whose pixels vary most."""

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the variance of each patch's pixels."""
        del keys
        return patch_variance(images, self.patch_size)


RANDOM = SelectorSpec(make=RandomSelector, help="in random order")
CENTER = SelectorSpec(
    make=CenterSelector,
    help="nearest to the middle first",
    assumes="the photographer's habit of centering; looks at no pixel, hurts off center",
)
VARIANCE = SelectorSpec(
    make=VarianceSelector,
    help="most varied pixels first",
    assumes="objects have more detail than the ground; hurts on grass, gravel and crowds",
)
