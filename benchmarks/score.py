"""Leave-one-out scoring against the sequential masked-attention loop, both in one run.

    python benchmarks/score.py            # MAE-B, mask ratio 0.9, this machine's CPU
    python benchmarks/score.py --quick    # two rounds, smaller model

The loop is the way the authors' released code scores: one decoder pass a removed patch over the
whole batch, the removed token's row and column masked with -inf in every block and NaN set to 0,
the reconstructions subtracted at the end. It is timed at each of `--loop-batch`; the best counts.
Weights are random: they do not change the work done. Ours is compared with what this device could
do at most, too: see ceilings.py, whose rates are measured in the same run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from ceilings import attention_rate, has_bf16, largest_linears, linear_rate, square
from torch import Tensor

from ltrp_core.mae import MaskedAutoencoder, create_mae
from ltrp_core.partitions import sample_visible
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.scoring.cost import scoring_operations, scoring_products


def masked_block(block: torch.nn.Module, hidden: Tensor, is_gone: Tensor, fused: bool) -> Tensor:
    """One Transformer block in which token `is_gone` (B, S) takes no part."""
    attn = block.attn
    qkv = attn.qkv(block.norm1(hidden)).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    hides = is_gone[:, None, :, None] | is_gone[:, None, None, :]
    if fused:
        # The row of the removed token keeps itself, so that no row is empty.
        allowed = ~hides | torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    else:
        logits = (q @ k.transpose(-2, -1) * attn.head_dim**-0.5).masked_fill(hides, -torch.inf)
        weights = logits.softmax(-1)
        weights = torch.where(weights.isnan(), torch.zeros_like(weights), weights)
        mixed = weights @ v
    hidden = hidden + attn.proj(mixed.transpose(1, 2).flatten(2))
    return hidden + block.mlp(block.norm2(hidden))


@torch.no_grad()
def sequential_scores(
    mae: MaskedAutoencoder, images: Tensor, visible: Tensor, *, fused: bool = False
) -> Tensor:
    """Decoder-phase l1 scores (B, n), one masked pass a patch."""
    latent = mae.encode(images, visible)
    anchor = mae.decode(latent, visible)
    is_masked = torch.ones(anchor.shape[:2], dtype=torch.bool).scatter(1, visible, False)
    embedded = mae.decoder_embed(latent)
    tokens = mae.mask_token.repeat(len(images), anchor.shape[1], 1)
    tokens.scatter_(1, visible[..., None].expand_as(embedded[:, 1:]), embedded[:, 1:])
    start = torch.cat([embedded[:, :1], tokens], dim=1) + mae.decoder_pos_embed
    scores = []
    for j in range(visible.shape[1]):
        is_gone = torch.zeros(start.shape[:2], dtype=torch.bool)
        is_gone.scatter_(1, visible[:, j : j + 1] + 1, True)
        hidden = start
        for block in mae.decoder_blocks:
            hidden = masked_block(block, hidden, is_gone, fused)
        without = mae.decoder_pred(mae.decoder_norm(hidden))[:, 1:]
        change = (anchor - without).abs().mean(-1)
        scores.append((change * is_masked).sum(1) / is_masked.sum(1))
    return torch.stack(scores, dim=1)


def seconds_per_image(work: Callable[[], object], images: int) -> float:
    """One timed call."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / images


def floor_seconds(mae: MaskedAutoencoder, n: int, rounds: int) -> float:
    """Seconds of the products of one pair, each size at the rate it has alone.

    Sizes beyond the largest count at the rate of those: they are a tenth of the operations.
    """
    config, cpu = mae.config, torch.device("cpu")
    linears = largest_linears(config, n)
    spent = sum(size.operations / linear_rate(size, "float32", rounds, cpu) for size in linears)
    taken = sum(size.operations for size in linears)
    products = scoring_products(config, n)
    all_linear = sum(one.operations for one in products if one.kind == "linear")
    attention = sum(one.operations for one in products if one.kind == "attention")
    heads, width = config.decoder_heads, config.decoder_width // config.decoder_heads
    rate = attention_rate(n * heads, config.num_patches, width, rounds, cpu)
    return spent * all_linear / taken + attention / rate


def tell_shares(mae: MaskedAutoencoder, n: int, image_s: float, rounds: int) -> None:
    """Prints how much of the device's matrix products a time uses."""
    operations = scoring_operations(mae.config, n)
    reached = operations / image_s
    ceiling = linear_rate(square(), "float32", rounds, torch.device("cpu"))
    floor = floor_seconds(mae, n, rounds)
    print(
        f"{operations / 1e9:.1f} GFLOP a view and partition: {reached / 1e9:.0f} GFLOP/s, "
        f"{reached / ceiling:.0%} of a large product ({ceiling / 1e9:.0f} GFLOP/s); "
        f"{floor / image_s:.0%} of what products and attention of these sizes take alone "
        f"({floor:.3f} s)"
    )


def partitions_of(count: int, length: int, mask_ratio: float) -> torch.Tensor:
    """Returns a partition int64 (count, n) of as many views."""
    rows = [sample_visible(f"{i}", 0, 1, length, mask_ratio, 0)[0] for i in range(count)]
    return torch.from_numpy(np.stack(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mae_base")
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=4, help="images of our side")
    parser.add_argument("--loop-batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rounds = "mae_tiny", 2
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    mae = create_mae(arguments.model).eval()
    side, length = mae.config.image_size, mae.config.num_patches
    largest = max([arguments.batch, *arguments.loop_batch])
    images = torch.randn(largest, 3, side, side)
    visible = partitions_of(largest, length, arguments.mask_ratio)
    b = arguments.batch
    ours = leave_one_out_scores(mae, images[:b], visible[:b])
    loop = sequential_scores(mae, images[:b], visible[:b])
    print(f"largest relative difference of the two: {((ours / loop) - 1).abs().max():.1e}")
    sides: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: leave_one_out_scores(mae, images[:b], visible[:b]), b)
    }
    if has_bf16():
        sides["ours, bf16"] = (
            lambda: leave_one_out_scores(mae, images[:b], visible[:b], precision="bf16"),
            b,
        )
    for size in arguments.loop_batch:
        for fused in (False, True):
            kind = "fused" if fused else "explicit"
            sides[f"loop, {kind}, batch {size}"] = (
                lambda size=size, fused=fused: sequential_scores(
                    mae, images[:size], visible[:size], fused=fused
                ),
                size,
            )
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, (work, count) in sides.items():
            times[name].append(seconds_per_image(work, count))
    print(
        f"{arguments.model}, n = {visible.shape[1]}, {arguments.threads} threads, "
        f"{arguments.rounds} rounds, torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'side':28} {'s/image':>8} {'min':>8} {'max':>8} {'images/s':>9} {'ours/it':>8}")
    base = statistics.median(times["ours"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:28} {median:8.3f} {min(values):8.3f} {max(values):8.3f} "
            f"{1 / median:9.2f} {median / base:8.2f}"
        )
    tell_shares(mae, visible.shape[1], base, arguments.rounds)


if __name__ == "__main__":
    main()
