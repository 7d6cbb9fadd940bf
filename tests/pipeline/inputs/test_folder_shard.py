"""Folders of images as shards: nothing is left out in silence, and a second run is a second run."""

import os
import tracemalloc

import pytest

from pipeline.inputs import DamagedShardError, find_shards


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    for name in ("a.jpg", "a.png", "b.v2.jpg", "c.jpg"):
        (path / name).write_bytes(name.encode() * 100)
    return path


def unit_of(folder):
    (unit,) = find_shards([str(folder)])
    return unit


def read(unit, on_damage="strict"):
    reader = unit.open(on_damage)
    keys = [member.key for member in reader]
    return keys, [(row.key, row.reason) for row in reader.left_out], reader


def test_files_that_are_left_out_have_rows_and_do_not_change_the_size(folder):
    unit = unit_of(folder)
    (folder / "c.jpg").unlink()
    keys, rows, reader = read(unit)
    assert keys == ["a_jpg", "a_png", "b_v2"]
    assert rows == [("c", "unreadable")]
    assert reader.identity["size"] == unit.size == sum([500, 500, 800, 500])


def test_what_a_unit_was_made_from_is_its_names_and_bytes(folder):
    def sha256():
        return read(unit_of(folder))[2].identity["sha256"]

    first = sha256()
    assert sha256() == first
    (folder / "a.png").write_bytes(b"x" * 500)
    second = sha256()
    (folder / "c.jpg").rename(folder / "d.jpg")
    assert len({first, second, sha256()}) == 3


def test_a_file_that_changed_after_it_was_listed_is_noticed(folder):
    unit = unit_of(folder)
    (folder / "c.jpg").write_bytes(b"cut")
    with pytest.raises(DamagedShardError, match="2300 bytes were listed, 1803 read"):
        read(unit)
    keys, _, reader = read(unit, "salvage")
    assert keys == ["a_jpg", "a_png", "b_v2", "c"]
    assert "changed while it was read" in reader.damage


def test_a_name_that_is_no_text_is_a_row(folder):
    for name in (b"caf\xe9.jpg", b"caf\xe8.jpg"):
        (folder / os.fsdecode(name)).write_bytes(b"data")
    keys, rows, _ = read(unit_of(folder))
    assert keys == ["a_jpg", "a_png", "b_v2", "c"]
    assert rows == [("caf_e8", "unsafe_name"), ("caf_e9", "unsafe_name")]


def test_linked_folders_are_read_and_circles_end(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.jpg").write_bytes(b"data")
    (elsewhere / "up").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "._a.jpg").write_bytes(b"of the system")
    keys, rows, _ = read(unit_of(folder))
    assert keys == ["a_jpg", "a_png", "b_v2", "c", "linked/x"]
    assert ("gone", "unreadable") in rows


def test_an_image_larger_than_any_is_a_row(folder):
    with (folder / "big.jpg").open("wb") as file:
        file.truncate((512 << 20) + 1)
    keys, rows, _ = read(unit_of(folder))
    assert keys == ["a_jpg", "a_png", "b_v2", "c"]
    assert ("big", "too_large") in rows


def test_small_files_take_little_memory(folder):
    unit = unit_of(folder)
    tracemalloc.start()
    try:
        read(unit)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
