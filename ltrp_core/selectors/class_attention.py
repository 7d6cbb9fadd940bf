"""Attention of the class token: `dino`, `moco` and `attention-rollout`.

- dino: the last block's, mean over heads (Caron et al., ICCV 2021). The code that the LTRP authors
  compared with counts votes: a head votes for the patches that hold a share k / L of its attention.
- moco: the same of MoCo v3's ViT-S, which has 12 heads, not 6 (Chen et al., ICCV 2021); of a
  ResNet-50 the sum of the channels of the last map (He et al., CVPR 2020), bicubic to the grid.
- attention-rollout: attention of all blocks multiplied, half of each being the token itself (Abnar
  and Zuidema, ACL 2020).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltrp_core.selectors.base import PATCH_SIZE, Selector, SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    DEIT_SMALL,
    Layout,
    NetworkChoices,
    NetworkScores,
    Opened,
    open_timm,
    open_vit,
    weights_path,
)
from ltrp_core.selectors.vit_blocks import (
    after_mlp,
    attend,
    by_stage,
    first_tokens,
)
from ltrp_core.weight_sources import TIMM

DINO_MODEL = "timm:vit_small_patch16_224"
MOCO_MODEL = "timm:resnet50"
DINO_LAYOUT = Layout(
    wrapped_as=("teacher", "state_dict", "model"),
    prefixes=("module.backbone.", "backbone.", "module."),
    heads=("head.",),
)
MOCO_LAYOUT = Layout(
    wrapped_as=("state_dict", "model"),
    prefixes=(
        "module.base_encoder.",
        "module.encoder_q.",
        "base_encoder.",
        "encoder_q.",
        "module.",
    ),
    heads=("fc.", "head."),
)
_ROLLOUT_LAYOUT = Layout(heads=("head.", "fc_norm."))
_MOCO_HEADS = 12


def last_attention(vit: Any, image: Tensor) -> Tensor:
    """Returns the class token's attention to the patches in the last block, (heads, L)."""
    tokens = first_tokens(vit, image)
    for block in vit.blocks[:-1]:
        tokens = after_mlp(block, attend(block, tokens).tokens)
    return attend(vit.blocks[-1], tokens).weights[0, :, 0, 1:]


class LastAttentionSelector(NetworkScores):
    """The last block's attention of the class token, mean over heads."""

    def score(self, image: Tensor) -> Tensor:
        """Returns the attention."""
        return last_attention(self.network.module, image).mean(dim=0, keepdim=True)


class VotesSelector(NetworkChoices):
    """The votes of the last block's heads, then their mean attention."""

    def look(self, image: Tensor) -> Tensor:
        """Returns the attention (heads, L)."""
        return last_attention(self.network.module, image)

    def choose(self, seen: Tensor, key: str, keep: int) -> Tensor:
        """Returns the patches with the most votes."""
        del key
        return by_stage(votes(seen, keep), seen.mean(dim=0))[:keep]


def votes(attention: Tensor, keep: int) -> Tensor:
    """Returns how many heads vote for each patch, int64 (L,).

    A head votes for the patches from the most attended on that hold more than a share k / L of its
    attention to all patches: those whose ascending cumulative share is above 1 - k / L.

    Args:
        attention: (heads, L), >= 0.
        keep: k.

    >>> votes(torch.tensor([[0.1, 0.6, 0.3]]), 1)
    tensor([0, 1, 0])
    """
    shares = attention.double() / attention.double().sum(dim=1, keepdim=True)
    ascending = shares.sort(dim=1, stable=True)
    is_voted = ascending.values.cumsum(dim=1) > 1.0 - keep / attention.shape[1]
    voted = torch.zeros_like(is_voted).scatter(1, ascending.indices, is_voted)
    return voted.sum(dim=0)


class ChannelSumSelector(NetworkScores):
    """The sum of the channels of a convolutional network's last map."""

    def score(self, image: Tensor) -> Tensor:
        """Returns the sum, bicubic to the grid."""
        model: Any = self.network.module
        total = model.forward_features(image).sum(dim=1, keepdim=True)
        side = (self.grid, self.grid)
        return F.interpolate(total, side, mode="bicubic", align_corners=False).flatten(1)


class RolloutSelector(NetworkScores):
    """Attention of all blocks, from the class token down to the patches."""

    def score(self, image: Tensor) -> Tensor:
        """Returns the class token's row of the product of all blocks' (A + I) / 2."""
        vit: Any = self.network.module
        tokens = first_tokens(vit, image)
        reached = torch.eye(tokens.shape[1], device=image.device)
        for block in vit.blocks:
            found = attend(block, tokens)
            tokens = after_mlp(block, found.tokens)
            half = (found.weights[0].mean(dim=0) + torch.eye(len(reached)).to(image.device)) / 2
            reached = half @ reached
        return reached[:1, 1:]


def open_dino(options: SelectorOptions) -> Opened:
    """Returns DINO's vision transformer; errors as of `open_vit`."""
    return open_vit(options, DINO_MODEL, DINO_LAYOUT, method="dino", num_classes=0)


def make_dino(options: SelectorOptions) -> Selector:
    """Returns `dino`; errors as of `open_vit`."""
    opened = open_dino(options)
    if options.faithful:
        return VotesSelector(opened, options)
    return LastAttentionSelector(opened, options)


def make_moco(options: SelectorOptions) -> Selector:
    """Returns `moco` of a ResNet or of a vision transformer; errors as of `open_vit`."""
    if (options.model or MOCO_MODEL).removeprefix(TIMM).startswith("vit_"):
        heads = {"num_classes": 0, "num_heads": _MOCO_HEADS}
        opened = open_vit(options, MOCO_MODEL, MOCO_LAYOUT, method="moco", **heads)
        return LastAttentionSelector(opened, options)
    module, normalization = open_timm(options, MOCO_MODEL, MOCO_LAYOUT, num_classes=0)
    side = options.image_size or 224
    opened = Opened(module, normalization, side, options.patch_size or PATCH_SIZE)
    return ChannelSumSelector(opened, options)


def make_rollout(options: SelectorOptions) -> Selector:
    """Returns `attention-rollout`; errors as of `open_vit`."""
    opened = open_vit(
        options, DEIT_SMALL, _ROLLOUT_LAYOUT, method="attention-rollout", num_classes=0
    )
    return RolloutSelector(opened, options)


DINO = SelectorSpec(
    make=make_dino,
    help="most attended by the class token of DINO's last block",
    weights_file=weights_path,
    paper="Caron et al., ICCV 2021",
    takes="DINO's ViT-S (timm:vit_small_patch16_224.dino), or its own checkpoint",
    model=DINO_MODEL,
    faithful="votes of the heads; equal votes by the mean attention",
    keeps_homogeneous=False,
)
MOCO = SelectorSpec(
    make=make_moco,
    help="strongest features of MoCo's last map, or its class token's attention",
    weights_file=weights_path,
    paper="He et al., CVPR 2020; Chen et al., ICCV 2021",
    takes="MoCo v2 or v3 of a ResNet-50; with --model timm:vit_small_patch16_224 v3's ViT-S",
    model=MOCO_MODEL,
    keeps_homogeneous=False,
)
ROLLOUT = SelectorSpec(
    make=make_rollout,
    help="most attended by the class token through all blocks",
    weights_file=weights_path,
    paper="Abnar and Zuidema, ACL 2020",
    uses_labels=True,
    takes="a vision transformer of timm's, DeiT-S (timm:deit_small_patch16_224.fb_in1k) as a rule",
    model=DEIT_SMALL,
    keeps_homogeneous=False,
)
