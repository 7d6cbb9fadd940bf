"""DPC-KNN alone: the centers of k clusters of patches (Du et al., 2016; Tab. 1e at ratio 1).

Of raw pixels, or of the tokens of a vision transformer. A center is the patch of its cluster that
is nearest to the center. The code that the LTRP authors compared with draws a member instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltrp_core.clustering import dpc_knn
from ltrp_core.patches import patchify
from ltrp_core.seeding import random_uniform
from ltrp_core.selection import check_keep
from ltrp_core.selectors.base import (
    IMAGE_SIZE,
    PATCH_SIZE,
    Selector,
    SelectorOptions,
    SelectorSpec,
)
from ltrp_core.selectors.class_attention import DINO_LAYOUT, DINO_MODEL
from ltrp_core.selectors.network import NetworkChoices, Opened, open_vit, weights_path
from ltrp_core.selectors.vit_blocks import after_mlp, attend, first_tokens

_NEIGHBORS = 5


def representatives(points: Tensor, keep: int, *, draw: tuple[int, str] | None = None) -> Tensor:
    """Returns one patch of each of k clusters, (k,), dense and remote centers first.

    Args:
        points: (L, C).
        keep: k.
        draw: seed and key by which a member is drawn; None: the center.
    """
    assignment, centers = dpc_knn(points[None], keep, min(_NEIGHBORS, len(points)))
    if draw is None:
        return centers[0]
    seed, key = draw
    chance = random_uniform(len(points), seed=seed, key=key, purpose="dpc-knn-member")
    order = torch.from_numpy(chance).argsort(stable=True).to(points.device)
    # Written from the last to the first: the first of a cluster in this order is what stays.
    found = torch.empty(keep, dtype=torch.int64, device=points.device)
    for patch in order.flip(0).tolist():
        found[assignment[0, patch]] = patch
    return found


class PixelClustersSelector(Selector):
    """Clusters of raw pixels."""

    def __init__(self, options: SelectorOptions) -> None:
        """Takes sizes and seed."""
        super().__init__(options.image_size or IMAGE_SIZE, options.patch_size or PATCH_SIZE)
        self.seed, self.faithful = options.seed, options.faithful

    def select(self, images: Tensor, keys: Sequence[str], keeps: Sequence[int]) -> list[Tensor]:
        """Returns one patch of each cluster."""
        for keep in keeps:
            check_keep(keep, self.grid**2)
        patches = patchify(images.float(), self.patch_size)
        return [
            torch.stack(
                [self._of_one(points, key, keep) for points, key in zip(patches, keys, strict=True)]
            )
            if len(keys)
            else torch.empty((0, keep), dtype=torch.int64, device=images.device)
            for keep in keeps
        ]

    def _of_one(self, points: Tensor, key: str, keep: int) -> Tensor:
        return representatives(points, keep, draw=(self.seed, key) if self.faithful else None)


class TokenClustersSelector(NetworkChoices):
    """Clusters of the tokens of a vision transformer's last block, after its norm."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network."""
        super().__init__(opened, options)
        self.faithful = options.faithful

    def look(self, image: Tensor) -> Tensor:
        """Returns the tokens of the patches (L, D)."""
        vit: Any = self.network.module
        tokens = first_tokens(vit, image)
        for block in vit.blocks:
            tokens = after_mlp(block, attend(block, tokens).tokens)
        points: Tensor = vit.norm(tokens)[0, vit.num_prefix_tokens :].float()
        return points

    def choose(self, seen: Tensor, key: str, keep: int) -> Tensor:
        """Returns one patch of each cluster."""
        return representatives(seen, keep, draw=(self.seed, key) if self.faithful else None)


def make_tokens(options: SelectorOptions) -> TokenClustersSelector:
    """Returns `dpc-knn-tokens`; errors as of `open_vit`."""
    opened = open_vit(options, DINO_MODEL, DINO_LAYOUT, num_classes=0)
    return TokenClustersSelector(opened, options)


_DRAWN = "a member of each cluster that is drawn by seed and key"
_PAPER = "Du et al., Knowledge-Based Systems 2016"

DPC_KNN = SelectorSpec(
    make=PixelClustersSelector,
    help="the centers of k clusters of pixels (DPC-KNN)",
    paper=_PAPER,
    has_scores=False,
    faithful=_DRAWN,
    keeps_homogeneous=False,
)
DPC_KNN_TOKENS = SelectorSpec(
    make=make_tokens,
    help="the centers of k clusters of a transformer's tokens (DPC-KNN)",
    weights_file=weights_path,
    paper=_PAPER,
    has_scores=False,
    takes="DINO's ViT-S (timm:vit_small_patch16_224.dino), or another of timm's",
    model=DINO_MODEL,
    faithful=_DRAWN,
    keeps_homogeneous=False,
)
