"""Labels by key: what `pack` writes is read back, and what contradicts itself is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ltrp_core.errors import RequestError
from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import DamagedShardError, find_shards
from pipeline.labels import open_labels
from pipeline.packing import run_pack
from stages.pack import PackConfig

QUIET = JsonLineProgress(every_s=1e9)


@pytest.fixture
def folder(tmp_path):
    """Photographs of two classes, and one that lies beside them."""
    for number, name in enumerate(("cats/1", "cats/2", "dogs/1", "dogs/3", "stray")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return tmp_path / "photos"


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return find_shards([str(path)])


def test_labels_of_packed_shards_are_those_of_the_folders(folder, tmp_path):
    run_pack(PackConfig(), folder, tmp_path / "shards", QUIET)
    packed = open_labels(find_shards([str(tmp_path / "shards")]))
    plain = open_labels(find_shards([str(folder)]))
    assert packed.classes == plain.classes == ["cats", "dogs"]
    assert not packed.is_multi
    for key, expected in (("cats/1", (0,)), ("cats/2", (0,)), ("dogs/3", (1,)), ("stray", None)):
        assert packed.of(key) == plain.of(key) == expected


def test_a_number_in_the_json_of_a_sample_is_its_label(tmp_path):
    shards = write_tar(tmp_path / "a.tar", [
        ("x/1.jpg", b"?"), ("x/1.json", b'{"url": "u", "label": 3}'), ("x/1.txt", b"7"),
        ("x/2.jpg", b"?"), ("x/2.json", b'{"url": "u"}'),
        ("x/3.cls", b" 0\n"), ("x/3.json", b'{"cls": 0}'),
    ])  # fmt: skip
    labels = open_labels(shards)
    assert [labels.of(f"x/{n}") for n in (1, 2, 3)] == [(3,), None, (0,)]
    assert labels.classes == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", b"?")], "no image has a label"),
        ([("1.cls", b"cat")], r"1.cls holds 'cat'; a label is the number"),
        ([("1.cls", b"-1")], "holds '-1'"),
        ([("1.cls", b"1" * 30)], "a label is the number"),
        ([("1.json", b'{"label": true}')], "holds 'True'"),
        ([("1.json", b'{"label": 1')], "1.json"),
        ([("1.cls", b"1"), ("1.json", b'{"cls": 2}')], "'1' is labeled 1 and 2"),
        ([("1.cls", b"0" * (2 << 20))], "that is no label"),
    ],
)
def test_what_is_no_label_is_named(tmp_path, members, message):
    with pytest.raises(RequestError, match=message):
        open_labels(write_tar(tmp_path / "a.tar", members))


def test_two_images_of_one_key_must_be_of_one_class(tmp_path):
    shards = [
        *write_tar(tmp_path / "a.tar", [("1.cls", b"0")]),
        *write_tar(tmp_path / "b.tar", [("1.cls", b"1")]),
    ]
    with pytest.raises(RequestError, match=r"b\.tar: '1' is labeled 0 and 1"):
        open_labels(shards)


def test_a_cut_tar_is_named(tmp_path):
    shards = write_tar(tmp_path / "a.tar", [("1.cls", b"0"), ("2.cls", b"1" * 9)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:1540])
    with pytest.raises(DamagedShardError, match=r"a\.tar"):
        open_labels(shards)


def test_more_classes_than_names_are_refused(tmp_path):
    shards = write_tar(tmp_path / "a.tar", [("1.cls", b"2")])
    (tmp_path / "classes.txt").write_text("cats\ndogs\n")
    with pytest.raises(RequestError, match="class 2 is labeled, and 2 have a name"):
        open_labels(shards)


def test_coco_labels_an_image_with_all_its_categories(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in (1, 2)]
    objects = [
        {"id": n, "image_id": 1, "category_id": c, "bbox": [0, 0, 4, 4]}
        for n, c in enumerate((7, 3, 7))
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "person"}]
    document = {"images": images, "annotations": objects, "categories": categories}
    (tmp_path / "i.json").write_text(json.dumps(document))
    labels = open_labels([], tmp_path / "i.json")
    assert labels.is_multi
    assert list(labels.classes) == ["person", "dog"]
    assert (labels.of("1"), labels.of("2"), labels.of("9")) == ((0, 1), (), None)


def test_voc_labels_an_image_with_the_classes_of_its_boxes(tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
    size = "<size><width>8</width><height>8</height></size>"
    for name, classes in (("a", ("dog", "cat", "dog")), ("b", ("unicorn",))):
        objects = "".join(f"<object><name>{c}</name>{box}</object>" for c in classes)
        (tmp_path / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    labels = open_labels([], tmp_path)
    assert [labels.classes[number] for number in labels.of("a")] == ["cat", "dog"]
    with pytest.raises(RequestError, match="an object of 'b' is of class 'unicorn'"):
        labels.of("b")


def test_masks_have_no_labels(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"format masks at .* have no labels"):
        open_labels([], tmp_path, format="masks")
