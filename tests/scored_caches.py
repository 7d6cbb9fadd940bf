"""Caches of a few photographs and what they say: the truth that training data are compared with."""

import shutil
from pathlib import Path

import numpy as np
from conftest import write_tar

from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.records.forms import FORMS
from pipeline.store.units import publish, seal
from pipeline.training_data import StagedRecords, stage_records
from pipeline.units.run import run_append_views, run_score
from pipeline.units.runner import UnitOptions
from pipeline.workers import InProcessPool
from stages.score import ScoreConfig

QUIET = JsonLineProgress(every_s=1e9)


def write_tars(folder, photographs, per_tar=4):
    """Writes photographs into tars; returns them as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    items = sorted(photographs.items())
    for start in range(0, len(items), per_tar):
        members = [(f"{name}.jpg", content) for name, content in items[start : start + per_tar]]
        write_tar(folder / f"part-{start // per_tar}.tar", members)
    return find_shards([str(folder)])


def write_images(folder, photographs, per_unit=5):
    """Writes photographs as files; returns them as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in photographs.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return find_shards([str(folder)], unit_size=per_unit)


def scored(out, shards, mae, *, store="zarr", append=0, **options):
    """Returns the cache of some shards, two views and three partitions if nothing else is said."""
    config = ScoreConfig(mae=str(mae), **{"views": 2, "partitions": 3, **options})
    pool, unit_options = InProcessPool(), UnitOptions(store=store)
    run_score(config, shards, out, pool, QUIET, unit_options)
    if append:
        asked = {"mae": str(mae)}
        run_append_views(asked, append, shards, out, pool, QUIET)
    return open_cache(out)


def staged(cache, shards, folder, **options):
    """Returns the records of a cache, staged into a folder."""
    return StagedRecords(stage_records(cache, shards, Path(folder), progress=QUIET, **options))


def truth(cache):
    """What a cache with pixels says: (key, record) -> (visible, score, patches)."""
    found = {}
    for unit in cache.units:
        arrays = cache.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            views, partitions, n = arrays["visible"][row].shape
            for record in range(views * partitions):
                place = (row, *divmod(record, partitions))
                found[key, record] = (
                    arrays["visible"][place].astype(np.int64),
                    arrays["score"][place].astype(np.float32),
                    arrays["pixels"][place].reshape(n, -1),
                )
    return found


def every_record(records):
    """Number and record of every record, in a random order."""
    per_sample = records.run.records
    number = np.random.default_rng(0).permutation(len(records) * per_sample)
    return np.divmod(number, per_sample)


def assert_same_records(records, expected):
    """Checks that staged records are exactly those of `truth`."""
    sample, record = every_record(records)
    visible, score = records.lists(sample, record)
    patches = records.visible_patches(sample, record)
    assert visible.dtype == np.int64
    assert score.dtype == np.float32
    assert patches.dtype == np.uint8
    assert len(expected) == len(sample)
    for place, (row, number) in enumerate(zip(sample.tolist(), record.tolist(), strict=True)):
        of_cache = expected[records.keys[row], number]
        for ours, theirs in zip(
            (visible[place], score[place], patches[place]), of_cache, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def forge(cache, unit, change):
    """Changes the arrays of a Zarr unit and seals it anew, so that all checksums hold.

    Args:
        change: called with the arrays, which it changes in place.

    Returns:
        The arrays, changed.
    """
    receipt, arrays, folder = (
        cache.receipt(unit),
        cache.read(unit),
        Path(cache.url) / "units" / unit,
    )
    change(arrays)
    form = FORMS["zarr"]
    with cache.storage.staging(unit) as made:
        with form.writer(made / form.file, form.read_fields(folder / form.file)) as writer:
            writer.append(arrays)
        forged = seal(made, unit=unit, run_id=cache.run_id, n_ok=receipt.n_ok, bad=[],
                      input=receipt.input, damage=None)  # fmt: skip
        shutil.rmtree(folder)
        publish(cache.storage, made, forged)
    return arrays
