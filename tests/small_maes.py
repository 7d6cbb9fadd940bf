"""A small autoencoder of random weights, images and partitions: what scores are tried on."""

import torch

from ltrp_core.mae import MAEConfig, MaskedAutoencoder

SMALL = MAEConfig(
    width=32,
    depth=2,
    heads=2,
    decoder_width=16,
    decoder_depth=3,
    decoder_heads=2,
    patch_size=8,
    grid=6,
)


def make(config=SMALL, batch=3, n=5, seed=0):
    """Returns the autoencoder, images and a partition of each."""
    torch.manual_seed(seed)
    mae = MaskedAutoencoder(config).eval()
    images = torch.randn(batch, 3, config.image_size, config.image_size)
    rows = [torch.randperm(config.num_patches)[:n].sort().values for _ in range(batch)]
    return mae, images, torch.stack(rows)
