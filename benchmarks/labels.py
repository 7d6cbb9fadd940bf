"""Labels a second: surprise against l1, both in one run, in turns.

    python benchmarks/labels.py --threads 1                 # MAE-B, mask ratio 0.9, a CPU
    python benchmarks/labels.py --quick                     # mae_tiny's sizes, two rounds
    python benchmarks/labels.py --device cuda --batch 64    # one GPU

l1 labels the n visible patches of a partition by n + 1 decoder passes, surprise the L - n masked
ones by one. Weights are random: they do not change the work done. Images are rendered already, so
that a time is the model's alone. Every round times both sides, on the same images and partitions;
the medians over rounds count, and the ratio is that of the round (`ltrp_core.scoring.cost` has what
it is by operations).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from score import partitions_of

from ltrp_core.mae import create_mae
from ltrp_core.scoring import leave_one_out_scores, surprise_scores
from ltrp_core.scoring.cost import scoring_operations, surprise_operations


def seconds_of(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Returns the mean seconds of some calls: of this process on a CPU, by the clock elsewhere."""
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    started = clock()
    for _ in range(times):
        work()
    if not on_cpu:
        torch.cuda.synchronize(device)
    return (clock() - started) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mae_base")
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=4, help="images, a partition each")
    parser.add_argument("--chunk", type=int, help="pairs at a time; default: what `score` takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rounds = "mae_tiny", 2
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, batch = torch.device(arguments.device), arguments.batch
    mae = create_mae(arguments.model).eval().to(device)
    side, length = mae.config.image_size, mae.config.num_patches
    images = torch.randn(batch, 3, side, side, device=device)
    visible = partitions_of(batch, length, arguments.mask_ratio).to(device)
    n = visible.shape[1]
    sides = {
        "l1": (leave_one_out_scores, n, scoring_operations(mae.config, n)),
        "surprise": (surprise_scores, length - n, surprise_operations(mae.config, n)),
    }
    # Surprise is so short that it is repeated to be timed.
    repeats = {"l1": 1, "surprise": 8}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(arguments.rounds + 1):
        for name, (score, _, _) in sides.items():
            again = partial(score, mae, images, visible, chunk=arguments.chunk)
            taken = seconds_of(again, repeats[name], device)
            if count:  # the first round warms up
                spent[name].append(taken / batch)
    print(
        f"{arguments.model}, n = {n} of {length}, batch {batch}, {arguments.rounds} rounds, "
        f"{device}, {arguments.threads} threads, "
        f"{'process' if device.type == 'cpu' else 'wall'} time"
    )
    print(f"{'side':9} {'s/partition':>12} {'min - max':>17} {'labels/s':>9} {'GFLOP/s':>8}")
    for name, (_, labels, operations) in sides.items():
        middle = statistics.median(spent[name])
        spread = f"{min(spent[name]):.4f} - {max(spent[name]):.4f}"
        rates = f"{labels / middle:9.1f} {operations / middle / 1e9:8.0f}"
        print(f"{name:9} {middle:12.4f} {spread:>17} {rates}")
    per_label = {
        name: [one / labels for one in spent[name]] for name, (_, labels, _) in sides.items()
    }
    ratios = [a / b for a, b in zip(per_label["l1"], per_label["surprise"], strict=True)]
    by_operations = (sides["l1"][2] / n) / (sides["surprise"][2] / (length - n))
    print(
        f"surprise gives {statistics.median(ratios):.0f} times the labels a second "
        f"({min(ratios):.0f} - {max(ratios):.0f}); by operations {by_operations:.0f}"
    )


if __name__ == "__main__":
    main()
