"""Stage 1: a frozen masked autoencoder scores the visible patches of every image (Sec. 3.2)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.checkpoints import load_mae
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import Sampler, cover_count, num_visible, sample_visible
from ltrp_core.scoring import Metric, Phase, Region, leave_one_out_scores
from ltrp_core.views import Crop, make_view, normalize, render_view
from stages.devices import resolve_device
from stages.options import check_ranges, identity, option
from stages.protocols import ArrayField, Arrays, Sample, Summary, UnitRunner
from stages.records import stack_rows, view_row


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Options of `score`."""

    mae: str = option(
        help="weights: a .pth of the MAE authors, a ViTMAE folder, our .safetensors, hf-hub:ID",
        changes_numbers=False,
    )
    views: int = option(1, low=1, help="views (crops) an image")
    partitions: int = option(
        0, low=0, help="partitions a view; 0 = as many as cover every patch once"
    )
    sampler: Sampler = option("iid", help="iid (the paper's) or cover (every patch equally often)")
    crop: Crop = option("train", help="train: random resized crop and flip; eval: centre crop")
    mask_ratio: float = option(0.9, help="share of masked patches (Tab. 1b)")
    phase: Phase = option("decoder", help="where a patch is removed (Tab. 1g)")
    metric: Metric = option("l1", help="distance between reconstructions (Tab. 1c)")
    region: Region = option("masked", help="positions compared")
    score_dtype: Literal["float32", "float16"] = option(
        "float32", help="float32, or float16 at half the size"
    )
    seed: int = option(0, help="of views and partitions")
    batch_size: int = option(8, low=1, help="views at a time", changes_numbers=False)
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)


def record_fields(config: ScoreConfig, mae: MaskedAutoencoder) -> dict[str, ArrayField]:
    """Returns the arrays of a unit: see cache_format.md."""
    length = mae.config.num_patches
    n = num_visible(length, config.mask_ratio)
    records = (config.views, num_partitions(config, length), n)
    wide = length > 255
    return {
        "key": ArrayField(dtype="string", shape=(), fill=""),
        "size": ArrayField(dtype="int32", shape=(2,), fill=-1),
        "crop": ArrayField(dtype="float32", shape=(config.views, 4), fill=float("nan")),
        "flip": ArrayField(dtype="bool", shape=(config.views,), fill=False),
        "visible": ArrayField(
            dtype="uint16" if wide else "uint8",
            shape=records,
            fill=65535 if wide else 255,
            delta=True,
        ),
        "score": ArrayField(dtype=config.score_dtype, shape=records, fill=float("nan")),
    }


def num_partitions(config: ScoreConfig, length: int) -> int:
    """Returns P: the option, or the partitions that cover every patch once if it is 0."""
    return config.partitions or cover_count(length, config.mask_ratio)


class UnitScorer:
    """Scores the samples of one shard after another with one model."""

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.mae = load_mae(config.mae).to(self.device)
        self.fields = record_fields(config, self.mae)

    def __call__(self, samples: Iterable[Sample]) -> Arrays:
        """Returns the arrays of `record_fields` for the samples that come."""
        rows: dict[str, list[object]] = {name: [] for name in self.fields}
        pixels: list[Tensor] = []
        for sample in samples:
            height, width = sample.image.shape[:2]
            views = [
                make_view(self.config.crop, sample.key, number, height, width, self.config.seed)
                for number in range(self.config.views)
            ]
            rows["key"].append(sample.key)
            rows["size"].append((height, width))
            rows["crop"].append([view_row(view) for view in views])
            rows["flip"].append([view.flip for view in views])
            rows["visible"].append([self._visible(sample.key, v) for v in range(len(views))])
            size = self.mae.config.image_size
            pixels += [render_view(sample.image, view, size) for view in views]
            if len(pixels) >= self.config.batch_size:
                rows["score"] += self._scores(pixels, rows)
                pixels.clear()
        rows["score"] += self._scores(pixels, rows)
        return {name: stack_rows(rows[name], field) for name, field in self.fields.items()}

    def _visible(self, key: str, view: int) -> NDArray[np.int64]:
        config, length = self.config, self.mae.config.num_patches
        count = num_partitions(config, length)
        return sample_visible(
            key, view, count, length, config.mask_ratio, config.seed, config.sampler
        )

    def _scores(self, pixels: list[Tensor], rows: dict[str, list[object]]) -> list[object]:
        """Returns the scores (V, P, n) of each sample whose views are in `pixels`."""
        if not pixels:
            return []
        pending = rows["visible"][len(rows["score"]) :]
        visible = torch.from_numpy(np.array(pending)).flatten(0, 1)
        scores = leave_one_out_scores(
            self.mae,
            normalize(torch.stack(pixels).to(self.device)),
            visible.to(self.device),
            phase=self.config.phase,
            metric=self.config.metric,
            region=self.config.region,
        )
        return list(scores.unflatten(0, (-1, self.config.views)).cpu().numpy())


def run(config: ScoreConfig, *, units: UnitRunner) -> Summary:
    """Scores every pending shard into a cache.

    Raises:
        CheckpointError: the weights cannot be used; nothing has been written then.
        RequestError: the mask ratio leaves no visible or no masked patch.
    """
    mae = load_mae(config.mae)
    fields = record_fields(config, mae)
    scored_by = {
        **identity(config),
        "partitions": num_partitions(config, mae.config.num_patches),
        "mae_sha256": mae.source.sha256,
        "image_size": mae.config.image_size,
        "patch_size": mae.config.patch_size,
    }
    summary = units.run(
        "score", functools.partial(UnitScorer, config), identity=scored_by, fields=fields
    )
    summary.next_step = f"ltrp-pipeline train-ranker --cache {summary.output} --shards ..."
    return summary
