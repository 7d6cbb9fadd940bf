"""How well a classifier recognizes images by the kept patches alone (Fig. 4)."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ltrp_core.classifiers import (
    DECLARED,
    FILLINGS,
    NOT_FILLED,
    FrozenClassifier,
    normalization_names,
    open_classifier,
)
from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.selection import num_kept
from ltrp_core.selectors import SelectorOptions, create_selector
from stages.devices import resolve_device
from stages.evaluation.annotation_join import examples
from stages.evaluation.class_numbers import class_numbers
from stages.evaluation.compared import Compared
from stages.evaluation.image_rows import (
    FULL_IMAGE,
    NOTHING_KEPT,
    ImageDifferenceRow,
    ImageRow,
    image_differences,
    image_rows,
)
from stages.evaluation.kept_images import KeptImages, Name
from stages.evaluation.rows import Values
from stages.evaluation.sources import top_only
from stages.options import check_ranges, option
from stages.protocols import Arrays, CacheReader, Labels, Progress, Summary, Views
from stages.selectors import baseline_names
from stages.types import LABELS, SelectRun

_NO_BASELINE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateImagesConfig:
    """Options of `evaluate images`."""

    frozen: str = option(
        help="classifier: timm:NAME, with weights of the hub or --weights, or the --out folder of "
        "`train-classifier`"
    )
    weights: str = option(
        "", help="file of its parameters, safetensors or .pth; empty: timm's pretrained ones"
    )
    normalization: str = option(
        DECLARED,
        names=normalization_names,
        help="of its pixels: declared by the file or timm's entry; imagenet; half: -1 to 1; "
        "tf-lite: (x - 127) / 128",
    )
    filling: tuple[str, ...] = option(
        (),
        help="of the hidden patches: none, the kept tokens alone; mean, the color that the model "
        "sees as 0; blur; may be given repeatedly; default: none for a ViT, else mean",
    )
    keep_ratio: tuple[float, ...] = option(
        (),
        low=0.0,
        high=1.0,
        help="share of kept patches; may be given repeatedly; default: those of the selections",
    )
    baseline: tuple[str, ...] = option(
        ("random", "center", "patch-variance", "border"),
        help="selectors without weights that stand beside; may be given repeatedly; or none",
    )
    against: str = option(
        "",
        absent="",
        help="a selection's label or a baseline: differences are of all others minus this one; "
        "default: selections minus baselines, the first minus the others",
    )
    bootstrap_draws: int = option(1000, low=1, help="resamples behind each 95 % interval")
    seed: int = option(0, help="of the random patches and the bootstrap")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        for flag in ("filling", "keep_ratio", "baseline"):
            values = getattr(self, flag)
            if len(set(values)) != len(values):
                name = flag.replace("_", "-")
                raise RequestError(f"--{name} is given twice: {', '.join(map(str, values))}")
        for name in self.filling:
            if name not in (NOT_FILLED, *FILLINGS):
                raise unknown_name("filling", name, [NOT_FILLED, *FILLINGS])
        for name in self.baselines:
            if name not in baseline_names():
                raise unknown_name("baseline", name, [*baseline_names(), _NO_BASELINE])

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of selectors."""
        return () if self.baseline == (_NO_BASELINE,) else self.baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageEvaluation:
    """All that was found."""

    rows: list[ImageRow]
    differences: list[ImageDifferenceRow]
    keys: list[str]
    """(N,) of the labeled images, sorted"""
    classes: list[int]
    """(N,) true classes, by the classifier's numbers"""
    images: Mapping[Name, Values]
    """(N, 4) `MEASURES` of each image"""
    against: str
    """What the differences are minus, if one was chosen"""


def run(
    config: EvaluateImagesConfig,
    *,
    selections: Mapping[str, CacheReader],
    views: Views,
    labels: Labels,
    progress: Progress,
) -> tuple[ImageEvaluation, Summary]:
    """Returns one row per filling, keep ratio and source, and the summary.

    A selection stands as `select` wrote it, at its stored keep ratios; a baseline keeps its k best.
    The order of the images and how they were sharded change nothing.

    Args:
        config: options.
        selections: by their labels, of the same views of the same images.
        views: the pixels that the first one was made from.
        labels: exactly one class of an image.
        progress: shows how far it is.

    Raises:
        CheckpointError: the classifier's weights cannot be used.
        RequestError: selections, classifier or labels that do not fit each other, no labeled image,
            or an image whose logits are not finite.
    """
    started = time.monotonic()
    compared = Compared.of(selections, None)
    first = compared.first
    setup = _open(config, compared.run, compared.runs)
    classifier = setup.classifier
    numbers, how = _class_numbers(labels, classifier)
    summary = Summary(stage="evaluate images", done=1)
    summary.notes += [f"pixels go in as {classifier.normalization}, by {classifier.origin}", how]
    found = _Found()
    total = sum(len(first.read(unit, ["key"])["key"]) for unit in first.units)
    with progress.task("evaluate", total, "images") as bar:
        for unit in first.units:
            stored = compared.read(unit)
            arrays = stored[compared.label]
            if len(arrays["key"]):
                rows, classes = found.join(unit, arrays["key"].tolist(), labels, numbers)
                pixels = views.pixels(unit, arrays) if len(rows) else np.empty(0, np.uint8)
                for count in _add(found, setup, stored, pixels, rows, classes):
                    bar.advance(count)
                bar.advance(len(arrays["key"]) - len(rows))
    if not found.keys:
        raise RequestError(
            f"none of the {total} selected images has a label{examples(found.unlabeled)}; pass "
            "shards with .cls members, or class folders, of the images that were selected from"
        )
    summary.n_ok = len(found.keys)
    summary.notes += compared.notes(setup.keeps, ())
    if found.unlabeled:
        summary.notes.append(
            f"left out {len(found.unlabeled)} selected image(s) without a label"
            f"{examples(found.unlabeled)}"
        )
    evaluation = _evaluation(config, setup, found)
    summary.seconds = time.monotonic() - started
    return evaluation, summary


def _open(
    config: EvaluateImagesConfig, run: SelectRun, runs: Mapping[str, SelectRun]
) -> KeptImages:
    """Opens the classifier and the baselines, and checks that all fit the views."""
    classifier = open_classifier(
        config.frozen,
        config.weights,
        normalization=config.normalization,
        device=resolve_device(config.device),
    )
    fillings = config.filling or ((NOT_FILLED,) if classifier.drops_tokens else ("mean",))
    for filling in fillings:
        classifier.check(filling, run.grid, run.patch_size)
    for reserved in (FULL_IMAGE, NOTHING_KEPT):
        if reserved in runs:
            raise RequestError(f"--label {reserved!r} is a row's name already; take another")
    stored = dict.fromkeys(ratio for own in runs.values() for ratio in own.keep_ratio)
    options = SelectorOptions(
        image_size=run.image_size, patch_size=run.patch_size, homogeneous=0.0, seed=config.seed
    )
    baselines = {}
    for name in config.baselines:
        called = LABELS.get(name, name)
        # A selection by the same method has the name, and homogeneous patches among the kept.
        called = top_only(called) if called in runs else called
        baselines[called] = create_selector(name, options)
    ratios = config.keep_ratio or tuple(stored)
    _check_against(config.against, runs, baselines, ratios)
    return KeptImages(
        classifier=classifier,
        fillings=fillings,
        keeps={ratio: num_kept(ratio, run.length) for ratio in ratios},
        selections=runs,
        baselines=baselines,
        against=config.against,
    )


def _class_numbers(labels: Labels, classifier: FrozenClassifier) -> tuple[list[int], str]:
    """Returns the classifier's number of every class, and a note on how it was found."""
    named = None if labels.is_multi else classifier.numbers_of(labels.classes)
    if named is None:
        return class_numbers(labels, classifier.num_classes, classifier.name)
    return named, f"{len(named)} classes found by name among the classifier's"


def _check_against(
    name: str, runs: Mapping[str, SelectRun], baselines: Collection[str], ratios: Sequence[float]
) -> None:
    """Raises RequestError unless the name that `--against` gives is measured; empty: none."""
    if not name:
        return
    if name not in runs and name not in baselines:
        raise unknown_name("selection or baseline of --against", name, [*runs, *baselines])
    if name in runs and not set(ratios) & set(runs[name].keep_ratio):
        raise RequestError(
            f"nothing to compare --against {name!r}: it is stored at keep ratio "
            f"{', '.join(f'{ratio:g}' for ratio in runs[name].keep_ratio)}, and measured are "
            f"{', '.join(f'{ratio:g}' for ratio in ratios)}"
        )


class _Found:
    """What was measured so far, batch by batch."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.classes: list[int] = []
        self.unlabeled: list[str] = []
        """Keys"""
        self._units: dict[str, str] = {}
        """By key"""
        self._parts: dict[Name, list[Values]] = {}

    def join(
        self, unit: str, keys: Sequence[str], labels: Labels, numbers: Sequence[int]
    ) -> tuple[NDArray[np.int64], list[int]]:
        """Returns the rows of a unit that have a label, and the classifier's number of each.

        Raises:
            RequestError: a key was there before, so that its label may be another image's.
        """
        rows, classes = [], []
        for row, key in enumerate(keys):
            other = self._units.setdefault(key, unit)
            if other != unit:
                raise RequestError(
                    f"two images are called {key!r}, in units {other} and {unit}: labels are found "
                    "by key, which must be unique; pack the shards again, or evaluate them apart"
                )
            of_image = labels.of(key)
            if of_image is None:
                self.unlabeled.append(key)
            else:
                rows.append(row)
                classes.append(numbers[of_image[0]])
        return np.array(rows, dtype=np.int64), classes

    def add(self, name: Name, values: Values) -> None:
        """Adds the measures of some images."""
        self._parts.setdefault(name, []).append(values)

    def by_key(self) -> tuple[NDArray[np.int64], dict[Name, Values]]:
        """Returns the order of the images by key, and every measure in that order."""
        order = np.array(sorted(range(len(self.keys)), key=self.keys.__getitem__), dtype=np.int64)
        return order, {name: np.concatenate(own)[order] for name, own in self._parts.items()}


def _add(
    found: _Found,
    setup: KeptImages,
    stored: Mapping[str, Arrays],
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    classes: Sequence[int],
) -> Iterator[int]:
    """Adds the labeled images of a unit, some at a time; yields how many."""
    at_once = setup.classifier.at_once
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        part = {
            label: {name: own[name][some] for name in setup.arrays if name in own}
            for label, own in stored.items()
        }
        true = torch.tensor(classes[start : start + len(some)])
        for name, values in setup.measure(part, torch.from_numpy(pixels[some]), true):
            found.add(name, values)
        found.keys += part[next(iter(part))]["key"].tolist()
        found.classes += true.tolist()
        yield len(some)


def _evaluation(config: EvaluateImagesConfig, setup: KeptImages, found: _Found) -> ImageEvaluation:
    order, unordered = found.by_key()
    rows: list[ImageRow] = []
    differences: list[ImageDifferenceRow] = []
    images: dict[Name, Values] = {}
    draw = {"seed": config.seed, "draws": config.bootstrap_draws}
    ratios = {0.0: 0, **setup.keeps, 1.0: setup.first.length}
    for filling in setup.fillings:
        for ratio in sorted(ratios, reverse=True):
            names = [(filling, source, ratio) for source in setup.sources]
            own = {name: unordered[name] for name in names if name in unordered}
            images |= own
            tables = {source: values for (_, source, _), values in own.items()}
            facts = {
                "classifier": config.frozen,
                "filling": filling,
                "keep_ratio": ratio,
                "kept": ratios[ratio],
                "num_images": len(order),
            }
            rows += image_rows(facts, tables, **draw)
            differences += image_differences(facts, tables, setup.pairs, **draw)
    return ImageEvaluation(
        rows=rows,
        differences=differences,
        keys=[found.keys[place] for place in order],
        classes=[found.classes[place] for place in order],
        images=images,
        against=config.against,
    )
