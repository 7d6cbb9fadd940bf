"""EViT: patches that the class token attends to are kept, the others fused (Liang et al., 2022).

In the blocks at 1/4, 1/2 and 3/4 of the depth, after attention, a share (k / L)^(1/3) of the tokens
stays, by the class token's mean attention; the sum of the others, weighted by it, is one token more
(so it competes at the next stage). Order: stages survived, then the last attention. Differs from
the code that the LTRP authors compared with, where the fused token is taken for patch 0 and all
patches kept is an error.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ltrp_core.selectors.base import SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    DEIT_LAYOUT,
    DEIT_SMALL,
    NetworkChoices,
    open_vit,
    weights_path,
)
from ltrp_core.selectors.vit_blocks import (
    STAGES,
    after_mlp,
    attend,
    by_stage,
    cuts,
    first_tokens,
)

_FUSED = -1


class EViTSelector(NetworkChoices):
    """Patches in the order in which EViT drops them."""

    def choose(self, seen: Tensor, key: str, keep: int) -> Tensor:
        """Returns those that survive, then those that survived longest."""
        del key
        vit: Any = self.network.module
        length = self.grid**2
        share = (keep / length) ** (1 / STAGES)
        tokens = first_tokens(vit, seen)
        patch = torch.arange(length, device=seen.device)
        stage = torch.zeros(length, dtype=torch.int64, device=seen.device)
        last = torch.zeros(length, device=seen.device)
        where = cuts(vit)
        for number, block in enumerate(vit.blocks):
            tokens, weights, _ = attend(block, tokens)
            if number in where:
                attention = weights[0, :, 0, 1:].mean(dim=0)
                is_patch = patch != _FUSED
                last[patch[is_patch]] = attention[is_patch]
                tokens, patch = reduced(tokens, patch, attention, share)
                stage[patch[patch != _FUSED]] += 1
            tokens = after_mlp(block, tokens)
        return by_stage(stage, last)[:keep]


def reduced(tokens: Tensor, patch: Tensor, seen: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Returns tokens (1, 1 + n, D) and patches (n,) after a stage: the best, then the fused token.

    Args:
        tokens: (1, 1 + N, D), the class token first.
        patch: (N,), the patch of each token, -1 for a fused one.
        seen: (N,), attention of the class token.
        share: of the N that stays, rounded up.
    """
    order = seen.argsort(descending=True, stable=True)
    # A share of which rounding makes a little more than a whole number is that number.
    count = math.ceil(share * len(patch) - 1e-9)
    kept, others = order[:count], order[count:]
    best = tokens[:, 1:][:, kept]
    if len(others) == 0:
        return torch.cat([tokens[:, :1], best], dim=1), patch[kept]
    fused = (tokens[:, 1:][:, others] * seen[others].view(1, -1, 1)).sum(dim=1, keepdim=True)
    reduced_tokens = torch.cat([tokens[:, :1], best, fused], dim=1)
    return reduced_tokens, torch.cat([patch[kept], patch.new_tensor([_FUSED])])


def make(options: SelectorOptions) -> EViTSelector:
    """Returns EViT; errors as of `open_vit`."""
    opened = open_vit(options, DEIT_SMALL, DEIT_LAYOUT, method="evit", num_classes=0)
    return EViTSelector(opened, options)


EVIT = SelectorSpec(
    make=make,
    help="survives EViT's fusion of inattentive tokens",
    weights_file=weights_path,
    paper="Liang et al., ICLR 2022",
    uses_labels=True,
    has_scores=False,
    takes="EViT's checkpoints of DeiT-S, or DeiT's own (timm:deit_small_patch16_224.fb_in1k)",
    model=DEIT_SMALL,
    keeps_homogeneous=False,
)
