"""The masked autoencoder (He et al., CVPR 2022) that scores patches: Eq. (1).

The encoder sees the visible patches only; the decoder sees their latents at their own positions and
one shared mask token at every other position. Parameter names are the MAE authors', so their
checkpoints load without renaming.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.patches import model_images, patchify, unpatchify
from ltrp_core.positions import sincos_positions


@dataclass(frozen=True, kw_only=True, slots=True)
class MAEConfig:
    """Sizes of a masked autoencoder; widths and depths in the order encoder, decoder."""

    width: int
    depth: int
    heads: int
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    patch_size: int = 16
    grid: int = 14
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    """Of every LayerNorm; `transformers` checkpoints are run with 1e-12."""

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.grid * self.patch_size

    @property
    def num_patches(self) -> int:
        """L."""
        return self.grid * self.grid


MAE_CONFIGS: dict[str, MAEConfig] = {
    "mae_tiny": MAEConfig(
        width=192, depth=8, heads=3, decoder_width=128, decoder_depth=4, decoder_heads=4
    ),
    "mae_small": MAEConfig(
        width=384, depth=12, heads=6, decoder_width=256, decoder_depth=4, decoder_heads=8
    ),
    "mae_base": MAEConfig(width=768, depth=12, heads=12),
    "mae_large": MAEConfig(width=1024, depth=24, heads=16),
    "mae_huge": MAEConfig(width=1280, depth=32, heads=16, patch_size=14, grid=16),
}
"""Base, large and huge are the sizes of the MAE authors; tiny and small are ours, for trials."""


class MaskedAutoencoder(nn.Module):
    """Encoder on the visible patches, decoder on all positions; see `MAEConfig` for the sizes.

    `config`, `grid` (g) and `patch_size` (p) are attributes. Images are float (B, 3, g*p, g*p),
    normalized with the ImageNet mean and standard deviation; reconstructions are in the same units.
    """

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.patch_size = config.patch_size
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, 3, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = _blocks(config, config.width, config.depth, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.decoder_blocks = _blocks(
            config, config.decoder_width, config.decoder_depth, config.decoder_heads
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_width, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(config.decoder_width, 3 * config.patch_size**2)
        # Fixed, yet part of the state: a checkpoint brings the table it was trained with.
        self.pos_embed: Tensor
        self.decoder_pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(config.width, config.grid))
        self.register_buffer(
            "decoder_pos_embed", sincos_positions(config.decoder_width, config.grid)
        )
        self._initialize()

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Returns the depth of a parameter by its name, as timm's layer decay asks for it.

        The embedding is 0, the encoder's block i (from 0) i + 1, the decoder's blocks come after.
        """
        del coarse
        encoder, decoder = len(self.blocks), len(self.decoder_blocks)
        of_part = {"cls_token": 0, "patch_embed": 0, "norm": encoder}
        of_part |= {"decoder_embed": encoder + 1, "mask_token": encoder + 1}
        first = {"blocks": 1, "decoder_blocks": encoder + 2}

        def depth(name: str) -> int:
            part, *rest = name.split(".")
            if part in first:
                return first[part] + int(rest[0])
            return of_part.get(part, encoder + decoder + 2)

        return depth

    def _initialize(self) -> None:
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))

    def patchify(self, images: Tensor) -> Tensor:
        """Returns the patches (B, L, 3p²) of `images` (B, 3, g*p, g*p), channel fastest."""
        return patchify(images, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Returns the images (B, 3, g*p, g*p) made of `patches` (B, L, 3p²)."""
        return unpatchify(patches, self.patch_size, self.grid)

    def embed(self, images: Tensor, visible: Tensor) -> Tensor:
        """Returns the class token and the visible patch tokens, positions added: (B, 1+n, D).

        Only the visible patches are projected.

        Raises:
            RequestError: `images` or `visible` are not of this model's grid.
        """
        images = model_images(images, self.grid, self.patch_size, self.cls_token.dtype)
        self._check(images, visible)
        patches = self.patchify(images)
        chosen = patches.gather(1, visible.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        projection = self.patch_embed.proj
        # The convolution's kernel is (D, 3, p, p); ours are patches with the channel fastest.
        kernel = projection.weight.permute(0, 2, 3, 1).flatten(1)
        tokens = F.linear(chosen, kernel, projection.bias)
        tokens = tokens + self.pos_embed[0, 1:][visible]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat([cls, tokens], dim=1)

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Returns latent (B, 1+n, D) of the `visible` int64 (B, n) patches of `images`: Enc."""
        tokens = self.embed(images, visible)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def decode(self, latent: Tensor, visible: Tensor) -> Tensor:
        """Returns the reconstruction (B, L, 3p²) from `latent` (B, 1+n, D): Dec of Eq. (1)."""
        embedded = self.decoder_embed(latent)
        length = self.config.num_patches
        tokens = self.mask_token.expand(len(latent), length, -1).to(embedded.dtype)
        index = visible.unsqueeze(-1).expand(-1, -1, embedded.shape[-1])
        tokens = tokens.scatter(1, index, embedded[:, 1:])
        tokens = torch.cat([embedded[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Returns the mean squared error over the masked patches, a scalar: H of Eq. (1).

        The target is the raw (not per-patch normalized) pixels, as the method needs (Tab. 1i).
        """
        predicted = self.decode(self.encode(images, visible), visible)
        squared = (predicted.float() - self.patchify(images)).square().mean(dim=-1)
        is_masked = torch.ones_like(squared, dtype=torch.bool).scatter(1, visible, False)
        return squared[is_masked].mean()

    def _check(self, images: Tensor, visible: Tensor) -> None:
        if visible.ndim != 2 or len(visible) != len(images) or visible.dtype != torch.int64:
            raise RequestError(
                f"visible must be int64 (B, n) with B = {len(images)}; got {visible.dtype} "
                f"{tuple(visible.shape)}. Pass the indices from sample_visible()."
            )


def _blocks(config: MAEConfig, width: int, depth: int, heads: int) -> nn.ModuleList:
    norm: Any = functools.partial(nn.LayerNorm, eps=config.norm_eps)
    return nn.ModuleList(
        Block(width, heads, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm)
        for _ in range(depth)
    )


def mae_config(name: str) -> MAEConfig:
    """Returns the sizes behind a model name.

    Raises:
        RequestError: no model has that name; the message lists the nearest ones.
    """
    if name not in MAE_CONFIGS:
        raise unknown_name("masked autoencoder", name, MAE_CONFIGS)
    return MAE_CONFIGS[name]


def create_mae(name: str) -> MaskedAutoencoder:
    """Returns a masked autoencoder with random weights, drawn from torch's default generator.

    Args:
        name: `mae_tiny`, `mae_small`, `mae_base`, `mae_large` or `mae_huge` (14 px patches).

    Raises:
        RequestError: no model has that name; the message lists the nearest ones.
    """
    return MaskedAutoencoder(mae_config(name))
