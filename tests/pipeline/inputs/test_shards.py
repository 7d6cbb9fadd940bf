import hashlib
import io
import re
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltrp_core.errors import RequestError
from pipeline.inputs import DamagedShardError, find_shards
from pipeline.inputs.shards import TarShard, sample_key


@pytest.fixture
def tar(tmp_path, photographs, make_tar):
    path = tmp_path / "a.tar"
    members = [(f"{name}.jpg", content) for name, content in list(photographs.items())[:6]]
    make_tar(path, [*members, ("readme.txt", b"no image")])
    return path


def shard(path):
    return TarShard(str(path), path.stat().st_size)


def read(path):
    return list(shard(path).open())


def test_every_image_of_a_whole_tar_is_read(tar, photographs):
    members = read(tar)
    assert [m.key for m in members] == list(photographs)[:6]
    assert [m.data for m in members] == list(photographs.values())[:6]
    assert all(tar.read_bytes()[m.offset : m.offset + 3] == b"\xff\xd8\xff" for m in members)


def offsets(path):
    with tarfile.open(path) as tar:
        return [(info.offset, info.offset_data, info.size) for info in tar]


DAMAGES = {
    "cut between members": lambda raw, at: raw[: at[3][0]],
    "cut in a header": lambda raw, at: raw[: at[3][0] + 100],
    "cut in the data": lambda raw, at: raw[: at[3][1] + at[3][2] // 2],
    "cut in the padding": lambda raw, at: raw[: at[3][1] + at[3][2] + 1],
    "end-of-archive missing": lambda raw, at: raw[: at[-1][1] + 512],
    "bit flip in a header": lambda raw, at: flip(raw, at[3][0] + 20),
    "zero blocks in the middle": lambda raw, at: raw[: at[3][0]] + bytes(1024) + raw[at[3][0] :],
    "two tars in one file": lambda raw, at: raw + raw,
    "a web page": lambda raw, at: b"<html><body>404 not found</body></html>" * 40,
    "empty": lambda raw, at: b"",
}


def flip(raw, at):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_is_read_as_a_shorter_shard(tar, damage):
    raw, at = tar.read_bytes(), offsets(tar)
    tar.write_bytes(DAMAGES[damage](raw, at))
    with pytest.raises(DamagedShardError, match=r"a\.tar"):
        read(tar)


@pytest.mark.parametrize("damage", DAMAGES)
def test_salvage_keeps_what_was_before_the_damage(tar, damage, photographs):
    raw, at = tar.read_bytes(), offsets(tar)
    tar.write_bytes(DAMAGES[damage](raw, at))
    reader = shard(tar).open("salvage")
    members = list(reader)
    assert [m.data for m in members] == list(photographs.values())[: len(members)]
    assert re.search(rf"\d+ of {tar.stat().st_size} bytes unread", reader.damage)
    assert reader.identity["sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_wherever_a_bit_flips_or_a_tar_is_cut_nothing_is_lost_in_silence(small_tar, data):
    path, raw, members = small_tar
    at = data.draw(st.integers(0, len(raw) - 1))
    cut = data.draw(st.booleans())
    bit = 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw[:at] if cut else raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
    reader = TarShard(str(path), path.stat().st_size).open("strict")
    try:
        found = [(m.key, m.data) for m in reader]
    except DamagedShardError:
        return
    # Not seen as damage: then every image is there, and a flip was in one's own bytes or padding.
    assert not cut or not raw[at:].strip(b"\0")
    assert [key for key, _ in found] == [key for key, _ in members]
    assert sum(ours != theirs for ours, theirs in zip(found, members)) <= 1
    assert reader.identity["sha256"] != hashlib.sha256(raw).hexdigest()


@pytest.fixture(scope="module")
def small_tar(tmp_path_factory):
    from conftest import write_tar

    path = tmp_path_factory.mktemp("small") / "s.tar"
    members = [(f"k{i}", bytes([65 + i]) * (200 + 300 * i)) for i in range(4)]
    write_tar(path, [(f"{key}.jpg", content) for key, content in members])
    return path, path.read_bytes(), members


def test_a_file_that_grew_after_it_was_listed_is_noticed(tar):
    listed = shard(tar)
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DamagedShardError, match="changed while it was read"):
        list(listed.open())


def test_a_key_that_stands_twice_is_named(tmp_path, photographs, make_tar):
    one, two, *_ = photographs.values()
    make_tar(tmp_path / "b.tar", [("x.jpg", one), ("y.jpg", two), ("x.png", one)])
    with pytest.raises(DamagedShardError, match="key 'x' stands twice"):
        read(tmp_path / "b.tar")
    reader = shard(tmp_path / "b.tar").open("salvage")
    assert [m.key for m in reader] == ["x", "y"]
    assert "stands twice" not in str(reader.damage)
    assert [(row.key, row.reason) for row in reader.left_out] == [("x", "duplicate_key")]


def test_every_key_is_an_image_or_a_row_with_a_reason(tmp_path, photographs):
    content = next(iter(photographs.values()))
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo(f"link{kind[0]}.jpg")
            link.type, link.linkname = kind, "/etc/hostname"
            tar.addfile(link)
        for name in ("a/real.jpg", "a/real.cls", "label.cls", "../../evil.jpg", "/abs.JPG",
                     ".jpg", "._real.jpg", "ü" * 200 + ".jpeg"):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    reader = shard(path).open()
    assert [m.key for m in reader] == ["a/real", "ü" * 200]
    assert sorted((row.key, row.reason) for row in reader.left_out) == [
        ("../../evil", "unsafe_name"), (".jpg", "no_key"), ("abs", "unsafe_name"),
        ("label", "no_image"), ("link49", "not_a_file"), ("link50", "not_a_file"),
        ("link54", "not_a_file"),
    ]  # fmt: skip
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_header_is_read(tmp_path, photographs, form):
    content = next(iter(photographs.values()))
    names = ["a.jpg", "d" * 90 + "/" + "n" * 60 + ".jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".jpg", "日本.jpg"]
    with tarfile.open(tmp_path / "f.tar", "w", format=form) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.uid = len(content), 2**20
            tar.addfile(info, io.BytesIO(content))
    assert [m.name for m in read(tmp_path / "f.tar")] == names


def test_a_large_shard_is_read_in_little_memory(tmp_path):
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        for i in range(6):
            info = tarfile.TarInfo(f"{i}.bin" if i else "0.jpg")
            info.size = 50 << 20 if i else 1000
            file.write(info.tobuf())
            file.seek(-(-info.size // 512) * 512, 1)
        file.write(bytes(1024))
    tracemalloc.start()
    try:
        assert len(read(path)) == 1
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "key"),
    [("a/b.v1.jpg", "a/b"), ("./x.jpg", "x"), ("n01/img_1.JPEG", "n01/img_1")],
)
def test_keys_are_webdatasets(name, key):
    assert sample_key(name) == key


def test_paths_globs_braces_and_folders_name_the_same_shards(shards):
    expected = [str(shards / f"part-{n}.tar") for n in range(3)]
    for patterns in (
        [str(shards)],
        [f"{shards}/part-*.tar"],
        [f"{shards}/part-{{0..2}}.tar"],
        [f"{shards}/part-{{0,1,2}}.tar"],
        expected,
        [*expected, str(shards)],
    ):
        assert [shard.path for shard in find_shards(patterns)] == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("missing.tar", "no file missing.tar"),
        ("none-*.tar", "no file none-"),
        ("part-{3..1}.tar", "counts down"),
        ("pipe:touch hacked", "pass a local path or one of s3://, gs://"),
        ("ftp://host/a.tar", "pass a local path or one of s3://, gs://"),
    ],
)
def test_names_that_cannot_be_read_are_refused(pattern, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        find_shards([pattern])
    assert not (tmp_path / "hacked").exists()


def test_a_range_with_a_missing_shard_is_refused(shards):
    with pytest.raises(RequestError, match=r"no file .*part-3\.tar"):
        find_shards([f"{shards}/part-{{0..3}}.tar"])


def test_a_folder_without_tars_says_what_to_do(tmp_path):
    with pytest.raises(RequestError, match=r"holds no \.tar and no image"):
        find_shards([str(tmp_path)])


def test_two_shards_of_one_name_are_refused(shards, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "part-0.tar").write_bytes((shards / "part-0.tar").read_bytes())
    with pytest.raises(RequestError, match="two shards have one file name"):
        find_shards([str(shards), str(other)])


def test_a_name_is_taken_as_it_is_written_if_it_exists(shards):
    odd = shards / "we#1?x {0..3} *.tar"
    odd.write_bytes((shards / "part-0.tar").read_bytes())
    (found,) = find_shards([str(odd)])
    assert found.path == str(odd)
    assert len(list(found.open())) == 4


def test_a_folder_of_images_becomes_units(photo_folder, photographs):
    (photo_folder / "notes.txt").write_text("no image")
    units = find_shards([str(photo_folder)], unit_size=5)
    assert [unit.name for unit in units] == ["photos-00000", "photos-00001", "photos-00002"]
    members = [member for unit in units for member in unit.open()]
    assert [m.key for m in members] == sorted(f"{name[:-2]}/{name}" for name in photographs)
    assert {m.data for m in members} == set(photographs.values())
    before = units[0].stamp
    changed = photo_folder / units[0].files[0]
    changed.write_bytes(changed.read_bytes())
    assert find_shards([str(photo_folder)], unit_size=5)[0].stamp != before


def test_an_unreadable_file_of_a_folder_is_a_row(photo_folder):
    (unit,) = find_shards([str(photo_folder)])
    (photo_folder / unit.files[2]).unlink()
    reader = unit.open()
    assert len(list(reader)) == 11
    assert [row.reason for row in reader.left_out] == ["unreadable"]
