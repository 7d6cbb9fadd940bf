import json
import os
import tarfile

import numpy as np
import pytest
import webdataset

from ltrp_core.errors import RequestError
from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards
from pipeline.inputs.shards import TarShard
from pipeline.packing import find_images, run_pack
from pipeline.store.errors import RunMismatchError
from stages.pack import PackConfig

CONFIG = PackConfig(shard_size=5)


def members(path):
    return TarShard(str(path), path.stat().st_size).open()


def pack(folder, out, config=CONFIG):
    return run_pack(config, folder, out, JsonLineProgress())


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_every_image_is_packed_once_with_its_bytes_and_class(photo_folder, photographs, tmp_path):
    summary = pack(photo_folder, tmp_path / "out")
    assert (summary.done, summary.n_ok) == (3, 12)
    packed = [m for name in contents(tmp_path / "out") for m in members(tmp_path / "out" / name)]
    assert {m.key: m.data for m in packed} == {
        f"{name.split('_')[0]}/{name}": content for name, content in photographs.items()
    }
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["astronaut", "cat", "coffee"]
    with tarfile.open(tmp_path / "out" / "images-0001.tar") as tar:
        assert tar.extractfile("cat/cat_1.cls").read() == b"1"


def test_packing_twice_gives_the_same_bytes(photo_folder, tmp_path):
    pack(photo_folder, tmp_path / "one")
    pack(photo_folder, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_second_run_writes_only_what_is_missing(photo_folder, tmp_path):
    out = tmp_path / "out"
    pack(photo_folder, out)
    before = contents(out)
    (out / "images-0001.tar").unlink()
    (out / "images-0002.tar").write_bytes(before["images-0002.tar"][:-512])
    summary = pack(photo_folder, out)
    assert (summary.done, summary.skipped) == (2, 1)
    assert contents(out) == before


def test_other_images_or_options_are_another_run(photo_folder, tmp_path):
    pack(photo_folder, tmp_path / "out")
    with pytest.raises(RunMismatchError, match="shard_size: 5 there, 4 asked"):
        pack(photo_folder, tmp_path / "out", PackConfig(shard_size=4))
    (photo_folder / "cat" / "new.jpg").write_bytes(b"x")
    with pytest.raises(RunMismatchError, match="files_sha256"):
        pack(photo_folder, tmp_path / "out")


def test_names_that_would_share_a_key_keep_their_endings(tmp_path):
    for name in ("cat.jpg", "cat.png", "dog.v1.jpg", "dog.v2.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [f.key for f in find_images(tmp_path)[0]] == ["cat_jpg", "cat_png", "dog_v1", "dog_v2"]
    assert all(f.label is None for f in find_images(tmp_path)[0])


def test_keys_survive_the_way_through_a_tar(tmp_path, photographs):
    content = next(iter(photographs.values()))
    folder = tmp_path / "in"
    names = [
        "a b.jpg",
        "x#1?.jpg",
        "ümlaut.jpg",
        "{0..3}.jpg",
        "deep/er/im.age.jpg",
        "l" * 200 + ".jpg",
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pack(folder, tmp_path / "out", PackConfig())
    packed = list(members(tmp_path / "out" / "images-0000.tar"))
    assert sorted(m.key for m in packed) == sorted(f.key for f in find_images(folder)[0])
    assert np.all([m.data == content for m in packed])


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RequestError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(RequestError, match="is no folder"):
        find_images(tmp_path / "missing")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images_by_name_are_mentioned(photo_folder, tmp_path):
    (photo_folder / "cat" / "notes.txt").write_text("x")
    summary = pack(photo_folder, tmp_path / "out")
    assert summary.notes == ["left out 1 file(s) not named as images, e.g. cat/notes.txt"]
    assert summary.n_ok == 12


def test_webdataset_reads_the_same_samples(photo_folder, photographs, tmp_path):
    pack(photo_folder, tmp_path / "out")
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert {s["__key__"]: s["jpg"] for s in samples} == {
        f"{name.split('_')[0]}/{name}": content for name, content in photographs.items()
    }
    assert {int(s["cls"]) for s in samples} == {0, 1, 2}


def test_one_walk_finds_what_score_reads(photographs, tmp_path):
    """Linked classes; nothing of macOS, notebooks or NAS boxes; no part of a name counts."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "photos"
    content = photographs["cat_0"]
    for path in (elsewhere / "a.jpg", *(folder / name for name in (
        "my__MACOSX_photos/b.jpg", "__MACOSX/c.jpg", ".ipynb_checkpoints/d.jpg", "dogs/._e.jpg",
        "dogs/e.jpg", "@eaDir/f.jpg",
    ))):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "cats").symlink_to(elsewhere)
    (folder / "dogs" / "again").symlink_to(folder)
    (folder / "birds").mkdir()
    summary = pack(folder, tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text().split() == [
        "cats", "dogs", "my__MACOSX_photos",
    ]  # fmt: skip
    packed = {m.key for m in members(tmp_path / "out" / "images-0000.tar")}
    (scored,) = find_shards([str(folder)])
    assert packed == {m.key for m in scored.open()} == {"cats/a", "dogs/e", "my__MACOSX_photos/b"}
    notes = "\n".join(summary.notes)
    assert "left out 4 hidden or system file(s) or folder(s), e.g. .ipynb_checkpoints" in notes
    assert "left out 1 link(s) to a folder they lie in, e.g. dogs/again" in notes
    assert "1 folder(s) hold no image and are no class, e.g. birds" in notes


def test_a_stray_image_takes_no_label_from_the_others(photo_folder, photographs, tmp_path):
    (photo_folder / "stray.jpg").write_bytes(photographs["cat_0"])
    summary = pack(photo_folder, tmp_path / "out")
    assert "1 image(s) beside the class folders have no class (no .cls), e.g. stray.jpg" in (
        "\n".join(summary.notes)
    )
    names = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len([name for name in names if name.endswith(".cls")]) == 12
    assert "stray.cls" not in names


def test_folders_below_a_flat_folder_are_no_classes(photographs, tmp_path):
    (tmp_path / "flat" / "more").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "more/c.jpg"):
        (tmp_path / "flat" / name).write_bytes(photographs["cat_0"])
    summary = pack(tmp_path / "flat", tmp_path / "out")
    assert not (tmp_path / "out" / "classes.txt").exists()
    assert "1 image(s) lie in subfolders, and most do not: none has a class" in summary.notes


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_the_name_of_a_class_is_one_line_of_text(photographs, tmp_path, name):
    folder = os.fsencode(tmp_path / "photos") + b"/" + name
    os.makedirs(folder)
    with open(folder + b"/a.jpg", "wb") as file:
        file.write(photographs["cat_0"])
    with pytest.raises(RequestError, match=r"name of class folder .*rename it") as error:
        pack(tmp_path / "photos", tmp_path / "out")
    assert str(error.value).isprintable()


def replaced(path, keep_times):
    """Another image of the same size, as `cp` or as `cp -p` leaves it."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [True, False])
def test_an_image_replaced_by_one_of_its_size_is_noticed(photo_folder, tmp_path, keep_times):
    pack(photo_folder, tmp_path / "out")
    assert pack(photo_folder, tmp_path / "out").skipped == 3
    replaced(photo_folder / "cat" / "cat_2.jpg", keep_times)
    with pytest.raises(RunMismatchError, match=r"cat_2\.jpg is not what .*images-0001\.tar"):
        pack(photo_folder, tmp_path / "out")


def test_images_that_were_only_touched_are_compared_once(photo_folder, tmp_path):
    """Also where an earlier version packed, which noted no times."""
    out = tmp_path / "out"
    pack(photo_folder, out)
    stamps = json.loads((out / "shards.json").read_text())
    for stamp in stamps.values():
        del stamp["sources"]
    (out / "shards.json").write_text(json.dumps(stamps))
    (photo_folder / "cat" / "cat_2.jpg").touch()
    assert pack(photo_folder, out).skipped == 3
    noted = json.loads((out / "shards.json").read_text())
    assert all(stamp["sources"] for stamp in noted.values())
    replaced(photo_folder / "cat" / "cat_2.jpg", True)
    with pytest.raises(RunMismatchError):
        pack(photo_folder, out)
