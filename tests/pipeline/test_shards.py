import io
import tarfile

import pytest

from ltrp_core.errors import RequestError
from pipeline.shards import DamagedShardError, Shard, find_shards, read_members, sample_key
from pipeline.unit_runner import decoded_samples


@pytest.fixture
def tar(tmp_path, photographs, make_tar):
    path = tmp_path / "a.tar"
    members = [(f"{name}.jpg", content) for name, content in list(photographs.items())[:6]]
    make_tar(path, [*members, ("readme.txt", b"no image")])
    return path


def read(path):
    return list(read_members(Shard(str(path))))


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


def test_a_key_that_stands_twice_is_named(tmp_path, photographs, make_tar):
    one, two, *_ = photographs.values()
    make_tar(tmp_path / "b.tar", [("x.jpg", one), ("y.jpg", two), ("x.png", one)])
    with pytest.raises(DamagedShardError, match="key 'x' stands twice"):
        read(tmp_path / "b.tar")


def test_names_outside_the_archive_are_only_keys(tmp_path, photographs, make_tar):
    one, two, *_ = photographs.values()
    make_tar(tmp_path / "c.tar", [("../../evil.jpg", one), ("/abs/evil.v1.JPG", two)])
    assert [m.key for m in read(tmp_path / "c.tar")] == ["../../evil", "/abs/evil"]
    assert not list(tmp_path.parent.glob("evil*"))


def test_links_under_an_images_name_are_reported(tmp_path, photographs):
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        info = tarfile.TarInfo("real.jpg")
        content = next(iter(photographs.values()))
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    bad = []
    assert [sample.key for sample in decoded_samples(Shard(str(path)), bad)] == ["real"]
    assert [(row.key, row.reason) for row in bad] == [("link", "not_a_file")]


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
        ("pipe:touch hacked", "only local paths"),
        ("s3://bucket/a.tar", "only local paths"),
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
    with pytest.raises(RequestError, match="run `pack` first"):
        find_shards([str(tmp_path)])


def test_two_shards_of_one_name_are_refused(shards, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "part-0.tar").write_bytes((shards / "part-0.tar").read_bytes())
    with pytest.raises(RequestError, match="two shards have one file name"):
        find_shards([str(shards), str(other)])
