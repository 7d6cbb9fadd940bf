"""The method of *Learning to Rank Patches* (CVPR 2024): tensors in, tensors out.

Shape legend, used in every docstring of this project. Round brackets, dtype first where it matters,
`...` for any leading axes:

    B  images of a batch          L  patches of the grid, L = g * g, row-major: i = g * row + col
    V  views of an image          g  side of the patch grid (14 for 224 px and 16 px patches)
    P  partitions of a view       p  side of a patch in pixels
    n  visible patches            m  masked patches, m = L - n
    k  kept patches               D  width of a model
    N  samples of a unit          3p² = 3 * p * p values of a patch, channel fastest

Words, one meaning each: *visible* = given to the masked autoencoder; *kept* = chosen by selection;
*score* = the autoencoder's pseudo-score, *ranker score* = predicted; higher = matters more, always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltrp_core.selector import LTRPSelector, SelectedPatches

__all__ = ["LTRPSelector", "SelectedPatches"]


def __getattr__(name: str) -> Any:
    """Imports the public classes when they are asked for: `--help` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ltrp_core import selector

    return getattr(selector, name)
