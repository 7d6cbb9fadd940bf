"""Shards whose samples are read whole: the same images, and what lies beside them."""

import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.inputs.shards import DamagedShardError, TarShard


def shard_of(path, **options):
    return TarShard(str(path), path.stat().st_size, **options)


def read(path, on_damage="strict", **options):
    reader = shard_of(path, is_whole=True, **options).open(on_damage)
    return list(reader), reader


def test_members_come_with_their_image_first(make_tar, tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("d/a.json", b"{}"), ("d/a.jpg", b"A"), ("d/a.cls", b"3"),
                    ("d/a.seg.png", b"S"), ("b.cls", b"4"), ("b.JPG", b"B"),
                    ("c.txt", b"no image"), ("e.png", b"E"), ("e.left.jpg", b"L")])  # fmt: skip
    found, reader = read(path)
    assert [member.content for member in found] == [
        (("jpg", b"A"), ("json", b"{}"), ("cls", b"3"), ("seg.png", b"S")),
        (("JPG", b"B"), ("cls", b"4")),
        (("png", b"E"), ("left.jpg", b"L")),
    ]
    assert [row.reason for row in reader.left_out] == ["no_image"]


def test_an_image_that_gives_way_to_a_better_one_is_a_member(make_tar, tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("a.depth.png", b"D"), ("a.jpg", b"A"), ("b.jpg", b"B")])
    found, _ = read(path)
    assert [member.content for member in found] == [
        (("jpg", b"A"), ("depth.png", b"D")),
        (("jpg", b"B"),),
    ]


def test_a_sample_whose_member_is_no_file_is_left_out_and_said(tmp_path, make_tar) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("a.jpg", b"A")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("a.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "b.cls"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("b.jpg"))
    found, reader = read(path)
    assert [member.key for member in found] == ["b"]
    assert [(row.key, row.reason) for row in reader.left_out] == [("a", "not_a_file")]


def test_members_that_lie_apart_are_refused(make_tar, tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("a.jpg", b"A"), ("b.jpg", b"B"), ("a.cls", b"3")])
    with pytest.raises(DamagedShardError, match="members of 'a' do not lie beside each other"):
        read(path)
    assert [member.key for member in shard_of(path).open()] == ["a", "b"]


def test_of_a_cut_shard_only_whole_samples_are_kept_and_the_cut_one_is_counted(
    make_tar, tmp_path
) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("a.jpg", b"A"), ("b.jpg", b"B"), ("b.npy", bytes(4000))])
    path.write_bytes(path.read_bytes()[: 5 * 512 + 700])
    found, reader = read(path, "salvage")
    assert [member.key for member in found] == ["a"]
    assert [(row.key, row.reason) for row in reader.left_out] == [("b", "truncated")]
    assert reader.damage is not None


ENDINGS = ["jpg", "png", "depth.png", "cls", "json", "avif", "JPEG"]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    samples=st.lists(
        st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=4, unique_by=str.lower), max_size=5
    )
)
def test_the_images_are_those_that_are_read_without_their_members(
    samples, make_tar, tmp_path_factory
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    members = [(f"k{n}.{ending}", f"{n}{ending}".encode())
               for n, endings in enumerate(samples) for ending in endings]  # fmt: skip
    make_tar(path, members or [("x.txt", b"")])
    plain, whole = shard_of(path).open("salvage"), shard_of(path, is_whole=True).open("salvage")
    images, samples_read = list(plain), list(whole)
    assert [(m.key, m.name, m.data) for m in samples_read] == [
        (m.key, m.name, m.data) for m in images
    ]
    assert whole.left_out == plain.left_out
    assert whole.choice.counts == plain.choice.counts
    assert whole.identity == plain.identity
    duplicates = [row.offset for row in plain.left_out if row.reason == "duplicate_key"]
    if not duplicates:
        for member in samples_read:
            of_key = {f"{member.key}.{ending}": data for ending, data in member.content}
            assert of_key == {n: d for n, d in members if n.startswith(f"{member.key}.")}
