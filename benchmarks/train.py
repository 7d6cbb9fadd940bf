"""Training from the cache: against scoring while training, the loader, sparse against full images.

    python benchmarks/train.py --shards TAR          # all sections
    python benchmarks/train.py --quick               # crops of one photograph, small sizes

`epoch`: one record, trained on from the cache, against scored and trained on (the paper's way);
same ranker, same device. `loader`: records made ready for the ranker, from stored pixels and from
JPEGs; beside the latter the bare decoding and cropping. `step`: a training step against the same
without its fused optimizer or without oneDNN's products. `sparse`: a ViT-S that sees the visible
patches against timm's ViT-S that sees the image. `busy`: steps with the loader against steps on
data that lie ready. Scores and weights are random: no time depends on them.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

from ltrp_core.linear import use_fast_linears
from ltrp_core.losses import listmle
from ltrp_core.mae import create_mae, save_mae
from ltrp_core.rankers import create_ranker
from ltrp_core.scoring import default_chunk, leave_one_out_scores
from ltrp_core.views import normalize, render_view
from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import Shard, find_shards
from pipeline.inputs.images import decode_image
from pipeline.store import open_cache
from pipeline.training_data import StagedRecords, stage_records
from pipeline.units.runner import CacheRunner, UnitOptions
from pipeline.workers import InProcessPool
from stages import score as score_stage
from stages.records import recorded_view
from stages.score import ScoreConfig, UnitScorer
from stages.train_ranker import RankerStep
from stages.training.ddp import Processes
from stages.training.loading import Loader
from stages.training.loop import StepBatch
from stages.training.order import RecordOrder
from stages.training.ranking_batches import RankingSteps

QUIET = JsonLineProgress(every_s=1e9)


class RandomScorer(UnitScorer):
    """Makes units as `score` does, views and pixels real, scores random."""

    def _scores(self, pixels: Tensor, visible: Tensor) -> Tensor:
        return torch.rand(visible.shape, generator=torch.Generator().manual_seed(0))


class RandomScores:
    """Runs `score` with a `RandomScorer` in the place of its `UnitScorer`."""

    def __init__(self, runner: CacheRunner, config: ScoreConfig) -> None:
        self.runner, self.config = runner, config

    def run(self, stage: str, make: object, **options: object) -> object:
        return self.runner.run(stage, functools.partial(RandomScorer, self.config), **options)


def made_here(path: Path, count: int) -> None:
    """Writes a tar of JPEGs of 341 x 256 px."""
    image = data.astronaut()
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            top, left = number % 250, (7 * number) % 170
            buffer = io.BytesIO()
            Image.fromarray(image[top : top + 256, left : left + 341]).save(buffer, "JPEG")
            info = tarfile.TarInfo(f"crop{number:05d}.jpg")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))


def staged(
    folder: Path, shards: Sequence[Shard], partitions: int, *, pixels: bool
) -> StagedRecords:
    """Returns records of a cache that is made here; images are decoded each time they are seen."""
    name = "pixels" if pixels else "images"
    torch.manual_seed(0)
    save_mae(create_mae("mae_tiny"), folder / "mae.safetensors")
    config = ScoreConfig(
        mae=str(folder / "mae.safetensors"),
        partitions=partitions,
        pixels=pixels,
        batch_size=8,
        precision="float32",
    )
    runner = CacheRunner(
        out=str(folder / name),
        shards=shards,
        pool=InProcessPool(),
        progress=QUIET,
        options=UnitOptions(),
    )
    score_stage.run(config, units=RandomScores(runner, config))
    cache = open_cache(folder / name)
    images = [] if pixels else shards
    target = stage_records(cache, images, folder / f"s-{name}", progress=QUIET, views_bytes=0)
    return StagedRecords(target)


def steps_of(records: StagedRecords, batch: int, *, per_image: int) -> RankingSteps:
    samples = np.arange(int(records.starts[-1]))
    per_sample = records.run.records
    order = RecordOrder(len(samples), per_sample, min(per_image, per_sample), batch, 0)
    return RankingSteps(records, samples, order, Processes(), 1, False)


def endless(loader: Loader) -> Iterator[StepBatch]:
    return (batch for epoch in range(loader.epochs) for batch in loader(epoch, 0))


class Trainer:
    """One optimizer step on a batch, as `train-ranker` takes it."""

    def __init__(
        self, model: nn.Module, device: torch.device, *, fast: bool = True, fused: bool = True
    ) -> None:
        if fast:
            use_fast_linears(model)
        self.model, self.device = model.to(device).train(), device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)
        self.half = device.type == "cuda"

    def __call__(self, inputs: Tensor, visible: Tensor, score: Tensor) -> None:
        inputs, visible, score = (
            x.to(self.device, non_blocking=True) for x in (inputs, visible, score)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = listmle(self.model(inputs, visible), score)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


class FullImages(nn.Module):
    """timm's own ViT on whole images, its scores at the visible patches."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = create_ranker("vit_small_patch16_224", head="token")

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        return self.ranker(normalize(images), visible)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def made_up(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random patches (B, 19, 768), visible (B, 19) of 196, and scores."""
    generator = torch.Generator().manual_seed(0)
    visible = torch.rand(batch, 196, generator=generator).argsort(1)[:, :19]
    score = torch.rand(batch, 19, generator=generator)
    patches = torch.randint(0, 256, (batch, 19, 768), generator=generator, dtype=torch.uint8)
    return patches, visible, score


def in_turns(
    sides: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every side, after one that does not count, in turns."""
    for work in sides.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work, device))
    return times


def bench_loader(folder: Path, shards: Sequence[Shard], count: int, rounds: int) -> None:
    print("\n## loader: records made ready for a sparse ranker, one core, batches of 256")
    records = staged(folder, shards, 10, pixels=True)
    steps = steps_of(records, 256, per_image=10)
    number = min(steps.order.steps_per_epoch, max(1, count // 256))

    def read_all() -> int:
        return sum(steps[0, step].count for step in range(number))

    total = read_all()
    times = [seconds(read_all, torch.device("cpu")) for _ in range(rounds)]
    rate = total / statistics.median(times)
    print(f"from stored pixels: {rate:,.0f} records/s ({total} records, {rounds} rounds)")

    records = staged(folder, shards, 1, pixels=False)
    steps = steps_of(records, 256, per_image=1)
    number = min(steps.order.steps_per_epoch, max(1, count // 2560))
    arrays = {name: np.load(records.folder / f"{name}.npy") for name in ("crop", "flip")}

    def bare(step: int) -> int:
        samples = steps.order.step(0, step).sample
        for row in samples.tolist():
            image = decode_image(records._images.read(row))
            render_view(image, recorded_view(arrays, row), 224)
        return len(samples)

    sides: dict[str, Callable[[], int]] = {
        "bare decoding and cropping": lambda: sum(bare(step) for step in range(number)),
        "the loader, from JPEGs": lambda: sum(steps[0, s].count for s in range(number)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():
        work()
    for _ in range(rounds):
        for name, work in sides.items():
            started = time.perf_counter()
            done = work()
            rates[name].append(done / (time.perf_counter() - started))
    base = statistics.median(rates["bare decoding and cropping"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:28} {rate:8.0f} images/s  {100 * rate / base:5.1f} %")


def bench_epoch(
    folder: Path, shards: Sequence[Shard], device: torch.device, mae_name: str, scored: int
) -> None:
    """Times both ways in turns: a step from the cache, a step that scores first."""
    print(f"\n## epoch: ViT-S sparse, n = 19, {mae_name} at 0.9, a record per image")
    trainer = Trainer(RankerStep(create_ranker("vit_small")), device)
    batch = 256 if device.type == "cuda" else 32
    sources = {
        "from the cache, stored pixels": staged(folder, shards, 2, pixels=True),
        "from the cache, JPEGs": staged(folder, shards, 2, pixels=False),
    }
    loaders = {
        name: endless(Loader(steps_of(r, batch, per_image=1), 1000, processes=0, pin=False))
        for name, r in sources.items()
    }
    mae = create_mae(mae_name).eval().to(device)
    images = steps_of(sources["from the cache, JPEGs"], scored, per_image=1)
    online = iter(range(1000))

    def score_and_train() -> int:
        picks = images.order.step(0, next(online) % images.order.steps_per_epoch)
        records = images.records
        visible, _ = records.lists(picks.sample, picks.record)
        patches = torch.from_numpy(records.whole_views(picks.sample, picks.record * 0))
        chosen = torch.from_numpy(visible)
        views = patches.unflatten(2, (16, 16, 3)).unflatten(1, (14, 14))
        views = views.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 224, 224)
        score = leave_one_out_scores(
            mae, normalize(views.to(device)), chosen.to(device), chunk=default_chunk(device)
        )
        index = chosen[..., None].expand(-1, -1, patches.shape[-1])
        trainer(patches.gather(1, index), chosen, score.cpu())
        return len(chosen)

    def cached(name: str) -> int:
        part = next(loaders[name]).parts[0]
        trainer(part.patches, part.visible, part.score)
        return len(part.visible)

    works = {name: functools.partial(cached, name) for name in sources}
    works["scored while training"] = score_and_train
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(5):
        for name, work in works.items():
            started = time.perf_counter()
            done = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - started) / done)
    base = statistics.median(times["scored while training"])
    print(f"{'way':32} {'ms/record':>10} {'times faster':>13}")
    for name, values in times.items():
        each = statistics.median(values)
        print(f"{name:32} {1000 * each:10.2f} {base / each:13.1f}")


def bench_step(device: torch.device, batch: int, rounds: int) -> None:
    """What was done to a step, one thing less a row."""
    print(f"\n## step: of a sparse ViT-S, batch {batch}, n = 19 of 196")
    patches, visible, score = made_up(batch)
    options: dict[str, dict[str, bool]] = {
        "as it is": {},
        "AdamW of many kernels": {"fused": False},
        "torch's own products": {"fast": False},
    }
    steps = {
        name: functools.partial(
            Trainer(RankerStep(create_ranker("vit_small")), device, **given),
            patches,
            visible,
            score,
        )
        for name, given in options.items()
    }
    times = in_turns(steps, device, rounds)
    base = statistics.median(times["as it is"])
    for name, values in times.items():
        each = statistics.median(values)
        print(
            f"{name:22} {1e3 * each:9.1f} ms ({1e3 * min(values):.1f} to {1e3 * max(values):.1f}), "
            f"{each / base:.2f} times as long"
        )


def bench_sparse(device: torch.device, batch: int, rounds: int) -> None:
    print(f"\n## sparse: training steps of a ViT-S, batch {batch}, n = 19 of 196")
    sparse = Trainer(RankerStep(create_ranker("vit_small")), device)
    full = Trainer(FullImages(), device)
    patches, visible, score = made_up(batch)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    sides = {
        "sparse": functools.partial(sparse, patches, visible, score),
        "timm's, full images": functools.partial(full, images, visible, score),
    }
    times = in_turns(sides, device, rounds)
    base = statistics.median(times["timm's, full images"]) / batch
    for name, values in times.items():
        each = statistics.median(values) / batch
        print(f"{name:22} {1 / each:9.1f} samples/s {base / each:6.1f} times")


def bench_busy(
    folder: Path, shards: Sequence[Shard], device: torch.device, batch: int, rounds: int
) -> None:
    """How much of a step is spent with the model, the loader at work beside it."""
    print(f"\n## busy: ViT-S sparse from stored pixels, batch {batch}")
    trainer = Trainer(RankerStep(create_ranker("vit_small")), device)
    records = staged(folder, shards, 10, pixels=True)
    steps = steps_of(records, batch, per_image=10)
    ready = steps[0, 0].parts[0]
    resident = tuple(x.to(device) for x in ready[:3])
    processes = min(8, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0
    loader = endless(Loader(steps, 1000, processes=processes, pin=device.type == "cuda"))
    number = rounds

    def loaded() -> None:
        for _ in range(number):
            part = next(loader).parts[0]
            trainer(part.patches, part.visible, part.score)

    trainer(*resident)
    part = next(loader).parts[0]
    trainer(part.patches, part.visible, part.score)
    on_ready = seconds(lambda: [trainer(*resident) for _ in range(number)], device)
    with_loader = seconds(loaded, device)
    print(f"{batch * number / on_ready:10.0f} records/s on resident data")
    print(f"{batch * number / with_loader:10.0f} records/s from the loader: the device is busy "
          f"{100 * on_ready / with_loader:.0f} % of the time")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="*", help="tars of JPEGs; made here if omitted")
    parser.add_argument("--only", choices=["epoch", "loader", "step", "sparse", "busy"])
    parser.add_argument("--mae", default="mae_base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, "
        f"{torch.cuda.get_device_name() if on_gpu else 'no GPU used'}, torch {torch.__version__}"
    )
    mae = "mae_tiny" if arguments.quick else arguments.mae
    batch = 1024 if on_gpu else (8 if arguments.quick else 32)
    count = 1000 if arguments.quick else 20_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.shards:
            shards = find_shards(arguments.shards)
        else:
            made_here(folder / "crops.tar", 200 if arguments.quick else 1000)
            shards = find_shards([str(folder / "crops.tar")])
        sections: dict[str, Callable[[Path], None]] = {
            "epoch": lambda at: bench_epoch(at, shards, device, mae, 64 if on_gpu else 4),
            "loader": lambda at: bench_loader(at, shards, count, arguments.rounds),
            "step": lambda at: bench_step(device, batch, arguments.rounds),
            "sparse": lambda at: bench_sparse(device, batch, arguments.rounds),
            "busy": lambda at: bench_busy(at, shards, device, batch, 200 if on_gpu else 3),
        }
        for title, section in sections.items():
            if arguments.only in (None, title):
                (folder / title).mkdir()
                section(folder / title)


if __name__ == "__main__":
    main()
