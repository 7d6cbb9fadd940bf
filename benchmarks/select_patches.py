"""What `select` costs beside the bare model, and what exactness costs in DPC-KNN.

    OMP_NUM_THREADS=1 python benchmarks/select_patches.py [--quick] [--full] [--only TABLE]

`stage`: images/s of the whole stage with a ViT-S ranker and three keep ratios, on decoded views,
and of timm's bare ViT-S on pre-loaded batches, in turns. `share`: DPC-KNN and all of the selection
beside the ranker, by size of the grid. `exact`: DPC-KNN in exact float64 against a plain float32
`torch.cdist` version, and the share of patches that the latter puts with the same center.
Medians; the images are noise on a smooth background, or noise alone.
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
    parser = argparse.ArgumentParser(description="Times the selection; prints tables.")
    parser.add_argument("--quick", action="store_true", help="few images and runs")
    parser.add_argument("--full", action="store_true", help="1024 patches per image as well")
    parser.add_argument("--only", choices=("stage", "share", "exact"), help="one of the tables")
    options = parser.parse_args()

    import torch

    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    for name, table in (("stage", _stage), ("share", _share), ("exact", _exact)):
        if options.only in (None, name):
            table(options)


def _stage(options):
    """Prints the images/s of the stage and of the bare model, in turns on the same images."""
    import statistics
    import tempfile
    import time

    import timm
    import torch

    from ltrp_core.rankers import create_ranker, save_ranker
    from ltrp_core.views import normalize
    from stages.select_patches import PreparedSample, SelectConfig, UnitSelector

    images, rounds = (4, 3) if options.quick else (32, 7)
    bare = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_ranker(create_ranker("vit_small"), folder, {})
        stage = UnitSelector(SelectConfig(ranker=folder, device="cpu"))
    pixels = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8)
    view = {"size": (224, 224), "crop": [(0, 0, 224, 224)], "flip": [False]}
    prepared = [PreparedSample({"key": str(i), **view}, p, None) for i, p in enumerate(pixels)]
    batch = normalize(pixels)
    times = {"bare": [], "stage": []}
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.no_grad():
            bare(batch)
        between = time.perf_counter()
        list(stage.batches(prepared))
        times["bare"].append(between - start)
        times["stage"].append(time.perf_counter() - between)
    ratios = [b / s for b, s in zip(times["bare"], times["stage"], strict=True)]
    rates = {name: images / statistics.median(values) for name, values in times.items()}
    print(f"stage: B = {images}, {rounds} rounds, 3 keep ratios, homogeneous 0.2")
    print(f"  bare timm {rates['bare']:.2f} images/s, stage {rates['stage']:.2f} images/s")
    print(
        f"  stage / bare, by round: median {statistics.median(ratios):.3f}, "
        f"{min(ratios):.3f} to {max(ratios):.3f}",
        flush=True,
    )


def _share(options):
    """Prints the time of DPC-KNN and of all of the selection as shares of the ranker's."""
    import torch

    from ltrp_core.clustering import find_clusters_at
    from ltrp_core.patches import patchify
    from ltrp_core.rankers import create_ranker
    from ltrp_core.selection import num_kept, select_patches_at
    from ltrp_core.selector import rank_images

    images, runs = (2, 2) if options.quick else (8, 5)
    print(f"share: B = {images}, {runs} runs, ViT-S, patches of 16 px, homogeneous 0.2")
    print(f"{'patches':>8}{'ranker ms':>11}{'DPC-KNN k=L/2':>16}{'select 0.5':>14}{'3 ratios':>14}")
    for grid in (14, 24) if options.quick else (14, 24, 32):
        length = grid * grid
        ranker = create_ranker("vit_small", grid=grid).eval()
        pixels = _smooth_images(images, grid * 16)
        patches, scores = patchify(pixels, 16), torch.rand(images, length)
        all_keeps = [num_kept(ratio, length) for ratio in (0.25, 0.5, 0.75)]

        def select(keeps, scores=scores, patches=patches):
            return select_patches_at(scores, keeps, patches=patches)

        base, _ = _median_ms(rank_images, ranker, pixels, runs, images)
        cells = []
        for work, first, second in (
            (find_clusters_at, patches, all_keeps[1:2]),
            (lambda _, keeps, select=select: select(keeps), None, all_keeps[1:2]),
            (lambda _, keeps, select=select: select(keeps), None, all_keeps),
        ):
            ms, _ = _median_ms(work, first, second, runs, images)
            cells.append(f"{ms:.2f} {ms / base:.1%}")
        print(f"{length:8}{base:11.1f}{cells[0]:>16}{cells[1]:>14}{cells[2]:>14}", flush=True)


def _smooth_images(count, side):
    """Returns normalized images (count, 3, side, side): a slope with noise."""
    import torch

    slope = torch.linspace(-2, 2, side)
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return slope + slope[:, None] * 0.5 + 0.1 * noise


def _exact(options):
    """Prints the time of exact and plain DPC-KNN, and how often they agree."""
    import torch

    from ltrp_core.clustering import dpc_knn

    images, runs = (4, 3) if options.quick else (32, 9)
    print(f"exact: B = {images}, C = 768")
    print(
        f"{'patches':>8}{'k':>6}{'exact ms/image':>16}{'plain ms/image':>16}{'ratio':>8}{'same':>8}"
    )
    for length, keep in [(196, 98), (196, 137), *([(1024, 717)] if options.full else [])]:
        generator = torch.Generator().manual_seed(0)
        smooth = torch.linspace(-2, 2, length).view(1, length, 1)
        points = smooth + 0.1 * torch.randn(images, length, 768, generator=generator)
        exact, found = _median_ms(dpc_knn, points, keep, runs, images)
        plain, other = _median_ms(_plain_dpc_knn, points, keep, runs, images)
        own, plain_own = (centers.gather(1, assignment) for assignment, centers in (found, other))
        same = (own == plain_own).double().mean()
        ratio = exact / plain
        print(f"{length:8}{keep:6}{exact:16.2f}{plain:16.2f}{ratio:8.2f}{same:8.4f}", flush=True)


def _median_ms(work, first, second, runs, images):
    """Returns the median milliseconds an image of `work(first, second)`, and its answer."""
    import statistics
    import time

    answer, times = work(first, second), []
    for _ in range(runs):
        start = time.perf_counter()
        work(first, second)
        times.append((time.perf_counter() - start) * 1e3 / images)
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
