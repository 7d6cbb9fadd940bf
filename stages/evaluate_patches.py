"""How kept patches agree with annotated objects, beside every reference (Sec. 4.1, Fig. 5)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.patch_metrics import (
    PatchAgreement,
    PatchCoverage,
    agreement,
    nested_agreement,
)
from ltrp_core.repeatability import mean_map
from ltrp_core.selection import num_kept, top_patches
from ltrp_core.selectors.references import center_scores, oracle_scores, random_scores
from stages.evaluation.annotation_join import UsedOnce, examples, unmatched
from stages.evaluation.foreground_counts import counted, unit_counts
from stages.evaluation.rows import (
    CENTER,
    COMPARED,
    IMAGE_COLUMNS,
    MEASURES,
    ORACLE,
    RANDOM,
    RANKER,
    REFERENCES,
    SOURCES,
    TEACHER,
    TOP_K,
    VARIANCE,
    DifferenceRow,
    EvaluationRow,
    Values,
    difference_rows,
    source_rows,
)
from stages.options import check_ranges, option
from stages.protocols import (
    CATEGORIES,
    Annotations,
    Arrays,
    CacheReader,
    CountCache,
    Progress,
    Summary,
)
from stages.records import kept_name

__all__ = [
    "CENTER",
    "COMPARED",
    "IMAGE_COLUMNS",
    "MEASURES",
    "ORACLE",
    "RANDOM",
    "RANKER",
    "REFERENCES",
    "SOURCES",
    "TEACHER",
    "TOP_K",
    "VARIANCE",
    "DifferenceRow",
    "EvaluateConfig",
    "Evaluation",
    "EvaluationRow",
    "cover_maps",
    "run",
]

_SCORE_MAPS = {TOP_K: "ranker_score", VARIANCE: "patch_variance"}
"""Sources whose scores the selections hold, under these names."""
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Options of `evaluate patches`."""

    keep_ratio: tuple[float, ...] = option(
        (),
        low=0.0,
        high=1.0,
        help="share of kept patches; may be given repeatedly; default: those of the selections",
    )
    categories: tuple[str, ...] = option(
        ("all",),
        help="whose objects count: all, learned, unseen, unseen-strict; may be given repeatedly",
    )
    random_draws: int = option(20, low=1, help="draws that `random` is the mean of")
    bootstrap_draws: int = option(1000, low=1, help="resamples behind each 95 % interval")
    seed: int = option(0, help="of the random draws and the bootstrap")

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in self.categories:
            if name not in CATEGORIES:
                raise unknown_name("group of categories", name, CATEGORIES)
        for flag, values in (("keep-ratio", self.keep_ratio), ("categories", self.categories)):
            if len(set(values)) != len(values):
                raise RequestError(f"--{flag} is given twice: {', '.join(map(str, values))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All that an evaluation found."""

    rows: list[EvaluationRow]
    differences: list[DifferenceRow]
    keys: list[str]
    """(N,) of the annotated images, sorted"""
    images: Mapping[tuple[str, str, float], Values]
    """(categories, source, keep ratio) -> (N, 7): `IMAGE_COLUMNS` of each image"""


def run(
    config: EvaluateConfig,
    *,
    selections: CacheReader,
    annotations: Annotations,
    teacher: CacheReader | None,
    progress: Progress,
    cached: CountCache | None = None,
) -> tuple[Evaluation, Summary]:
    """Returns one row a group of categories, source and keep ratio, and the summary.

    The ranker's selection stands as `select` wrote it (best patches, then homogeneous ones), so it
    is there at the stored keep ratios only; every other source keeps its k best, at any ratio.
    `oracle` is the upper bound at the same k. Images count in the order of their keys: how they
    were sharded changes nothing.

    Raises:
        RequestError: no selected image is annotated, two have one annotation, none has foreground,
            a keep ratio leaves no patch, or the teacher's cache does not fit.
    """
    started = time.monotonic()
    grid = int(selections.run["image_size"]) // int(selections.run["patch_size"])
    stored = [float(ratio) for ratio in selections.run["keep_ratio"]]
    keeps = {ratio: num_kept(ratio, grid**2) for ratio in config.keep_ratio or stored}
    crop = str(selections.run.get("crop", "eval"))
    maps = cover_maps(teacher, grid, crop) if teacher is not None else None
    found = _Found()
    summary = Summary(stage="evaluate patches", done=1)
    with _one_thread(), progress.task("evaluate", len(selections.units), "units") as bar:
        for unit in selections.units:
            arrays = selections.read(unit)
            counts = {
                name: unit_counts(unit, arrays, selections.run, annotations, name, cached)
                for name in config.categories
            }
            found.join(unit, arrays, counts[config.categories[0]])
            _add_unit(config, found, arrays, counts, keeps, selections.run, maps)
            bar.advance(1)
    if not found.keys:
        raise RequestError(
            "no selected image is annotated: sample keys and the annotations' file names have "
            f"nothing in common (a key is {_first_key(selections)!r}; annotated are "
            f"{len(annotations.names)} images{examples(annotations.names)})"
            "; pack the folder the file names are relative to"
        )
    evaluation = _evaluation(config, found, keeps)
    summary.n_ok = len(found.keys)
    summary.notes += unmatched(found.unannotated, found.used, annotations)
    if (made_by := str(selections.run.get("source", "ranker"))) != "ranker":
        name = selections.run["baseline"] if made_by == "baseline" else "the teacher's scores"
        summary.notes.append(f"{RANKER!r} stands for what `select` kept by {name}; no ranker did")
    if absent := [f"{ratio:g}" for ratio in keeps if ratio not in stored]:
        summary.notes.append(
            f"at keep ratio {', '.join(absent)} there is no {RANKER!r}, only {TOP_K!r}: `select` "
            f"stored {', '.join(f'{ratio:g}' for ratio in stored)}"
        )
    summary.seconds = time.monotonic() - started
    return evaluation, summary


def cover_maps(
    teacher: CacheReader, grid: int, crop: str = "eval"
) -> dict[str, NDArray[np.float32]]:
    """Returns the teacher's mean pseudo-score of every patch (L,), by key.

    Args:
        teacher: a cache of `score --sampler cover`.
        grid: g of the selections.
        crop: what their views are; random ones (`train`) are not the teacher's.

    Raises:
        RequestError: the cache is not of such views that cover every patch, or of this grid.
    """
    run = teacher.run
    if crop == "train":
        raise RequestError(
            "the selections are of random views (--crop train), which a teacher has not scored; "
            "select with --crop eval or resize, or leave the teacher out"
        )
    if run.get("crop") != crop or run["image_size"] // run["patch_size"] != grid:
        raise RequestError(
            f"the teacher's cache must hold evaluation views of a {grid} x {grid} grid; score with "
            f"--crop {crop} --sampler cover"
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch on one thread: the operations are small, and threads that wait burn a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Found:
    """What was measured so far, batch by batch."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.unannotated: list[str] = []
        """Keys"""
        self.used = UsedOnce()
        self._parts: dict[tuple[str, str, float], list[Values]] = {}

    def join(self, unit: str, arrays: Arrays, counts: Arrays) -> None:
        """Notes which images of a unit are annotated, and by what."""
        keys = arrays["key"].tolist()
        self.unannotated += [
            key for key, there in zip(keys, counts["is_annotated"], strict=True) if not there
        ]
        self.used.add(unit, keys, counts["annotation"].tolist())

    def add(
        self, keys: Sequence[str], measured: Iterator[tuple[tuple[str, str, float], Values]]
    ) -> None:
        """Adds the measures of some images."""
        self.keys += keys
        for name, values in measured:
            self._parts.setdefault(name, []).append(values)

    def by_key(self) -> tuple[list[str], dict[tuple[str, str, float], Values]]:
        """Returns the keys, sorted, and every measure in their order, as the table has them."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        tables = {
            name: np.concatenate(self._parts[name])[order]
            for name in sorted(
                self._parts,
                key=lambda name: (CATEGORIES.index(name[0]), name[2], SOURCES.index(name[1])),
            )
        }
        return [self.keys[place] for place in order], tables


def _add_unit(
    config: EvaluateConfig,
    found: _Found,
    arrays: Arrays,
    counts: Mapping[str, Arrays],
    keeps: Mapping[float, int],
    run: Mapping[str, Any],
    maps: Mapping[str, NDArray[np.float32]] | None,
) -> None:
    """Adds the annotated images of a unit, some at a time."""
    patch_size = int(run["patch_size"])
    grid = int(run["image_size"]) // patch_size
    annotated = np.flatnonzero(counts[config.categories[0]]["is_annotated"])
    for start in range(0, len(annotated), _IMAGES_AT_ONCE):
        rows = annotated[start : start + _IMAGES_AT_ONCE]
        part = {name: values[rows] for name, values in arrays.items()}
        seen = {name: counted(of_group, rows, patch_size) for name, of_group in counts.items()}
        found.add(part["key"].tolist(), _measure(config, part, grid, seen, keeps, maps))


def _measure(
    config: EvaluateConfig,
    arrays: Arrays,
    grid: int,
    seen: Mapping[str, PatchCoverage],
    keeps: Mapping[float, int],
    maps: Mapping[str, NDArray[np.float32]] | None,
) -> Iterator[tuple[tuple[str, str, float], Values]]:
    """Yields (categories, source, keep ratio) and the `IMAGE_COLUMNS` (B, 7) of B images."""
    shared = {
        source: _order(scores) for source, scores in _scores(config, arrays, grid, maps).items()
    }
    for name, coverage in seen.items():
        orders = shared | {ORACLE: _order(oracle_scores(coverage)[None])}
        for source, order in orders.items():
            draws = len(order)
            repeated = PatchCoverage(
                foreground_pixels=coverage.foreground_pixels.repeat(draws, 1),
                valid_pixels=coverage.valid_pixels.repeat(draws, 1),
                patch_size=coverage.patch_size,
            )
            nested = nested_agreement(order.flatten(0, 1), repeated, list(keeps.values()))
            for ratio, of_all in zip(keeps, nested, strict=True):
                values = _columns(of_all).unflatten(0, (draws, -1)).mean(dim=0)
                yield (name, source, ratio), values.numpy()
        for ratio in keeps:
            if kept_name(ratio) in arrays:
                kept = torch.from_numpy(arrays[kept_name(ratio)].astype(np.int64))
                yield (name, RANKER, ratio), _columns(agreement(kept, coverage)).numpy()


def _order(scores: Tensor) -> Tensor:
    """Returns all patches, best first, (draws, B, L), of scores of that shape."""
    return top_patches(scores.flatten(0, 1), scores.shape[-1]).view(scores.shape)


def _columns(found: PatchAgreement) -> Tensor:
    return torch.stack([getattr(found, name).double() for name in IMAGE_COLUMNS], dim=1)


def _scores(
    config: EvaluateConfig,
    arrays: Arrays,
    grid: int,
    maps: Mapping[str, NDArray[np.float32]] | None,
) -> dict[str, Tensor]:
    """Returns the scores (draws, B, L) of every source but the oracle that keeps its k best."""
    keys = [str(key) for key in arrays["key"]]
    draws = [
        torch.stack([random_scores(key, grid**2, draw=draw, seed=config.seed) for key in keys])
        for draw in range(config.random_draws)
    ]
    sources = {
        CENTER: center_scores(grid).expand(1, len(keys), -1),
        RANDOM: torch.stack(draws),
    }
    for source, name in _SCORE_MAPS.items():
        if name in arrays:  # Selections that no ranker made need not have its scores.
            sources[source] = torch.from_numpy(arrays[name].astype(np.float32))[None]
    if maps is not None:
        for key in keys:
            if key not in maps:
                raise RequestError(
                    f"the teacher's cache has no map of {key!r}; score the shards of the selections"
                )
        sources[TEACHER] = torch.from_numpy(np.stack([maps[key] for key in keys]))[None]
    return sources


def _evaluation(config: EvaluateConfig, found: _Found, keeps: Mapping[float, int]) -> Evaluation:
    keys, images = found.by_key()
    rows: list[EvaluationRow] = []
    differences: list[DifferenceRow] = []
    for name in sorted(config.categories, key=CATEGORIES.index):
        for ratio in sorted(keeps):
            tables = {
                source: images[name, source, ratio]
                for source in SOURCES
                if (name, source, ratio) in images
            }
            has_foreground = tables[ORACLE][:, -1] > 0
            if not has_foreground.any():
                what = "" if name == "all" else f" of {name} categories"
                raise RequestError(
                    f"no annotated image has foreground{what} inside its crop; nothing to measure"
                )
            facts = {
                "categories": name,
                "keep_ratio": ratio,
                "kept": keeps[ratio],
                "num_images": int(has_foreground.sum()),
            }
            tables = {source: table[has_foreground] for source, table in tables.items()}
            draw = {"seed": config.seed, "draws": config.bootstrap_draws}
            rows += source_rows(facts, tables, **draw)
            differences += difference_rows(facts, tables, **draw)
    return Evaluation(rows=rows, differences=differences, keys=keys, images=images)


def _first_key(selections: CacheReader) -> str | None:
    for unit in selections.units:
        keys = selections.read(unit)["key"].tolist()
        if keys:
            return str(keys[0])
    return None
