import tarfile

import numpy as np
import pytest
import webdataset

from ltrp_core.errors import RequestError
from pipeline import run_stage
from pipeline.inputs.shards import TarShard
from pipeline.packing import find_images
from pipeline.progress import JsonLineProgress
from pipeline.store.errors import RunMismatchError
from stages.pack import PackConfig

CONFIG = PackConfig(shard_size=5)


def members(path):
    return TarShard(str(path), path.stat().st_size).open()


def pack(folder, out, config=CONFIG):
    return run_stage.run_pack(config, folder, out, JsonLineProgress())


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
