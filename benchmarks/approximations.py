"""Ways to spend fewer operations on a score: how much faster, and how much of the order is left.

    python benchmarks/approximations.py --shards PHOTOS      # trained weights, real photographs
    python benchmarks/approximations.py --quick              # the demo's photographs

Speed is measured on MAE-B with random weights (they change no operation), each way in turns with
the exact scores; Kendall's tau-b and the overlap of the five best are measured with the trained
weights of the package on photographs, a partition each. Of these ways only bf16 is an option of
`score`: see docs/speed.md for the others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ceilings import has_bf16
from torch import Tensor

from ltrp_core.linear import inference_linear
from ltrp_core.mae import MaskedAutoencoder, create_mae, load_mae
from ltrp_core.partitions import sample_visible
from ltrp_core.ranking_metrics import kendall_tau_b
from ltrp_core.scoring import blocks as mae_blocks
from ltrp_core.scoring import leave_one_out as one_out
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.views import make_view, normalize, render_view

Way = Callable[[MaskedAutoencoder, Tensor, Tensor], Tensor]


def _spread(length: int, share: float) -> Tensor:
    """Places (ceil(share * length),) that are spread evenly over 0 .. length - 1."""
    count = max(1, round(share * length))
    return (torch.arange(count) * length) // count


def _start(
    mae: MaskedAutoencoder, image: Tensor, visible: Tensor, share: float
) -> tuple[Tensor, int]:
    """Returns the decoder's input (1, m + 1 + n, W), a share of the masked tokens in it, and m."""
    masked = mae_blocks.masked_patches(visible, mae.config.num_patches)
    masked = masked[:, _spread(masked.shape[1], share)]
    tokens = mae_blocks.decoder_tokens(mae, mae.encode(image, visible), visible, masked)
    return tokens, masked.shape[1]


def _project(mae: MaskedAutoencoder, change: Tensor) -> Tensor:
    """Returns l1 (n,) of differences (n, q, W) of hidden states behind the decoder's norm."""
    projected = inference_linear(change, mae.decoder_pred.weight, None)
    return projected.abs().mean(dim=(-2, -1))


def _distances(mae: MaskedAutoencoder, anchor: Tensor, left_out: Tensor) -> Tensor:
    """Returns l1 (n,) of hidden states (1, q, W) and (n, q, W) before the decoder's norm."""
    return _project(mae, mae.decoder_norm(anchor) - mae.decoder_norm(left_out))


def _passes(mae: MaskedAutoencoder, tokens: Tensor, kept: Tensor, reads: int) -> Tensor:
    """Returns l1 (passes,) at the first `reads` tokens, from passes over the `kept` ones."""
    left_out = tokens[:, kept].flatten(0, 1)
    anchor, left_out = one_out._shared_first_block(mae.decoder_blocks[0], tokens, left_out, kept)
    anchor, left_out = one_out._later_blocks(mae, anchor, left_out, reads)
    return _project(mae, anchor - left_out)


def thin_decoder(mae: MaskedAutoencoder, image: Tensor, visible: Tensor, share: float) -> Tensor:
    """Only a share of the masked tokens enter the decoder at all."""
    tokens, m = _start(mae, image, visible, share)
    return _passes(mae, tokens, one_out._without_each(m + 1, visible.shape[1], tokens.device), m)


def last_block_share(
    mae: MaskedAutoencoder, image: Tensor, visible: Tensor, share: float
) -> Tensor:
    """All tokens up to the last block; a share of the masked ones are read behind it."""
    tokens, m = _start(mae, image, visible, 1.0)
    # The tokens that are read come first.
    chosen = _spread(m, share)
    order = torch.cat([chosen, mae_blocks.masked_patches(chosen[None], m)[0]])
    tokens = torch.cat([tokens[:, order], tokens[:, m:]], dim=1)
    kept = one_out._without_each(m + 1, visible.shape[1], tokens.device)
    return _passes(mae, tokens, kept, len(chosen))


def frozen_context(mae: MaskedAutoencoder, image: Tensor, visible: Tensor, share: float) -> Tensor:
    """Keys and values are those of the full pass: what is left out is not felt by the others.

    Then no masked token needs another, and a share of them is enough.
    """
    tokens, m = _start(mae, image, visible, 1.0)
    n = visible.shape[1]
    read = _spread(m, share)
    kept = one_out._without_each(m + 1, n, tokens.device)
    anchor, left_out = tokens, tokens[:, read].expand(n, -1, -1)
    for block in mae.decoder_blocks:
        q, k, v = mae_blocks.qkv_of(block, anchor)
        anchor = mae_blocks.finish(block, anchor, mae_blocks.attend(q, k, v))
        keys, values = (t[0][:, kept].transpose(0, 1) for t in (k, v))
        queries = _queries(block, left_out)
        left_out = mae_blocks.finish(block, left_out, mae_blocks.attend(queries, keys, values))
    return _distances(mae, anchor[:, read], left_out)


def _queries(block: Any, tokens: Tensor) -> Tensor:
    width, heads = tokens.shape[-1], block.attn.num_heads
    weight, bias = block.attn.qkv.weight[:width], block.attn.qkv.bias[:width]
    q = inference_linear(block.norm1(tokens), weight, bias)
    return q.unflatten(-1, (heads, -1)).transpose(1, 2)


def early_exit(mae: MaskedAutoencoder, image: Tensor, visible: Tensor, blocks: float) -> Tensor:
    """The difference is read behind a share of the decoder's blocks."""
    tokens, m = _start(mae, image, visible, 1.0)
    kept = one_out._without_each(m + 1, visible.shape[1], tokens.device)
    anchor, left_out = tokens, tokens[:, kept].flatten(0, 1)
    anchor, left_out = one_out._shared_first_block(mae.decoder_blocks[0], anchor, left_out, kept)
    for block in mae.decoder_blocks[1 : round(blocks * len(mae.decoder_blocks))]:
        anchor, left_out = (
            mae_blocks.whole_block(block, anchor),
            mae_blocks.whole_block(block, left_out),
        )
    return _distances(mae, anchor[:, :m], left_out[:, :m])


def group_removals(mae: MaskedAutoencoder, image: Tensor, visible: Tensor, passes: float) -> Tensor:
    """Random halves are left out, `passes` * n of them; least squares gives each patch's part."""
    tokens, m = _start(mae, image, visible, 1.0)
    n = visible.shape[1]
    count = max(2, round(passes * n))
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(count, n, generator=generator).argsort(dim=1)
    half = n // 2
    gone = torch.zeros(count, n).scatter(1, order[:, :half], 1.0)
    kept = torch.cat(
        [torch.arange(m + 1).expand(count, -1), m + 1 + order[:, half:].sort(dim=1).values], dim=1
    )
    found = _passes(mae, tokens, kept, m)
    # A little ridge: with fewer passes than patches the system alone has many solutions.
    system = gone.T @ gone + 0.1 * torch.eye(n)
    return torch.linalg.solve(system, gone.T @ found)


def in_bf16(mae: MaskedAutoencoder, image: Tensor, visible: Tensor) -> Tensor:
    """`--precision bf16`: all operations, of half the width."""
    return leave_one_out_scores(mae, image, visible, precision="bf16")[0]


def ways() -> Iterator[tuple[str, Way]]:
    """Yields what is tried: a name and the scores (n,) of one image."""
    if has_bf16():
        yield "products in bf16", in_bf16
    for share in (0.5, 0.25):
        yield f"last block at {share:.0%} of the positions", partial(last_block_share, share=share)
    for share in (0.75, 0.5, 0.25):
        yield f"decoder with {share:.0%} of the mask tokens", partial(thin_decoder, share=share)
    for share in (1.0, 0.5, 0.25):
        yield f"frozen context, {share:.0%} of the positions", partial(frozen_context, share=share)
    for share in (0.75, 0.5):
        yield f"behind {share:.0%} of the blocks", partial(early_exit, blocks=share)
    for share in (1.0, 0.5):
        yield f"groups left out, {share:.0%} of the passes", partial(group_removals, passes=share)


@torch.no_grad()
def scores_of(way: Way | None, mae: MaskedAutoencoder, images: Tensor, visible: Tensor) -> Tensor:
    """Scores (B, n), an image at a time; None = exact."""
    if way is None:
        return leave_one_out_scores(mae, images, visible)
    return torch.stack(
        [way(mae, images[i : i + 1], visible[i : i + 1]) for i in range(len(images))]
    )


def photographs(shards: Sequence[str], count: int) -> tuple[list[str], Tensor]:
    """Keys and normalized eval views (B, 3, 224, 224) of real photographs."""
    if shards:
        from pipeline.inputs import find_shards
        from pipeline.inputs.samples import read_samples

        found = [(s.key, s.image) for one in find_shards(shards) for s in read_samples(one)]
    else:
        from skimage import data

        found = [
            (name, getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
        ]
    views = [
        render_view(image, make_view("eval", key, 0, *image.shape[:2], 0), 224)
        for key, image in found[:count]
    ]
    return [key for key, _ in found[:count]], normalize(torch.stack(views))


def partitions(keys: Sequence[str]) -> Tensor:
    """Visible patches (B, 19), one partition a photograph."""
    return torch.from_numpy(
        np.concatenate([sample_visible(key, 0, 1, 196, 0.9, 0) for key in keys])
    )


def top_overlap(exact: Tensor, found: Tensor, count: int = 5) -> float:
    """Share of the best that both name, mean over partitions."""
    pairs = zip(exact.topk(count).indices, found.topk(count).indices, strict=True)
    return statistics.mean(len(set(a.tolist()) & set(b.tolist())) / count for a, b in pairs)


def agreement(exact: Tensor, found: Tensor) -> str:
    """Tau-b, its 95 % interval, the worst partition's, and `top_overlap`: four columns."""
    taus = kendall_tau_b(exact.double(), found.double())
    error = 1.96 * taus.std() / len(taus) ** 0.5
    return f"{taus.mean():7.4f} {error:7.4f} {taus.min():6.3f} {top_overlap(exact, found):6.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--speed-model", default="mae_base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.rounds, arguments.speed_model = 4, 2, "mae_small"
    torch.set_num_threads(arguments.threads)
    keys, images = photographs(arguments.shards, arguments.images)
    visible, trained = partitions(keys), load_mae("mae_tiny")
    torch.manual_seed(0)
    large = create_mae(arguments.speed_model).eval()
    exact = scores_of(None, trained, images, visible)
    print(
        f"order: mae_tiny, {len(keys)} photographs, n = {visible.shape[1]}; speed: "
        f"{arguments.speed_model}, {arguments.threads} threads, {arguments.rounds} rounds"
    )
    print(f"{'way':38} {'faster':>7} {'tau':>7} {'+-':>7} {'worst':>6} {'top 5':>6}")
    for name, way in ways():
        ratios = []
        for _ in range(arguments.rounds):
            spent = []
            for side in (None, way):
                started = time.perf_counter()
                scores_of(side, large, images[:1], visible[:1])
                spent.append(time.perf_counter() - started)
            ratios.append(spent[0] / spent[1])
        found = scores_of(way, trained, images, visible)
        ratio = statistics.median(ratios)
        print(f"{name:38} {ratio:7.2f} {agreement(exact, found)}", flush=True)


if __name__ == "__main__":
    main()
