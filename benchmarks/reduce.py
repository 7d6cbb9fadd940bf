"""What `reduce` saves: bytes of what was kept, and images a second of its loader.

    python benchmarks/reduce.py --shards imagenet-sample.tar
    python benchmarks/reduce.py --quick

Against the same views as whole 224 px JPEGs of the same quality, both with optimized Huffman
tables. Both loaders use the same decoder, without smoothing of chroma, the same normalization and
batches of 64, in one process; seconds are CPU seconds of the process, rounds alternate. Without
`--shards`: photographs of the demo.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_runs import photographs, write_tar
from torch import Tensor
from torch.utils.data import default_collate

from ltrp_core.tiles import sheet_tiles
from ltrp_core.views import render_view
from pipeline.console.progress import open_progress
from pipeline.inputs import find_shards
from pipeline.inputs.samples import read_samples
from pipeline.store.cache import open_cache
from pipeline.store.units import unit_name
from pipeline.training_data.extents import ExtentReader, Extents
from pipeline.training_data.reduced import ReducedDataset
from pipeline.training_data.reduced_samples import decode_tiles, with_anchor
from pipeline.units.reduce import run_reduce
from pipeline.units.run import run_select
from pipeline.workers import InProcessPool
from stages.encoding import Format, encode
from stages.records import recorded_view
from stages.reduce import ReduceConfig
from stages.select_patches import SelectConfig

RATIOS = (0.25, 0.5, 0.75)
_SIZE, _PATCH, _BATCH = 224, 16, 64
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((f"patches, JPEG, {ratio:g}", {"keep_ratio": ratio}) for ratio in RATIOS),
    ("patches, WebP, 0.5", {"format": "webp"}),
    ("masked, JPEG, 0.5", {"form": "masked"}),
    ("masked, WebP, 0.5", {"form": "masked", "format": "webp"}),
)


class WholeViews:
    """The loader to compare with: 224 px JPEGs in a tar, all of their patches, any order."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as tar:
            places = np.array([(member.offset_data, member.size) for member in tar])
        zeros = np.zeros(len(places), np.int64)
        self._reader = ExtentReader(Extents([str(path)], zeros, places[:, 0], places[:, 1]))
        self._count = len(places)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Returns all 196 patches, normalized; no coordinates: they are always the same."""
        length = (_SIZE // _PATCH) ** 2
        tiles = sheet_tiles(decode_tiles(self._reader.read(number)), _PATCH, length)
        patches = torch.from_numpy(with_anchor(tiles, length))[:length]
        return {"patches": patches, "label": torch.tensor(-1)}


def write_views(shards: Any, selections: Path, out: Path, format: Format, quality: int) -> None:
    """Writes every selected view whole, as a tar of pictures alone."""
    cache = open_cache(selections)
    members = []
    for shard in shards:
        arrays = cache.read(unit_name(shard.name), ["crop", "flip"])
        rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
        for sample in read_samples(shard):
            view = recorded_view(arrays, rows[sample.key])
            pixels = render_view(sample.image, view, _SIZE).permute(1, 2, 0).contiguous().numpy()
            members.append((f"{sample.key}.{format}", encode(pixels, format, quality)))
    write_tar(out, members)


def picture_bytes(paths: Iterable[Path]) -> tuple[int, int]:
    """Returns the bytes of the pictures of some tars, and of the tars."""
    pictures = whole = 0
    for path in paths:
        whole += path.stat().st_size
        with tarfile.open(path) as tar:
            pictures += sum(m.size for m in tar if not m.name.endswith(".json"))
    return pictures, whole


def one_pass(dataset: Any, order: np.ndarray) -> float:
    """Returns the CPU seconds of reading all samples in an order, in batches."""
    started = time.process_time()
    for first in range(0, len(order), _BATCH):
        default_collate([dataset[int(number)] for number in order[first : first + _BATCH]])
    return time.process_time() - started


def images_per_s(datasets: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Returns images a CPU second of every round, after one to warm up, sides alternating."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in datasets}
    for number in range(rounds + 1):
        for name, dataset in datasets.items():
            seconds = one_pass(dataset, rng.permutation(len(dataset)))
            if number:
                found[name].append(len(dataset) / seconds)
    return found


def bench(shards: Any, folder: Path, quality: int, rounds: int) -> None:
    """Prints both tables."""
    run: dict[str, Any] = {"pool": InProcessPool(), "progress": open_progress()}
    run_select(SelectConfig(ranker="ranker_tiny", keep_ratio=RATIOS), shards, folder / "sel", **run)
    formats: tuple[Format, ...] = ("jpeg", "webp")
    for format in formats:
        write_views(shards, folder / "sel", folder / f"{format}.tar", format, quality)
    whole = [picture_bytes([folder / f"{format}.tar"])[0] for format in formats]
    count = len(WholeViews(folder / "jpeg.tar"))
    print(
        f"{count} images, quality {quality}; bytes an image, of the pictures alone and in the tar"
    )
    print(f"{'':24}{'bytes':>8}{'of JPEG 224':>13}{'of WebP 224':>13}{'in the tar':>12}")

    def row(name: str, paths: Iterable[Path]) -> None:
        pictures, tars = picture_bytes(paths)
        shares = "".join(f"{pictures / other:13.3f}" for other in whole)
        print(f"{name:24}{pictures / count:8.0f}{shares}{tars / count:12.0f}", flush=True)

    for format in formats:
        row(f"whole view, {format}", [folder / f"{format}.tar"])
    datasets: dict[str, Any] = {"whole 224 px JPEG": WholeViews(folder / "jpeg.tar")}
    for number, (name, options) in enumerate(FORMS):
        out = folder / f"reduced-{number}"
        config = ReduceConfig(selections=str(folder / "sel"), quality=quality, **options)
        run_reduce(config, shards, out, **run)
        row(name, out.glob("units/*/*.tar"))
        if name.startswith("patches, JPEG"):
            datasets[name] = ReducedDataset(out)
    print(f"\nloaders, {rounds} rounds: median images/s of one process (least, most), and how many")
    print("times those of whole JPEGs")
    speeds = images_per_s(datasets, rounds)
    base = speeds["whole 224 px JPEG"]
    for name, values in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(values, base, strict=True)]
        spread = f"({min(values):.0f}, {max(values):.0f})"
        middle = statistics.median(values)
        print(f"{name:24}{middle:8.0f} {spread:14}{statistics.median(ratios):6.2f} x")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="+", help="tars or folders of images")
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="few photographs, 2 rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patterns = options.shards
        if not patterns:
            some = enumerate(itertools.islice(photographs(None), 40))
            write_tar(
                folder / "photographs.tar", [(f"{number}.jpg", data) for number, data in some]
            )
            patterns = [str(folder / "photographs.tar")]
        bench(
            find_shards(patterns), folder, options.quality, 2 if options.quick else options.rounds
        )


if __name__ == "__main__":
    main()
