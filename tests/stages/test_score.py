"""What a cache says is what the method says about the recorded views."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ltrp_core.mae import load_mae
from ltrp_core.patches import unpatchify
from ltrp_core.views import normalize
from oracles import scoring as oracle
from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.replay import replay_views
from pipeline.training_data import StagedRecords, stage_records
from pipeline.units.run import run_score
from pipeline.workers import InProcessPool
from stages import score as score_stage
from stages.protocols import Summary
from stages.score import ScoreConfig
from stages.score_maps import teacher_maps

QUIET = JsonLineProgress(every_s=1e9)


@pytest.fixture
def scored(shards, small_mae, tmp_path):
    found = find_shards([str(shards)])

    def scored(**options):
        out = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
        run_score(ScoreConfig(mae=str(small_mae), **options), found, out, InProcessPool(), QUIET)
        return open_cache(out), found

    return scored


@pytest.mark.parametrize("phase", ["decoder", "encoder"])
def test_cached_scores_are_the_oracles_on_the_replayed_views(scored, small_mae, phase):
    cache, shards = scored(views=2, partitions=2, phase=phase, score_dtype="float32")
    unit = cache.units[0]
    arrays = cache.read(unit)
    pixels = torch.from_numpy(replay_views(cache, unit, arrays, shards[0]))
    mae = load_mae(small_mae)
    for row, view, partition in ((0, 0, 0), (1, 1, 0), (3, 0, 1)):
        visible = torch.from_numpy(arrays["visible"][row, view, partition].astype(np.int64))
        images = normalize(pixels[row, view])[None]
        expected = oracle.leave_one_out(mae, images, visible[None], phase)[0]
        np.testing.assert_allclose(arrays["score"][row, view, partition], expected, rtol=1e-4)


def test_float16_scores_are_the_rounded_ones(scored):
    exact, rounded = scored(score_dtype="float32")[0], scored()[0]
    for unit in exact.units:
        ours, theirs = exact.read(unit)["score"], rounded.read(unit)["score"]
        assert theirs.dtype == np.float16
        assert np.array_equal(ours.astype(np.float16), theirs)


def test_cover_scores_every_patch_and_its_mean_is_the_map(scored):
    cache, _ = scored(crop="eval", sampler="cover", partitions=24)
    maps = teacher_maps(cache, 6, "eval")
    assert len(maps.places) == 12
    arrays = cache.read(cache.units[0])
    patch = 17
    seen = arrays["visible"][0, 0] == patch
    assert seen.sum() == 2
    assert maps.map(arrays["key"][0])[patch] == pytest.approx(arrays["score"][0, 0][seen].mean())


@pytest.mark.parametrize("phase", ["decoder", "encoder"])
def test_what_training_reads_is_what_the_oracle_scores(scored, small_mae, tmp_path, phase):
    """From the pixels that a ranker is given to the scores it is taught, without the cache."""
    cache, shards = scored(views=2, partitions=2, phase=phase, score_dtype="float32")
    folder = stage_records(cache, shards, tmp_path / "staged", progress=QUIET)
    records = StagedRecords(folder)
    mae = load_mae(small_mae)
    sample, record = np.array([0, 5, 11]), np.array([1, 2, 3])
    visible, score = records.lists(sample, record)
    views = unpatchify(torch.from_numpy(records.whole_views(sample, record // 2)), 8, 6)
    expected = oracle.leave_one_out(mae, normalize(views), torch.from_numpy(visible), phase)
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_scoring_again_with_another_seed_draws_other_views(scored):
    first, second = scored()[0].read, scored(seed=1)[0].read
    units = scored()[0].units
    assert not np.array_equal(first(units[0])["visible"], second(units[0])["visible"])
    assert not np.array_equal(first(units[0])["crop"], second(units[0])["crop"])


SHORT_OF_MEMORY = """
import resource, sys
import numpy as np, torch
from stages.protocols import Sample
from stages.score import ScoreConfig, UnitScorer

torch.set_num_threads(1)
config = ScoreConfig(mae=sys.argv[1], partitions=64, score_dtype="float32", batch_size=32)
scorer = UnitScorer(config)
image = np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)
samples = [scorer.prepare(Sample(f"k{i}", image)) for i in range(32)]
(plain,) = scorer.batches(samples)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), -1))
scorer.chunk = 4096
(rows,) = scorer.batches(samples)
print(scorer.chunk, len(scorer.take_notes()), np.abs(rows["score"] / plain["score"] - 1).max())
"""


def test_a_lack_of_memory_halves_what_is_scored_at_a_time_and_goes_on(small_mae):
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(small_mae)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chunk, notes, difference = done.stdout.split()
    assert 1 <= int(chunk) < 4096
    assert int(chunk) * 2 ** int(notes) == 4096
    assert float(difference) < 1e-4


class Asked:
    """Runs nothing: keeps what it would have run, on workers that have these slots."""

    def __init__(self, slots, begun=None):
        self._slots, self._begun = slots, begun or {}

    def begun(self):
        return self._begun

    def slots(self):
        return self._slots

    def run(self, stage, make, *, identity, fields, gpu_only):
        self.precision, self.gpu_only, self.config = identity["precision"], gpu_only, make.args[0]
        return Summary(stage=stage)


@pytest.mark.parametrize(
    ("options", "slots", "begun", "precision", "gpu_only", "said"),
    [
        ({}, {"cuda"}, None, "fp16", True, "as all workers are on GPUs"),
        ({}, {"cpu"}, None, "float32", False, None),
        ({}, {"cpu", "cuda"}, None, "float32", False, "as not all workers are on GPUs"),
        ({}, {"cpu"}, "fp16", "fp16", True, "as fp16 is what this cache was begun with"),
        ({}, {"cuda"}, "float32", "float32", False, None),
        ({"device": "cpu"}, {"cuda"}, None, "float32", False, None),
        ({"device": "cuda:0"}, {"cpu"}, None, "fp16", True, "as all workers are on GPUs"),
        ({"precision": "bf16"}, {"cuda"}, None, "bf16", False, None),
        ({"precision": "tf32"}, {"cuda"}, "fp16", "tf32", True, None),
    ],
)
def test_the_precision_is_the_caches_own_or_what_the_workers_compute_best(
    small_mae, options, slots, begun, precision, gpu_only, said
):
    units = Asked(slots, {"precision": begun} if begun else None)
    summary = score_stage.run(ScoreConfig(mae=str(small_mae), **options), units=units)
    assert (units.precision, units.gpu_only) == (precision, gpu_only)
    assert units.config.precision == precision, "workers are told what it came to"
    assert summary.notes == ([f"--precision {precision}, {said}"] if said else [])
