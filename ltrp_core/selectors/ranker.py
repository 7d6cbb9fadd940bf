"""A trained ranking model as a selector (Sec. 3.3, 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.linear import use_fast_linears
from ltrp_core.rankers import Ranker, load_ranker, locate_ranker
from ltrp_core.rankers.folder import WEIGHTS
from ltrp_core.rankers.ranking import rank_images
from ltrp_core.selectors.base import ScoreSelector, SelectorOptions, SelectorSpec


class RankerSelector(ScoreSelector):
    """A ranking model, on the grid that an image size asks for."""

    def __init__(self, options: SelectorOptions) -> None:
        """Loads the ranker; image size 0 is its own.

        Raises:
            CheckpointError: it cannot be used.
            RequestError: the image size is no multiple of its patches, or it has no such grid.
        """
        ranker = load_ranker(options.weights)
        own = ranker.grid * ranker.patch_size
        super().__init__(options.image_size or own, ranker.patch_size, options.homogeneous)
        if options.patch_size not in (0, ranker.patch_size):
            raise RequestError(
                f"--patch-size is {options.patch_size}, and the ranker has patches of "
                f"{ranker.patch_size} px; leave the option out"
            )
        if self.grid != ranker.grid:
            ranker = load_ranker(options.weights, grid=self.grid)
        self.ranker: Ranker = ranker.eval().to(options.device)
        use_fast_linears(self.ranker)

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the ranker scores, each as if its image had been alone."""
        del keys
        return rank_images(self.ranker, images)


def _weights_file(source: str) -> Path:
    return locate_ranker(source) / WEIGHTS


RANKER = SelectorSpec(
    make=RankerSelector,
    help="a ranking model: --out folder of `train-ranker`, ranker_tiny, hf-hub:ID",
    weights_file=_weights_file,
)
