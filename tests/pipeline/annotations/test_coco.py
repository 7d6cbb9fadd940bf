import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltrp_core.errors import RequestError
from pipeline.annotations import CocoAnnotations


def rle(mask, compressed):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


@pytest.fixture
def write(tmp_path):
    def write(annotations, **changes):
        document = {
            "images": [{"id": 7, "file_name": "sub/a.b.jpg", "height": 40, "width": 60}],
            "annotations": [
                {"id": i, "image_id": 7, "category_id": 1, "area": 1, "iscrowd": 0, **annotation}
                for i, annotation in enumerate(annotations)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        } | changes
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(document))
        return path

    return write


def square(top, left, bottom, right):
    mask = np.zeros((40, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


POLYGON = {"segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]], "bbox": [10, 5, 20, 20]}


def test_polygons_boxes_and_both_kinds_of_rle_give_the_same_region(write):
    expected = square(5, 10, 25, 30)
    by_polygon = CocoAnnotations(write([POLYGON])).foreground("sub/a.b", 40, 60)
    assert np.array_equal(by_polygon.is_foreground, expected)
    for compressed in (False, True):
        annotation = {"segmentation": rle(expected, compressed), "bbox": [10, 5, 20, 20]}
        by_rle = CocoAnnotations(write([annotation])).foreground("sub/a.b", 40, 60)
        assert np.array_equal(by_rle.is_foreground, expected)
    by_box = CocoAnnotations(write([POLYGON]), shape="boxes").foreground("sub/a.b", 40, 60)
    assert np.array_equal(by_box.is_foreground, expected)


def test_foreground_is_the_union_and_crowds_are_ignored_where_no_object_is(write):
    crowd = square(0, 0, 20, 20)
    other = {"segmentation": [[40, 0, 50, 0, 50, 10, 40, 10]], "bbox": [40, 0, 10, 10]}
    annotations = [
        POLYGON,
        other,
        {"segmentation": rle(crowd, False), "bbox": [0, 0, 20, 20], "iscrowd": 1},
    ]
    found = CocoAnnotations(write(annotations)).foreground("sub/a.b", 40, 60)
    objects = square(5, 10, 25, 30) | square(0, 40, 10, 50)
    assert np.array_equal(found.is_foreground, objects)
    assert np.array_equal(found.is_ignored, crowd & ~objects)


def test_an_image_without_objects_has_none_and_an_unknown_one_is_not_annotated(write):
    annotations = CocoAnnotations(write([]))
    assert not annotations.foreground("sub/a.b", 40, 60).is_foreground.any()
    assert annotations.foreground("other", 40, 60) is None


def test_another_size_is_refused_with_both(write):
    with pytest.raises(RequestError, match=r"60 x 40 px there, but .* 30 x 20 px"):
        CocoAnnotations(write([POLYGON])).foreground("sub/a.b", 20, 30)


def test_what_is_no_coco_file_is_refused(tmp_path, write):
    with pytest.raises(RequestError, match="no readable JSON"):
        CocoAnnotations(tmp_path / "missing.json")
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(RequestError, match="annotations, categories, images missing"):
        CocoAnnotations(tmp_path / "list.json")
    twice = [
        {"id": i, "file_name": f"a.{e}", "height": 4, "width": 4}
        for i, e in ((1, "jpg"), (2, "png"))
    ]
    with pytest.raises(RequestError, match="two images are called 'a'"):
        CocoAnnotations(write([], images=twice))


def test_groups_choose_objects_and_crowds_by_category(write):
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    dog = {"segmentation": [[40, 0, 50, 0, 50, 10, 40, 10]], "category_id": 2}
    crowd = {"segmentation": rle(square(30, 0, 40, 60), True), "category_id": 2, "iscrowd": 1}
    annotations = CocoAnnotations(write([POLYGON, dog, crowd], categories=categories))
    person, of_dog = square(5, 10, 25, 30), square(0, 40, 10, 50)
    for group, region, ignored in (
        ("all", person | of_dog, 600),
        ("learned", of_dog, 600),
        ("unseen", person, 0),
        ("unseen-strict", person & of_dog, 0),
    ):
        found = annotations.foreground("sub/a.b", 40, 60, group)
        assert np.array_equal(found.is_foreground, region), group
        assert found.is_ignored.sum() == ignored


def test_own_categories_have_no_group(write):
    with pytest.raises(RequestError, match="not for 'thing'; pass --categories all"):
        CocoAnnotations(write([POLYGON])).foreground("sub/a.b", 40, 60, "learned")


def test_boxes_end_at_the_border(write):
    box = {"segmentation": [], "bbox": [-5.4, 30.2, 20, 500]}
    found = CocoAnnotations(write([box]), shape="boxes").foreground("sub/a.b", 40, 60)
    assert np.array_equal(found.is_foreground, square(30, 0, 40, 15))


@pytest.mark.parametrize(
    "annotation",
    [
        {"segmentation": None},
        {"segmentation": []},
        {"segmentation": [[10, 5, 30, 5]]},
        {"segmentation": [[10, 5, 30, 5, 30]]},
        {"segmentation": [[10, 5, 30, 5, 30, "x"]]},
        {"segmentation": [[10, 5, 30, 5, 1e12, 7]]},
        {"segmentation": [[10, 5, 30, 5, float("nan"), 7]]},
        {"segmentation": {"size": [60, 40], "counts": [2400]}},
        {"segmentation": {"size": [40, 60], "counts": [2399]}},
        {"segmentation": {"size": [40, 60], "counts": [2401, -1]}},
        {"segmentation": {"size": [40, 60], "counts": "~~~~"}},
        {"segmentation": {"size": [40, 60], "counts": "é"}},
        {"segmentation": {"size": [40, 60]}},
        {"category_id": 9, "segmentation": [[10, 5, 30, 5, 30, 25]]},
    ],
)
def test_a_damaged_annotation_is_named(write, annotation):
    path = write([POLYGON, annotation])
    with pytest.raises(RequestError, match=r"instances\.json: annotation 1 is damaged"):
        CocoAnnotations(path).foreground("sub/a.b", 40, 60)


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, float("inf"), 4]])
def test_a_damaged_box_is_named(write, bbox):
    path = write([POLYGON | {"bbox": bbox}])
    with pytest.raises(RequestError, match="annotation 0 is damaged: bbox"):
        CocoAnnotations(path, shape="boxes").foreground("sub/a.b", 40, 60)


@pytest.mark.parametrize("text", ["[]", "[1", "\0", "[" * 100_000, '{"images": 1}'])
def test_a_damaged_file_is_named_in_one_line(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(RequestError, match=r"broken\.json") as error:
        CocoAnnotations(tmp_path / "broken.json")
    assert "\n" not in str(error.value)


def test_a_file_without_what_its_images_need_is_refused(write):
    for images in ([{"file_name": "a.jpg"}], [{"id": 1, "height": 1, "width": 1}], ["a.jpg"]):
        with pytest.raises(RequestError, match="is no COCO instances file"):
            CocoAnnotations(write([], images=images))
