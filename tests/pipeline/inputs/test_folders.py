"""What of a folder is read, and that the rest is named."""

import gzip
import os

import pytest
from command_line import one_line_error, run

from pipeline.inputs import find_shards


def listed(*patterns):
    notes = []
    return find_shards([str(pattern) for pattern in patterns], on_note=notes.append), notes


def test_what_looks_like_a_shard_and_is_not_read_is_named(shards, tmp_path, make_tar):
    (shards / "b.tar.gz").write_bytes(gzip.compress((shards / "part-0.tar").read_bytes()))
    (shards / "part-2.tar").rename(shards / "C.TAR")
    (shards / "below").mkdir()
    make_tar(shards / "below" / "x.tar", [("a.jpg", b"x")])
    found, notes = listed(shards)
    assert {shard.name for shard in found} == {"part-0.tar", "part-1.tar", "C.TAR"}
    text = "\n".join(notes)
    assert f"gunzip -k {shards}/b.tar.gz" in text
    assert f"tars there are read with --shards '{shards}/*/*.tar'" in text


def test_the_command_says_what_was_left_out(shards, small_mae, tmp_path):
    (shards / "b.tar.gz").write_bytes(b"")
    (shards / "c.jpg").write_bytes(b"")
    _, err = run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache")
    assert err.count("note: ") == 2
    assert "left out 1 compressed tar(s), e.g. b.tar.gz" in err
    assert "left out 1 image(s) beside its tars, e.g. c.jpg" in err


def test_hidden_and_system_entries_are_left_out_by_their_whole_name(photo_folder, photographs):
    for name in ("my__MACOSX_photos/a.jpg", "__MACOSX/b.jpg", ".cache/c.jpg", "cat/._d.jpg"):
        (photo_folder / name).parent.mkdir(exist_ok=True)
        (photo_folder / name).write_bytes(photographs["cat_0"])
    (shard,), notes = listed(photo_folder)
    assert len(shard.files) == 13
    assert "my__MACOSX_photos/a.jpg" in shard.files
    assert any("left out 3 hidden or system file(s) or folder(s)" in note for note in notes)


def test_links_in_a_circle_are_one_line(tmp_path, small_mae):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for shards in (tmp_path / "a", tmp_path / "a" / "x.tar"):
        message = one_line_error("score", "--shards", shards, "--mae", small_mae, "--out",
                                 tmp_path / "cache", "--workers", 0)  # fmt: skip
        assert str(tmp_path / "a") in message
    assert "--shards is empty" in one_line_error(
        "score", "--shards", "", "--mae", small_mae, "--out", tmp_path / "cache", "--workers", 0
    )


def test_a_folder_whose_name_is_no_utf8_is_read_under_a_key_that_is(
    photographs, small_mae, tmp_path
):
    folder = os.fsencode(tmp_path / "photos") + b"/caf\xe9"
    os.makedirs(folder)
    for number in range(2):
        with open(folder + b"/%d.jpg" % number, "wb") as file:
            file.write(photographs[f"cat_{number}"])
    _, err = run("score", "--shards", tmp_path / "photos", "--mae", small_mae, "--out",
                 tmp_path / "cache", expect=None)  # fmt: skip
    err.encode()
    assert "caf" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_shard_that_was_looked_at_again_is_remembered_until_it_changes(
    shards, small_mae, tmp_path, keep_times
):
    score = ("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache")
    run(*score)
    (shards / "part-0.tar").touch()
    _, err = run(*score)
    assert '"task": "hash shards"' in err or "hash shards" in err
    _, err = run(*score)
    assert "hash shards" not in err
    tar = shards / "part-0.tar"
    before, content = tar.stat(), bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    if keep_times:
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    _, err = run(*score, expect=2)
    assert "part-0.tar is not what unit part-0" in err
