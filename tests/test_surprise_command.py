"""`score --metric surprise` and everything that reads what it writes, as a user runs them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from command_line import one_line_error, run
from scipy.stats import kendalltau
from scored_caches import forge

from ltrp_core.mae import load_mae
from ltrp_core.partitions import masked_patches
from ltrp_core.patches import patchify
from ltrp_core.rankers import load_ranker
from ltrp_core.views import normalize
from oracles import scoring as oracle
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.replay import replay_views
from stages.score_maps import ScoreMaps

SURPRISE = ("--metric", "surprise", "--score-dtype", "float32")


@pytest.fixture
def surprised(shards, small_mae, tmp_path):
    """Makes a cache of surprise with some options more."""

    def surprised(name, *options):
        run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / name,
            *SURPRISE, *options)  # fmt: skip
        return tmp_path / name

    return surprised


def mean_maps(cache):
    """key -> mean surprise of each patch of the first view, by loops over the raw arrays."""
    found = {}
    for unit in cache.units:
        arrays = cache.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            values = [[] for _ in range(36)]
            for visible, score in zip(
                arrays["visible"][row, 0], arrays["score"][row, 0], strict=True
            ):
                masked = [patch for patch in range(36) if patch not in visible.tolist()]
                for patch, value in zip(masked, score.tolist(), strict=True):
                    values[patch].append(value)
            found[key] = [np.mean(one) for one in values]
    return found


def test_a_cache_holds_the_errors_of_all_masked_patches(surprised, small_mae, shards):
    cache = open_cache(surprised("cache", "--views", 2, "--crop", "train"))
    assert cache.run["scored"] == "masked"
    assert cache.run["partitions"] == 12
    unit = cache.units[0]
    arrays = cache.read(unit)
    assert arrays["visible"].shape == (4, 2, 12, 3)
    assert arrays["score"].shape == (4, 2, 12, 33)
    pixels = torch.from_numpy(replay_views(cache, unit, arrays, find_shards([str(shards)])[0]))
    mae = load_mae(small_mae)
    for row, view, partition in ((0, 0, 0), (1, 1, 5), (3, 0, 11)):
        visible = torch.from_numpy(arrays["visible"][row, view, partition].astype(np.int64))
        expected = oracle.surprise(mae, normalize(pixels[row, view])[None], visible[None])[0]
        np.testing.assert_allclose(arrays["score"][row, view, partition], expected, rtol=1e-4)


def test_both_stores_hold_the_same_and_pixels_are_stored_once_a_view(surprised, tmp_path):
    one = surprised("zarr", "--pixels", "--views", 2)
    two = surprised("tars", "--pixels", "--views", 2, "--store", "webdataset")
    run("convert", one, "--to", "webdataset", "--out", tmp_path / "converted")
    caches = [open_cache(path) for path in (one, two, tmp_path / "converted")]
    for unit in caches[0].units:
        arrays = caches[0].read(unit)
        assert arrays["pixels"].shape == (4, 2, 36, 8, 8, 3)
        for other in caches[1:]:
            for name, values in other.read(unit).items():
                assert np.array_equal(arrays[name], values), name


def test_stored_pixels_are_the_view(surprised, shards):
    cache = open_cache(surprised("cache", "--pixels"))
    unit = cache.units[0]
    arrays = cache.read(unit)
    views = torch.from_numpy(replay_views(cache, unit, arrays, find_shards([str(shards)])[0]))
    expected = patchify(views[:, 0], 8).numpy().reshape(4, 36, 8, 8, 3)
    assert np.array_equal(arrays["pixels"][:, 0], expected)


def test_a_map_is_the_mean_over_the_partitions_that_masked_a_patch(surprised):
    cache = open_cache(surprised("cache", "--crop", "eval"))
    maps = ScoreMaps(cache, "the cache")
    for key, expected in mean_maps(cache).items():
        np.testing.assert_allclose(maps.map(key), expected, rtol=1e-6)


def test_two_cover_partitions_score_every_patch(surprised):
    cache = open_cache(surprised("two", "--crop", "eval", "--sampler", "cover", "--partitions", 2))
    maps = ScoreMaps(cache, "the cache")
    assert all(np.isfinite(scores).all() for scores in maps.maps(list(maps.places)))


def test_one_partition_is_no_teacher_and_says_what_is(surprised, shards, tmp_path):
    one = surprised("one", "--crop", "eval", "--partitions", 1)
    said = one_line_error("select", "--shards", shards, "--teacher", one, "--out", tmp_path / "s",
                          "--workers", 0)  # fmt: skip
    assert "1 partition(s) of 33 scores cannot hold all 36 patches" in said
    assert "more --partitions: 2 or more" in said


def test_a_teacher_of_surprise_selects_by_its_maps(surprised, shards, tmp_path):
    teacher = surprised("teacher", "--crop", "eval")
    run("select", "--shards", shards, "--teacher", teacher, "--out", tmp_path / "s",
        "--keep-ratio", 0.25, "--homogeneous", 0)  # fmt: skip
    expected, found = mean_maps(open_cache(teacher)), open_cache(tmp_path / "s")
    for unit in found.units:
        arrays = found.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            best = np.argsort(-np.array(expected[key]), kind="stable")[:9]
            assert set(arrays["kept_0.25"][row].tolist()) == set(best.tolist())


@pytest.mark.parametrize(
    "options", [("--phase", "encoder"), ("--region", "all")], ids=["phase", "region"]
)
def test_what_says_nothing_to_surprise_is_refused(shards, small_mae, tmp_path, options):
    said = one_line_error("score", "--shards", shards, "--mae", small_mae, "--out",
                          tmp_path / "c", *SURPRISE, *options, "--workers", 0)  # fmt: skip
    assert f"{options[0]} says nothing to --metric surprise" in said
    assert not (tmp_path / "c").exists()


def test_weights_of_normalized_pixels_are_refused(shards, small_mae, tmp_path):
    mae = load_mae(small_mae)
    made = {"model": mae.state_dict(), "args": {"norm_pix_loss": True}}
    torch.save(made, tmp_path / "normalized.pth")
    said = one_line_error("score", "--shards", shards, "--mae", tmp_path / "normalized.pth",
                          "--out", tmp_path / "c", *SURPRISE, "--workers", 0)  # fmt: skip
    assert "normalized" in said


def test_rescoring_finds_a_changed_score(surprised, shards, small_mae):
    cache = surprised("cache", "--partitions", 2)
    again = ("verify", cache, "--rescore", "100%", "--shards", shards, "--mae", small_mae)
    assert "scored 12 samples (24 records) again" in run(*again)[0]
    opened = open_cache(cache)
    forge(opened, opened.units[1], lambda a: a["score"][2, 0, 1, 30:].__imul__(1.05))
    assert "a score of view 0, partition 1 differs" in run(*again, expect=1)[0]


def test_views_are_appended_and_read_as_one(surprised, shards, small_mae):
    whole = open_cache(surprised("whole", "--views", 3, "--partitions", 4, "--pixels"))
    grown = surprised("grown", "--views", 1, "--partitions", 4, "--pixels")
    run("score", "--shards", shards, "--mae", small_mae, "--out", grown, "--append-views", 2)
    grown = open_cache(grown)
    for unit in whole.units:
        ours, theirs = grown.read(unit), whole.read(unit)
        for name in ("visible", "score", "pixels"):
            assert np.array_equal(ours[name], theirs[name]), name


def test_inspect_names_masked_patches(surprised, shards, tmp_path):
    cache = surprised("cache", "--partitions", 2)
    opened = open_cache(cache)
    unit = opened.units[0]
    arrays = opened.read(unit)
    out, _ = run("inspect", cache, unit, "--key", arrays["key"][0])
    line = next(line for line in out.splitlines() if "partition 0" in line)
    best = int(np.argmax(arrays["score"][0, 0, 0]))
    patch = masked_patches(arrays["visible"][0, 0, 0], 36)[best]
    assert f"best first: ({patch // 6},{patch % 6})" in line
    run("inspect", cache, unit, "--key", arrays["key"][0], "--png", tmp_path / "p.png",
        "--shards", shards)  # fmt: skip
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_a_plan_counts_one_decoder_pass_a_partition(shards, small_mae):
    out, _ = run("plan", "--shards", shards, "--mae", small_mae, *SURPRISE, "--seconds", 0.1)
    found = re.search(r"about (\d+) images\nwork +(\d+) records, (\d+) decoder p.*, (\d+) enc", out)
    images, *counts = map(int, found.groups())
    assert counts == [12 * images] * 3


TRAIN = ("--ranker", "vit_tiny", "--batch-size", 6, "--base-lr", 0.02, "--epochs", 3)


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--label", "partition"),
        ("--list-length", 20, "--loss", "ranknet"),
        ("--label-mix", "surprise=1,border=1"),
        ("--input", "dense"),
    ],
    ids=["map", "partition", "longer lists", "mix", "dense"],
)
def test_a_ranker_is_trained_from_surprise_without_images(surprised, tmp_path, options):
    cache = surprised("cache", "--pixels", "--views", 2)
    run("train-ranker", "--cache", cache, "--out", tmp_path / "r", *TRAIN, *options)
    rows = curve(tmp_path / "r")
    assert len(rows) == 3
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["cover_tau"]) for row in rows)
    assert load_ranker(tmp_path / "r").grid == 6


def test_images_in_place_of_pixels_train_the_same_ranker(surprised, shards, tmp_path):
    stored, plain = surprised("pixels", "--pixels"), surprised("plain")
    run("train-ranker", "--cache", stored, "--out", tmp_path / "a", *TRAIN)
    run("train-ranker", "--cache", plain, "--shards", shards, "--out", tmp_path / "b", *TRAIN)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_what_does_not_fit_is_one_line(surprised, tmp_path):
    cache = surprised("cache", "--pixels")
    train = ("train-ranker", "--cache", cache, "--out", tmp_path / "r", *TRAIN)
    for options, what in (
        (("--list-length", 37), "more than the 36 patches"),
        (("--label", "partition", "--list-length", 34), "more than the 33 patches"),
        (("--label-mix", "l2=1"), "unknown label-mix 'l2'"),
        (("--label-mix", "l1=1"), "unknown label-mix 'l1'"),
        (("--label-mix", "border=1"), "add surprise=1"),
        (("--label-mix", "surprise=1,border"), "not of the form NAME=WEIGHT"),
        (("--label", "partition", "--label-mix", "surprise=1"), "pass --label map"),
    ):
        assert what in one_line_error(*train, *options)
    shutil.rmtree(tmp_path / "r", ignore_errors=True)


def test_two_draws_of_surprise_are_compared_by_disjoint_partitions(surprised, tmp_path):
    one = surprised("one", "--crop", "eval")
    other = surprised("other", "--crop", "eval", "--seed", 1)
    _, err = run("evaluate", "ranking", one, other, "--out", tmp_path / "r")
    # Halves of 6 of the 12 partitions, each of which scores 33 of the 36 patches.
    found = re.search(r"two draws of the first cache's teacher agree with tau (\S+) \(5\.5 x", err)
    first, second = ([], [])
    cache = open_cache(one)
    for unit in cache.units:
        arrays = cache.read(unit)
        for row in range(len(arrays["key"])):
            for half, values in ((slice(0, 6), first), (slice(6, 12), second)):
                masked = masked_patches(arrays["visible"][row, 0, half], 36)
                scores = arrays["score"][row, 0, half]
                values.append([scores[masked == patch].mean() for patch in range(36)])
    taus = [kendalltau(*pair).statistic for pair in zip(first, second, strict=True)]
    assert float(found[1]) == pytest.approx(np.mean(taus), abs=6e-4)


def test_a_patch_that_was_scored_once_leaves_its_image_out_of_the_plateau(surprised, tmp_path):
    one = surprised("one", "--crop", "eval", "--partitions", 4, "--seed", 14)
    _, err = run("evaluate", "ranking", one, one, "--out", tmp_path / "r")
    counts = [
        np.bincount(masked_patches(visible, 36).ravel(), minlength=36).min()
        for unit in open_cache(one).units
        for visible in open_cache(one).read(unit)["visible"][:, 0]
    ]
    assert 0 < sum(count < 2 for count in counts) < 12
    assert f"{sum(count < 2 for count in counts)} image(s) of the first cache have patches" in err
