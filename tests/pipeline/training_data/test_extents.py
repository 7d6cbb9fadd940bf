"""Rows of files: read in any order, few files open at a time, a file that is cut is named."""

import contextlib
import os

import numpy as np
import pytest

from pipeline.training_data.extents import ExtentReader, Extents


@pytest.fixture
def rows(tmp_path):
    """300 files of three rows each, and what stands in every row."""
    rng = np.random.default_rng(0)
    parts, contents = [], []
    for number in range(300):
        sizes = rng.integers(1, 40, 3)
        some = [rng.integers(0, 256, size, dtype=np.uint8).tobytes() for size in sizes]
        path = tmp_path / f"file-{number}"
        path.write_bytes(b"head" + b"".join(some) + b"tail")
        offsets = 4 + np.cumsum([0, *sizes[:-1]])
        parts.append(Extents([str(path)], np.zeros(3, np.int32), offsets, sizes))
        contents += some
    return parts, contents


def num_open(folder):
    """Open files below a folder: threads that other tests left open files of their own."""
    links = []
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry.path))
    return sum(link.startswith(f"{folder}/") for link in links)


def test_rows_of_many_files_are_read_in_any_order_with_few_of_them_open(rows, tmp_path):
    parts, contents = rows
    reader = ExtentReader(Extents.join(parts))
    for row in np.random.default_rng(1).permutation(900).tolist():
        assert reader.read(row) == contents[row]
        assert 1 <= num_open(tmp_path) <= 128
    reader.close()
    assert num_open(tmp_path) == 0
    assert reader.read(5) == contents[5]


def test_part_of_a_row_is_read_into_an_array(rows):
    parts, contents = rows
    reader = ExtentReader(Extents.join(parts))
    target = np.zeros((4, 3), np.uint8)
    row = next(row for row, content in enumerate(contents) if len(content) > 20)
    for place, skip in enumerate((0, 7, 17)):
        reader.read_into(row, skip, target[place])
    found = [bytes(values) for values in target]
    content = contents[row]
    assert found == [content[:3], content[7:10], content[17:20], bytes(3)]


def test_saved_extents_are_loaded_as_they_were(rows, tmp_path):
    parts, contents = rows
    joined = Extents.join(parts)
    joined.save(tmp_path, "places")
    loaded = Extents.load(tmp_path, "places")
    assert loaded.paths == joined.paths
    for name in ("file", "offset", "size"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(joined, name))
    assert ExtentReader(loaded).read(700) == contents[700]


def test_parts_of_several_files_and_without_rows_join(tmp_path):
    def part(paths, file):
        file = np.array(file, np.int32)
        return Extents(paths, file, np.arange(len(file)), np.ones(len(file), np.int64))

    joined = Extents.join([part(["a", "b"], [0, 0, 1]), part([], []), part(["c"], [0, 0])])
    assert [joined.paths[number] for number in joined.file] == ["a", "a", "b", "c", "c"]
    assert joined.offset.tolist() == [0, 1, 2, 0, 1]
    Extents.join([]).save(tmp_path, "none")
    assert len(Extents.load(tmp_path, "none").offset) == 0


@pytest.mark.parametrize("left", [0, 3, 10])
def test_a_file_that_ends_before_a_row_does_is_named(tmp_path, left):
    path = tmp_path / "file"
    path.write_bytes(bytes(20))
    extents = Extents([str(path)], np.zeros(1, np.int32), np.array([5]), np.array([15]))
    reader = ExtentReader(extents)
    assert reader.read(0) == bytes(15)
    os.truncate(path, left)
    with pytest.raises(OSError, match=f"{path} ends before byte 20"):
        reader.read(0)
    with pytest.raises(OSError, match=f"{path} ends before byte 15"):
        reader.read_into(0, 2, np.empty(8, np.uint8))


def test_a_file_that_is_gone_is_named(tmp_path):
    extents = Extents([str(tmp_path / "gone")], *(np.zeros(1, np.int64) for _ in range(3)))
    with pytest.raises(FileNotFoundError, match="gone"):
        ExtentReader(extents).read(0)
