"""Networks of every method, small enough for loops over patches; their weights have an effect."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

from ltrp_core.classifiers.normalization import NORMALIZATIONS
from ltrp_core.selectors import SelectorOptions
from ltrp_core.selectors.adavit import AdaViT, AdaViTSelector
from ltrp_core.selectors.adavit import Sizes as AdaViTSizes
from ltrp_core.selectors.class_attention import (
    LastAttentionSelector,
    RolloutSelector,
    VotesSelector,
)
from ltrp_core.selectors.dge import DgeSelector, DgeViT
from ltrp_core.selectors.dge import Sizes as DgeSizes
from ltrp_core.selectors.dpc_knn import TokenClustersSelector
from ltrp_core.selectors.dynamicvit import DynamicViTSelector, with_predictors
from ltrp_core.selectors.evit import EViTSelector
from ltrp_core.selectors.gfnet import GFNetSelector, GlanceAndFocus
from ltrp_core.selectors.grad_cam import GradCamSelector
from ltrp_core.selectors.ia_red2 import IARed2Selector, with_agents
from ltrp_core.selectors.network import Opened
from ltrp_core.selectors.tome import ToMeSelector

GRID, PATCH = 4, 4
LENGTH = GRID**2
SIDE = GRID * PATCH
IMAGENET = NORMALIZATIONS["imagenet"]


def vit(classes: int = 5) -> VisionTransformer:
    return VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=24, depth=4, num_heads=3, num_classes=classes
    )


def stirred(module, seed: int = 0):
    """The module with weights large enough that attention is not flat and gates open and close."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        if value.is_floating_point():
            scale = 0.6 if value.ndim > 1 else 0.2
            noise = torch.randn(value.shape, generator=generator) * scale
            value.data = noise + ("norm" in name and name.endswith("weight"))
    return module


def extended(extend):
    network = vit()
    return extend(network, network.embed_dim)


NETWORKS = {
    "dino": vit,
    "attention-rollout": vit,
    "grad-cam": vit,
    "evit": vit,
    "tome": vit,
    "dpc-knn-tokens": vit,
    "dynamicvit": lambda: extended(with_predictors),
    "ia-red2": lambda: extended(with_agents),
    "adavit": lambda: AdaViT(AdaViTSizes(GRID, PATCH, width=24, depth=4, heads=3, classes=5)),
    "dge": lambda: DgeViT(DgeSizes(8, PATCH, width=24, depth=3, heads=3, classes=5)),
    "gfnet": lambda: GlanceAndFocus(window=32, steps=3, model="resnet10t", width=8),
}
SELECTORS = {
    "dino": LastAttentionSelector,
    "dino votes": VotesSelector,
    "attention-rollout": RolloutSelector,
    "grad-cam": GradCamSelector,
    "evit": EViTSelector,
    "tome": ToMeSelector,
    "dpc-knn-tokens": TokenClustersSelector,
    "dynamicvit": DynamicViTSelector,
    "ia-red2": IARed2Selector,
    "adavit": AdaViTSelector,
    "dge": DgeSelector,
    "gfnet": GFNetSelector,
}


def small(name: str, seed: int = 0, **options):
    """A selector on a small network; DGE's has a grid of 6, GFNet's images of 64 px."""
    network = NETWORKS[name.removesuffix(" votes")]()
    network = network if name == "gfnet" else stirred(network, seed)
    side, patch = {"dge": (6 * PATCH, PATCH), "gfnet": (64, 16)}.get(name, (SIDE, PATCH))
    opened = Opened(network, IMAGENET, side, patch)
    return SELECTORS[name](opened, SelectorOptions(homogeneous=0.0, **options))


def images_for(selector, count: int = 3, seed: int = 1) -> torch.Tensor:
    side = selector.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
