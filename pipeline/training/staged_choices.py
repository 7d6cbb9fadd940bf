"""The selections of a cache, staged in the order of the images that a classifier is trained on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.selection import num_kept
from ltrp_core.views import View
from pipeline.files import replace_text
from pipeline.parsing import read_json_object
from pipeline.store.cache import Cache
from pipeline.training_data.extents import map_array
from pipeline.training_data.staging import alone
from stages.records import kept_name
from stages.training.labeled_views import LabeledImages
from stages.types import SelectRun

_READY = "choices-staged.json"
_ARRAYS = ("crop", "size", "kept")
_SHOWN = 3


class StagedChoices:
    """The choices in a folder that `stage_choices` filled: see `StoredChoices`.

    Pickles to its folder's name, so that loader processes map their own files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ready = read_json_object(folder / _READY)
        self.identity: Mapping[str, Any] = ready["identity"]
        self.run = SelectRun.of(self.identity["run"], str(folder))

    def __reduce__(self) -> tuple[type[StagedChoices], tuple[Path]]:
        return StagedChoices, (self.folder,)

    def of(self, row: int, key: str, height: int, width: int) -> tuple[View, NDArray[np.int64]]:
        """Returns the view that was selected from, and the kept patches (k,).

        Raises:
            RequestError: the image was of another size than `height` x `width` px.
        """
        crop, size, kept = (self._arrays[name][row] for name in _ARRAYS)
        if size.tolist() != [height, width]:
            raise RequestError(
                f"{key!r} was selected from at {size.tolist()} px and is {[height, width]} px now; "
                "pass the shards that were selected from"
            )
        top, left, of_height, of_width = crop.tolist()
        view = View(top=top, left=left, height=of_height, width=of_width)
        return view, kept.astype(np.int64)

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: map_array(self.folder / f"{name}.npy") for name in _ARRAYS}


def check_selections(cache: Cache, option: str, keep_ratio: float) -> SelectRun:
    """Returns the run that a cache of `select` is of.

    Raises:
        RequestError: its views are random ones, or it does not hold the keep ratio.
    """
    run = SelectRun.of(cache.run, cache.url)
    if run.crop == "train":
        raise RequestError(
            f"{option} {cache.url} is of random views (--crop train); select with --crop eval or "
            "resize, or pass --selector, which chooses on every view that training draws"
        )
    if keep_ratio not in run.keep_ratio:
        stored = ", ".join(f"{ratio:g}" for ratio in run.keep_ratio)
        raise RequestError(
            f"{option} {cache.url} holds keep ratio {stored}, and asked for is --keep-ratio "
            f"{keep_ratio:g}; pass one that is stored, or select with it"
        )
    return run


def stage_choices(
    cache: Cache, option: str, data: LabeledImages, keep_ratio: float, folder: Path
) -> Path:
    """Writes the choices of all labeled images into `folder`, by the images' numbers; returns it.

    Args:
        cache: of `select`: see `check_selections`.
        option: that named it, for messages.
        data: the images.
        keep_ratio: which of the stored selections.
        folder: made anew if it holds others.

    Raises:
        RequestError: a labeled image has no selection, or two.
    """
    wanted = {"run_id": cache.run_id, "url": cache.url, "keep_ratio": keep_ratio}
    wanted |= {"units": cache.shards_sha256(), "images": len(data.numbers)}
    with alone(folder):
        if _is_ready(folder, wanted):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        arrays = _read(cache, option, data, keep_ratio)
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in _ARRAYS))
        identity = {"run": dict(cache.run), "kept_sha256": digest.hexdigest()}
        replace_text(folder / _READY, json.dumps({"wanted": wanted, "identity": identity}))
    return folder


def _is_ready(folder: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        return bool(read_json_object(folder / _READY).get("wanted") == wanted)
    except (OSError, ValueError):
        return False


def _read(
    cache: Cache, option: str, data: LabeledImages, keep_ratio: float
) -> dict[str, NDArray[Any]]:
    """Returns crop (N, 4), size (N, 2) and kept (N, k), zeros of images without a label."""
    keys = data.images.keys
    row_of = {keys[row]: row for row in data.rows.tolist()}
    run = SelectRun.of(cache.run, cache.url)
    count = num_kept(keep_ratio, run.length)
    made: dict[str, NDArray[Any]] = {
        "crop": np.zeros((len(keys), 4), np.int32),
        "size": np.zeros((len(keys), 2), np.int32),
        "kept": np.zeros((len(keys), count), np.int32),
    }
    found: dict[str, str] = {}
    name = kept_name(keep_ratio)
    for unit in cache.units:
        arrays = cache.read(unit, ["key", "size", "crop", name])
        for place, key in enumerate(arrays["key"].tolist()):
            row = row_of.get(key)
            if row is None:
                continue
            if key in found:
                raise RequestError(
                    f"{option} {cache.url} has the key {key!r} twice (units {found[key]} and "
                    f"{unit}): nothing can be joined by it; pack the shards again"
                )
            found[key] = unit
            made["crop"][row] = arrays["crop"][place, 0]
            made["size"][row] = arrays["size"][place]
            made["kept"][row] = arrays[name][place]
    # Rows, not keys: of two images of one key only one would have been found.
    missing = [keys[row] for row in data.rows.tolist() if not made["size"][row].all()]
    if missing:
        shown = ", ".join(map(repr, missing[:_SHOWN]))
        raise RequestError(
            f"{option} {cache.url} holds nothing of {len(missing)} of the {len(data.rows)} labeled "
            f"images ({shown}); select from the same shards, or pass those that were selected from"
        )
    return made
