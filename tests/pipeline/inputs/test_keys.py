"""One rule of keys: a folder, its packed tars and its annotations call an image the same."""

import json
import tarfile
import unicodedata

import pytest
from webdataset.tariterators import base_plus_ext

from ltrp_core.errors import RequestError
from pipeline.annotations import CocoAnnotations, open_annotations
from pipeline.annotations.folders import AnnotatedFolder
from pipeline.inputs import find_shards
from pipeline.inputs.keys import KeyIndex, image_keys, sample_key
from pipeline.packing import TarSink, find_images

DECOMPOSED = unicodedata.normalize("NFD", "é")
KEYS = {
    "a.jpg": "a",
    "cats/0001.JPEG": "cats/0001",
    "n01/img_1-x.png": "n01/img_1-x",
    "ümlaut.jpg": "ümlaut",
    "photo (1).jpg": "photo (1)",
    "x#1?.jpg": "x#1?",
    "v1.2/img.jpg": "v1.2/img",
    "b.v2.jpg": "b_v2",
    "X_jpg.rf.0a1b.jpg": "X_jpg_rf_0a1b",
    f"caf{DECOMPOSED}.jpg": "café",
    "line\nbreak.jpg": "line_break",
    "cat.jpg": "cat_jpg",
    "cat.png": "cat_png",
    **{f"frame.{number:04}.jpg": f"frame_{number:04}" for number in range(1, 7)},
}
OLD_PACK = {
    "photo (1).jpg": "photo__1_",
    f"caf{DECOMPOSED}.jpg": "cafe_",
    "v1.2/img.jpg": "v1_2/img",
}
"""What `pack` made of some names before."""


def fill(folder, names=KEYS):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_and_its_packed_tar_have_the_same_keys_each_once(tmp_path):
    folder = fill(tmp_path / "in")
    TarSink(tmp_path).write("out.tar", find_images(folder)[0])
    expected = {key: name.encode() for name, key in KEYS.items()}
    for pattern in (folder, tmp_path / "out.tar"):
        # By units of three files: a name's neighbor may be in another unit.
        readers = [shard.open() for shard in find_shards([str(pattern)], unit_size=3)]
        members = [member for reader in readers for member in reader]
        assert {member.key: member.data for member in members} == expected
        assert len(members) == len(KEYS)
        assert not any(reader.left_out for reader in readers)


def test_webdataset_reads_the_keys_that_are_stated(tmp_path):
    TarSink(tmp_path).write("out.tar", find_images(fill(tmp_path / "in"))[0])
    with tarfile.open(tmp_path / "out.tar") as tar:
        names = tar.getnames()
    read = [base_plus_ext(name)[0] for name in names if not name.endswith(".cls")]
    assert sorted(read) == sorted(KEYS.values()) == sorted(map(sample_key, names))


def test_names_that_would_share_a_key_even_so_are_refused_with_both(tmp_path):
    folder = fill(tmp_path / "in", ("a.b.jpg", "a_b.jpg"))
    for find in (find_images, lambda path: find_shards([str(path)], unit_size=1)):
        with pytest.raises(RequestError, match=r"'a\.b\.jpg' and 'a_b\.jpg' would share the key"):
            find(folder)


def coco_of(names, path):
    images = [
        {"id": i, "file_name": name, "height": 4, "width": 4 + i} for i, name in enumerate(names)
    ]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return CocoAnnotations(path), {image["file_name"]: image["width"] for image in images}


def test_every_key_finds_its_own_image_in_coco(tmp_path):
    composed = [unicodedata.normalize("NFC", name) for name in KEYS]
    for names in (list(KEYS), composed):
        annotations, widths = coco_of(names, tmp_path / "instances.json")
        for name, key in zip(names, KEYS.values(), strict=True):
            # Each image has another width: that of another one would be refused.
            assert annotations.foreground(key, 4, widths[name]).name == name


@pytest.mark.parametrize("name", OLD_PACK)
def test_keys_of_older_packs_find_their_image(tmp_path, name):
    annotations, widths = coco_of([name], tmp_path / "instances.json")
    assert annotations.foreground(OLD_PACK[name], 4, widths[name]).name == name


@pytest.mark.parametrize("suffix", [".png", ".xml"])
def test_every_key_finds_its_own_file_in_a_folder_of_annotations(tmp_path, suffix):
    folder = AnnotatedFolder(fill(tmp_path, [f"{name}{suffix}" for name in KEYS]), suffix)
    for name, key in KEYS.items():
        assert folder.find(key) == (name, tmp_path / f"{name}{suffix}")


def test_keys_of_other_programs_tars_end_at_the_first_dot_and_find_their_image():
    index = KeyIndex(["v/X_jpg.rf.0a1b.jpg", "a.jpg", "a.b.jpg"], "here")
    assert index.find("v/X_jpg") == "v/X_jpg.rf.0a1b.jpg"
    assert index.find("a") == "a.jpg"
    assert index.find("a_b") == "a.b.jpg"


def test_the_whole_path_counts_first_then_the_longest_end_of_it():
    index = KeyIndex(["cats/1.jpg", "dogs/1.jpg", "1.jpg", "train/2.jpg", "val/2.jpg"], "here")
    assert index.find("cats/1") == "cats/1.jpg"
    assert index.find("1") == "1.jpg"
    assert index.find("images/dogs/1") == "dogs/1.jpg"
    assert index.find("birds/1") == "1.jpg"
    assert index.find("images/val/2") == "val/2.jpg"
    assert index.find("test/2") is None
    assert index.find("2s") is None
    assert index.find("s/1") == "1.jpg"


def test_a_key_that_fits_two_images_is_refused_with_both():
    index = KeyIndex(["train/2.jpg", "val/2.jpg", "a.jpg", "a.png", "x y.jpg", "x_y.jpg"], "here")
    for key, first, second in (
        ("2", "train/2.jpg", "val/2.jpg"),
        ("a", "a.jpg", "a.png"),
        ("x_y", "x y.jpg", "x_y.jpg"),
    ):
        with pytest.raises(
            RequestError, match=f"^here: sample '{key}' may be '{first}' or '{second}'"
        ):
            index.find(key)
    assert index.find("x y") == "x y.jpg"


@pytest.mark.parametrize("name", ["./n/a.jpg", "/n/a.jpg", "n\\a.jpg", "C:\\data\\n\\a.jpg", "a"])
def test_however_others_write_a_path_its_image_is_found(name):
    assert KeyIndex([name], "here").find("n/a") == name


def test_an_image_of_another_class_has_not_the_annotation_of_its_namesake(tmp_path):
    fill(tmp_path, ["dogs/0001.png"])
    source = open_annotations(tmp_path, format="masks")
    assert source.foreground("cats/0001", 4, 4) is None


def test_keys_do_not_depend_on_the_order_of_names():
    names = list(KEYS)
    assert image_keys(names[::-1]) == image_keys(names)[::-1] == list(KEYS.values())[::-1]
