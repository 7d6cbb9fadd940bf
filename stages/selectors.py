"""Where the scores that `select` orders patches by come from: a ranker, a teacher or a baseline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.linear import use_fast_linears
from ltrp_core.rankers import Ranker, load_ranker
from ltrp_core.repeatability import mean_map
from ltrp_core.selector import rank_images
from ltrp_core.selectors.references import center_scores, patch_variance, random_scores
from ltrp_core.views import Crop, View, check_size, make_view
from stages.protocols import Arrays, CacheReader, Sample
from stages.records import recorded_view

Baseline = Literal["random", "center", "patch-variance"]
BASELINES: tuple[str, ...] = get_args(Baseline)
OpenTeacher = Callable[[], CacheReader]
"""Picklable and small: each worker opens the cache itself."""


KnownMap = NDArray[np.float32] | None


class Geometry(NamedTuple):
    """Sizes of what is selected from, in pixels."""

    image_size: int
    patch_size: int

    @property
    def grid(self) -> int:
        """g, patches along a side."""
        return self.image_size // self.patch_size


class ScoreSource(Protocol):
    """Scores for the patches of a sample's view."""

    @property
    def geometry(self) -> Geometry: ...

    def prepare(self, sample: Sample) -> tuple[View, KnownMap]:
        """Returns the view of a sample that is selected from; called on several threads.

        And its scores (L,), if they are known without the pixels.
        """
        ...

    def scores(self, keys: Sequence[str], known: Sequence[KnownMap], images: Tensor) -> Tensor:
        """Returns the scores (B, L) of the views `images` (B, 3, S, S), normalized."""
        ...


def checked_geometry(image_size: int, patch_size: int) -> Geometry:
    """Returns the sizes.

    Raises:
        RequestError: the image does not divide into patches.
    """
    if image_size < patch_size or image_size % patch_size:
        raise RequestError(
            f"--image-size {image_size} does not divide into patches of {patch_size} px; choose a "
            "multiple"
        )
    return Geometry(image_size, patch_size)


class RankerSource:
    """A ranking model, on the grid that an image size asks for."""

    def __init__(self, source: str, image_size: int, crop: Crop, seed: int, device: str) -> None:
        """Loads the ranker; image size 0 is its own.

        Raises:
            CheckpointError: it cannot be used.
            RequestError: the image size is no multiple of its patches, or it has no such grid.
        """
        ranker = load_ranker(source)
        self.geometry = checked_geometry(
            image_size or ranker.grid * ranker.patch_size, ranker.patch_size
        )
        if self.geometry.grid != ranker.grid:
            ranker = load_ranker(source, grid=self.geometry.grid)
        self.ranker: Ranker = ranker.eval().to(device)
        use_fast_linears(self.ranker)
        self.crop, self.seed = crop, seed

    def prepare(self, sample: Sample) -> tuple[View, KnownMap]:
        """Returns the view that the crop makes."""
        return _view(sample, self.crop, self.seed, self.geometry.image_size), None

    def scores(self, keys: Sequence[str], known: Sequence[KnownMap], images: Tensor) -> Tensor:
        """Returns the ranker scores, each as if its image had been alone."""
        del keys, known
        return rank_images(self.ranker, images)


class BaselineSource:
    """What no learning gives: see `ltrp_core.baselines`."""

    def __init__(self, name: str, geometry: Geometry, crop: Crop, seed: int) -> None:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
        self.name, self.geometry, self.crop, self.seed = name, geometry, crop, seed

    def prepare(self, sample: Sample) -> tuple[View, KnownMap]:
        """Returns the view that the crop makes."""
        return _view(sample, self.crop, self.seed, self.geometry.image_size), None

    def scores(self, keys: Sequence[str], known: Sequence[KnownMap], images: Tensor) -> Tensor:
        """Returns the baseline's scores; `random` is the first draw."""
        del known
        if self.name == "patch-variance":
            return patch_variance(images, self.geometry.patch_size)
        if self.name == "center":
            return center_scores(self.geometry.grid).expand(len(keys), -1).to(images.device)
        length = self.geometry.grid**2
        draws = [random_scores(key, length, draw=0, seed=self.seed) for key in keys]
        return torch.stack(draws).to(images.device)


class TeacherSource:
    """The mean scores of a cache of `score --sampler cover`, of the very views it recorded."""

    def __init__(self, teacher: CacheReader) -> None:
        """Reads the keys of the cache; maps are read unit by unit when they are asked for.

        Raises:
            RequestError: the cache does not cover every patch of one view an image, or two of its
                units have one key.
        """
        self.teacher = teacher
        self.geometry = teacher_geometry(teacher)
        self._places: dict[str, tuple[str, int]] = {}
        for unit in teacher.units:
            for row, key in enumerate(teacher.read(unit, ["key"])["key"].tolist()):
                if key in self._places:
                    raise RequestError(
                        f"the teacher's cache has the key {key!r} twice (units "
                        f"{self._places[key][0]} and {unit}): nothing can be joined by it"
                    )
                self._places[key] = unit, row
        self._lock = threading.Lock()
        self._unit = ""
        self._arrays: Arrays = {}

    def prepare(self, sample: Sample) -> tuple[View, KnownMap]:
        """Returns the recorded view and the mean scores of its patches.

        Raises:
            RequestError: the cache does not have the key, has it of an image of another size, or
                has not scored all of its patches.
        """
        if sample.key not in self._places:
            raise RequestError(
                f"the teacher's cache has no scores of {sample.key!r}; score the same shards, or "
                "select from the shards that were scored"
            )
        unit, row = self._places[sample.key]
        with self._lock:
            if unit != self._unit:
                self._arrays = _read_maps(self.teacher, unit, self.geometry.grid**2)
                self._unit = unit
            arrays = self._arrays
        if tuple(arrays["size"][row]) != sample.image.shape[:2]:
            raise RequestError(
                f"{sample.key!r} was scored at {arrays['size'][row].tolist()} px and is "
                f"{list(sample.image.shape[:2])} px now; is this the image that was scored?"
            )
        if not np.isfinite(arrays["map"][row]).all():
            raise RequestError(
                f"the teacher's partitions of {sample.key!r} leave patches unscored; score with "
                "--sampler cover"
            )
        return recorded_view(arrays, row), arrays["map"][row].astype(np.float32)

    def scores(self, keys: Sequence[str], known: Sequence[KnownMap], images: Tensor) -> Tensor:
        """Returns the maps that are known."""
        del keys
        maps = np.stack([scores for scores in known if scores is not None])
        return torch.from_numpy(maps).to(images.device)


def teacher_geometry(teacher: CacheReader) -> Geometry:
    """Returns the sizes of a teacher's views.

    Raises:
        RequestError: the cache does not cover every patch of one view an image.
    """
    run = teacher.run
    if run.get("stage") != "score" or run.get("sampler") != "cover":
        raise RequestError(
            "--teacher must be a cache that scores every patch; make it with score --sampler cover"
        )
    if run["crop"] == "train" and int(run["views"]) > 1:
        raise RequestError(
            f"--teacher has {run['views']} random views of every image, and a selection is of one; "
            "score with --crop eval or --views 1"
        )
    return Geometry(int(run["image_size"]), int(run["patch_size"]))


def _read_maps(teacher: CacheReader, unit: str, length: int) -> Arrays:
    """Returns size, crop and flip of a unit, and `map` (N, L): each patch's mean score."""
    arrays = teacher.read(unit, ["size", "crop", "flip", "visible", "score"])
    visible, score = arrays.pop("visible"), arrays.pop("score")
    lists = (len(visible), -1, visible.shape[-1])
    means, _ = mean_map(visible.reshape(lists), score.reshape(lists), length)
    return {**arrays, "map": means}


def _view(sample: Sample, crop: Crop, seed: int, size: int) -> View:
    height, width = sample.image.shape[:2]
    view = make_view(crop, sample.key, 0, height, width, seed)
    check_size(crop, sample.key, view, size)
    return view
