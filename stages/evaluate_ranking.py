"""How two sources of scores agree on the order of patches, and how flat a teacher's order is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltrp_core.bootstrap import bootstrap_interval
from ltrp_core.errors import RequestError
from ltrp_core.plateaus import Plateaus, plateaus
from ltrp_core.ranking_metrics import kendall_tau_b, ndcg, spearman_rho, top_k_overlap
from ltrp_core.repeatability import label_repeatability
from ltrp_core.selection import num_kept
from stages.options import check_ranges, option
from stages.protocols import CacheReader, Progress, Summary
from stages.score_maps import ScoreMaps
from stages.types import ScoreRun

DECILES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingConfig:
    """Options of `evaluate ranking`."""

    keep_ratio: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), low=0.0, high=1.0, help="the k of the overlap of the k best; repeatable"
    )
    top: int = option(10, low=1, help="places that NDCG counts")
    bootstrap_draws: int = option(1000, low=1, help="resamples behind each 95 % interval")
    seed: int = option(0, help="of the bootstrap")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementRow:
    """One measure of agreement: its mean over images."""

    measure: str
    """`tau`, `rho`, `ndcgN`, or `overlap` of the k best"""
    keep_ratio: float | None
    """Of an overlap"""
    mean: float
    low: float
    high: float
    by_chance: float
    """What a random order has in expectation; nan where no formula says it"""
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateauRow:
    """A tenth of the teacher's order, the best patches first; means over images."""

    source: str
    """`first` or `second`"""
    tenth: int
    """From 1"""
    flat: float
    """Share of neighbors that differ by less than the standard error of their difference"""
    flat_low: float
    flat_high: float
    width: float
    """Other patches that a patch cannot be told from"""
    score: float
    """Mean score, 1 = the image's largest, 0 = its smallest"""
    num_images: int


@dataclass(slots=True)
class RankingEvaluation:
    """What is measured."""

    agreement: list[AgreementRow]
    plateau: list[PlateauRow]
    images: dict[str, list[Any]]
    """Of every image: key, and each measure of agreement"""


def run(
    config: RankingConfig, *, first: CacheReader, second: CacheReader, progress: Progress
) -> tuple[RankingEvaluation, Summary]:
    """Returns how `first` orders the patches of each image that both have, judged by `second`.

    tau, rho and the overlap are symmetric; NDCG takes the second source for the truth.

    Raises:
        RequestError: caches without score maps, of different grids or views, or no image in common.
    """
    started = time.monotonic()
    sources = ScoreMaps(first, "the first cache"), ScoreMaps(second, "the second cache")
    grids = [source.run.grid for source in sources]
    if grids[0] != grids[1]:
        raise RequestError(
            f"the first cache has a grid of {grids[0]} x {grids[0]} patches, the second one of "
            f"{grids[1]} x {grids[1]}; nothing can be compared"
        )
    summary = Summary(stage="evaluate ranking", done=1)
    images: dict[str, list[Any]] = {"key": []}
    with progress.task("compare", len(first.units), "units") as bar:
        for keys, ours, theirs in _pairs(sources):
            summary.n_ok += len(keys)
            images["key"] += keys
            for name, values in _measures(config, ours, theirs).items():
                images.setdefault(name, []).extend(values.tolist())
            bar.advance(1)
    if not summary.n_ok:
        raise RequestError(
            "the two caches have no image in common: a key of the first is "
            f"{next(iter(sources[0].places), None)!r}, of the second "
            f"{next(iter(sources[1].places), None)!r}"
        )
    alone = [len(source.places) - summary.n_ok for source in sources]
    for source, count in zip(sources, alone, strict=True):
        if count:
            summary.notes.append(f"{count} image(s) are in {source.name} only")
    plateau = [row for source in sources for row in _plateau(config, source, summary)]
    rows = [
        _row(config, name, np.array(v), grids[0] ** 2)
        for name, v in images.items()
        if name != "key"
    ]
    summary.seconds = time.monotonic() - started
    return RankingEvaluation(rows, plateau, images), summary


def _pairs(
    sources: Sequence[ScoreMaps],
) -> Iterator[tuple[list[str], NDArray[np.float64], NDArray[np.float64]]]:
    """Yields the keys and maps of the images that both have, a unit of the first at a time.

    Raises:
        RequestError: an image whose views differ, or with patches that were never scored.
    """
    first, second = sources
    for unit in first.cache.units:
        ours = first.unit(unit)
        keys: list[str] = []
        maps: list[tuple[Any, Any]] = []
        for row, key in enumerate(ours["key"].tolist()):
            if key not in second.places:
                continue
            theirs, place = second.find(key)
            for name in ("size", "crop", "flip"):
                if not np.array_equal(ours[name][row], theirs[name][place]):
                    raise RequestError(
                        f"{key!r} has another {name} in the second cache than in the first "
                        f"({theirs[name][place].tolist()}, {ours[name][row].tolist()}): they are "
                        "of other views; score and select with the same --crop"
                    )
            first.check(key, ours["map"][row])
            keys.append(key)
            maps.append((ours["map"][row], theirs["map"][place]))
        if keys:
            a, b = zip(*maps, strict=True)
            yield keys, np.stack(a), np.stack(b)


def _measures(
    config: RankingConfig, ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> Mapping[str, NDArray[np.float64]]:
    a, b = torch.from_numpy(ours), torch.from_numpy(theirs)
    found = {
        "tau": kendall_tau_b(a, b),
        "rho": spearman_rho(a, b),
        f"ndcg{config.top}": ndcg(a, b, top=config.top),
    }
    for ratio in config.keep_ratio:
        found[f"overlap_{ratio:g}"] = top_k_overlap(a, b, num_kept(ratio, a.shape[1]))
    return {name: values.numpy() for name, values in found.items()}


def _row(
    config: RankingConfig, name: str, values: NDArray[np.float64], length: int
) -> AgreementRow:
    low, high = bootstrap_interval(values, seed=config.seed, draws=config.bootstrap_draws)
    measure, _, ratio = name.partition("_")
    by_chance = num_kept(float(ratio), length) / length if ratio else 0.0
    return AgreementRow(
        measure=measure,
        keep_ratio=float(ratio) if ratio else None,
        mean=float(np.nanmean(values)) if np.isfinite(values).any() else float("nan"),
        low=low,
        high=high,
        by_chance=float("nan") if measure.startswith("ndcg") else by_chance,
        num_images=int(np.isfinite(values).sum()),
    )


def _times(run: ScoreRun) -> str:
    """Returns how often half of a view's partitions score a patch, on average."""
    if run.disjoint_by is not None:
        return str(run.partitions // run.disjoint_by // 2)
    return f"{run.partitions // 2 * run.num_scored / run.length:.3g}"


def _plateau(config: RankingConfig, source: ScoreMaps, summary: Summary) -> list[PlateauRow]:
    """Returns the tenths of a teacher's order; none of selections, nor of patches scored once."""
    run = source.run
    if not isinstance(run, ScoreRun):
        return []
    rounds = run.partitions_per_round
    if run.records < 2 * rounds:
        summary.notes.append(
            f"how flat {source.name}'s order is cannot be told: its patches were scored "
            f"once; score with --partitions {2 * rounds} or more"
        )
        return []
    parts: list[Plateaus] = []
    patches, score, once = [], [], 0
    for unit in source.cache.units:
        arrays = source.unit(unit, with_noise=True)
        # Of a cover every patch of every image; of iid partitions chance may leave some out.
        is_twice = np.isfinite(arrays["error"]).all(axis=1)
        once += int((~is_twice).sum())
        if is_twice.any():
            parts.append(plateaus(arrays["map"][is_twice], arrays["error"][is_twice], DECILES))
            patches.append(arrays["patches"][is_twice, None])
            score.append(arrays["score"][is_twice, None])
    if once:
        summary.notes.append(
            f"{once} image(s) of {source.name} have patches that were scored once: how flat the "
            "order is was measured without them"
        )
    if not parts:
        return []
    twice = label_repeatability(
        np.concatenate(patches), np.concatenate(score), run.length, groups=run.disjoint_by
    )
    summary.notes.append(
        f"two draws of {source.name}'s teacher agree with tau {twice.tau:.3f} "
        f"({_times(run)} x each patch)"
    )
    flat, width, height = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("flat", "width", "score")
    )
    draws = {"seed": config.seed, "draws": config.bootstrap_draws}
    intervals = [bootstrap_interval(flat[:, tenth], **draws) for tenth in range(DECILES)]
    return [
        PlateauRow(
            source=source.name.split()[1],
            tenth=tenth + 1,
            flat=float(flat[:, tenth].mean()),
            flat_low=low,
            flat_high=high,
            width=float(width[:, tenth].mean()),
            score=float(height[:, tenth].mean()),
            num_images=len(flat),
        )
        for tenth, (low, high) in enumerate(intervals)
    ]
