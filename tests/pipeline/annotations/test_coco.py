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


def test_what_is_no_coco_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no readable JSON"):
        CocoAnnotations(tmp_path / "missing.json")
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(RequestError, match="annotations, categories, images missing"):
        CocoAnnotations(tmp_path / "list.json")
    for part in ("images", "annotations", "categories"):
        document = {"images": [], "annotations": [], "categories": []} | {part: {}}
        (tmp_path / "parts.json").write_text(json.dumps(document))
        with pytest.raises(RequestError, match=f"{part} must be a list"):
            CocoAnnotations(tmp_path / "parts.json")


def image(number, name="a.jpg", **changes):
    return {"id": number, "file_name": name, "height": 40, "width": 60} | changes


def of_image(number, **changes):
    return POLYGON | {"image_id": number} | changes


def test_two_images_of_one_name_or_one_id_are_refused_with_both(write):
    for images, says in (
        ([image(1), image(2)], "two images are called 'a.jpg'"),
        ([image(1), image(2, "./a.jpg")], "'a.jpg' and './a.jpg' are one path"),
        ([image(1), image(1, "b.jpg")], "'a.jpg' and 'b.jpg' have one id, 1"),
        ([image(1), image("1", "b.jpg")], "'a.jpg' and 'b.jpg' have one id, '1'"),
    ):
        with pytest.raises(RequestError, match=rf"instances\.json: .*{says}"):
            CocoAnnotations(write([of_image(1)], images=images))


@pytest.mark.parametrize(("there", "asked"), [(7, "7"), ("7", 7), ("x", "x"), (7, 7.0)])
def test_ids_are_the_same_as_numbers_and_as_text(write, there, asked):
    objects = [of_image(asked, category_id="1")]
    found = CocoAnnotations(write(objects, images=[image(there)])).foreground("a", 40, 60)
    assert np.array_equal(found.is_foreground, square(5, 10, 25, 30))


@pytest.mark.parametrize(
    "changes", [{"image_id": 8}, {"image_id": "x"}, {"category_id": 9}, {"iscrowd": "0"}]
)
def test_an_annotation_that_refers_to_nothing_is_named(write, changes):
    with pytest.raises(RequestError, match=r"instances\.json: annotation 1 is damaged: "):
        CocoAnnotations(write([POLYGON, POLYGON | changes]))


@pytest.mark.parametrize("changes", [{"image_id": None}, {"category_id": [1]}, {"image_id": 1.5}])
def test_an_id_that_is_none_is_named(write, changes):
    with pytest.raises(RequestError, match=r"annotation 1 has the id .*; ids are whole numbers"):
        CocoAnnotations(write([POLYGON, POLYGON | changes]))


def test_categories_of_one_id_are_refused_unless_they_are_the_same(write):
    one, same = {"id": 1, "name": "dog"}, {"id": 1, "name": " dog"}
    path = write([POLYGON], categories=[one, same, {"id": 2, "name": "dog"}])
    assert CocoAnnotations(path).foreground("sub/a.b", 40, 60, "learned").is_foreground.any()
    with pytest.raises(RequestError, match=r"'dog' and 'a\\ncat' have one id, 1"):
        CocoAnnotations(write([], categories=[one, {"id": 1, "name": "a\ncat"}]))


def test_equal_ids_of_annotations_do_no_harm(write):
    other = {"segmentation": [[40, 0, 50, 0, 50, 10, 40, 10]], "id": 0}
    found = CocoAnnotations(write([POLYGON, other])).foreground("sub/a.b", 40, 60)
    assert np.array_equal(found.is_foreground, square(5, 10, 25, 30) | square(0, 40, 10, 50))


def test_images_that_differ_in_their_ending_have_a_key_each(write):
    images = [image(1), image(2, "a.png")]
    annotations = CocoAnnotations(write([of_image(2)], images=images))
    assert not annotations.foreground("a_jpg", 40, 60).is_foreground.any()
    assert annotations.foreground("a_png", 40, 60).is_foreground.any()
    with pytest.raises(RequestError, match=r"sample 'a' may be 'a\.jpg' or 'a\.png'"):
        annotations.foreground("a", 40, 60)


@pytest.mark.parametrize("side", [0, -4, 4.5, "40", None, True])
def test_an_image_of_no_size_is_named(write, side):
    with pytest.raises(RequestError, match=r"image 'a\.jpg' has height") as error:
        CocoAnnotations(write([], images=[image(1, height=side)]))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "part",
    [
        {"images": [image(1, height=10**400)]},
        {"annotations": [{**of_image(1), "bbox": [1, 2, 10**400, 4]}]},
        {"annotations": [{**of_image(1), "segmentation": [[10, 5, 30, 5, 10**400, 7]]}]},
    ],
    ids=["size", "box", "polygon"],
)
def test_a_number_of_400_digits_is_refused_with_the_file(tmp_path, part):
    document = {"images": [image(1)], "annotations": [], "categories": []} | part
    (tmp_path / "instances.json").write_text(json.dumps(document))
    with pytest.raises(RequestError, match=r"instances\.json.*a whole number of 401 digits"):
        CocoAnnotations(tmp_path / "instances.json").foreground("a", 40, 60)


def test_crowds_are_ignored_by_their_boxes_where_boxes_are_asked_for(write):
    crowd = {"bbox": [0, 0, 20, 20], "iscrowd": 1}
    found = CocoAnnotations(write([POLYGON, crowd]), shape="boxes").foreground("sub/a.b", 40, 60)
    objects = square(5, 10, 25, 30)
    assert np.array_equal(found.is_foreground, objects)
    assert np.array_equal(found.is_ignored, square(0, 0, 20, 20) & ~objects)
    with pytest.raises(RequestError, match="--foreground boxes needs none"):
        CocoAnnotations(write([POLYGON, crowd])).foreground("sub/a.b", 40, 60)


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
        {"segmentation": {"size": 2400, "counts": [2400]}},
        {"segmentation": [10, 5, 30, 5, 30, 25]},
        {"category_id": 9, "segmentation": [[10, 5, 30, 5, 30, 25]]},
    ],
)
def test_a_damaged_annotation_is_named(write, annotation):
    path = write([POLYGON, annotation])
    with pytest.raises(RequestError, match=r"instances\.json: annotation 1 is damaged"):
        CocoAnnotations(path).foreground("sub/a.b", 40, 60)


@pytest.mark.parametrize(
    "bbox",
    [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, float("inf"), 4], [1, 2, True, 4]],
)
def test_a_damaged_box_is_named(write, bbox):
    path = write([POLYGON | {"bbox": bbox}])
    with pytest.raises(RequestError, match="annotation 0 is damaged: bbox"):
        CocoAnnotations(path, shape="boxes").foreground("sub/a.b", 40, 60)


@pytest.mark.parametrize(
    ("bbox", "says"),
    [
        ([30, 25, -20, -20], "box is -20 x -20 px"),
        ([60, 0, 5, 5], "outside"),
        ([0, 40, 5, 5], "outside"),
        ([-5, 0, 5, 5], "outside"),
    ],
)
def test_a_box_of_no_pixel_is_named_unless_it_is_empty(write, bbox, says):
    path = write([POLYGON | {"bbox": bbox}])
    with pytest.raises(RequestError, match=f"annotation 0 is damaged: its .*{says}"):
        CocoAnnotations(path, shape="boxes").foreground("sub/a.b", 40, 60)
    empty = CocoAnnotations(write([POLYGON | {"bbox": [9, 9, 0, 7]}]), shape="boxes")
    assert not empty.foreground("sub/a.b", 40, 60).is_foreground.any()


@pytest.mark.parametrize("text", ["[]", "1" * 5000, "[1", "\0", "[" * 100_000, '{"images": 1}'])
def test_a_damaged_file_is_named_in_one_line(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(RequestError, match=r"broken\.json") as error:
        CocoAnnotations(tmp_path / "broken.json")
    assert "\n" not in str(error.value)


def test_a_file_without_what_its_images_need_is_refused(write):
    for images in ([{"file_name": "a.jpg"}], [{"id": 1, "height": 1, "width": 1}], ["a.jpg"]):
        with pytest.raises(RequestError, match="is no COCO instances file"):
            CocoAnnotations(write([], images=images))
