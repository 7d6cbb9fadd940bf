"""Caches of selections by random scores, written through the store without any model."""

import numpy as np

from ltrp_core.selection import num_kept
from pipeline.store.cache import create_cache, open_cache
from pipeline.store.records.forms import FORMS
from pipeline.store.units import publish, seal, unit_name
from stages.selection_arrays import SCHEMA, selection_fields

GRID, PATCH = 4, 8
SIZE = GRID * PATCH
"""Side of the images, seen whole."""
RATIOS = (0.25, 0.5)


def selection_arrays(keys, seed):
    """Arrays of one unit: every image is SIZE x SIZE px and seen whole."""
    rng = np.random.default_rng(seed)
    count = len(keys)
    scores = rng.permuted(np.tile(np.arange(GRID**2), (count, 1)), axis=1)
    order = (-scores).argsort(axis=1).astype(np.uint8)
    return {
        "key": np.array(keys, dtype=object),
        "size": np.full((count, 2), SIZE, np.int32),
        "crop": np.tile(np.array([0, 0, SIZE, SIZE], np.float32), (count, 1, 1)),
        "flip": np.zeros((count, 1), bool),
        "score": scores.astype(np.float16),
        "border_contrast": rng.random((count, GRID**2)).astype(np.float16),
        "patch_variance": rng.random((count, GRID**2)).astype(np.float16),
    } | {f"kept_{ratio:g}": order[:, : num_kept(ratio, GRID**2)] for ratio in RATIOS}


def write_selections(path, units, seed=0):
    """Writes a cache of selections; `units` is keys by the name of a shard without .tar."""
    fields = selection_fields(RATIOS, GRID**2)
    run = {"keep_ratio": RATIOS, "image_size": SIZE, "patch_size": PATCH, "store": "zarr"}
    run |= {"schema": SCHEMA, "selector": "ranker"}
    cache = create_cache(path, "select", run | {"seed": seed})
    form = FORMS["zarr"]
    for number, (shard, keys) in enumerate(units.items()):
        unit = unit_name(f"{shard}.tar")
        arrays = selection_arrays(keys, seed + number)
        with cache.storage.staging(unit) as staged:
            with form.writer(staged / form.file, fields) as writer:
                writer.append({name: arrays[name] for name in fields})
            source = {"name": f"{shard}.tar", "size": 0, "sha256": "0" * 64}
            receipt = seal(staged, unit=unit, run_id=cache.run_id, n_ok=len(keys), bad=[],
                           input=source, damage=None)  # fmt: skip
            publish(cache.storage, staged, receipt)
    return open_cache(path)
