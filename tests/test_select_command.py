"""`select` as a user runs it: sources, wrong input, going on, and the table of what was kept."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from command_line import one_line_error, run
from PIL import Image

from ltrp_core.rankers import create_ranker, save_ranker
from ltrp_core.selection import num_kept, select_patches
from pipeline.store import open_cache

BASELINE = ("--baseline", "center", "--image-size", "48", "--patch-size", "8")


@pytest.fixture(scope="module")
def ranker_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ranker")
    save_ranker(create_ranker("vit_tiny", grid=6, patch_size=8), folder, {})
    return folder


def select(shards, out, *options, expect=0):
    return run("select", "--shards", shards, "--out", out, *options, expect=expect)


def files_of(cache):
    """Content of all files that must not depend on how a run went."""
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in sorted(Path(cache).rglob("*"))
        if path.is_file() and "log" not in path.relative_to(cache).parts
    }


def assert_table_is(cache, rows):
    """Checks selections.parquet against the arrays of the units."""
    table = pq.read_table(Path(cache.url) / "selections.parquet").to_pylist()
    assert len(table) == rows
    found = {(row["unit"], row["key"]): row for row in table}
    assert len(found) == rows
    for unit in cache.units:
        arrays = cache.read(unit)
        for number, key in enumerate(arrays["key"].tolist()):
            row = found[unit, key]
            assert [row["height"], row["width"]] == arrays["size"][number].tolist()
            assert row["crop"] == arrays["crop"][number, 0].tolist()
            assert row["flip"] == arrays["flip"][number, 0]
            for ratio in cache.run["keep_ratio"]:
                kept = arrays[f"kept_{ratio:g}"][number]
                assert row[f"kept_{ratio:g}"] == kept.tolist()


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_a_ranker_s_selections_are_stored_and_tabled(shards, ranker_folder, tmp_path, store):
    select(shards, tmp_path / "s", "--ranker", ranker_folder, "--store", store)
    cache = open_cache(tmp_path / "s")
    assert cache.run["selector"] == "ranker"
    assert (cache.run["image_size"], cache.run["patch_size"]) == (48, 8)
    assert len(cache.run["weights_sha256"]) == 64
    assert_table_is(cache, 12)
    run("verify", tmp_path / "s", "--deep")


def test_the_teacher_s_mean_scores_select_on_its_recorded_views(shards, small_mae, tmp_path):
    run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "c", "--views", 1,
        "--sampler", "cover", "--partitions", 12, "--mask-ratio", 0.75)  # fmt: skip
    select(shards, tmp_path / "s", "--teacher", tmp_path / "c", "--crop", "train",
           "--keep-ratio", 0.5, "--homogeneous", 0)  # fmt: skip
    cache, teacher = open_cache(tmp_path / "s"), open_cache(tmp_path / "c")
    assert cache.run["selector"] == "teacher"
    assert cache.run["teacher_run"] == teacher.run_id
    for unit in cache.units:
        ours, theirs = cache.read(unit), teacher.read(unit)
        for name in ("key", "crop", "flip"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        for row in range(len(ours["key"])):
            visible, score = (theirs[name][row].reshape(-1) for name in ("visible", "score"))
            means = [score[visible == patch].astype(float).mean() for patch in range(36)]
            np.testing.assert_array_equal(ours["score"][row], np.float16(np.float32(means)))
            kept = select_patches(torch.tensor(means)[None].float(), num_kept(0.5, 36))
            assert ours["kept_0.5"][row].tolist() == kept[0].tolist()

    complaint = one_line_error("select", "--shards", shards, "--teacher", tmp_path / "c",
                               "--out", tmp_path / "x")  # fmt: skip
    assert "the views of --teacher are train; say --crop train" in complaint
    assert not (tmp_path / "x").exists()


def test_a_key_that_the_teacher_lacks_is_named(shards, small_mae, tmp_path):
    run("score", "--shards", shards / "part-0.tar", "--mae", small_mae, "--out", tmp_path / "c",
        "--crop", "eval", "--views", 1, "--sampler", "cover", "--partitions", 12,
        "--mask-ratio", 0.75)  # fmt: skip
    arguments = ("--teacher", tmp_path / "c")
    out, err = select(shards / "part-1.tar", tmp_path / "s", *arguments, expect=1)
    assert "no scores of 'cat_0'" in out + err
    select(shards / "part-0.tar", tmp_path / "s", *arguments)
    assert_table_is(open_cache(tmp_path / "s"), 4)


def test_a_teacher_that_does_not_cover_is_refused(shards, small_mae, tmp_path):
    run("score", "--shards", shards / "part-0.tar", "--mae", small_mae, "--out", tmp_path / "c",
        "--crop", "eval", "--views", 1, "--partitions", 1)  # fmt: skip
    complaint = one_line_error("select", "--shards", shards, "--teacher", tmp_path / "c",
                               "--out", tmp_path / "s")  # fmt: skip
    assert "score with --sampler cover and more --partitions: 12 or more" in complaint


def test_a_run_in_two_parts_equals_one(shards, tmp_path):
    select(shards, tmp_path / "once", *BASELINE)
    select(shards / "part-1.tar", tmp_path / "parts", *BASELINE)
    assert_table_is(open_cache(tmp_path / "parts"), 4)
    select(shards, tmp_path / "parts", *BASELINE, "--batch-size", 1)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "once")
    (tmp_path / "parts" / "selections.parquet").write_bytes(b"not a table")
    select(shards, tmp_path / "parts", *BASELINE)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "once")


def write_masks(folder):
    """An object in the middle of every photograph."""
    folder.mkdir()
    for subject in ("astronaut", "cat", "coffee"):
        for number in range(4):
            mask = np.zeros((150, 180), np.uint8)
            mask[30:90, 60:140] = 255
            Image.fromarray(mask).save(folder / f"{subject}_{number}.png")


@pytest.mark.parametrize("source", ["baseline", "teacher"])
def test_selections_of_any_source_are_evaluated_and_shown(shards, small_mae, tmp_path, source):
    run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "c", "--crop",
        "resize", "--views", 1, "--sampler", "cover", "--mask-ratio", 0.75)  # fmt: skip
    options = BASELINE if source == "baseline" else ("--teacher", tmp_path / "c")
    select(shards, tmp_path / "s", *options, "--crop", "resize")
    write_masks(tmp_path / "masks")
    table, err = run("evaluate", "patches", "--selections", tmp_path / "s", "--annotations",
                     tmp_path / "masks", "--teacher", tmp_path / "c",
                     "--out", tmp_path / "e")  # fmt: skip
    name = "center (selected)" if source == "baseline" else "teacher (selected)"
    assert f"{name}, top-k only" in table, err
    assert f"all categories: {name} minus each reference" in table
    run("report", "--selections", tmp_path / "s", "--shards", shards, "--mae", small_mae,
        "--teacher", tmp_path / "c", "--evaluation", tmp_path / "e",
        "--out", tmp_path / "report")  # fmt: skip
    assert (tmp_path / "report" / "index.html").stat().st_size > 0

    select(shards, tmp_path / "other", *BASELINE)
    complaint = one_line_error("evaluate", "patches", "--selections", tmp_path / "other",
        "--annotations", tmp_path / "masks", "--teacher", tmp_path / "c",
        "--out", tmp_path / "e2")  # fmt: skip
    assert "score with --crop eval, and with --sampler cover" in complaint


def test_a_selection_with_priors_is_evaluated_and_shown_beside_the_plain_one(
    shards, small_mae, tmp_path
):
    prior = ("--selector", "patch-variance", *BASELINE[2:], "--prior", "border=1", "--prior",
             "center=0.5")  # fmt: skip
    select(shards, tmp_path / "s", *prior)
    run("verify", tmp_path / "s", "--deep")
    assert open_cache(tmp_path / "s").run["prior"] == ["center=0.5", "border=1"]
    write_masks(tmp_path / "masks")
    table, _ = run("evaluate", "patches", "--selections", tmp_path / "s", "--annotations",
                   tmp_path / "masks", "--out", tmp_path / "e")  # fmt: skip
    name = "patch variance + 0.5 center + border"
    for source in (name, f"{name}, top-k only", f"{name}, top-k without prior", "border contrast"):
        assert f"  {source}  " in table
    rows = {}
    for row in pq.read_table(tmp_path / "e" / "evaluation.parquet").to_pylist():
        rows[row["source"], row["keep_ratio"]] = row["precision"]
    for ratio in (0.25, 0.5, 0.75):
        assert rows[f"{name}, top-k without prior", ratio] == rows["patch variance", ratio]
    run("report", "--selections", tmp_path / "s", "--shards", shards, "--mae", small_mae,
        "--evaluation", tmp_path / "e", "--out", tmp_path / "report")  # fmt: skip
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    for words in (f"{name}, top-k without prior (top-k only)", "Border contrast",
                  f"Scores: {name}, without prior"):  # fmt: skip
        assert words in page
    complaint = one_line_error("select", "--shards", shards, "--out", tmp_path / "s", *prior[:-2])
    assert "prior: ['center=0.5', 'border=1'] there, ['border=1'] asked" in complaint


def test_another_source_is_another_run(shards, ranker_folder, tmp_path):
    select(shards, tmp_path / "s", *BASELINE)
    for options in (("--ranker", ranker_folder), ("--baseline", "random", *BASELINE[2:])):
        complaint = one_line_error("select", "--shards", shards, "--out", tmp_path / "s", *options)
        assert "selector: 'center' there" in complaint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "exactly one of --ranker, --teacher, --baseline, --selector"),
        (("--ranker", "r", "--baseline", "center"), "exactly one of"),
        (("--baseline", "middle"), "baseline 'middle'"),
        (("--ranker", "nowhere"), "no ranker in 'nowhere'"),
        (("--teacher", "nowhere"), "nowhere"),
        (("--baseline", "center", "--image-size", "100"), "does not divide into patches of 16"),
        (("--baseline", "center", "--prior", "boarder=1"), "did you mean border"),
        (("--baseline", "center", "--prior", "border"), "NAME=WEIGHT, such as border=0.5"),
    ],
)
def test_wrong_input_is_one_line(shards, tmp_path, options, message):
    out = tmp_path / "s"
    assert message in one_line_error("select", "--shards", shards, "--out", out, *options)
    assert not out.exists()


def test_a_method_of_another_paper_selects_with_the_weights_of_a_file(shards, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    tiny = ("--model", "timm:vit_tiny_patch16_224", "--weights", tmp_path / "deit.pth")
    for name in ("evit", "grad-cam"):
        select(shards, tmp_path / name, "--selector", name, *tiny, "--keep-ratio", 0.25)
        cache = open_cache(tmp_path / name)
        run_of = {key: cache.run[key] for key in ("selector", "model", "homogeneous", "image_size")}
        assert run_of == {"selector": name, "model": tiny[1], "homogeneous": 0.0, "image_size": 224}
        assert_table_is(cache, 12)
        has_scores = "score" in cache.read(cache.units[0])
        assert has_scores == (name == "grad-cam")
    before = files_of(tmp_path / "evit")
    select(shards, tmp_path / "evit", "--selector", "evit", *tiny, "--keep-ratio", 0.25)
    assert files_of(tmp_path / "evit") == before
    model.head.bias.data += 1
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    assert "weights_sha256" in one_line_error(
        "select", "--shards", shards, "--selector", "evit", *tiny, "--keep-ratio", 0.25,
        "--out", tmp_path / "evit")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--selector", "evit"), "needs weights; pass them as --weights: EViT's"),
        (("--selector", "evit", "--weights", "random"), "untrained networks, for trials in Python"),
        (("--selector", "evit", "--weights", "none.pth"), "no file and no folder"),
        (("--selector", "dpc-knn", "--model", "timm:x"), "has one architecture"),
        (("--ranker", "ranker_tiny", "--faithful"), "has no other rule"),
        (("--selector", "dino", "--weights", "timm:nothing"), "unknown model of timm"),
        (("--baseline", "center", "--homogeneous", "-0.5"), "out of range 0.0 .. 1.0"),
    ],
)
def test_what_a_method_lacks_is_said_before_anything_is_written(shards, tmp_path, options, message):
    found = one_line_error("select", "--shards", shards, *options, "--out", tmp_path / "x")
    assert message in found
    assert not (tmp_path / "x").exists()
