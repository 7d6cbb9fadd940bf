"""Long units, many workers of one host, damaged numbers, shards without images: status to plan."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_line import PROGRAM, one_line_error, run

from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards, samples
from pipeline.inspection.rescore import choose
from pipeline.inspection.status import read_status
from pipeline.store import open_cache
from pipeline.store.cache import create_cache
from pipeline.store.manifest import UnitRow, manifest_bytes
from pipeline.store.receipts import FileStamp, Receipt
from pipeline.store.records.forms import FORMS
from pipeline.store.records.zarr_records import read_fields
from pipeline.store.storage.lock import folder_lock
from pipeline.store.units import publish, seal, unit_name
from pipeline.units.runner import CacheRunner
from pipeline.workers import InProcessPool
from stages import score as score_stage
from stages.score import ScoreConfig

BEGUN = 1_000_000.0


@pytest.fixture
def made_of(tmp_path):
    """Makes a cache of which only the log, the manifest and the receipts are there."""

    def make(done, extra=()):
        out = tmp_path / "made"
        cache = create_cache(str(out), "score", {"stage": "score", "views": 1, "store": "zarr"})
        rows, shards = [], [*(shard for shard, *_ in done), *extra]
        events = [{"event": "start", "time": BEGUN, "shards": shards}]
        for shard, end, total, images, worker in done:
            unit = unit_name(shard)
            (out / "units" / unit).mkdir(parents=True)
            receipt = Receipt(
                unit=unit, run_id=cache.run_id, n_in=images, n_ok=images, n_bad=0, reasons={},
                damage=None, files={"records.zarr/zarr.json": FileStamp(10, "0" * 64)},
                input={"name": shard, "size": 1, "sha256": "0" * 64},
            )  # fmt: skip
            (out / "units" / unit / "receipt.json").write_bytes(receipt.to_bytes())
            rows.append(UnitRow.of(receipt))
            events.append(
                {"event": "done", "time": BEGUN + end, "unit": unit, "attempts": 1, "n_ok": images,
                 "worker": worker, "seconds": {"total": total}})  # fmt: skip
        (out / "log").mkdir()
        log = "".join(f"{json.dumps(event)}\n" for event in events)
        (out / "log" / "0-host-1.jsonl").write_text(log)
        (out / "manifest.parquet").write_bytes(manifest_bytes(rows))
        assert cache.url == str(out)
        return out

    return make


@pytest.fixture
def scored(shards, small_mae, tmp_path):
    out = tmp_path / "cache"
    run("score", "--shards", shards, "--mae", small_mae, "--out", out, "--views", 2,
        "--partitions", 3, "--pixels")  # fmt: skip
    return out


@pytest.mark.parametrize("unit_s", [70, 300, 3600])
def test_the_speed_of_many_workers_does_not_depend_on_how_long_a_unit_takes(made_of, unit_s):
    done = [
        (f"{worker}-{turn}.tar", unit_s * (turn + (worker + 1) / 64), unit_s, 1000, "host:cuda")
        for turn in range(8)
        for worker in range(64)
    ]
    out = made_of(sorted(done, key=lambda unit: unit[1]), ["pending.tar"])
    with folder_lock(out):
        status = read_status(open_cache(out), now=BEGUN + done[-1][1])
    assert status.images_per_s == pytest.approx(64_000 / unit_s, rel=0.05)
    assert status.eta_s == pytest.approx(unit_s / 64, rel=0.05)
    # Eight turns of 64 workers with one name; a process does 1000 images in `unit_s`.
    assert status.workers["host:cuda"] == pytest.approx(64_000 / unit_s, rel=0.15)


def test_a_driver_that_finishes_nothing_any_more_is_not_fast(made_of):
    out = made_of([(f"{n}.tar", 10 * (n + 1), 10, 100, "host:cpu") for n in range(20)], ["x.tar"])
    with folder_lock(out):
        assert read_status(open_cache(out), now=BEGUN + 200).images_per_s == pytest.approx(10)
        assert read_status(open_cache(out), now=BEGUN + 86_400).images_per_s == 0
    ended = read_status(open_cache(out), now=BEGUN + 86_400)
    assert (ended.images_per_s, ended.overall_images_per_s) == (pytest.approx(10), 10)
    assert ended.eta_s is None


def test_status_of_a_killed_driver_counts_what_is_pending(shards, small_mae, tmp_path):
    out = tmp_path / "cache"
    command = [*PROGRAM, "score", "--shards", shards, "--mae", small_mae, "--out", out,
               "--partitions", 2, "--workers", 0]  # fmt: skip
    fault = json.dumps({"point": "before_read", "unit": "part-1"})
    environment = {**os.environ, "LTRP_FAULT": fault, "OMP_NUM_THREADS": "1"}
    died = subprocess.run([str(part) for part in command], env=environment, check=False)
    assert died.returncode == 1
    assert not (out / "manifest.parquet").exists()
    status = read_status(open_cache(out))
    assert {shard.shard: shard.state for shard in status.shards} == {
        "part-0.tar": "done", "part-1.tar": "pending", "part-2.tar": "pending"}  # fmt: skip
    assert status.n_ok == 4
    assert status.writing == ""


def test_rescoring_finds_a_stored_nan_by_itself(scored, shards, small_mae):
    cache = open_cache(scored)
    unit = cache.units[1]
    receipt, arrays = cache.receipt(unit), cache.read(unit)
    arrays["score"][2, 1, 0, 0] = np.nan
    form = FORMS["zarr"]
    with cache.storage.staging(unit) as staged:
        fields = read_fields(scored / "units" / unit / form.file)
        with form.writer(staged / form.file, fields) as writer:
            writer.append(arrays)
        forged = seal(staged, unit=unit, run_id=cache.run_id, n_ok=receipt.n_ok, bad=[],
                      input=receipt.input, damage=None)  # fmt: skip
        shutil.rmtree(scored / "units" / unit)
        publish(cache.storage, staged, forged)
    out, _ = run("verify", scored, "--rescore", "100%", "--shards", shards, "--mae", small_mae,
                 expect=1)  # fmt: skip
    assert f"{unit}: '{arrays['key'][2]}': a score of view 1, partition 0 differs" in out


class AsOnGpus(CacheRunner):
    """Makes on a CPU what says that GPUs made it in fp16."""

    def run(self, stage, make, *, identity, fields, gpu_only):
        return super().run(stage, make, identity={**identity, "precision": "fp16"}, fields=fields)


def test_a_cache_of_gpus_is_compared_on_a_cpu_as_closely_as_its_precision_allows(
    shards, small_mae, tmp_path
):
    config = ScoreConfig(mae=str(small_mae), precision="float32")
    runner = AsOnGpus(out=str(tmp_path / "cache"), shards=find_shards([str(shards)]),
                      pool=InProcessPool(), progress=JsonLineProgress(every_s=1e9))  # fmt: skip
    score_stage.run(config, units=runner)
    verify = ("verify", tmp_path / "cache", "--rescore", "100%", "--shards", shards,
              "--mae", small_mae, "--device", "cpu")  # fmt: skip
    out, _ = run(*verify)
    assert "scored in fp16, which this device does not compute: compared with float32" in out
    resume = ("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "units" / open_cache(tmp_path / "cache").units[0])
    assert "--precision fp16 needs a GPU" in one_line_error(*resume, "--device", "cpu")


def test_rescoring_needs_and_decodes_only_what_was_chosen(scored, shards, small_mae, monkeypatch):
    decoded = []
    decode = samples.decode_image
    monkeypatch.setattr(samples, "decode_image", lambda data: decoded.append(1) or decode(data))
    cache = open_cache(scored)
    (unit,) = choose(cache, 0.01, 0)
    shard = shards / cache.rows[unit].shard
    run("verify", scored, "--rescore", "1%", "--shards", shard, "--mae", small_mae)
    assert len(decoded) == 1


def test_a_plan_from_shards_without_one_image_says_so(make_tar, small_mae, tmp_path):
    make_tar(tmp_path / "a.tar", [("a.jpg", b"no image")])
    message = one_line_error("plan", "--shards", tmp_path / "a.tar", "--mae", small_mae)
    assert "holds an image that can be read" in message


def test_a_plan_counts_encoder_passes_by_phase(photo_folder, small_mae):
    arguments = ("plan", "--shards", photo_folder, "--mae", small_mae, "--partitions", 2,
                 "--seconds", 0.1)  # fmt: skip
    assert "24 records, 96 decoder passes, 24 encoder passes" in run(*arguments)[0]
    assert "96 encoder passes" in run(*arguments, "--phase", "encoder")[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--png", "a.png", "--view", -1), "there is no view -1"),
        (("--png", "a.png", "--partition", -7), "there is no view 0, partition -7"),
        (("--png", "a.docx"), "ends with .png"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(scored, options, complaint):
    message = one_line_error("inspect", scored, "part-0.tar", "--key", "astronaut_2", *options)
    assert complaint in message


def test_status_does_not_wait_for_torch():
    """It takes longer to import than to look at 10,000 units."""
    program = (
        "import sys, pipeline.commands.caches, pipeline.inspection.status; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "pyarrow" in loaded
    assert "torch" not in loaded
