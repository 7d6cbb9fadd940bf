"""What exactness costs: DPC-KNN in exact float64 against a plain float32 `torch.cdist` version.

    OMP_NUM_THREADS=2 python benchmarks/select.py [--quick] [--full]

Prints one table: median milliseconds an image, their ratio, and the share of patches that the plain
version puts with the same center. The images are noise on a smooth background.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_OTHERS = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
# A script's folder comes first on the path, and this file has the name of a standard module that
# torch needs. So the folder is taken off the path; and for other scripts of this folder, which
# would import this file as `select`, the standard module is put in its place.
if __name__ == "__main__":
    sys.path[:] = [str(_HERE.parent), *_OTHERS]
elif __name__ == "select":
    _path, sys.path[:] = sys.path[:], _OTHERS
    del sys.modules["select"]
    __import__("select")
    sys.path[:] = _path


def main() -> None:
    """Times both versions and prints the table."""
    parser = argparse.ArgumentParser(description="Times DPC-KNN; prints one table.")
    parser.add_argument("--quick", action="store_true", help="4 images, 3 runs (else 32 and 9)")
    parser.add_argument("--full", action="store_true", help="1024 patches an image as well")
    options = parser.parse_args()

    import torch

    from ltrp_core.clustering import dpc_knn

    images, runs = (4, 3) if options.quick else (32, 9)
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, B = {images}, C = 768")
    print(
        f"{'patches':>8}{'k':>6}{'exact ms/image':>16}{'plain ms/image':>16}{'ratio':>8}{'same':>8}"
    )
    for length, keep in [(196, 98), (196, 137), *([(1024, 717)] if options.full else [])]:
        generator = torch.Generator().manual_seed(0)
        smooth = torch.linspace(-2, 2, length).view(1, length, 1)
        points = smooth + 0.1 * torch.randn(images, length, 768, generator=generator)
        exact, found = _median_ms(dpc_knn, points, keep, runs)
        plain, other = _median_ms(_plain_dpc_knn, points, keep, runs)
        own, plain_own = (centers.gather(1, assignment) for assignment, centers in (found, other))
        same = (own == plain_own).double().mean()
        ratio = exact / plain
        print(f"{length:8}{keep:6}{exact:16.2f}{plain:16.2f}{ratio:8.2f}{same:8.4f}", flush=True)


def _median_ms(cluster, points, keep, runs):
    """Returns the median milliseconds an image of `cluster(points, keep)`, and its answer."""
    import statistics
    import time

    answer, times = cluster(points, keep), []
    for _ in range(runs):
        start = time.perf_counter()
        cluster(points, keep)
        times.append((time.perf_counter() - start) * 1e3 / len(points))
    return statistics.median(times), answer


def _plain_dpc_knn(points, clusters):
    """Returns DPC-KNN of the whole batch in float32, as one writes it first."""
    import torch

    distance = torch.cdist(points, points) / points.shape[2] ** 0.5
    nearest = distance.topk(5, dim=2, largest=False).values
    rho = (-nearest.square().mean(dim=2)).exp()
    is_denser = rho.unsqueeze(1) > rho.unsqueeze(2)
    delta = torch.where(is_denser, distance, distance.amax(dim=(1, 2), keepdim=True)).amin(dim=2)
    centers = (rho * delta).topk(clusters, dim=1).indices
    to_centers = distance.gather(2, centers.unsqueeze(1).expand(-1, points.shape[1], -1))
    own = torch.arange(clusters).expand_as(centers)
    return to_centers.argmin(dim=2).scatter(1, centers, own), centers


if __name__ == "__main__":
    main()
