"""Mobile-Former-26M (Chen et al., CVPR 2022), the ranking backbone of Tab. 1d that timm lacks.

A MobileNet and a transformer side by side: three global tokens of width 128 read the feature map
(Mobile->Former), attend to each other (Former), set the slopes of the map's activations (dynamic
ReLU) and are written back into the map (Former->Mobile). The 26M variant is the 52M one with every
1 x 1 convolution split into four groups. With its 1000-way classifier it has 3.23 M parameters and,
at 224 px, 23.6 M multiply-adds in convolutions and matrix products (25.8 M with one for each value
that is normalized or activated), as its authors' table says: 3.2 M and 26 M.

Layout in this file: feature maps (B, C, h, w), tokens (B, T, 128).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 3
TOKEN_WIDTH = 128
EMBEDDING_WIDTH = 1024
_STEM_CHANNELS = 8
_GROUPS = 4
_HEADS = 2
_FORMER_HEADS = 4
_SQUEEZE = 4
"""Token width over the hidden width of a dynamic ReLU."""


class _Stage(NamedTuple):
    """One Mobile-Former block: downsampling blocks expand twice (depthwise), others once."""

    expansion: int
    channels: int
    stride: int


_FIRST = _Stage(3, 12, 2)
"""The lite bottleneck after the stem, without tokens: 112 -> 56 px at 224 px input."""
_STAGES = (
    _Stage(3, 12, 1),
    _Stage(6, 24, 2),
    _Stage(3, 24, 1),
    _Stage(6, 48, 2),
    _Stage(4, 48, 1),
    _Stage(6, 64, 1),
    _Stage(6, 96, 2),
    _Stage(6, 96, 1),
)
_SECOND_EXPANSION = 4
"""Of the second depthwise convolution of a downsampling block."""


class MobileFormer(nn.Module):
    """The trunk of Mobile-Former-26M: images in, feature map and tokens out.

    `num_features` (96) is C of the feature map. Batch normalization makes training, but not
    evaluation, depend on the batch.
    """

    num_features = _STAGES[-1].channels

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, TOKENS, TOKEN_WIDTH))
        self.stem = nn.Sequential(
            nn.Conv2d(3, _STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(_STEM_CHANNELS),
            nn.ReLU6(),
        )
        hidden = _STEM_CHANNELS * _FIRST.expansion
        self.first = nn.Sequential(
            _expand_depthwise(_STEM_CHANNELS, hidden, _FIRST.stride),
            nn.ReLU6(),
            _pointwise(hidden, _FIRST.channels),
        )
        blocks: list[nn.Module] = []
        channels = _FIRST.channels
        for stage in _STAGES:
            blocks.append(_Block(channels, stage))
            channels = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.last_bridge = _MobileToFormer(channels)
        _initialize(self)
        nn.init.normal_(self.tokens)

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the map (B, 96, ceil(H/32), ceil(W/32)) and tokens (B, 3, 128) of `images`."""
        features = self.first(self.stem(images))
        tokens = self.tokens.expand(len(images), -1, -1)
        for block in self.blocks:
            features, tokens = block(features, tokens)
        return features, self.last_bridge(features, tokens)


class MobileFormerEmbedding(nn.Module):
    """The original's classifier up to its last linear layer: pooled map and first token, mixed."""

    def __init__(self) -> None:
        super().__init__()
        channels = MobileFormer.num_features
        hidden = channels * 6
        self.expand = nn.Sequential(
            nn.ChannelShuffle(_GROUPS), _pointwise(channels, hidden), nn.ReLU6()
        )
        self.mix = nn.Sequential(
            nn.Linear(hidden + TOKEN_WIDTH, EMBEDDING_WIDTH),
            nn.BatchNorm1d(EMBEDDING_WIDTH),
            nn.Hardswish(),
        )
        _initialize(self)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Returns an embedding (B, 1024) of a map (B, 96, h, w) and tokens (B, 3, 128)."""
        pooled = F.hardswish(self.expand(features).mean(dim=(2, 3)))
        embedding: Tensor = self.mix(torch.cat([pooled, tokens[:, 0]], dim=1))
        return embedding


class _Block(nn.Module):
    """Mobile->Former, Former, Mobile (with dynamic ReLU) and Former->Mobile, in that order."""

    def __init__(self, channels: int, stage: _Stage) -> None:
        super().__init__()
        self.to_former = _MobileToFormer(channels)
        self.former = _Former()
        mobile = _DownsamplingMobile if stage.stride == 2 else _Mobile
        self.mobile = mobile(channels, stage)
        self.to_mobile = _FormerToMobile(stage.channels)

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.former(self.to_former(features, tokens))
        features = self.mobile(features, tokens[:, 0])
        return self.to_mobile(features, tokens), tokens


class _Mobile(nn.Module):
    """Inverted bottleneck at stride 1: pointwise, depthwise, pointwise."""

    def __init__(self, channels: int, stage: _Stage) -> None:
        super().__init__()
        hidden = channels * stage.expansion
        self.expand = nn.Sequential(_pointwise(channels, hidden), nn.ChannelShuffle(_GROUPS))
        self.expand_act = _DynamicReLU(hidden)
        self.depthwise = _depthwise(hidden, hidden, stride=1)
        self.depthwise_act = _DynamicReLU(hidden)
        self.project = nn.Sequential(_pointwise(hidden, stage.channels), nn.ChannelShuffle(_GROUPS))
        self.has_skip = channels == stage.channels

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        hidden = self.expand_act(self.expand(features), token)
        hidden = self.depthwise_act(self.depthwise(hidden), token)
        projected: Tensor = self.project(hidden)
        return projected + features if self.has_skip else projected


class _DownsamplingMobile(nn.Module):
    """Two lite bottlenecks (expanding depthwise, pointwise), the second with a skip connection."""

    def __init__(self, channels: int, stage: _Stage) -> None:
        super().__init__()
        first, second = channels * stage.expansion, stage.channels * _SECOND_EXPANSION
        self.down = _expand_depthwise(channels, first, stage.stride)
        self.down_act = _DynamicReLU(first)
        self.down_project = _pointwise(first, stage.channels)
        self.refine = _expand_depthwise(stage.channels, second, stride=1)
        self.refine_act = _DynamicReLU(second)
        self.refine_project = _pointwise(second, stage.channels)

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        low: Tensor = self.down_project(self.down_act(self.down(features), token))
        refined: Tensor = self.refine_project(self.refine_act(self.refine(low), token))
        return refined + low


class _DynamicReLU(nn.Module):
    """max(a x, b x) with slopes a in [0, 2] and b in [-1, 1] from the first token.

    Dynamic ReLU (Chen et al., ECCV 2020), K = 2, without intercepts; a = 1, b = 0 (the plain ReLU)
    where the token gives nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = TOKEN_WIDTH // _SQUEEZE
        self.slopes = nn.Sequential(
            nn.Linear(TOKEN_WIDTH, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * channels),
            nn.Hardsigmoid(),
        )

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        offsets = 2.0 * self.slopes(token)[:, :, None, None] - 1.0
        positive, negative = offsets.chunk(2, dim=1)
        return torch.maximum(features * (1.0 + positive), features * negative)


class _MobileToFormer(nn.Module):
    """Tokens read the map: keys and values are the features themselves, unprojected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(TOKEN_WIDTH, channels)
        self.gate = nn.Sequential(nn.Linear(TOKEN_WIDTH, channels), nn.Hardsigmoid())
        self.project = nn.Linear(channels, TOKEN_WIDTH)
        self.norm = nn.LayerNorm(TOKEN_WIDTH)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        positions = features.flatten(2).transpose(1, 2)
        read = _attend(self.query(tokens), positions, positions, _HEADS)
        read = read * (2.0 * self.gate(tokens))
        updated: Tensor = self.norm(tokens + self.project(read))
        return updated


class _Former(nn.Module):
    """Attention among the tokens and a feed-forward layer of expansion 2, normalized after."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)
        self.project = nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)
        self.attention_norm = nn.LayerNorm(TOKEN_WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(TOKEN_WIDTH, 2 * TOKEN_WIDTH),
            nn.GELU(),
            nn.Linear(2 * TOKEN_WIDTH, TOKEN_WIDTH),
        )
        self.mlp_norm = nn.LayerNorm(TOKEN_WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        read = _attend(self.query(tokens), tokens, tokens, _FORMER_HEADS)
        tokens = self.attention_norm(tokens + self.project(read))
        updated: Tensor = self.mlp_norm(tokens + self.mlp(tokens))
        return updated


class _FormerToMobile(nn.Module):
    """The map reads the tokens: queries are the features themselves, unprojected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Linear(TOKEN_WIDTH, channels)
        self.value = nn.Linear(TOKEN_WIDTH, channels)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        positions = features.flatten(2).transpose(1, 2)
        read = _attend(positions, self.key(tokens), self.value(tokens), _HEADS)
        return features + read.transpose(1, 2).reshape(features.shape)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Returns multi-head attention (B, q, C) of queries (B, q, C) over keys, values (B, k, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _depthwise(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(out),
    )


def _expand_depthwise(channels: int, out: int, stride: int) -> nn.Sequential:
    # The shuffle hands every group of the next pointwise layer a copy of every input channel.
    return nn.Sequential(_depthwise(channels, out, stride), nn.ChannelShuffle(channels))


def _pointwise(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 1, groups=_GROUPS, bias=False), nn.BatchNorm2d(out)
    )


def _initialize(module: nn.Module) -> None:
    """Fan-out normal convolutions; small linear layers, so that each dynamic ReLU starts plain."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan_out = math.prod(child.kernel_size) * child.out_channels / child.groups
            nn.init.normal_(child.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=0.01)
            nn.init.zeros_(child.bias)
