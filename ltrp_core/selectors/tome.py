"""ToMe: tokens that are alike are merged (Bolya et al., ICLR 2023).

No patch is more important than another one to it: it takes duplicates away. What is kept is one
patch of each of the k groups that are left: the one nearest to the group's mean by the last block's
keys, of large groups first, so the order says how many patches one stands for. Differs from the
code that the LTRP authors compared with, which draws a member of each group and misses k by one for
every twelfth k; `faithful` draws too, by seed and key, of exactly k groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltrp_core.seeding import random_uniform
from ltrp_core.selectors.base import SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    DEIT_LAYOUT,
    DEIT_SMALL,
    NetworkChoices,
    Opened,
    open_vit,
    weights_path,
)
from ltrp_core.selectors.vit_blocks import after_mlp, attend, first_tokens


class Merged(NamedTuple):
    """Tokens and whose they are."""

    tokens: Tensor
    """(1, N, D), the class token first"""
    sizes: Tensor
    """(N,), patches of each token"""
    group: Tensor
    """(L,), the token of each patch"""


class ToMeSelector(NetworkChoices):
    """One patch of each of k groups of alike ones."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network."""
        super().__init__(opened, options)
        self.faithful = options.faithful

    def choose(self, seen: Tensor, key: str, keep: int) -> Tensor:
        """Returns one patch of each group, of large groups first."""
        vit: Any = self.network.module
        length = self.grid**2
        state = Merged(
            first_tokens(vit, seen),
            torch.ones(length + 1, device=seen.device),
            torch.arange(1, length + 1, device=seen.device),
        )
        keys = state.tokens[0, 1:]
        for number, block in enumerate(vit.blocks):
            found = attend(block, state.tokens, bias=state.sizes.log())
            metric = found.keys[0].mean(dim=0)
            keys = metric[state.group]
            state = state._replace(tokens=found.tokens)
            blocks_left = len(vit.blocks) - number
            state, metric = self._merged(state, metric, keep, blocks_left)
            state = state._replace(tokens=after_mlp(block, state.tokens))
        near = self._nearness(keys, state.group, key)
        order = near.argsort(descending=True, stable=True)
        is_first = torch.zeros(length, dtype=torch.bool, device=seen.device)
        taken: set[int] = set()
        for place, group in zip(order.tolist(), state.group[order].tolist(), strict=True):
            is_first[place] = group not in taken
            taken.add(group)
        patches = is_first.nonzero()[:, 0]
        sizes = state.sizes[state.group[patches]]
        return patches[sizes.argsort(descending=True, stable=True)]

    def _merged(
        self, state: Merged, metric: Tensor, keep: int, blocks_left: int
    ) -> tuple[Merged, Tensor]:
        """Returns what a block leaves: an equal share of what is to be merged; the last one all."""
        while (too_many := len(state.sizes) - 1 - keep) > 0:
            count = -(-too_many // blocks_left)
            state, metric = merge(state, metric, count)
            if blocks_left > 1:
                break
        return state, metric

    def _nearness(self, keys: Tensor, group: Tensor, key: str) -> Tensor:
        if self.faithful:
            draw = random_uniform(len(keys), seed=self.seed, key=key, purpose="tome-member")
            return torch.from_numpy(draw).to(keys.device)
        total = torch.zeros(int(group.max()) + 1, keys.shape[1], device=keys.device)
        # Of the sum or of the mean, the cosine is the same.
        total.index_add_(0, group, keys)
        return F.cosine_similarity(keys, total[group], dim=1)


def merge(state: Merged, metric: Tensor, count: int) -> tuple[Merged, Tensor]:
    """Returns the state after the `count` most alike pairs are merged, fewer if there are fewer.

    Tokens stand in turns on two sides; each one of the first side, but the class token, may merge
    with the one of the other side that is most like it, by the cosine of `metric`.

    Args:
        state: N tokens.
        metric: (N, C), keys, mean over heads.
        count: r.

    Returns:
        The state, unmerged tokens of the first side first, and the metric of its tokens.
    """
    unit = F.normalize(metric, dim=1)
    first, second = unit[::2], unit[1::2]
    alike = first @ second.T
    alike[0] = -torch.inf
    best = alike.max(dim=1)
    order = best.values.argsort(descending=True, stable=True)
    count = min(count, len(first) - 1)
    gone, stay = order[:count], order[count:].sort().values
    into = best.indices[gone]
    device = metric.device
    # From the old place of a token to its new one.
    place = torch.empty(len(metric), dtype=torch.int64, device=device)
    place[2 * stay] = torch.arange(len(stay), device=device)
    place[1::2] = len(stay) + torch.arange(len(second), device=device)
    place[2 * gone] = len(stay) + into
    total = len(stay) + len(second)
    sizes = torch.zeros(total, device=device).index_add_(0, place, state.sizes)

    def mean(values: Tensor) -> Tensor:
        weighted = values * state.sizes[:, None]
        return (
            torch.zeros(total, values.shape[1], device=device).index_add_(0, place, weighted)
            / sizes[:, None]
        )

    merged = Merged(mean(state.tokens[0])[None], sizes, place[state.group])
    return merged, mean(metric)


def make(options: SelectorOptions) -> ToMeSelector:
    """Returns ToMe; errors as of `open_vit`."""
    opened = open_vit(options, DEIT_SMALL, DEIT_LAYOUT, method="tome", num_classes=0)
    return ToMeSelector(opened, options)


TOME = SelectorSpec(
    make=make,
    help="one of each group of alike patches, large groups first (ToMe)",
    weights_file=weights_path,
    paper="Bolya et al., ICLR 2023",
    uses_labels=True,
    has_scores=False,
    takes="a vision transformer of timm's, DeiT-S (timm:deit_small_patch16_224.fb_in1k) as a rule",
    model=DEIT_SMALL,
    faithful="a member of each group that is drawn by seed and key",
    keeps_homogeneous=False,
)
