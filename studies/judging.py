"""How good the order of patches is, on photographs that nothing was learned from: for labels.py.

Precision of the k best patches against objects, top-1 of a frozen classifier that sees only those
patches, and agreement with dear maps, photograph by photograph.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from off_center import pictures
from torch import Tensor

from ltrp_core.classifiers import FrozenClassifier, open_classifier
from ltrp_core.linear import frozen_weights
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import Sampler, masked_patches, sample_visible
from ltrp_core.patch_metrics import PatchCoverage, coverage, nested_agreement
from ltrp_core.ranking_metrics import kendall_tau_b
from ltrp_core.repeatability import mean_map
from ltrp_core.selection import num_kept, top_patches
from ltrp_core.selectors import ScoreSelector, SelectorOptions, create_selector
from ltrp_core.selectors.references import random_scores
from ltrp_core.views import make_view, normalize, render_view
from pipeline.inputs import find_shards
from pipeline.inputs.samples import read_samples

Way = Callable[[MaskedAutoencoder, Tensor, Tensor], Tensor]
Measures = dict[str, NDArray[np.float64]]
"""By name, one value a photograph"""

SIDE, PATCH, LENGTH, MASKED = 224, 16, 196, 0.9
PRECISION_AT, TOP1_AT = (0.1, 0.25, 0.5), (0.5,)
DEAR: dict[str, tuple[int, Sampler]] = {"l1": (11, "cover"), "surprise": (24, "iid")}
"""Kinds of maps that rankers are compared with: partitions, sampler."""


class Judge:
    """The photographs that nothing was learned from, decoded once, and what is known of them."""

    def __init__(
        self,
        mae: MaskedAutoencoder,
        ways: Mapping[str, Way],
        objects: Sequence[Path],
        shards: str,
        classifier: str,
        map_images: int,
        work: Path,
    ) -> None:
        """Decodes the photographs; makes the dear maps, and times every way, if `work` lacks them.

        Args:
            mae: of the maps.
            ways: kinds of labels, `DEAR` among them.
            objects: folders of `images` and `instances.json`.
            shards: images whose keys hold a synset of ImageNet are classified.
            classifier: weights of EfficientNet-Lite0; empty: timm's.
            map_images: how many of those have dear maps.
            work: folder for what takes long.
        """
        self.object_keys, self.object_views, self.seen = _objects(objects)
        self.class_keys, self.class_views, self.classes = _classified(shards)
        model = open_classifier("timm:tf_efficientnet_lite0", classifier)
        self.right = partial(_right, model, self.class_views, self.classes)
        views, keys = normalize(self.class_views[:map_images]), self.class_keys[:map_images]
        if not (clock := work / "seconds.json").exists():
            # A photograph each, and the ways in turns: what else the machine does hits them all.
            pairs = zip(keys, views.split(1), strict=True)
            turns = [_seconds(ways, mae, view, key) for key, view in pairs]
            medians = {kind: median(spent[kind] for spent in turns) for kind in ways}
            clock.write_text(json.dumps(medians))
        if not (path := work / "maps.npz").exists():
            np.savez(path, **{kind: _maps(kind, ways[kind], mae, views, keys) for kind in DEAR})
        self.seconds = json.loads(clock.read_text())
        self.maps = {kind: torch.from_numpy(one) for kind, one in np.load(path).items()}
        self.heuristics = _kept_or_made(work / "heuristics.npz", self._heuristics)

    def of_scores(self, objects: Tensor, classified: Tensor) -> Measures:
        """Returns all measures of every photograph, by name, of the scores (B, L) of both sets."""
        order = top_patches(objects, LENGTH)
        found = nested_agreement(order, self.seen, [num_kept(r, LENGTH) for r in PRECISION_AT])
        measures = {
            f"precision {ratio:g}": one.precision.double().numpy()
            for ratio, one in zip(PRECISION_AT, found, strict=True)
        }
        for ratio in TOP1_AT:
            kept = top_patches(classified, num_kept(ratio, LENGTH))
            measures[f"top-1 {ratio:g}"] = self.right(kept)
        for kind, maps in self.maps.items():
            taus = kendall_tau_b(classified[: len(maps)].double(), maps)
            measures[f"tau {kind}"] = taus.numpy()
        return measures

    def of_ranker(self, folder: Path | str) -> Measures:
        """Returns the measures of a ranker."""
        selector = create_selector("ranker", SelectorOptions(weights=str(folder)))
        return self._of_selector(selector)

    def _of_selector(self, selector: Any) -> Measures:
        assert isinstance(selector, ScoreSelector)
        both = (self.object_views, self.object_keys), (self.class_views, self.class_keys)
        with torch.no_grad():
            return self.of_scores(*(selector.scores(normalize(v), k) for v, k in both))

    def _heuristics(self) -> dict[str, NDArray[np.float64]]:
        """Returns the measures of what needs no label, as `source: measure`."""
        draws = [
            torch.stack([random_scores(key, LENGTH, draw=0, seed=0) for key in keys])
            for keys in (self.object_keys, self.class_keys)
        ]
        found = {"random": self.of_scores(*draws)}
        for name in ("center", "patch-variance", "border"):
            found[name] = self._of_selector(create_selector(name))
        return {f"{n}: {m}": values for n, one in found.items() for m, values in one.items()}


def _kept_or_made(path: Path, make: Callable[[], Measures]) -> dict[str, Measures]:
    if not path.exists():
        np.savez(path, **make())
    found: dict[str, Measures] = {}
    for name, values in np.load(path).items():
        source, measure = name.split(": ")
        found.setdefault(source, {})[measure] = values
    return found


def _objects(folders: Sequence[Path]) -> tuple[list[str], Tensor, PatchCoverage]:
    """Returns keys, views uint8 (B, 3, S, S) and what is foreground; images without any are out."""
    found = [picture for picture in pictures(folders, SIDE) if picture.foreground.any()]
    foreground, ignored = (
        torch.from_numpy(np.stack(masks))
        for masks in zip(*((one.foreground, one.ignored) for one in found), strict=True)
    )
    views = torch.stack([picture.pixels for picture in found])
    return [picture.key for picture in found], views, coverage(foreground, ignored, PATCH)


def _classified(shards: str) -> tuple[list[str], Tensor, Tensor]:
    """Returns keys, views uint8 (B, 3, S, S) and ImageNet's class numbers, by synsets in keys."""
    from timm.data import ImageNetInfo

    number = {name: n for n, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    keys, views, classes = [], [], []
    for shard in find_shards([shards]):
        for sample in read_samples(shard):
            if match := re.search(r"(?<![a-z])n\d{8}(?!\d)", sample.key):
                view = make_view("eval", sample.key, 0, *sample.image.shape[:2], 0)
                keys.append(sample.key)
                views.append(render_view(sample.image, view, SIDE))
                classes.append(number[match[0]])
    return keys, torch.stack(views), torch.tensor(classes)


def _right(
    model: FrozenClassifier, views: Tensor, classes: Tensor, kept: Tensor
) -> NDArray[np.float64]:
    """Returns 1.0 where the class is recognized by the kept patches (B, k), the rest filled."""
    logits = model.seeing(views, "mean", PATCH)(kept)
    found: NDArray[np.float64] = (logits.argmax(dim=1) == classes).double().numpy()
    return found


@torch.no_grad()
def _seconds(
    ways: Mapping[str, Way], mae: MaskedAutoencoder, view: Tensor, key: str
) -> dict[str, float]:
    """Returns the seconds of this thread that every way takes for a view and one partition."""
    spent = {}
    visible = torch.from_numpy(sample_visible(key, 0, 1, LENGTH, MASKED, 0))
    with frozen_weights():
        for kind, way in ways.items():
            started = time.thread_time()
            way(mae, view, visible)
            spent[kind] = time.thread_time() - started
    return spent


@torch.no_grad()
def _maps(
    kind: str, way: Way, mae: MaskedAutoencoder, views: Tensor, keys: Sequence[str]
) -> NDArray[np.float64]:
    """Returns the dear maps (B, L) of a kind."""
    maps = []
    count, sampler = DEAR[kind]
    for key, view in zip(keys, views.split(1), strict=True):
        # Other partitions than any ranker learned from: of another seed.
        visible = sample_visible(key, 0, count, LENGTH, MASKED, 1, sampler)
        given = torch.from_numpy(visible)
        scores = torch.cat([way(mae, view, one) for one in given.split(1)])
        scored = visible if scores.shape == given.shape else masked_patches(visible, LENGTH)
        maps.append(mean_map(scored, scores.numpy(), LENGTH)[0])
    return np.stack(maps)
