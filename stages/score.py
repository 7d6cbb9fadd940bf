"""Stage 1: a frozen masked autoencoder scores patches of every image (Sec. 3.2)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder, load_mae
from ltrp_core.partitions import (
    Sampler,
    cover_count,
    num_scored,
    num_visible,
    sample_visible,
)
from ltrp_core.patches import patchify
from ltrp_core.precision import Precision, check_precision, fastest_faithful, needs_gpu
from ltrp_core.scoring import (
    SURPRISE,
    Phase,
    Region,
    default_chunk,
    leave_one_out_scores,
    metric_names,
    scored_by,
    surprise_scores,
)
from ltrp_core.views import Crop, check_size, make_view, normalize, render_view
from stages.devices import device_types, is_out_of_memory, resolve_device
from stages.options import check_ranges, identity, option
from stages.protocols import ArrayField, Arrays, Sample, Summary, UnitRunner
from stages.records import stack_rows, view_row
from stages.weights import check_same_weights

SURPRISE_PARTITIONS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Options of `score`."""

    mae: str = option(
        help="weights: mae_tiny (the package's own), a .pth of the MAE authors, a ViTMAE folder, "
        "our .safetensors, hf-hub:ID",
        changes_numbers=False,
    )
    views: int = option(1, low=1, help="views (crops) an image")
    first_view: int = option(0, low=0, help="number of the first view; a view's crop goes by it")
    partitions: int = option(
        0,
        low=0,
        help="partitions per view; 0 = L / n rounded up (11 at 196 patches): of --sampler cover "
        "they show every patch, of iid, the default, most; of --metric surprise 12",
    )
    sampler: Sampler = option("iid", help="iid (the paper's) or cover (every patch equally often)")
    crop: Crop = option(
        "train",
        help="train: random resized crop and flip; eval: center crop; resize: all, squashed "
        "square; none: all, of the model's size already",
    )
    mask_ratio: float = option(0.9, help="share of masked patches (Tab. 1b)")
    phase: Phase = option("decoder", help="where a patch is removed (Tab. 1g)")
    metric: str = option(
        "l1",
        names=metric_names,
        help="distance between reconstructions without and with a patch (Tab. 1c), or surprise, "
        "not the paper's: the error at every masked patch, some 100 times cheaper a label",
    )
    region: Region = option("masked", help="positions compared")
    precision: Literal["auto", Precision] = option(
        "auto",
        help="of matrix products: float32; bf16 (CPUs that have it, GPUs); tf32, fp16 (GPUs); "
        "auto: the cache's own, at the start fp16 if all workers are on GPUs, else float32",
    )
    score_dtype: Literal["float32", "float16"] = option(
        "float16", help="float16, or float32 at twice the size"
    )
    pixels: bool = option(
        False, help="also store the visible patches themselves, 768 bytes each at 16 px"
    )
    seed: int = option(0, help="of views and partitions")
    batch_size: int = option(8, low=1, help="views at a time", changes_numbers=False)
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.metric == SURPRISE:
            for name, default in (("phase", "decoder"), ("region", "masked")):
                if getattr(self, name) != default:
                    raise RequestError(
                        f"--{name} says nothing to --metric surprise, which leaves no patch out; "
                        "leave it out"
                    )


def record_fields(config: ScoreConfig, mae: MaskedAutoencoder) -> dict[str, ArrayField]:
    """Returns the arrays of a unit: see cache_format.md."""
    length = mae.config.num_patches
    n = num_visible(length, config.mask_ratio)
    records = (config.views, num_partitions(config, length))
    scored = scored_by(config.metric)
    wide = length > 255
    fields = {
        "key": ArrayField(dtype="string", shape=(), fill=""),
        "size": ArrayField(dtype="int32", shape=(2,), fill=-1),
        "crop": ArrayField(dtype="float32", shape=(config.views, 4), fill=float("nan")),
        "flip": ArrayField(dtype="bool", shape=(config.views,), fill=False),
        "visible": ArrayField(
            dtype="uint16" if wide else "uint8",
            shape=(*records, n),
            fill=65535 if wide else 255,
            delta=True,
            high=length,
            ascending=True,
        ),
        "score": ArrayField(
            dtype=config.score_dtype,
            shape=(*records, num_scored(length, config.mask_ratio, scored)),
            fill=float("nan"),
        ),
    }
    if config.pixels:
        p = mae.config.patch_size
        # Of masked patches each view whole, once: its partitions score nearly the same ones.
        stored = (*records, n) if scored == "visible" else (config.views, length)
        fields["pixels"] = ArrayField(dtype="uint8", shape=(*stored, p, p, 3), fill=0, raw=True)
    return fields


def num_partitions(config: ScoreConfig, length: int) -> int:
    """Returns P: the option; if it is 0, as many as `cover` takes to show every patch.

    `iid` draws as many, and leaves some patches out. Of surprise 12: each patch has about 11 labels
    then, and more bring little (docs/labels.md).
    """
    if config.metric == SURPRISE:
        return config.partitions or SURPRISE_PARTITIONS
    return config.partitions or cover_count(length, config.mask_ratio)


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample as the model takes it: decoded once, rendered for every view."""

    rows: dict[str, Any]
    """One row of every array but `score` and `pixels`."""
    pixels: Tensor
    """uint8 (V, 3, S, S)"""


class UnitScorer:
    """Scores the samples of one shard after another with one model."""

    def __init__(
        self, config: ScoreConfig, device: str = "auto", *, mae_sha256: str | None = None
    ) -> None:
        """Loads the weights.

        Args:
            mae_sha256: what they must be, where they are read on another machine; None = any.

        Raises:
            CheckpointError: they cannot be used, or are others.
        """
        self.config = config
        self.device = resolve_device(device if config.device == "auto" else config.device)
        self.precision: Precision = (
            fastest_faithful({self.device.type}) if config.precision == "auto" else config.precision
        )
        check_precision(self.precision, self.device)
        self.mae = load_mae(config.mae).to(self.device)
        check_same_weights("--mae", config.mae, self.mae.source.sha256, mae_sha256)
        self.fields = record_fields(config, self.mae)
        self.chunk = default_chunk(self.device)
        """(view, partition) pairs at a time; halved when memory is not enough."""
        self._notes: list[str] = []

    def prepare(self, sample: Sample) -> PreparedSample:
        """Returns the views and visible patches of a sample: functions of its key and the seed."""
        config = self.config
        height, width = sample.image.shape[:2]
        numbers = range(config.first_view, config.first_view + config.views)
        views = [
            make_view(config.crop, sample.key, number, height, width, config.seed)
            for number in numbers
        ]
        size = self.mae.config.image_size
        for view in views:
            check_size(config.crop, sample.key, view, size)
        return PreparedSample(
            rows={
                "key": sample.key,
                "size": (height, width),
                "crop": [view_row(view) for view in views],
                "flip": [view.flip for view in views],
                "visible": np.stack([self._visible(sample.key, number) for number in numbers]),
            },
            pixels=torch.stack([render_view(sample.image, view, size) for view in views]),
        )

    def batches(self, prepared: Iterable[PreparedSample]) -> Iterator[Arrays]:
        """Yields the arrays of `record_fields` for the samples that come, some at a time."""
        at_a_time = max(1, self.config.batch_size // self.config.views)
        samples = iter(prepared)
        while group := list(itertools.islice(samples, at_a_time)):
            yield self._rows(group)

    def take_notes(self) -> list[str]:
        """Returns how often the batch was halved since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _rows(self, group: Sequence[PreparedSample]) -> Arrays:
        pixels = torch.cat([sample.pixels for sample in group])
        visible = torch.from_numpy(np.concatenate([sample.rows["visible"] for sample in group]))
        scores = self._scores(pixels, visible)
        made: dict[str, Any] = {"score": scores.unflatten(0, (len(group), -1)).cpu().numpy()}
        if self.config.pixels:
            made["pixels"] = self._pixels(pixels, visible).unflatten(0, (len(group), -1)).numpy()
        return {
            name: stack_rows(
                made[name] if name in made else [sample.rows[name] for sample in group], field
            )
            for name, field in self.fields.items()
        }

    def _visible(self, key: str, view: int) -> NDArray[np.int64]:
        config, length = self.config, self.mae.config.num_patches
        count = num_partitions(config, length)
        return sample_visible(
            key, view, count, length, config.mask_ratio, config.seed, config.sampler
        )

    def _pixels(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Returns what is stored of views uint8 (B, 3, S, S): see `record_fields`."""
        patch_size = self.mae.config.patch_size
        if scored_by(self.config.metric) == "visible":
            return visible_pixels(pixels, visible, patch_size)
        return patchify(pixels, patch_size).unflatten(2, (patch_size, patch_size, 3))

    def _scores(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Returns the scores (B, P, n or L - n) of views uint8 (B, 3, S, S).

        Fewer at a time are computed if need be.

        Raises:
            RuntimeError: memory is not enough for a single pair.
        """
        images = normalize(pixels.to(self.device))
        visible = visible.to(self.device)
        while True:
            try:
                return self._scored(images, visible)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.chunk == 1:
                    raise
            self.chunk //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._notes.append(f"out of memory: went on with {self.chunk} partitions at a time")

    def _scored(self, images: Tensor, visible: Tensor) -> Tensor:
        config = self.config
        if config.metric == SURPRISE:
            return surprise_scores(
                self.mae, images, visible, precision=self.precision, chunk=self.chunk
            )
        return leave_one_out_scores(
            self.mae,
            images,
            visible,
            phase=config.phase,
            metric=config.metric,
            region=config.region,
            precision=self.precision,
            chunk=self.chunk,
        )


def visible_pixels(pixels: Tensor, visible: Tensor, patch_size: int) -> Tensor:
    """Returns the visible patches themselves, uint8 (B, P, n, p, p, 3).

    Args:
        pixels: uint8 (B, 3, S, S).
        visible: int64 (B, P, n).
    """
    patches = patchify(pixels, patch_size)
    index = visible.flatten(1)[..., None].expand(-1, -1, patches.shape[-1])
    chosen = patches.gather(1, index)
    return chosen.view(*visible.shape, patch_size, patch_size, 3)


def run(config: ScoreConfig, *, units: UnitRunner) -> Summary:
    """Scores every pending shard into a cache.

    Raises:
        CheckpointError: the weights cannot be used; nothing has been written then.
        RequestError: the mask ratio leaves no visible or no masked patch, or a worker's device does
            not compute in the precision.
    """
    fields, weights = _plan(config)
    precision, notes = _precision(config, units)
    config = dataclasses.replace(config, precision=precision)
    summary = units.run(
        "score",
        functools.partial(UnitScorer, config, mae_sha256=weights["mae_sha256"]),
        identity={**identity(config), **weights},
        fields=fields,
        gpu_only=needs_gpu(precision),
    )
    summary.notes += notes
    return summary


def _plan(config: ScoreConfig) -> tuple[dict[str, ArrayField], dict[str, Any]]:
    """Returns the arrays of a unit and what of the weights identifies the run.

    The model is let go of: the driver of a long run scores nothing.
    """
    mae = load_mae(config.mae)
    weights = {
        "partitions": num_partitions(config, mae.config.num_patches),
        "mae_sha256": mae.source.sha256,
        "image_size": mae.config.image_size,
        "patch_size": mae.config.patch_size,
    }
    if scored_by(config.metric) == "masked":
        weights["scored"] = "masked"
    return record_fields(config, mae), weights


def _precision(config: ScoreConfig, units: UnitRunner) -> tuple[Precision, list[str]]:
    """Returns what `--precision` comes to, and what the user should know of it."""
    if config.precision != "auto":
        return config.precision, []
    begun = units.begun().get("precision")
    if begun is not None:
        note = f"--precision {begun}, as {begun} is what this cache was begun with"
        return begun, [] if begun == "float32" else [note]
    types = device_types(config.device, units.slots())
    precision = fastest_faithful(types)
    if "cuda" not in types:
        return precision, []
    which = "all" if types == {"cuda"} else "not all"
    return precision, [f"--precision {precision}, as {which} workers are on GPUs"]
