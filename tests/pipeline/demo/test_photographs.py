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


@pytest.fixture(scope="module")
def document():
    return json.loads(FILE.read_text())


def test_every_photograph_is_there_in_the_size_it_is_annotated_in(document):
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in document["images"]}
    found = {name: Image.open(io.BytesIO(data)) for name, data in demo_photographs()}
    assert list(found) == sorted(found)
    assert {name: image.size for name, image in found.items()} == sizes
    assert all(image.mode == "RGB" for image in found.values())
    assert len(found) == len(PHOTOGRAPHS) >= 7


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
