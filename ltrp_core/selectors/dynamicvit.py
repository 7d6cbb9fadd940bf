"""DynamicViT: predictors before three blocks say which tokens stay (Rao et al., NeurIPS 2021).

A predictor sees every token beside the mean of all that are left. Stage s keeps (k / L)^(s/3) of
the patches, the last one k; the order is by the last predictor. Differs from the code that the LTRP
authors compared with, where rounding leaves k - 1 for a quarter of all k.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ltrp_core.selectors.base import SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    DEIT_LAYOUT,
    DEIT_SMALL,
    NetworkChoices,
    open_extended,
    weights_path,
)
from ltrp_core.selectors.vit_blocks import (
    STAGES,
    after_mlp,
    attend,
    cuts,
    first_tokens,
)


class Predictor(nn.Module):
    """Log-probabilities that tokens stay; its parts are called as upstream's."""

    def __init__(self, width: int) -> None:
        """Makes the layers for tokens (B, N, width)."""
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns (B, N) of patches (B, N, D)."""
        own, shared = self.in_conv(tokens).chunk(2, dim=2)
        mean = shared.mean(dim=1, keepdim=True).expand_as(own)
        found: Tensor = self.out_conv(torch.cat([own, mean], dim=2))[..., 0]
        return found


class DynamicViTSelector(NetworkChoices):
    """Patches that DynamicViT's predictors keep."""

    def choose(self, seen: Tensor, key: str, keep: int) -> Tensor:
        """Returns the k that are left after the last stage, by its predictor."""
        del key
        vit: Any = self.network.module
        counts = kept_at_stages(self.grid**2, keep)
        tokens = first_tokens(vit, seen)
        patch = torch.arange(self.grid**2, device=seen.device)
        where = cuts(vit)
        for number, block in enumerate(vit.blocks):
            if number in where:
                stage = where.index(number)
                scores = vit.score_predictor[stage](tokens[:, 1:])[0]
                best = scores.argsort(descending=True, stable=True)[: counts[stage]]
                if stage == STAGES - 1:
                    return patch[best]
                tokens = torch.cat([tokens[:, :1], tokens[:, 1:][:, best]], dim=1)
                patch = patch[best]
            tokens = after_mlp(block, attend(block, tokens).tokens)
        raise AssertionError("the last stage is before the last block")


def kept_at_stages(length: int, keep: int) -> list[int]:
    """Returns how many of L patches are left after each stage; k after the last.

    >>> kept_at_stages(196, 2)
    [42, 9, 2]
    """
    share = (keep / length) ** (1 / STAGES)
    early = [math.floor(length * share**stage + 1e-9) for stage in range(1, STAGES)]
    return [*(max(count, keep) for count in early), keep]


def with_predictors(vit: nn.Module, width: int) -> nn.Module:
    """Returns the transformer with three untrained predictors, `score_predictor` as upstream."""
    model: Any = vit
    model.score_predictor = nn.ModuleList(Predictor(width) for _ in range(STAGES))
    return vit


def make(options: SelectorOptions) -> DynamicViTSelector:
    """Returns DynamicViT; errors as of `open_vit`."""
    return DynamicViTSelector(
        open_extended(options, "dynamicvit", DEIT_LAYOUT, with_predictors), options
    )


DYNAMIC_VIT = SelectorSpec(
    make=make,
    help="kept by DynamicViT's predictors",
    weights_file=weights_path,
    paper="Rao et al., NeurIPS 2021",
    uses_labels=True,
    has_scores=False,
    takes="DynamicViT's checkpoint of DeiT-S",
    model=DEIT_SMALL,
    keeps_homogeneous=False,
)
