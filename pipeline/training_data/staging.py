"""Brings a cache's records into arrays that any row can be read from: once, before training.

What lies in a remote store or under a codec is brought to a local folder; pixels and images that
lie uncompressed in local files stay there, and only their places are written down. Another process
of the same machine finds the folder ready; nothing in it is needed after training.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.files import replace_text
from pipeline.inputs import Shard
from pipeline.parsing import read_json_object, read_parquet
from pipeline.store.cache import Cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.records.forms import FORMS, Form
from pipeline.store.replay import match_shards, render_tiles
from pipeline.store.storage import UNITS
from pipeline.training_data.extents import Extents, map_array
from pipeline.training_data.image_places import image_places
from stages.protocols import Arrays, Bar, Progress, Sample
from stages.records import recorded_view
from stages.types import ScoreRun

_THREADS = 4
_READY = "staged.json"
_SMALL = ("visible", "score", "crop", "flip", "size")
VIEWS_IN_MEMORY = 2 << 30
"""Bytes: when all views are no more, they are rendered once, else each time they are trained on."""

Render = Callable[[Sample], None]


def stage_records(
    cache: Cache,
    shards: Sequence[Shard],
    folder: Path,
    *,
    progress: Progress,
    views_bytes: int = VIEWS_IN_MEMORY,
) -> Path:
    """Fills `folder` with the records of a cache; returns it. A folder that is filled stays.

    Args:
        shards: the images that were scored; empty where the cache holds pixels.
        views_bytes: all views are rendered once if they take no more.

    Raises:
        RequestError: not a score cache, no images and no pixels, a shard that is missing or
            changed, or a key that stands in two units.
    """
    wanted = _identity(cache, shards, views_bytes)
    with alone(folder):
        if _is_ready(folder, wanted):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        counts = [cache.rows[unit].n_ok for unit in cache.units]
        starts = np.cumsum([0, *counts])
        with progress.task("stage records", len(cache.units), "units") as bar:
            _stage_arrays(cache, starts, folder, bar)
        if "pixels" in cache_arrays(cache):
            with progress.task("stage pixels", len(cache.units), "units") as bar:
                _stage_pixels(cache, folder, bar)
        if shards:
            _stage_images(cache, shards, starts, folder, progress, views_bytes)
        views = [int(part.identity["views"]) for part in (cache, *cache.appended)]
        ready = {
            **wanted,
            "starts": starts.tolist(),
            "run": dict(cache.run),
            "url": cache.url,
            "views_of_parts": views,
        }
        replace_text(folder / _READY, json.dumps(ready))
    return folder


def read_ready(folder: Path) -> dict[str, Any]:
    """Returns what `stage_records` wrote down: units, their first rows, the cache's run.

    Raises:
        DamagedFileError, OSError: it is not there, or not readable.
    """
    return read_json_object(folder / _READY)


def check_cache(cache: Cache, shards: Sequence[Shard]) -> None:
    """Raises what `stage_records` would, without reading an array.

    Raises:
        RequestError: not a score cache, empty, or neither images nor pixels.
    """
    if cache.run.get("stage") != "score":
        raise RequestError(
            f"{cache.url} is a {cache.run.get('stage')!r} cache; "
            "pass the --out folder of `ltrp-pipeline score`"
        )
    if not cache.units or sum(row.n_ok for row in cache.rows.values()) == 0:
        raise RequestError(f"{cache.url} holds no scored image; run `ltrp-pipeline score` first")
    if shards:
        match_shards(cache, shards)
    elif not ScoreRun.of(cache.run, cache.url).pixels:
        raise RequestError(
            f"{cache.url} holds no pixels; pass the scored images with --shards, or score with "
            "--pixels"
        )


def cache_arrays(cache: Cache) -> frozenset[str]:
    """Returns which optional arrays a cache has."""
    return frozenset({"pixels"} if ScoreRun.of(cache.run, cache.url).pixels else ())


def _identity(cache: Cache, shards: Sequence[Shard], views_bytes: int) -> dict[str, Any]:
    """What a staged folder must have been made of to be used again."""
    check_cache(cache, shards)
    units = [(unit, cache.rows[unit].n_ok, cache.rows[unit].bytes) for unit in cache.units]
    inputs = sorted((shard.path, shard.size, shard.stamp) for shard in shards)
    parts = [part.run_id for part in cache.appended]
    text = json.dumps([cache.url, cache.run_id, parts, units, inputs, views_bytes])
    return {
        "made_of": hashlib.sha256(text.encode()).hexdigest(),
        "units": list(cache.units),
    }


def _is_ready(folder: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        found = read_ready(folder)
    except (OSError, ValueError):
        return False
    return all(found.get(name) == value for name, value in wanted.items())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder: the ranks of one machine stage once, and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stage_arrays(cache: Cache, starts: NDArray[np.int64], folder: Path, bar: Bar) -> None:
    total = int(starts[-1])
    targets: dict[str, NDArray[Any]] = {}
    keys: list[str] = []

    def read(unit: str) -> Arrays:
        return cache.read(unit, _SMALL)

    # Reading waits for zstd, which releases the interpreter's lock.
    with ThreadPoolExecutor(_THREADS) as pool:
        for start, arrays in zip(starts, pool.map(read, cache.units), strict=False):
            keys += arrays.pop("key").tolist()
            for name, values in arrays.items():
                if name not in targets:
                    targets[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", "w+", values.dtype, (total, *values.shape[1:])
                    )
                targets[name][start : start + len(values)] = values
            bar.advance(1)
    for array in targets.values():
        array.flush()  # type: ignore[attr-defined]
    _check_unique(cache, keys)
    pq.write_table(pa.table({"key": pa.array(keys, pa.string())}), folder / "keys.parquet")


def _check_unique(cache: Cache, keys: Sequence[str]) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise RequestError(
        f"key {twice!r} stands in two units of {cache.url}; a held-out image could be trained on. "
        "Pack the images into shards with unique keys"
    )


def _stage_pixels(cache: Cache, folder: Path, bar: Bar) -> None:
    """Writes down where the pixels of each row are; those of an object store are fetched first."""
    parts = [cache, *cache.appended]
    found: list[list[Extents]] = [[] for _ in parts]
    for unit in cache.units:
        for number, part in enumerate(parts):
            records, stamps = part.receipt(unit).records
            with part.storage.local_copy(f"{UNITS}/{unit}/{records}", stamps) as local:
                if not part.storage.is_local:
                    kept = folder / "pixels" / f"{number}-{unit}"
                    kept.mkdir(parents=True)
                    local = Path(shutil.move(local, kept / local.name))
                form = FORMS[str(part.identity["store"])]
                files, file, offset = _places(part, unit, form, local, stamps)
            if len(offset) != cache.rows[unit].n_ok:
                raise DamagedUnitError(
                    f"{part.url}: unit {unit} has pixels of {len(offset)} of its "
                    f"{cache.rows[unit].n_ok} images; `ltrp-pipeline verify {part.url} --deep`"
                )
            size = np.zeros(len(offset), np.int64)
            found[number].append(Extents([str(f) for f in files], file, offset, size))
        bar.advance(1)
    for number, extents in enumerate(found):
        Extents.join(extents).save(folder, f"pixels-{number}")


def _places(
    part: Cache, unit: str, form: Form, local: Path, stamps: Mapping[str, str]
) -> tuple[list[Path], NDArray[Any], NDArray[Any]]:
    try:
        return form.row_places(local, "pixels", stamps)
    except DamagedUnitError as error:
        raise DamagedUnitError(
            f"{part.url}: unit {unit}: {error}; `ltrp-pipeline verify {part.url} --deep`"
        ) from error


def _stage_images(
    cache: Cache,
    shards: Sequence[Shard],
    starts: NDArray[np.int64],
    folder: Path,
    progress: Progress,
    views_bytes: int,
) -> None:
    """Writes down where each image is, and renders all views if they are few."""
    run = ScoreRun.of(cache.run, cache.url)
    by_unit = match_shards(cache, shards)
    shape = (int(starts[-1]), run.views, run.length, 3 * run.patch_size**2)
    views = None
    if int(np.prod(shape)) <= views_bytes:
        views = np.lib.format.open_memmap(folder / "views.npy", "w+", np.uint8, shape)
    arrays: Arrays = {name: map_array(folder / f"{name}.npy") for name in ("crop", "flip", "size")}
    keys = read_parquet(folder / "keys.parquet")["key"]

    def stage(number: int) -> Extents:
        start, stop = int(starts[number]), int(starts[number + 1])
        unit = cache.units[number]
        rows = {key: row for row, key in enumerate(keys[start:stop].to_pylist(), start)}
        render = None
        if views is not None:
            render = _renderer(views, arrays, rows, run.image_size, run.patch_size)
        return image_places(
            by_unit[unit],
            cache.rows[unit],
            rows,
            arrays["size"][start:stop],
            folder / "shards",
            render=render,
        )

    with (
        progress.task("read images", len(cache.units), "shards") as bar,
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
    ):
        extents = []
        for found in pool.map(stage, range(len(cache.units))):
            extents.append(found)
            bar.advance(1)
    Extents.join(extents).save(folder, "images")


def _renderer(
    views: NDArray[np.uint8],
    arrays: Arrays,
    rows: Mapping[str, int],
    size: int,
    patch_size: int,
) -> Render:
    def render(sample: Sample) -> None:
        row = rows.get(sample.key)
        if row is None:
            return
        for number in range(views.shape[1]):
            view = recorded_view(arrays, row, number)
            tiles = render_tiles(sample.image, view, size, patch_size)
            views[row, number].reshape(tiles.shape)[...] = tiles

    return render
