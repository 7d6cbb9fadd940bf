"""AdaViT: gates in every block say which tokens, heads and halves of a block are used (Meng et al.,
CVPR 2022).

Score of a patch: in how many of the last half of the blocks its gate is open, plus the mean of
those gates before they are rounded. The code that the LTRP authors compared with counts alone, so
that nearly all patches are equal and rounding orders them; with `faithful` equal counts go by
index.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltrp_core.selectors.base import SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import Layout, NetworkScores, Opened, open_own, weights_path

TOKEN_OPENS, OTHERS_OPEN = 0.6, 0.5
"""Gates of tokens, and of heads and halves of blocks, are open above these."""


class Sizes(NamedTuple):
    """Of the network; the defaults are DeiT-S's."""

    grid: int = 14
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 1000


class Gate(nn.Module):
    """Logits of gates, under the name that they have upstream."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.mlp_head = nn.Linear(width, count)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns probabilities (..., count)."""
        found: Tensor = self.mlp_head(tokens).sigmoid()
        return found


class GatedAttention(nn.Module):
    """Attention among the tokens whose gates are open."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query, self.key, self.value, self.proj = (
            nn.Linear(sizes.width, sizes.width) for _ in range(4)
        )
        self.token_select = Gate(sizes.width, 1)

    def forward(self, tokens: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the output (1, N, D), and gates (N - 1,) as they are and rounded."""
        soft = self.token_select(tokens[:, 1:])[0, :, 0]
        is_open = soft > TOKEN_OPENS
        uses = F.pad(is_open, (1, 0), value=True)
        batch, count, width = tokens.shape
        queries, keys, values = (
            (layer(tokens) * channels).view(batch, count, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        logits = queries @ keys.transpose(-2, -1) * (width // self.heads) ** -0.5
        # A closed token sees itself alone, and nobody sees it.
        allowed = (uses[:, None] & uses[None]) | torch.eye(count, dtype=torch.bool).to(uses.device)
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        out = self.proj(mixed * channels) * uses[None, :, None]
        return out, soft, is_open


class Mlp(nn.Module):
    """Two layers, under the names that they have upstream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns (1, N, D)."""
        found: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return found


class GatedBlock(nn.Module):
    """A block; all but the first have gates of heads and halves, too."""

    def __init__(self, sizes: Sizes, is_first: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = GatedAttention(sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = Mlp(sizes.width)
        self.head_select = None if is_first else Gate(sizes.width, sizes.heads)
        self.layer_select = None if is_first else Gate(sizes.width, 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tokens (1, N, D), and gates (N - 1,) as they are and rounded."""
        channels, halves = torch.ones((), device=tokens.device), torch.ones(2).to(tokens.device)
        if self.head_select is not None and self.layer_select is not None:
            policy = tokens[0, 0]
            heads = (self.head_select(policy) > OTHERS_OPEN).float()
            channels = heads.repeat_interleave(tokens.shape[2] // len(heads))
            halves = (self.layer_select(policy) > OTHERS_OPEN).float()
        mixed, soft, is_open = self.attn(self.norm1(tokens), channels)
        tokens = tokens + halves[0] * mixed
        uses = F.pad(is_open, (1, 0), value=True).to(tokens.dtype)
        out = self.mlp(self.norm2(tokens) * channels) * uses[None, :, None]
        return tokens + halves[1] * out, soft, is_open


class PatchEmbed(nn.Module):
    """The projection, under the name that it has upstream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)


class AdaViT(nn.Module):
    """AdaViT of DeiT's sizes, with names as upstream's checkpoints."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        """Makes the layers."""
        super().__init__()
        sizes = sizes or Sizes()
        self.sizes = sizes
        self.patch_embed = PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.randn(1, 1, sizes.width) * 0.02)
        self.pos_embed = nn.Parameter(_sinusoids(sizes.grid**2 + 1, sizes.width))
        self.blocks = nn.ModuleList(GatedBlock(sizes, n == 0) for n in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gates of tokens in every block, (depth, L), as they are and rounded."""
        patches = self.patch_embed.proj(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token, patches], dim=1) + self.pos_embed
        gates = []
        for block in self.blocks:
            tokens, soft, is_open = block(tokens)
            gates.append((soft, is_open))
        return torch.stack([g[0] for g in gates]), torch.stack([g[1] for g in gates])


def _sinusoids(count: int, width: int) -> Tensor:
    """Returns sines and cosines in turns, (1, N, D), as in Vaswani et al."""
    place = torch.arange(count, dtype=torch.float64)[:, None]
    channel = torch.arange(width)
    angle = place / 10000 ** (2 * (channel // 2).double() / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


class AdaViTSelector(NetworkScores):
    """Patches by how often AdaViT uses them."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network."""
        super().__init__(opened, options)
        self.faithful = options.faithful

    def score(self, image: Tensor) -> Tensor:
        """Returns open gates of the last half of the blocks + their mean before rounding."""
        soft, is_open = self.network.module(image)
        half = len(soft) // 2
        counts = is_open[half:].sum(dim=0, dtype=torch.float32)
        return (counts if self.faithful else counts + soft[half:].mean(dim=0))[None]


def make(options: SelectorOptions) -> AdaViTSelector:
    """Returns AdaViT.

    Raises:
        CheckpointError: the weights cannot be used.
        RequestError: sizes that are not its own.
    """
    sizes = Sizes()
    side = sizes.grid * sizes.patch
    opened = open_own(options, "adavit", Layout(("state_dict", "model")), AdaViT, side, sizes.patch)
    return AdaViTSelector(opened, options)


ADAVIT = SelectorSpec(
    make=make,
    help="used by most blocks of AdaViT",
    weights_file=weights_path,
    paper="Meng et al., CVPR 2022",
    uses_labels=True,
    takes="AdaViT's checkpoint of DeiT-S (gates of tokens, heads and layers)",
    faithful="the number of open gates alone; equal numbers by index",
    keeps_homogeneous=False,
)
