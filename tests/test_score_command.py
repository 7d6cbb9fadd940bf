"""`score` as a person runs it over a dataset: forms, views, damage, limits, what is asked again."""

import itertools
import json
import os
import shutil

import numpy as np
from command_line import one_line_error, run
from PIL import Image

from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.run_log import read_log
from pipeline.store.storage.local import LocalStorage
from pipeline.units.run import run_score
from pipeline.workers import InProcessPool
from stages.score import ScoreConfig


def score(shards, mae, out, *options, expect=0):
    return run("score", "--shards", shards, "--mae", mae, "--out", out, *options, expect=expect)


def content(cache):
    """All arrays of all units by unit."""
    opened = open_cache(cache)
    return {unit: opened.read(unit) for unit in opened.units}


def assert_equal(ours, theirs):
    assert list(ours) == list(theirs)
    for unit, arrays in ours.items():
        assert list(arrays) == list(theirs[unit])
        for name, values in arrays.items():
            assert values.dtype == theirs[unit][name].dtype
            assert np.array_equal(values, theirs[unit][name]), (unit, name)


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_both_forms_hold_the_same_records(shards, small_mae, tmp_path):
    score(shards, small_mae, tmp_path / "zarr", "--views", 2, "--pixels")
    score(shards, small_mae, tmp_path / "tars", "--views", 2, "--pixels", "--store", "webdataset")
    assert_equal(content(tmp_path / "zarr"), content(tmp_path / "tars"))


def test_converting_there_and_back_changes_no_byte(shards, small_mae, tmp_path):
    score(shards, small_mae, tmp_path / "zarr", "--views", 2, "--pixels")
    run("convert", tmp_path / "zarr", "--to", "webdataset", "--out", tmp_path / "tars")
    run("convert", tmp_path / "tars", "--to", "zarr", "--out", tmp_path / "again")
    score(shards, small_mae, tmp_path / "tars2", "--views", 2, "--pixels", "--store", "webdataset")
    for one, two in (("zarr", "again"), ("tars", "tars2")):
        ours, theirs = tree(tmp_path / one / "units"), tree(tmp_path / two / "units")
        assert ours == theirs
    assert run("verify", tmp_path / "tars", "--deep")[0].endswith("0 faults\n")
    assert "holds a webdataset cache" in one_line_error(
        "convert", tmp_path / "tars", "--to", "webdataset", "--out", tmp_path / "x")  # fmt: skip


def test_pixels_are_the_visible_patches_of_the_view(photographs, small_mae, make_tar, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    make_tar(tmp_path / "one.tar", [("a.png", (tmp_path / "a.png").read_bytes())])
    score(tmp_path / "one.tar", small_mae, tmp_path / "cache", "--pixels", "--partitions", 12,
          "--sampler", "cover", "--crop", "train")  # fmt: skip
    arrays = next(iter(content(tmp_path / "cache").values()))
    visible, pixels = arrays["visible"][0, 0], arrays["pixels"][0, 0]
    assert pixels.shape == (12, 3, 8, 8, 3)
    by_patch = {}
    for index, patch in zip(visible.reshape(-1), pixels.reshape(-1, 8, 8, 3)):
        assert np.array_equal(by_patch.setdefault(index, patch), patch)
    assert len(by_patch) == 36
    assert len({patch.tobytes() for patch in by_patch.values()}) > 30


def test_appended_views_are_those_of_a_longer_run_and_nothing_is_touched(
    shards, small_mae, tmp_path
):
    score(shards, small_mae, tmp_path / "long", "--views", 5, "--seed", 3)
    cache = tmp_path / "cache"
    score(shards, small_mae, cache, "--views", 2, "--seed", 3)
    before = tree(cache / "units")
    _, err = score(shards, small_mae, cache, "--append-views", 1)
    assert "now has 3 view(s)" in err
    score(shards, small_mae, cache, "--append-views", 2, "--batch-size", 1)
    assert tree(cache / "units") == before
    assert open_cache(cache).run["views"] == 5
    assert_equal(content(cache), content(tmp_path / "long"))
    assert run("verify", cache, "--deep")[0].endswith("0 faults\n")


def test_views_are_appended_by_the_options_of_the_cache_alone(
    shards, small_mae, tmp_path, photographs, make_tar
):
    cache = tmp_path / "cache"
    score(shards, small_mae, cache, "--seed", 3)
    append = ("score", "--shards", shards, "--mae", small_mae, "--out", cache,
              "--append-views", 1)  # fmt: skip
    assert "seed: 3 there, 4 asked" in one_line_error(*append, "--seed", 4)
    assert "does not name part-1.tar" in one_line_error(
        "score", "--shards", shards / "part-0.tar", *append[3:])  # fmt: skip
    weights = tmp_path / "other.safetensors"
    import torch
    from conftest import SMALL_MAE

    from ltrp_core.mae import MaskedAutoencoder, save_mae

    torch.manual_seed(1)
    save_mae(MaskedAutoencoder(SMALL_MAE), weights)
    assert "mae_sha256" in one_line_error(*append[:4], weights, *append[5:])
    items = sorted(photographs.items())[4:8]
    make_tar(shards / "part-1.tar", [(f"{name}.jpg", data[:-40] + data[-40:][::-1])
                                     for name, data in items])  # fmt: skip
    _, err = run(*append, expect=1)
    assert "changed since it was scored first" in err
    assert open_cache(cache).run["views"] == 1


def test_a_shard_that_changed_after_it_was_scored_is_refused(shards, small_mae, tmp_path):
    cache = tmp_path / "cache"
    score(shards, small_mae, cache)
    path = shards / "part-1.tar"
    whole = path.read_bytes()
    os.utime(path, ns=(1, 1))
    assert "0 done, 3 already there" in score(shards, small_mae, cache)[1]
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    message = one_line_error("score", "--shards", shards, "--mae", small_mae, "--out", cache)
    assert "another content of the same size" in message
    assert "delete units/part-1-" in message
    path.write_bytes(whole + bytes(10240))
    message = one_line_error("score", "--shards", shards, "--mae", small_mae, "--out", cache)
    assert f"{len(whole)} bytes then, {len(whole) + 10240} now" in message
    path.write_bytes(whole)
    score(shards, small_mae, cache)


def test_salvage_keeps_what_was_readable_and_says_so(shards, small_mae, tmp_path):
    path = shards / "part-1.tar"
    whole = path.read_bytes()
    score(shards, small_mae, tmp_path / "whole")
    path.write_bytes(whole[: len(whole) // 2])
    _, err = score(shards, small_mae, tmp_path / "cache", "--on-damage", "salvage")
    assert "salvaged part-1.tar" in err
    assert "bytes unread" in err
    kept = open_cache(tmp_path / "cache")
    unit = kept.units[1]
    assert 0 < kept.rows[unit].n_ok < 4
    assert kept.rows[unit].damage
    full, part = content(tmp_path / "whole")[unit], kept.read(unit)
    for name in part:
        assert np.array_equal(full[name][: len(part[name])], part[name])


def test_too_many_bad_images_stop_the_run_and_keep_the_good(
    photographs, small_mae, make_tar, tmp_path
):
    good = next(iter(photographs.values()))
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(4):
        names = [(f"{number}_{i}.jpg", b"broken") for i in range(60)]
        make_tar(folder / f"{number}.tar", [*names, (f"{number}_good.jpg", good)])
    _, err = score(folder, small_mae, tmp_path / "cache", "--max-bad", "10%", expect=1)
    assert "120 of 122 images are bad, more than --max-bad 10%" in err
    assert "2 done, 0 already there, 0 failed, 2 not reached" in err
    assert len(open_cache(tmp_path / "cache").units) == 2
    _, err = score(folder, small_mae, tmp_path / "cache", "--max-bad", "100%")
    assert "2 done, 2 already there, 0 failed" in err
    assert "--max-bad '1 in 5'" in one_line_error(
        "score", "--shards", folder, "--mae", small_mae, "--max-bad", "1 in 5")  # fmt: skip


def test_a_folder_of_images_is_scored_in_units_of_its_own(photo_folder, small_mae, tmp_path):
    score(photo_folder, small_mae, tmp_path / "cache", "--unit-size", 5)
    cache = open_cache(tmp_path / "cache")
    assert [cache.rows[unit].n_ok for unit in cache.units] == [5, 5, 2]
    run("pack", photo_folder, "--out", tmp_path / "shards", "--shard-size", 5)
    score(tmp_path / "shards", small_mae, tmp_path / "packed")
    packed = content(tmp_path / "packed").values()
    for ours, theirs in zip(content(tmp_path / "cache").values(), packed):
        for name in ours:
            assert np.array_equal(ours[name], theirs[name])
    assert run("score", "--shards", photo_folder, "--mae", small_mae, "--unit-size", 5, "--out",
               tmp_path / "cache")[1].count("3 already there") == 1  # fmt: skip


def test_repair_makes_only_the_damaged_unit_anew(shards, small_mae, tmp_path):
    cache = tmp_path / "cache"
    score(shards, small_mae, cache)
    before = tree(cache / "units")
    victim = next(cache.glob("units/part-1-*/records.zarr/score/c/0/0/0/0"))
    raw = bytearray(victim.read_bytes())
    raw[10] ^= 1
    victim.write_bytes(raw)
    out, _ = run("verify", cache, "--deep", "--repair", expect=1)
    assert "1 unit(s) moved to quarantine" in out
    _, err = score(shards, small_mae, cache)
    assert "1 done, 2 already there" in err
    assert tree(cache / "units") == before
    shutil.rmtree(cache / "quarantine")
    assert run("verify", cache, "--deep")[0].endswith("0 faults\n")


def test_the_log_says_what_was_done_by_whom_and_how_fast(shards, small_mae, tmp_path):
    cache = tmp_path / "cache"
    (shards / "part-2.tar").write_bytes(b"")
    score(shards, small_mae, cache, expect=1)
    (file,) = (cache / "log").iterdir()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "done", "done", "failed", "end"]
    assert set(events[1]["seconds"]) >= {"read", "decode", "model", "write", "total"}
    assert events[3]["shard"] == "part-2.tar"
    assert events[4]["done"] == 2


def test_another_precision_is_another_run_and_one_the_device_lacks_is_refused(
    shards, small_mae, tmp_path
):
    given = ("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache")
    message = one_line_error(*given, "--device", "cpu", "--precision", "fp16")
    assert "--precision fp16 needs a GPU" in message
    assert not (tmp_path / "cache").exists()
    run(*given, "--precision", "bf16")
    assert open_cache(tmp_path / "cache").run["precision"] == "bf16"
    message = one_line_error(*given, "--precision", "float32")
    assert "precision: 'bf16' there, 'float32' asked" in message
    _, err = run(*given)
    assert "--precision bf16, as bf16 is what this cache was begun with" in err
    run(*given, "--append-views", 1, "--precision", "auto")
    assert open_cache(tmp_path / "cache").run["views"] == 2
    message = one_line_error(*given, "--append-views", 1, "--precision", "float32")
    assert "precision: 'bf16' there, 'float32' asked" in message
    verify = ("verify", tmp_path / "cache", "--rescore", "100%", "--shards", shards)
    run(*verify, "--mae", small_mae)


def test_parts_that_were_scored_apart_are_put_together_by_moving_their_units(
    shards, small_mae, tmp_path
):
    score(shards, small_mae, tmp_path / "whole")
    first, *others = sorted(shards.glob("*.tar"))
    score(first, small_mae, tmp_path / "a")
    run("score", "--mae", small_mae, "--out", tmp_path / "b",
        *itertools.chain.from_iterable(("--shards", path) for path in others))  # fmt: skip
    for unit in (tmp_path / "b" / "units").iterdir():
        shutil.move(unit, tmp_path / "a" / "units" / unit.name)
    score(shards, small_mae, tmp_path / "a")
    assert tree(tmp_path / "a" / "units") == tree(tmp_path / "whole" / "units")
    manifests = [(tmp_path / name / "manifest.parquet").read_bytes() for name in ("a", "whole")]
    assert manifests[0] == manifests[1]


class FlakyPool(InProcessPool):
    """Loses the first attempt at every unit, as a reset connection does."""

    def map(self, make, items, **how):
        failed = set()

        def make_flaky(slot):
            work = make(slot)

            def flaky(unit):
                if unit.name not in failed:
                    failed.add(unit.name)
                    raise ConnectionResetError("reset by peer")
                return work(unit)

            return flaky

        return super().map(make_flaky, items, **how)


def test_lost_attempts_are_in_the_log_with_run_unit_attempt_and_reason(shards, small_mae, tmp_path):
    cache = tmp_path / "cache"
    found = find_shards([str(shards)])
    run_score(ScoreConfig(mae=str(small_mae)), found, cache, FlakyPool(delays_s=(0.0, 0.0)),
              JsonLineProgress(every_s=1e9))  # fmt: skip
    events = list(read_log(LocalStorage(cache)))
    opened = open_cache(cache)
    assert {event["run_id"] for event in events} == {opened.run_id}
    lost = [event for event in events if event["event"] == "attempt"]
    assert {event["unit"] for event in lost} == set(opened.rows)
    assert {(e["attempt"], e["reason"]) for e in lost} == {
        (1, "ConnectionResetError: reset by peer")}  # fmt: skip
    assert {e["attempts"] for e in events if e["event"] == "done"} == {2}
