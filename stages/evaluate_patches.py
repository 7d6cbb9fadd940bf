"""How kept patches agree with annotated objects, beside every reference (Sec. 4.1, Fig. 5)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.patch_metrics import PatchAgreement, PatchCoverage, agreement, nested_agreement
from ltrp_core.selection import num_kept, top_patches
from ltrp_core.selectors.references import oracle_scores
from stages.evaluation.annotation_join import UsedOnce, examples, unmatched
from stages.evaluation.compared import Compared, missing_references
from stages.evaluation.foreground_counts import counted, unit_counts
from stages.evaluation.rows import (
    IMAGE_COLUMNS,
    DifferenceRow,
    EvaluationRow,
    Values,
    difference_rows,
    source_rows,
)
from stages.evaluation.sources import ORACLE, check_against, in_order
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
    against: str = option(
        "",
        absent="",
        help="a selection's label or a reference, e.g. 'patch variance': differences are of every "
        "other source minus this one; default: selections minus references, the first minus others",
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
    selections: Mapping[str, CacheReader],
    annotations: Annotations,
    teacher: CacheReader | None,
    progress: Progress,
    cached: CountCache | None = None,
) -> tuple[Evaluation, Summary]:
    """Returns one row per group of categories, source and keep ratio, and the summary.

    A selection stands as `select` wrote it (best patches, then homogeneous ones), so it is there at
    its stored keep ratios only; every other source keeps its k best, at any ratio. `oracle` is the
    upper bound at the same k. Images count in the order of their keys: how they were sharded
    changes nothing.

    Args:
        selections: by their labels (`stages.evaluation.sources.name_selections`), of the same views
            of the same images. What annotations say is asked for the first one's units.

    Raises:
        RequestError: no selected image is annotated, two have one annotation, none has foreground,
            a keep ratio leaves no patch, or a selection or the teacher's cache does not fit.
    """
    started = time.monotonic()
    check_against(config.against, list(selections), has_teacher=teacher is not None)
    sources = Compared.of(selections, teacher)
    first, length = sources.first, sources.run.length
    stored = {label: run.keep_ratio for label, run in sources.runs.items()}
    ratios = config.keep_ratio or tuple(dict.fromkeys(r for own in stored.values() for r in own))
    keeps = {ratio: num_kept(ratio, length) for ratio in ratios}
    found = _Found(list(stored))
    summary = Summary(stage="evaluate patches", done=1)
    with _one_thread(), progress.task("evaluate", len(first.units), "units") as bar:
        for unit in first.units:
            arrays = sources.read(unit)
            counts = {
                name: unit_counts(
                    unit, arrays[sources.label], sources.run, annotations, name, cached
                )
                for name in config.categories
            }
            found.join(unit, arrays[sources.label], counts[config.categories[0]])
            _add_unit(config, found, arrays, counts, keeps, sources)
            bar.advance(1)
    if not found.keys:
        raise RequestError(
            "no selected image is annotated: sample keys and the annotations' file names have "
            f"nothing in common (a key is {_first_key(first)!r}; annotated are "
            f"{len(annotations.names)} images{examples(annotations.names)})"
            "; pack the folder the file names are relative to"
        )
    evaluation = _evaluation(config, found, keeps)
    summary.n_ok = len(found.keys)
    summary.notes += unmatched(found.unannotated, found.used, annotations)
    measured = {source for _, source, _ in evaluation.images}
    summary.notes += sources.notes(keeps, measured) + missing_references(measured)
    summary.seconds = time.monotonic() - started
    return evaluation, summary


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

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
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
        sources = in_order(self.labels)
        tables = {
            name: np.concatenate(self._parts[name])[order]
            for name in sorted(
                self._parts,
                key=lambda name: (CATEGORIES.index(name[0]), name[2], sources.index(name[1])),
            )
        }
        return [self.keys[place] for place in order], tables


def _add_unit(
    config: EvaluateConfig,
    found: _Found,
    arrays: Mapping[str, Arrays],
    counts: Mapping[str, Arrays],
    keeps: Mapping[float, int],
    sources: Compared,
) -> None:
    """Adds the annotated images of a unit, some at a time."""
    annotated = np.flatnonzero(counts[config.categories[0]]["is_annotated"])
    for start in range(0, len(annotated), _IMAGES_AT_ONCE):
        rows = annotated[start : start + _IMAGES_AT_ONCE]
        part = {
            label: {name: values[rows] for name, values in own.items()}
            for label, own in arrays.items()
        }
        seen = {
            name: counted(of_group, rows, sources.run.patch_size)
            for name, of_group in counts.items()
        }
        keys = part[sources.label]["key"].tolist()
        scores = sources.scores(part, draws=config.random_draws, seed=config.seed)
        found.add(keys, _measure(part, scores, seen, keeps))


def _measure(
    arrays: Mapping[str, Arrays],
    scores: Mapping[str, Tensor],
    seen: Mapping[str, PatchCoverage],
    keeps: Mapping[float, int],
) -> Iterator[tuple[tuple[str, str, float], Values]]:
    """Yields (categories, source, keep ratio) and the `IMAGE_COLUMNS` (B, 7) of B images.

    Args:
        arrays: of the selections, by label.
        scores: (draws, B, L) of every source but the oracle that keeps its k best.
        seen: by group of categories.
        keeps: keep ratio -> k.
    """
    shared = {source: _order(values) for source, values in scores.items()}
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
        for label, own in arrays.items():
            for ratio in keeps:
                if kept_name(ratio) in own:
                    kept = torch.from_numpy(own[kept_name(ratio)].astype(np.int64))
                    yield (name, label, ratio), _columns(agreement(kept, coverage)).numpy()


def _order(scores: Tensor) -> Tensor:
    """Returns all patches, best first, (draws, B, L), of scores of that shape."""
    return top_patches(scores.flatten(0, 1), scores.shape[-1]).view(scores.shape)


def _columns(found: PatchAgreement) -> Tensor:
    return torch.stack([getattr(found, name).double() for name in IMAGE_COLUMNS], dim=1)


def _evaluation(config: EvaluateConfig, found: _Found, keeps: Mapping[float, int]) -> Evaluation:
    keys, images = found.by_key()
    measured = dict.fromkeys(source for _, source, _ in images)
    if config.against and config.against not in measured:
        raise RequestError(
            f"nothing to compare --against {config.against!r}: it is there at none of the keep "
            f"ratios {', '.join(f'{ratio:g}' for ratio in keeps)}; take {' or '.join(measured)}"
        )
    rows: list[EvaluationRow] = []
    differences: list[DifferenceRow] = []
    for name in sorted(config.categories, key=CATEGORIES.index):
        for ratio in sorted(keeps):
            tables = {
                source: images[name, source, ratio]
                for source in in_order(found.labels)
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
            differences += difference_rows(
                facts, tables, found.labels, against=config.against, **draw
            )
    return Evaluation(rows=rows, differences=differences, keys=keys, images=images)


def _first_key(selections: CacheReader) -> str | None:
    for unit in selections.units:
        keys = selections.read(unit)["key"].tolist()
        if keys:
            return str(keys[0])
    return None
