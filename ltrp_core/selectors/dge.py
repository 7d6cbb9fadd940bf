"""DGE: queries of dynamic grain (Song et al., NeurIPS 2021).

DeiT-S of 16 x 16 patches in which a router gives every region of 4 x 4 patches 16, 4 or 1 query.
Score: the product of the class token's key and a patch's key in the last block, mean over heads.
The view is padded by one patch of the mean color on every side, and the map is its inside. Differs
from the code that the LTRP authors compared with, which draws the routes by chance at every call
and resizes the whole map to the view's grid, so that patches are misplaced by up to one; `faithful`
resizes, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltrp_core.selectors.adavit import Mlp
from ltrp_core.selectors.base import SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import Layout, NetworkScores, Opened, open_own, weights_path

SPLITS = (4, 2, 1)
"""Queries along a side of a region, finest first."""
_REGION = max(SPLITS)


class Sizes(NamedTuple):
    """Of the network; the defaults are deit_dge_s124_small_patch16_256's."""

    grid: int = 16
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 1000


class Router(nn.Module):
    """Logits of the grains of each region."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, len(SPLITS))

    def forward(self, maps: Tensor) -> Tensor:
        """Returns the place of the best grain, (g / 4, g / 4), of a map (1, D, g, g)."""
        pooled = F.avg_pool2d(maps, _REGION).permute(0, 2, 3, 1)
        best: Tensor = self.gate(pooled)[0].argmax(dim=-1)
        return best


class Encoder(nn.Module):
    """The router of a block, under the names that it has upstream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.splits = nn.Parameter(torch.tensor(SPLITS), requires_grad=False)
        self.router = Router(width)


class CrossAttention(nn.Module):
    """Attention of queries to all tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q = nn.Linear(sizes.width, sizes.width)
        self.kv = nn.Linear(sizes.width, 2 * sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values, each (1, heads, N, D / heads)."""
        batch, count, _ = tokens.shape
        both = self.kv(tokens).view(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        keys, values = both.unbind(0)
        return keys, values

    def forward(self, tokens: Tensor, asked: Tensor) -> Tensor:
        """Returns (1, Q, D) of tokens (1, N, D) and queries (1, Q, D)."""
        keys, values = self.keys_values(tokens)
        queries = self.q(asked).view(1, asked.shape[1], self.heads, -1).transpose(1, 2)
        logits = queries @ keys.transpose(-2, -1) * keys.shape[-1] ** -0.5
        mixed: Tensor = self.proj((logits.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """A block with queries of three grains; every region takes the result of its own."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.grid = sizes.grid
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = CrossAttention(sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = Mlp(sizes.width)
        self.dge = Encoder(sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns (1, 1 + L, D)."""
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        chosen = self.dge.router(maps)
        pooled = [F.avg_pool2d(maps, _REGION // split) for split in SPLITS]
        asked = torch.cat([tokens[:, :1], *(p.flatten(2).transpose(1, 2) for p in pooled)], dim=1)
        found = asked + self.attn(self.norm1(tokens), self.norm1(asked))
        found = found + self.mlp(self.norm2(found))
        change = found - asked
        counts = [1, *(p.shape[2] * p.shape[3] for p in pooled)]
        of_class, *of_grains = change.split(counts, dim=1)
        added = torch.zeros_like(maps)
        for place, (grain, part) in enumerate(zip(pooled, of_grains, strict=True)):
            step = self.grid // grain.shape[2]
            spread = part.transpose(1, 2).unflatten(2, grain.shape[2:])
            spread = spread.repeat_interleave(step, dim=2).repeat_interleave(step, dim=3)
            mine = (chosen == place).repeat_interleave(_REGION, 0).repeat_interleave(_REGION, 1)
            added = added + spread * mine
        return tokens + torch.cat([of_class, added.flatten(2).transpose(1, 2)], dim=1)


class DgeViT(nn.Module):
    """DeiT with dynamic grains, with names as upstream's checkpoints."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        """Makes the layers."""
        super().__init__()
        sizes = sizes or Sizes()
        self.sizes = sizes
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, sizes.width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, sizes.grid**2 + 1, sizes.width) * 0.02)
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the products of the class token's and the patches' keys in the last block, (L,).

        The last block's own output is not needed.
        """
        projection: nn.Conv2d = self.patch_embed.proj  # type: ignore[assignment]
        patches = projection(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token, patches], dim=1) + self.pos_embed
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last: Any = self.blocks[-1]
        keys, _ = last.attn.keys_values(last.norm1(tokens))
        products: Tensor = keys[0, :, :1] @ keys[0, :, 1:].transpose(-2, -1)
        return products.mean(dim=0)[0]


class DgeSelector(NetworkScores):
    """Patches whose keys are like the class token's."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network; it has one patch more on every side than the view."""
        super().__init__(opened, options)
        self.faithful = options.faithful

    def score(self, image: Tensor) -> Tensor:
        """Returns the inside of the map of the padded view."""
        side = self.grid + 2
        padded = F.pad(image, (self.patch_size,) * 4)
        found = self.network.module(padded).view(1, 1, side, side)
        if self.faithful:
            size = (self.grid, self.grid)
            found = F.interpolate(found, size, mode="bicubic", align_corners=False)
            return found.flatten(1)
        return found[..., 1:-1, 1:-1].flatten(1)


def make(options: SelectorOptions) -> DgeSelector:
    """Returns DGE.

    Raises:
        CheckpointError: the weights cannot be used.
        RequestError: sizes that are not its own.
    """
    sizes = Sizes()
    side = (sizes.grid - 2) * sizes.patch
    opened = open_own(options, "dge", Layout(), DgeViT, side, sizes.patch)
    return DgeSelector(opened, options)


DGE = SelectorSpec(
    make=make,
    help="keys most like the class token's in DGE's last block",
    weights_file=weights_path,
    paper="Song et al., NeurIPS 2021",
    uses_labels=True,
    takes="deit_dge_s124_small_patch16_256's checkpoint",
    faithful="the map of the padded view resized, not cut",
    keeps_homogeneous=False,
)
