"""What a pseudo-score costs: the matrix products behind one (image, partition) pair.

Written down from the sizes alone, for plans and for benchmarks that compare a time with what the
device could do; the tests count the operations of a real run beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ltrp_core.mae import MAEConfig


@dataclass(frozen=True, slots=True)
class Product:
    """`times` products of (rows, inner) by (inner, outer)."""

    kind: Literal["linear", "attention"]
    times: int
    rows: int
    inner: int
    outer: int

    @property
    def operations(self) -> int:
        """Additions and multiplications, counted apart."""
        return 2 * self.times * self.rows * self.inner * self.outer


def scoring_products(config: MAEConfig, n: int) -> list[Product]:
    """Returns the products of one pair as `leave_one_out_scores` computes them.

    Decoder phase, l1, masked region: the defaults (Eq. 2).

    Args:
        config: sizes of the autoencoder.
        n: visible patches, 1 <= n < L.
    """
    width, masked = config.decoder_width, config.num_patches - n
    pixels = 3 * config.patch_size**2
    sequence = 1 + config.num_patches
    products = _encoder(config, n)
    heads, ratio = config.decoder_heads, config.mlp_ratio
    for index in range(config.decoder_depth):
        reads = masked if index == config.decoder_depth - 1 else None
        shared = index == 0 and config.decoder_depth > 1
        products += _block(width, heads, sequence, 1, ratio, reads)
        products += _block(width, heads, sequence - 1, n, ratio, reads, projects=not shared)
    products.append(Product("linear", 1, n * masked, width, pixels))
    return products


def surprise_products(config: MAEConfig, n: int) -> list[Product]:
    """Returns the products of one pair as `surprise_scores` computes them.

    Args:
        config: sizes of the autoencoder.
        n: visible patches, 1 <= n < L.
    """
    width, masked = config.decoder_width, config.num_patches - n
    products = _encoder(config, n)
    for index in range(config.decoder_depth):
        reads = masked if index == config.decoder_depth - 1 else None
        products += _block(
            width, config.decoder_heads, 1 + config.num_patches, 1, config.mlp_ratio, reads
        )
    products.append(Product("linear", 1, masked, width, 3 * config.patch_size**2))
    return products


def scoring_operations(config: MAEConfig, n: int) -> int:
    """Returns the operations of one pair: twice its multiply-accumulates."""
    return sum(product.operations for product in scoring_products(config, n))


def surprise_operations(config: MAEConfig, n: int) -> int:
    """Returns the same of `surprise_scores`, which scores L - n patches instead of n."""
    return sum(product.operations for product in surprise_products(config, n))


def _encoder(config: MAEConfig, n: int) -> list[Product]:
    products = [Product("linear", 1, n, 3 * config.patch_size**2, config.width)]
    for _ in range(config.depth):
        products += _block(config.width, config.heads, 1 + n, 1, config.mlp_ratio)
    products.append(Product("linear", 1, 1 + n, config.width, config.decoder_width))
    return products


def _block(
    width: int,
    heads: int,
    tokens: int,
    passes: int,
    mlp_ratio: float,
    reads: int | None = None,
    *,
    projects: bool = True,
) -> Iterator[Product]:
    """Yields the products of a Transformer block over `passes` sequences.

    Only the first `reads` tokens are read behind it; without `projects` its queries, keys and
    values are there already.
    """
    read = tokens if reads is None else reads
    if projects:
        yield Product("linear", 1, passes * read, width, width)
        yield Product("linear", 1, passes * tokens, width, 2 * width)
    yield Product("attention", passes * heads, read, width // heads, tokens)
    yield Product("attention", passes * heads, read, tokens, width // heads)
    yield Product("linear", 1, passes * read, width, width)
    hidden = int(mlp_ratio * width)
    yield Product("linear", 1, passes * read, width, hidden)
    yield Product("linear", 1, passes * read, hidden, width)
