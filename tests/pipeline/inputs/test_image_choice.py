"""Which member of a sample is its image."""

import pyarrow.parquet as pq
import pytest
from command_line import one_line_error, run

from ltrp_core.errors import RequestError
from pipeline.inputs.image_choice import ImageChoice, checked_image_ext
from pipeline.inputs.shards import DamagedShardError, TarShard
from pipeline.store import open_cache
from pipeline.store.units import unit_name


def shard(make_tar, tmp_path, *names, image_ext=""):
    path = tmp_path / "s.tar"
    make_tar(path, [(name, name.encode()) for name in names])
    return TarShard(str(path), path.stat().st_size, image_ext=image_ext)


def taken(one, on_damage="strict"):
    reader = one.open(on_damage)
    return [member.name for member in reader], dict(reader.choice.counts), reader


@pytest.mark.parametrize(
    ("names", "chosen", "left"),
    [
        (("0.depth.png", "0.jpg", "1.depth.png", "1.jpg"), ["0.jpg", "1.jpg"], ".depth.png"),
        (("0.jpg", "0.depth.png", "0.cls"), ["0.jpg"], ".depth.png"),
        (("0.avif", "0.jpg"), ["0.jpg"], ".avif"),
        (("0.left.png", "0.cls", "1.jpg"), ["0.left.png", "1.jpg"], None),
        (("0.jfif",), ["0.jfif"], None),
    ],
)
@pytest.mark.parametrize("on_damage", ["strict", "salvage"])
def test_a_plain_ending_is_the_image_whatever_stands_first(
    make_tar, tmp_path, names, chosen, left, on_damage
):
    found, counts, reader = taken(shard(make_tar, tmp_path, *names), on_damage)
    assert found == chosen
    assert reader.left_out == []
    assert counts == ({(".jpg", left): len(chosen)} if left else {})


@pytest.mark.parametrize("names", [("0.jpg", "0.png"), ("0.left.png", "0.right.png")])
def test_two_that_are_as_good_are_ambiguous_until_one_is_named(make_tar, tmp_path, names):
    with pytest.raises(DamagedShardError, match=r"key '0' stands twice.*--image-ext"):
        taken(shard(make_tar, tmp_path, *names))
    for name in names:
        image_ext = name.removeprefix("0")
        found, counts, _ = taken(shard(make_tar, tmp_path, *names, image_ext=image_ext))
        assert (found, counts) == ([name], {})


@pytest.mark.parametrize(("text", "found"), [("", ""), ("JPG", ".jpg"), (".left.png", ".left.png")])
def test_image_ext_is_the_ending_of_a_name(text, found):
    assert checked_image_ext(text) == found
    with pytest.raises(RequestError, match="--image-ext"):
        checked_image_ext("depth.npy")


def test_a_cache_remembers_which_image_it_is_of(make_tar, photographs, small_mae, tmp_path):
    """The depth map first; training, verify and views to append find the image by the cache."""
    first, second = list(photographs.values())[:2]
    tar = tmp_path / "s.tar"
    make_tar(tar, [(f"{k}.{name}.jpg", c) for k in (0, 1) for name, c in
                   (("left", first), ("right", second))])  # fmt: skip
    score = ("score", "--shards", tar, "--mae", small_mae, "--out")
    assert "stands twice" in run(*score, tmp_path / "no", expect=1)[1]
    run(*score, tmp_path / "cache", "--image-ext", "right.jpg")
    assert open_cache(tmp_path / "cache").identity["image_ext"] == ".right.jpg"
    run("verify", tmp_path / "cache", "--rescore", "100%", "--shards", tar, "--mae", small_mae)
    run(*score, tmp_path / "cache", "--append-views", 1)
    run("train-ranker", "--cache", tmp_path / "cache", "--shards", tar, "--ranker", "vit_tiny",
        "--epochs", 1, "--out", tmp_path / "ranker", "--holdout", 0)  # fmt: skip
    assert "--image-ext is for tars" in one_line_error(
        "score", "--shards", folder_of(tmp_path, first), "--mae", small_mae, "--out",
        tmp_path / "other", "--workers", 0, "--image-ext", "jpg",
    )  # fmt: skip


def folder_of(tmp_path, content):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(content)
    return tmp_path / "images"


def test_what_was_chosen_is_said_once_and_an_option_left_out_is_no_part_of_the_run(
    make_tar, photographs, small_mae, tmp_path
):
    members = [(name, content) for key, content in photographs.items()
               for name in (f"{key}.depth.jpg", f"{key}.jpg")]  # fmt: skip
    make_tar(tmp_path / "s.tar", members)
    _, err = run("score", "--shards", tmp_path / "s.tar", "--mae", small_mae, "--out",
                 tmp_path / "cache")  # fmt: skip
    assert err.count("took KEY.jpg as the image rather than KEY.depth.jpg in 12 sample(s)") == 1
    cache = open_cache(tmp_path / "cache")
    assert "image_ext" not in cache.identity
    assert pq.read_table(tmp_path / "cache" / "manifest.parquet")["n_bad"].to_pylist() == [0]


@pytest.mark.parametrize("ending", ["jpg", "left.jpg", "jfif"])
def test_what_is_whole_before_the_damage_is_kept_whatever_its_ending(make_tar, tmp_path, ending):
    one = shard(make_tar, tmp_path, *(f"{number}.{ending}" for number in range(3)))
    content = bytearray((tmp_path / "s.tar").read_bytes())
    content[2 * 1024 + 100] ^= 1  # in the header of the third
    (tmp_path / "s.tar").write_bytes(content)
    found, _, reader = taken(one, "salvage")
    assert found == [f"0.{ending}", f"1.{ending}"]
    assert reader.damage


def test_a_cache_that_was_salvaged_by_another_rule_is_refused(
    make_tar, photographs, small_mae, tmp_path, monkeypatch
):
    """Earlier versions took what came first: depth maps, whose scores are not the photographs'."""
    first, second = list(photographs.values())[:2]
    tar = tmp_path / "s.tar"
    make_tar(tar, [(f"{k}.{name}jpg", c) for k in range(3) for name, c in
                   (("depth.", first), ("", second))])  # fmt: skip
    score = ("score", "--shards", tar, "--mae", small_mae, "--on-damage", "salvage",
             "--max-bad", "100%", "--out", tmp_path / "cache")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(ImageChoice, "rank", lambda self, name: 0)
        run(*score)
    assert open_cache(tmp_path / "cache").rows[unit_name("s.tar")].n_bad == 3
    message = one_line_error(
        "train-ranker", "--cache", tmp_path / "cache", "--shards", tar, "--ranker", "vit_tiny",
        "--epochs", 1, "--out", tmp_path / "ranker", "--holdout", 0,
    )  # fmt: skip
    assert "chose the images of s.tar otherwise (6 images and rows then, 3 now)" in message
    _, err = run(*score, "--append-views", 1, expect=1)
    assert "chose the images of s.tar otherwise" in err
    shown = ("inspect", tmp_path / "cache", "s.tar", "--key", "0", "--shards", tar)
    assert "otherwise" in one_line_error(*shown, "--png", tmp_path / "x.png")
