import io
import json
from importlib import resources

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.annotations import CocoAnnotations
from pipeline.demo.photographs import PHOTOGRAPHS, demo_photographs

FILE = resources.files("pipeline.demo") / "annotations.json"


def _pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def _key(photograph):
    return photograph.name.split(".")[0]


@pytest.fixture(scope="module")
def document():
    return json.loads(FILE.read_text())


def test_every_photograph_is_there_in_the_size_it_is_annotated_in(document):
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in document["images"]}
    found = {name: Image.open(io.BytesIO(data)) for name, data in demo_photographs()}
    assert list(found) == sorted(found)
    assert {name: image.size for name, image in found.items()} == sizes
    assert all(image.mode in ("RGB", "L") for image in found.values())
    assert len(found) == len(PHOTOGRAPHS) == 12


def test_crops_show_the_pixels_and_the_outlines_of_their_photographs():
    annotations, found = CocoAnnotations(FILE), dict(demo_photographs())
    whole = {one.file: one for one in PHOTOGRAPHS if one.box is None}
    crops = [one for one in PHOTOGRAPHS if one.box is not None]
    assert len(crops) == 2
    for crop in crops:
        assert crop.box is not None
        left, top, right, bottom = crop.box
        source = whole[crop.file]
        pixels, expected = _pixels(found[crop.name]), _pixels(found[source.name])
        assert np.array_equal(pixels, expected[top:bottom, left:right])
        height, width = pixels.shape[:2]
        objects = annotations.foreground(_key(crop), height, width).is_foreground
        of_whole = annotations.foreground(_key(source), *expected.shape[:2]).is_foreground
        # Clipped corners are whole px, so a slanted edge may be off by one.
        assert np.mean(objects != of_whole[top:bottom, left:right]) < 0.005


def test_the_object_of_a_crop_is_on_the_side_that_its_name_tells(document):
    images = {one["file_name"]: one for one in document["images"]}
    kinds = {one["name"]: one["id"] for one in document["categories"]}
    middles = {}
    for name, kind in (("flower_left.png", "flower"), ("rocket_right.png", "rocket")):
        largest = max(
            (
                one
                for one in document["annotations"]
                if one["image_id"] == images[name]["id"] and one["category_id"] == kinds[kind]
            ),
            key=lambda one: one["area"],
        )
        left, _, width, _ = largest["bbox"]
        middles[kind] = (left + width / 2) / images[name]["width"]
    assert middles["flower"] < 0.35
    assert middles["rocket"] > 0.65


def test_areas_and_boxes_are_those_of_the_outlines(document):
    sizes = {one["id"]: (one["height"], one["width"]) for one in document["images"]}
    for one in document["annotations"]:
        height, width = sizes[one["image_id"]]
        (outline,) = one["segmentation"]
        xs, ys = outline[::2], outline[1::2]
        assert min(*xs, *ys) >= 0
        assert max(xs) <= width
        assert max(ys) <= height
        assert one["bbox"] == [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        region = coco_mask.merge(coco_mask.frPyObjects([outline], height, width))
        assert coco_mask.area(region) == pytest.approx(one["area"], rel=0.02)


def test_every_photograph_has_foreground_and_background():
    annotations = CocoAnnotations(FILE)
    for name, data in demo_photographs():
        width, height = Image.open(io.BytesIO(data)).size
        found = annotations.foreground(name.split(".")[0], height, width)
        assert 0.03 < np.mean(found.is_foreground) < 0.85, name
