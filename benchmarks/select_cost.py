"""What every selector costs: operations and images a second, all in one run, in turns.

    python benchmarks/select_cost.py --threads 1
    python benchmarks/select_cost.py --quick            # two images, one round
    python benchmarks/select_cost.py --device cuda

Networks are untrained: that does not change the work done, and theirs cannot all be had. Operations
are two per multiply-add, counted by torch on one image at half of the patches; what is no product
of its list (sorting, copying, the distances of clusters) is not. Images are rendered and normalized
already. Methods whose choice depends on k are asked for half.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ltrp_core.operations import multiply_adds
from ltrp_core.selection import num_kept
from ltrp_core.selectors import Selector, create_selector, selector_names, selector_spec
from ltrp_core.selectors.base import UNTRAINED

TRAINED = {"ranker": "ranker_tiny", "border-features": "mae_tiny"}


def operations(selector: Selector, keep: int) -> int:
    """Returns the operations of one image, two per multiply-add."""
    image = torch.randn(1, 3, selector.image_size, selector.image_size)
    return 2 * multiply_adds(lambda: selector.select(image, ["a"], [keep]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.rounds = 2, 1
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    made: dict[str, tuple[Selector, int, list[float]]] = {}
    for name in selector_names():
        weights = TRAINED.get(name, UNTRAINED if selector_spec(name).weights_file else "")
        counted = create_selector(name, weights=weights)
        keep = num_kept(0.5, counted.grid**2)
        count = operations(counted, keep)
        selector = create_selector(name, weights=weights, device=arguments.device)
        made[name] = (selector, count, [])
    on_cpu = arguments.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    keys = [str(number) for number in range(arguments.images)]
    for _ in range(arguments.rounds + 1):
        for selector, _, spent in made.values():
            side = selector.image_size
            images = torch.randn(arguments.images, 3, side, side, device=arguments.device)
            started = clock()
            selector.select(images, keys, [num_kept(0.5, selector.grid**2)])
            if not on_cpu:
                torch.cuda.synchronize()
            spent.append((clock() - started) / arguments.images)
    print(
        f"{arguments.images} images, {arguments.rounds} rounds and one to warm up, half kept, "
        f"{arguments.device}, {arguments.threads} threads, {'process' if on_cpu else 'wall'} time"
    )
    print(f"{'selector':<18} {'GFLOP':>8} {'images/s':>9}   weights trained with labels")
    for name, (_, count, spent) in made.items():
        spec = selector_spec(name)
        labels = "yes" if spec.uses_labels else "no"
        rate = 1 / statistics.median(spent[1:])
        print(f"{name:<18} {count / 1e9:>8.2f} {rate:>9.1f}   {labels}")


if __name__ == "__main__":
    main()
