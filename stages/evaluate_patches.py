"""How kept patches agree with annotated objects, beside every reference (Sec. 4.1, Fig. 5)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.baselines.references import center_scores, oracle_scores, random_scores
from ltrp_core.errors import RequestError
from ltrp_core.patch_metrics import (
    PatchCoverage,
    agreement,
    bootstrap_interval,
    coverage,
)
from ltrp_core.repeatability import mean_map
from ltrp_core.selection import num_kept, top_patches
from ltrp_core.views import render_mask
from stages.options import check_ranges, option
from stages.protocols import Annotations, Arrays, CacheReader, Progress, Summary
from stages.records import kept_name, recorded_view

RANKER, TOP_K, TEACHER = "ranker", "ranker, top-k only", "teacher"
VARIANCE, CENTER, RANDOM, ORACLE = "patch variance", "center", "random", "oracle"
SOURCES = (RANKER, TOP_K, TEACHER, VARIANCE, CENTER, RANDOM, ORACLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Options of `evaluate patches`."""

    random_draws: int = option(20, low=1, help="draws that `random` is the mean of")
    bootstrap_draws: int = option(1000, low=1, help="resamples behind each 95 % interval")
    seed: int = option(0, help="of the random draws and the bootstrap")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow:
    """One source at one keep ratio; means over the images with foreground."""

    source: str
    keep_ratio: float
    kept: int
    num_images: int
    precision: float
    precision_low: float
    precision_high: float
    recall: float
    f1: float
    iou: float
    pooled_precision: float
    pooled_recall: float
    pooled_f1: float
    pooled_iou: float


def run(
    config: EvaluateConfig,
    *,
    selections: CacheReader,
    annotations: Annotations,
    teacher: CacheReader | None,
    progress: Progress,
) -> tuple[list[EvaluationRow], Summary]:
    """Returns one row a source and keep ratio, and the summary.

    The ranker's selection stands as `select` wrote it (best patches, then homogeneous ones); every
    other source keeps its k best. `oracle` is the upper bound at the same k.

    Raises:
        RequestError: no selected image is annotated, or the teacher's cache does not fit.
    """
    started = time.monotonic()
    ratios = [float(ratio) for ratio in selections.run["keep_ratio"]]
    grid = int(selections.run["image_size"]) // int(selections.run["patch_size"])
    maps = cover_maps(teacher, grid) if teacher is not None else None
    tallies: dict[tuple[str, float], _Tally] = {}
    summary = Summary(stage="evaluate patches", done=1)
    unannotated = 0
    with progress.task("evaluate", len(selections.units), "units") as bar:
        for unit in selections.units:
            arrays = selections.read(unit)
            for row in range(len(arrays["key"])):
                seen = _coverage(selections.run, arrays, row, annotations)
                if seen is None:
                    unannotated += 1
                    continue
                summary.n_ok += 1
                for ratio in ratios:
                    k = num_kept(ratio, grid**2)
                    selected = torch.from_numpy(arrays[kept_name(ratio)][row].astype(np.int64))
                    tallies.setdefault((RANKER, ratio), _Tally()).add(selected[None], seen)
                    for source, scores in _scores(config, arrays, row, grid, maps, seen).items():
                        kept = top_patches(scores, k)
                        tallies.setdefault((source, ratio), _Tally()).add(kept, seen)
            bar.advance(1)
    if summary.n_ok == 0:
        raise RequestError(
            "no selected image is annotated: sample keys and the annotations' file names have "
            f"nothing in common (a key is {_first_key(selections)!r}); pack the folder the file "
            "names are relative to"
        )
    rows = [
        _row(config, source, ratio, num_kept(ratio, grid**2), tally)
        for (source, ratio), tally in sorted(tallies.items(), key=_table_order)
    ]
    if unannotated:
        summary.notes.append(f"left out {unannotated} selected image(s) without annotation")
    summary.seconds = time.monotonic() - started
    return rows, summary


def cover_maps(teacher: CacheReader, grid: int) -> dict[str, NDArray[np.float32]]:
    """Returns the teacher's mean pseudo-score of every patch (L,), by key.

    Raises:
        RequestError: the cache is not of evaluation views that cover every patch, or of this grid.
    """
    run = teacher.run
    if run.get("crop") != "eval" or run["image_size"] // run["patch_size"] != grid:
        raise RequestError(
            f"the teacher's cache must hold evaluation views of a {grid} x {grid} grid; score with "
            "--crop eval --sampler cover"
        )
    maps: dict[str, NDArray[np.float32]] = {}
    for unit in teacher.units:
        arrays = teacher.read(unit, ["visible", "score"])
        lists = (len(arrays["key"]), -1, arrays["visible"].shape[-1])
        means, counts = mean_map(
            arrays["visible"].reshape(lists), arrays["score"].reshape(lists), grid**2
        )
        for key, mean, count in zip(arrays["key"].tolist(), means, counts, strict=True):
            if not count.all():
                raise RequestError(
                    f"the teacher's partitions of {key!r} leave patches unscored; score with "
                    "--sampler cover"
                )
            maps[key] = mean.astype(np.float32)
    return maps


@dataclass(slots=True)
class _Tally:
    """Agreement of one source at one keep ratio, image by image, mean over the source's draws."""

    measures: list[NDArray[np.float64]] = dataclasses.field(default_factory=list)
    """precision, recall, F1, IoU; nan where undefined"""
    counts: list[NDArray[np.float64]] = dataclasses.field(default_factory=list)
    """pixels of the intersection, of the kept patches, of the foreground"""

    def add(self, kept: Tensor, seen: PatchCoverage) -> None:
        """Adds one image from its selections (draws, k)."""
        draws = len(kept)
        repeated = PatchCoverage(
            foreground_pixels=seen.foreground_pixels.expand(draws, -1),
            valid_pixels=seen.valid_pixels.expand(draws, -1),
            patch_size=seen.patch_size,
        )
        found = agreement(kept, repeated)
        measures = (found.precision, found.recall, found.f1, found.iou)
        counts = (found.intersection, found.kept_pixels, found.foreground)
        self.measures.append(torch.stack(measures).mean(dim=1).numpy())
        self.counts.append(torch.stack(counts).double().mean(dim=1).numpy())


def _coverage(
    run: Mapping[str, Any], arrays: Arrays, row: int, annotations: Annotations
) -> PatchCoverage | None:
    """Returns the foreground of a selected image, through the image's own crop and resize."""
    height, width = (int(side) for side in arrays["size"][row])
    found = annotations.foreground(arrays["key"][row], height, width)
    if found is None:
        return None
    view = recorded_view(arrays, row)
    size, patch_size = int(run["image_size"]), int(run["patch_size"])
    foreground = torch.from_numpy(render_mask(found.is_foreground, view, size))[None]
    ignored = torch.from_numpy(render_mask(found.is_ignored, view, size))[None]
    return coverage(foreground, ignored, patch_size)


def _scores(
    config: EvaluateConfig,
    arrays: Arrays,
    row: int,
    grid: int,
    maps: Mapping[str, NDArray[np.float32]] | None,
    seen: PatchCoverage,
) -> dict[str, Tensor]:
    """Returns the scores (draws, L) of every source that keeps its k best."""
    key = str(arrays["key"][row])
    draws = [
        random_scores(key, grid**2, draw=draw, seed=config.seed)
        for draw in range(config.random_draws)
    ]
    sources = {
        TOP_K: torch.from_numpy(arrays["ranker_score"][row].astype(np.float32))[None],
        VARIANCE: torch.from_numpy(arrays["patch_variance"][row].astype(np.float32))[None],
        CENTER: center_scores(grid)[None],
        RANDOM: torch.stack(draws),
        ORACLE: oracle_scores(seen),
    }
    if maps is not None:
        if key not in maps:
            raise RequestError(
                f"the teacher's cache has no map of {key!r}; score the shards of the selections"
            )
        sources[TEACHER] = torch.from_numpy(maps[key])[None]
    return sources


def _row(
    config: EvaluateConfig, source: str, keep_ratio: float, kept: int, tally: _Tally
) -> EvaluationRow:
    measures, counts = np.stack(tally.measures), np.stack(tally.counts)
    has_foreground = counts[:, 2] > 0
    if not has_foreground.any():
        raise RequestError("no annotated image has foreground inside its crop; nothing to measure")
    precision, recall, f1, iou = np.nanmean(measures[has_foreground], axis=0).tolist()
    low, high = bootstrap_interval(
        measures[has_foreground, 0], seed=config.seed, draws=config.bootstrap_draws
    )
    both, region, foreground = counts[has_foreground].sum(axis=0).tolist()
    return EvaluationRow(
        source=source,
        keep_ratio=keep_ratio,
        kept=kept,
        num_images=int(has_foreground.sum()),
        precision=precision,
        precision_low=low,
        precision_high=high,
        recall=recall,
        f1=f1,
        iou=iou,
        pooled_precision=both / region if region else float("nan"),
        pooled_recall=both / foreground,
        pooled_f1=2 * both / (region + foreground),
        pooled_iou=both / (region + foreground - both),
    )


def _table_order(item: tuple[tuple[str, float], _Tally]) -> tuple[float, int]:
    (source, keep_ratio), _ = item
    return keep_ratio, SOURCES.index(source)


def _first_key(selections: CacheReader) -> str | None:
    for unit in selections.units:
        keys = selections.read(unit)["key"].tolist()
        if keys:
            return str(keys[0])
    return None
